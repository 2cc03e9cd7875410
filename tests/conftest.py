"""Shared parts of the tests: sample scenes, a small model, one Ray for all, one index to read."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from segrec_batch.common import logs
from segrec_batch.images.decode import shapes_of_size
from segrec_batch.labels.labelled import load_classes, pair_images
from segrec_batch.model.bundle import Model
from segrec_batch.model.weights import load_weights
from segrec_batch.sample_data import write_scenes
from segrec_batch.training.sampling import Sampling
from segrec_batch.training.trainer import Settings, train

os.environ["RAY_AUTH_MODE"] = "disabled"  # before anything imports ray
if all(map(find_spec, ("duckdb", "ray", "s3fs"))):  # a machine with a GPU may have none
    from tests.support.s3 import s3  # noqa: F401 - a fixture


@pytest.fixture(scope="session", autouse=True)
def _logging() -> Iterator[None]:
    """Messages go to stderr, as those of a command."""
    with logs.configure_logging():
        yield


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return str(request.param)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes in four places: images/, masks/, classes.json."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 24, places=4, size=(160, 120))
    return folder


@pytest.fixture(scope="session")
def model(scenes: Path) -> Model:
    """A model of the scenes on random weights, small and in float32."""
    settings = Settings(
        layers=("conv4_3,conv5_3",),
        c=(1.0,),
        shapes=shapes_of_size(128, 16),
        sampling=Sampling(positions=100),
    )
    images = pair_images(str(scenes / "images"), str(scenes / "masks"))
    return train(
        images, load_classes(str(scenes / "classes.json")), load_weights("random:0"), settings
    )


@pytest.fixture(scope="session")
def model_dir(model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of the saved `model`."""
    folder = str(tmp_path_factory.mktemp("model"))
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for the whole session; jobs use it, in this process and in processes of their own."""
    import ray
    from ray._raylet import AuthenticationTokenLoader

    from segrec_batch.distributed import cluster

    with cluster.join(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", AuthenticationTokenLoader.instance().get_raw_token())
        yield


@pytest.fixture(scope="session")
def index(
    scenes: Path, model_dir: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """An index of the scenes and one broken image; for reading only."""
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import Execution, index_images

    images = scenes / "images"
    (images / "place_00" / "broken.jpg").write_bytes(b"no image")
    uri = str(tmp_path_factory.mktemp("index") / "it's an index")
    try:
        index_images(Request(str(images)), model_dir, uri, Execution("cpu"))
    finally:
        (images / "place_00" / "broken.jpg").unlink()
    return uri


@pytest.fixture
def images(scenes: Path, tmp_path: Path) -> Path:
    """Six scenes to change at will."""
    folder = tmp_path / "images"
    folder.mkdir()
    for source in sorted((scenes / "images" / "place_01").iterdir()):
        shutil.copy2(source, folder)
    return folder
