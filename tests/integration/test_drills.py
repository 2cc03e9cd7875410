"""Tests of the messages that docs/operations.md quotes for failures."""

from pathlib import Path

import numpy as np
import pytest

from segrec_batch.common.errors import IndexStateError, ModelError, StorageError
from segrec_batch.index import snapshot as store
from segrec_batch.model.spec import FORMAT, read_spec
from segrec_batch.pipeline.plan import Plan, Request
from segrec_batch.sources import storage
from tests.support.builders import tiny_model
from tests.support.feature_index import write_index
from tests.support.s3 import FaultyProxy, environment, new_bucket

pytestmark = pytest.mark.slow

FEATURES = np.random.default_rng(0).random((3, 16), np.float32)
ROOT = Path(__file__).parents[2]


def copy_to_bucket(folder: Path) -> str:
    bucket = new_bucket()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        storage.write_bytes(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())
    return bucket


def test_dead_store_is_not_damage(s3: dict[str, str], tmp_path: Path) -> None:
    write_index(str(tmp_path / "index"), FEATURES)
    index = copy_to_bucket(tmp_path / "index")
    storage.write_bytes(str(tmp_path / "a.jpg"), b"")
    with FaultyProxy(s3["AWS_ENDPOINT_URL"]) as proxy, environment(**proxy.env):
        snapshot = store.open_snapshot(index)
        proxy.kill()
        with pytest.raises(StorageError, match=r"^s3://.*\.parquet: EndpointConnectionError"):
            Plan(Request(str(tmp_path)), snapshot)


@pytest.mark.parametrize("damage", ["gone", "damaged"])
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_damaged_files_end_the_run_early(
    tmp_path: Path, request: pytest.FixtureRequest, where: str, damage: str
) -> None:
    index = str(tmp_path / "index")
    write_index(index, FEATURES)
    if where == "s3":
        request.getfixturevalue("s3")
        index = copy_to_bucket(Path(index))
    snapshot = store.open_snapshot(index)
    file = snapshot.files["images"][0].uri(index)
    content = storage.read_bytes(file)
    storage.delete([file])
    if damage == "damaged":
        storage.write_bytes(file, bytes(len(content)))
    storage.write_bytes(str(tmp_path / "a.jpg"), b"")
    with pytest.raises(IndexStateError, match=r"lost or damaged files: .*segrec maintain verify"):
        Plan(Request(str(tmp_path)), snapshot)


def test_bundle_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().save(str(folder))
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace(f'"format": {FORMAT}', '"format": 1'))
    with pytest.raises(
        ModelError,
        match=f"{folder}/model.json: the bundle has format 1, this version reads format {FORMAT}: ",
    ):
        read_spec(str(folder))
