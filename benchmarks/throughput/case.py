"""Images and model of the throughput benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
from PIL import Image

from segrec_batch.common import console
from segrec_batch.common.errors import InputError
from segrec_batch.common.host import usable_cores
from segrec_batch.images.decode import Shape, nearest_shape, shapes_of_size
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.engines import EngineChoice
from segrec_batch.model.spec import ModelSpec, read_spec
from segrec_batch.pipeline.stage_schema import MANIFEST
from segrec_batch.sample_data import write_scenes
from segrec_batch.sources.listing import list_images

CORES = usable_cores()
IMAGE = (640, 480)
DRAWN = 64  # maximum number of scenes; further images are links to these
LABELLED = 8  # scenes for training the model


@dataclass(frozen=True)
class Case:
    """One run of one way: `count` images in the folder `images`, which `taking` fills.

    choice: engine, precision and device. output: a folder that does not exist yet. batch_size: of
    segrec. peers_batch: batch size of the peers.
    """

    folder: str
    sources: tuple[str, ...]
    model: str
    choice: EngineChoice
    batch_size: int
    peers_batch: int
    peers_threads: int | None = None
    images: str = ""
    count: int = 0
    output: str = ""

    def taking(self, count: int, name: str) -> "Case":
        """Return the case with its first `count` images and a folder for run `name`."""
        images = Path(self.folder, f"images_{count}")
        if not images.exists():
            images.mkdir()
            for i, source in enumerate(islice(cycle(self.sources), count)):
                (images / f"{i:06d}{Path(source).suffix}").symlink_to(source)
        output = str(Path(self.folder, name))
        return replace(self, images=str(images), count=count, output=output)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.choice.device

    @property
    def spec(self) -> ModelSpec:
        """Spec of the model."""
        return read_spec(self.model)[0]

    @property
    def shape(self) -> Shape:
        """Height and width of the images as the model sees them."""
        return nearest_shape(self.spec.shapes, *read_shape(self.sources))

    def paths(self) -> list[str]:
        """Return the paths of the images, sorted."""
        return [str(path) for path in sorted(Path(self.images).iterdir())]

    def manifest(self) -> pa.Table:
        """Return the manifest of the first stage, with no image in an index."""
        rows = list_images(self.images).to_pylist()
        return pa.Table.from_pylist(rows, MANIFEST)

    def blocks(self) -> list[pa.Table]:
        """Return the manifest in batches."""
        rows = self.manifest()
        return [rows.slice(i, self.batch_size) for i in range(0, rows.num_rows, self.batch_size)]


def read_shape(sources: Sequence[str]) -> Shape:
    """Return the height and width of images. Raises InputError if they differ.

    Batches need images of one size.
    """
    shapes = set()
    for source in sources:
        with Image.open(source) as image:
            shapes.add((image.height, image.width))
    if len(shapes) > 1:
        raise InputError(f"images of one size are needed, not of {len(shapes)}")
    return shapes.pop()


def list_sources(uri: str, count: int) -> list[str]:
    """Return at most `count` images of a local folder. Raises InputError."""
    return [str(Path(p).resolve()) for p in list_images(uri)["uri"].to_pylist()[:count]]


def draw_images(folder: Path, count: int) -> list[str]:
    """Draw scenes of 640×480 as JPEGs of quality 92; return their paths."""
    number = min(count, DRAWN)
    with console.ProgressMeter("scenes", number) as meter:
        write_scenes(folder, number, size=IMAGE, progress=lambda _: meter.advance())
    return [str(path) for path in sorted((folder / "images").rglob("*.jpg"))]


def train_model(place: tuple[Path, int]) -> str:
    """Train a model with random filters on drawn scenes; return its folder.

    `place`: a folder, and the input size of the model.
    """
    from segrec_batch.labels.labelled import load_classes, pair_images
    from segrec_batch.model.weights import load_weights
    from segrec_batch.training.sampling import Sampling
    from segrec_batch.training.trainer import Settings, train

    folder, size = place
    write_scenes(folder / "labelled", LABELLED, places=4)
    images = pair_images(str(folder / "labelled/images"), str(folder / "labelled/masks"))
    classes = load_classes(str(folder / "labelled/classes.json"))
    settings = Settings(
        c=(1.0,),
        shapes=shapes_of_size(size, DEFAULT_BACKBONE.stride),
        sampling=Sampling(positions=200),
    )
    train(images, classes, load_weights("random:0"), settings).save(str(folder / "model"))
    return str(folder / "model")
