"""Sizes, files and model of the GPU benchmark."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segrec_batch.images.decode import Shape

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    shapes: (height, width) of the images that the model sees; the goals refer to the first.
    batches: images of a batch. seconds: minimum time for one rate. matrix: side of the matrices.
    scenes: JPEGs of 640×480 to draw. decoded: JPEGs decoded by each process.
    indexed: images N of a whole job, which then indexes 2 N. batch: images of a batch of that job.
    """

    shapes: tuple[Shape, ...] = ((544, 720), (224, 224))
    batches: tuple[int, ...] = (32, 128)
    seconds: float = 1.0
    matrix: int = 8192
    scenes: int = 16
    decoded: int = 256
    indexed: int = 4096
    batch: int = 32


SMALL = Sizes(((64, 96), (32, 32)), (2,), 0.1, 256, scenes=2, decoded=4, indexed=2, batch=2)


@dataclass(frozen=True)
class GpuCase:
    """One run: folder of its files, device (cpu or cuda), cores of the host, and sizes."""

    folder: str
    device: str
    cores: int
    sizes: Sizes

    @property
    def is_cuda(self) -> bool:
        """True if the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def images(self) -> list[str]:
        """The paths of the JPEGs that `prepare` has drawn, sorted."""
        return sorted(map(str, Path(self.folder, "scenes", "images").rglob("*.jpg")))

    def model(self, shape: Shape) -> str:
        """Return the folder of the model that sees images of one shape."""
        return str(Path(self.folder, "model_" + write_shape(shape)))


def write_shape(shape: Shape) -> str:
    """Return width×height.

    >>> write_shape((544, 720))
    '720×544'
    """
    return f"{shape[1]}×{shape[0]}"


def prepare(case: GpuCase) -> Iterator[Row]:
    """Draw JPEGs, train a model on random filters, save it once for each shape."""
    from benchmarks.throughput.case import draw_images, train_model
    from segrec_batch.model.bundle import load_model

    draw_images(Path(case.folder, "scenes"), case.sizes.scenes)
    yield {"scenes": len(case.images)}
    model = load_model(train_model((Path(case.folder), 128)))  # its input size is replaced below
    for shape in case.sizes.shapes:
        replace(model, spec=replace(model.spec, shapes=(shape,))).save(case.model(shape))
    yield {"models": len(case.sizes.shapes), "taps": list(model.spec.taps)}
