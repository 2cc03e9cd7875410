"""Tests that foreign files are neither deleted nor replaced."""

import datetime as dt
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from segrec_batch.api.train import check_bundle_place
from segrec_batch.common.errors import InputError
from segrec_batch.distributed import scratch
from segrec_batch.evaluation.report import check_report_place
from segrec_batch.index import log_entries, staging
from segrec_batch.index import snapshot as store
from segrec_batch.index.files import DataFile, is_part_file, new_part
from segrec_batch.index.parts import write_file
from segrec_batch.index.schema import failures_schema
from segrec_batch.maintenance.versions import read_named_files, vacuum
from segrec_batch.model.bundle import Model
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import dry_run, index_images
from segrec_batch.sample_data import write_scenes
from segrec_batch.search.batch.output import Output
from segrec_batch.sources import storage
from tests.support.builders import failure_file, tiny_model
from tests.support.s3 import new_bucket

NOW = dt.timedelta(0)
OLD = (1e9, 1e9)


@pytest.fixture(scope="module")
def small() -> Model:
    return tiny_model(taps=("conv3_3",))


@pytest.fixture
def index(small: Model, tmp_path: Path) -> str:
    """An index of a version with a file and one without."""
    uri = str(tmp_path / "index")
    one = store.commit(store.create(uri, small), [failure_file(uri, "one")])
    store.commit(one, [], one.files["failures"])
    return uri


def put(path: Path, content: bytes = b"mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, OLD)
    return path


def foreign_parquet(path: Path) -> Path:
    """Rows of the right columns, by another program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(failures_schema().empty_table(), path)
    os.utime(path, OLD)
    return path


def iter_files_below(folder: str) -> set[Path]:
    return {path for path in Path(folder).rglob("*") if path.is_file() or path.is_symlink()}


def delete_one(uris: Sequence[str]) -> None:
    Path(uris[0]).unlink()
    raise KeyboardInterrupt


# --- vacuum ------------------------------------------------------------------------------------


def test_vacuum_leaves_foreign_files(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, root = store.open_snapshot(index), Path(index)
    others = [
        put(root / "notes.txt"),
        put(root / "images" / "notes.txt"),
        put(root / "images" / "photo.jpg"),
        put(root / "images" / ".1.tmp"),
        put(root / "images" / f".{new_part()}.tmp"),
        foreign_parquet(root / "images" / "mine.parquet"),
        foreign_parquet(root / "failures" / f"{new_part()}.parquet"),
        foreign_parquet(root / "failures" / "backup" / f"{new_part()}.parquet"),
        put(root / "models" / "notes.txt"),
        put(root / "models" / "streets" / "model.json"),
        put(root / "models" / "streets" / "head.safetensors"),
        put(root / "models" / ("0" * 16) / "model.json"),  # such a name, of no commit
        put(Path(snapshot.model_uri) / "README.md"),
        put(root / "rebuild" / "notes" / "plan.json"),
    ]
    renamed = Path(failure_file(index, "a copy by hand").uri(index))
    others.append(renamed.rename(renamed.with_name(f"{new_part()}.parquet")))
    os.utime(others[-1], OLD)
    orphan = failure_file(index, "of a run that died")
    draft = put(root / "regions" / f".segrec-{new_part()}.tmp")
    doomed = {uri for uri, _ in vacuum(index, NOW, force=True)}
    (gone,) = store.read_log(index, 1).files["failures"]
    assert doomed == {orphan.uri(index), str(draft), gone.uri(index)}
    assert not iter_files_below(index) & set(map(Path, doomed))
    assert set(others) <= iter_files_below(index)
    (message,) = [s for s in capsys.readouterr().err.splitlines() if "not the index's own" in s]
    assert message.startswith("13 files are not the index's own and stay, e.g. ")
    assert store.open_snapshot(index) == snapshot


def test_vacuum_follows_no_links(index: str, tmp_path: Path) -> None:
    """Not even to files that are those of an index: a part, a folder of parts, a bundle."""
    other, root = tmp_path / "other", Path(index)
    bundle = Path(store.open_snapshot(index).model_uri)
    part = Path(failure_file(str(other), "theirs").uri(str(other)))
    theirs = [part, put(other / "old" / "model.json")]
    shutil.move(root / "failures", other / "moved")
    (left,) = (p for p in (other / "moved").glob("*.parquet"))  # that no version needs
    theirs += [left, Path(shutil.copy(part, other / "moved"))]
    for path in theirs:
        os.utime(path, OLD)
    links = {
        root / "failures": other / "moved",
        root / "images" / "linked": other / "failures",
        root / "images" / "loop": root,
        root / "images" / part.name: part,
        bundle.parent / ("0" * 16): other / "old",
    }
    for link, target in links.items():
        link.symlink_to(target)
    assert vacuum(index, NOW, force=True) == []
    assert all(path.exists() for path in theirs)
    assert all(link.is_symlink() for link in links)


def test_part_is_recognised_by_its_metadata(index: str) -> None:
    file = failure_file(index, "x")
    assert is_part_file(index, file)
    path = Path(file.uri(index))
    for other in (new_part(), f"{file.part}0", "notes"):
        copy = path.with_name(f"{other}.parquet")
        shutil.copy(path, copy)
        assert not is_part_file(index, DataFile("failures", copy.name, 0, 0, None, "")), other
    images = Path(index, "images", path.name)
    shutil.copy(path, images)
    assert not is_part_file(index, DataFile("images", path.name, 0, 0, None, ""))
    damaged = bytearray(path.read_bytes())
    damaged[-300:-8] = b"\xff" * 292
    for content in (b"PAR1", bytes(damaged)):
        path.write_bytes(content)
        assert not is_part_file(index, file)


def test_log_names_files_of_checkpoints(index: str) -> None:
    snapshot = store.open_snapshot(index)
    odd = write_file(index, new_part(), "regions", pa.table({"coverage": [0.5]}), "class_1")
    after = store.commit(snapshot, [odd])
    store.commit(after, [], [odd])
    DeltaTable(f"{index}/regions").create_checkpoint()
    for entry in Path(index, "regions", "_delta_log").glob("*.json"):
        if not entry.name.startswith("0" * 20):
            entry.unlink()
    assert ("regions", odd.path) in log_entries.read_names(index).files, (
        "named by the checkpoint alone"
    )
    (one,) = store.read_log(index, 1).files["failures"]
    assert ("failures", one.path) in read_named_files(index)
    assert log_entries.read_names(index).bundles == {snapshot.bundle_id}


# --- folders of an index -----------------------------------------------------------------------


STRANGERS = ("notes.txt", "images/holiday.jpg", "models/streets/model.json", "a/deep/er/file",
             "models/0123456789abcdef/notes.txt", "images/_delta_log.bak/x.json")  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_index_refuses_occupied_folder(name: str, small: Model, tmp_path: Path) -> None:
    folder, model = tmp_path / "work", str(tmp_path / "model")
    small.save(model)
    stranger = put(folder / name)
    request = Request(str(tmp_path / "images"))
    for attempt in (
        lambda: store.create(str(folder), small),
        lambda: index_images(request, model, str(folder)),
        lambda: index_images(request, model, str(folder), rebuild=True),
        lambda: list(dry_run(request, model, str(folder))),
    ):
        with pytest.raises(InputError, match=rf"neither empty nor an index: it holds {name}; give"):
            attempt()  # type: ignore[no-untyped-call]
    assert iter_files_below(str(folder)) == {stranger}


def test_index_refuses_folder_with_link(small: Model, tmp_path: Path) -> None:
    for target in ("elsewhere", "nowhere"):
        folder = tmp_path / f"index-{target}"
        folder.mkdir()
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (folder / "data").symlink_to(tmp_path / target)
        with pytest.raises(InputError, match="it holds data"):
            store.create(str(folder), small)


def test_index_without_images_table_is_refused(index: str, small: Model) -> None:
    failure_file(index, "still there")
    shutil.rmtree(Path(index, "images"))
    with pytest.raises(InputError, match=r"it holds failures/.*images/_delta_log is lost"):
        store.create(index, small)


def test_index_accepts_empty_or_unfinished_folder(small: Model, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (index / "images" / "deeper").mkdir(parents=True)
    assert store.create(str(index), small).version == 0
    for gone in ("images", "regions"):
        shutil.rmtree(index / gone)
    put(Path(store.model_uri(str(index), small.bundle_id), f".segrec-{new_part()}.tmp"))
    put(index / "regions" / "_delta_log" / f"{0:020}.json#1")  # of a killed process
    assert store.create(str(index), small).version == 0


@pytest.mark.slow
def test_index_refuses_occupied_bucket(s3: dict[str, str], small: Model) -> None:
    bucket = new_bucket()
    storage.write_bytes(f"{bucket}/notes.txt", b"mine")
    with pytest.raises(InputError, match=r"it holds notes\.txt"):
        store.create(bucket, small)
    one = store.create(f"{bucket}/index", small)
    orphan = failure_file(one.index, "of a run that died")
    storage.write_bytes(f"{one.index}/failures/{new_part()}.parquet", b"mine")
    assert [uri for uri, _ in vacuum(one.index, NOW, force=True)] == [orphan.uri(one.index)]


def test_rebuild_leaves_foreign_files(index: str, small: Model) -> None:
    base = store.open_snapshot(index)
    folder = Path(index, "rebuild", small.bundle_id)
    notes = put(folder / "notes.txt")
    with pytest.raises(InputError, match=r"it holds notes\.txt"):
        staging.open_staging(base, small)
    notes.unlink()
    put(folder / f"part-00000-{uuid.uuid4()}-c000.snappy.parquet#1")  # of a killed process
    put(folder / "_delta_log" / f"_commit_{uuid.uuid4()}.json.tmp#1")
    staging.stage(staging.open_staging(base, small), [failure_file(index, "a")])
    mine = [put(folder / "notes.parquet"), put(folder / "_delta_log" / "notes.json")]
    assert staging.list_rebuilds(index) == [small.bundle_id]
    staging.discard(index, small.bundle_id)
    assert iter_files_below(str(folder)) == set(mine)
    assert staging.list_rebuilds(index) == []


def test_abandoned_rebuild_keeps_old_state(
    index: str, small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = staging.open_staging(store.open_snapshot(index), small)
    files = [failure_file(index, name) for name in "abc"]
    for file in files:
        staged = staging.stage(staged, [file])
    monkeypatch.setattr(storage, "delete", delete_one)
    for left in (2, 1, 0):
        with pytest.raises(KeyboardInterrupt):
            staging.discard(index, small.bundle_id)
        assert set(staging.read_staged_files(index, small.bundle_id)[0]) == set(files[:left])


# --- temporary folders -------------------------------------------------------------------------


def test_only_own_temporary_folders_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.scratch_folder("segrec-x-") as folder:
        shutil.copytree(folder, tmp_path / "segrec-x-dead0000.segrec")
    others = {
        "segrec-x-notes": b"",  # not such a name
        "segrec-x-notes.segrec": scratch._LOCK_TEXT,
        "segrec-x-abcdefgh.segrec": b"",  # such a name, another lock file
        "segrec-x-abcd1234.segrec": scratch._LOCK_TEXT + b"and more",
    }
    for name, lock in others.items():
        put(tmp_path / name / "lock", lock)
        put(tmp_path / name / "notes.txt")
    shutil.move(tmp_path / "segrec-x-dead0000.segrec", tmp_path / "kept")
    (tmp_path / "segrec-x-link0000.segrec").symlink_to(tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "segrec-x-held0000.segrec")
    shutil.copytree(tmp_path / "kept", tmp_path / "segrec-x-left0000.segrec")
    for path in tmp_path.iterdir():
        os.utime(path, OLD)
    with (tmp_path / "segrec-x-held0000.segrec" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch.scratch_folder("segrec-x-"):
            pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, "kept", "segrec-x-link0000.segrec", "segrec-x-held0000.segrec"}
    assert all((tmp_path / name / "notes.txt").exists() for name in others)


# --- other outputs -----------------------------------------------------------------------------


def test_overwrite_deletes_only_recommendations(tmp_path: Path) -> None:
    request: dict[str, Any] = {"version": 1, "model_id": "m", "queries": {}, "k": 2}
    theirs = [
        put(tmp_path / "data" / "class=car" / "part-000001.parquet"),
        put(tmp_path / "data" / "request.json", b'{"mine": 1}'),
        put(tmp_path / "data" / "_SUCCESS", b"{}"),
    ]
    with pytest.raises(InputError, match="another request"):
        Output(str(tmp_path / "data"), "car").begin(request, overwrite=True)
    assert all(path.exists() for path in theirs)
    output = Output(str(tmp_path / "ours"), "car")
    output.begin(request, overwrite=False)
    names = ("notes.parquet", "class=car/notes.parquet", "class=car/.notes.tmp")
    theirs += [put(tmp_path / "ours" / name) for name in names]
    ours = [put(Path(output.part_uri(3))), put(tmp_path / "ours" / "_SUCCESS")]
    ours.append(put(tmp_path / "ours" / "class=car" / f".segrec-{new_part()}.tmp"))
    assert output.finished_parts() == {3}
    with pytest.raises(InputError, match=r"neither empty nor an output .*notes"):
        output.begin({**request, "k": 3}, overwrite=True)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


def test_model_refuses_occupied_folder(small: Model, tmp_path: Path) -> None:
    check_bundle_place(str(tmp_path / "new"))
    small.save(str(tmp_path / "bundle"))
    check_bundle_place(str(tmp_path / "bundle"))
    for name, content in (
        ("a/notes.txt", b""),
        ("b/model.json", b"{}"),
        ("c/model.json", b"["),
        ("d/model.json", b"[" * 100_000),
    ):
        stranger = put(tmp_path / name, content)
        with pytest.raises(InputError, match="give a new or empty folder as --output"):
            check_bundle_place(str(stranger.parent))


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "counts.parquet"])
def test_report_replaces_only_a_report(name: str, tmp_path: Path) -> None:
    put(tmp_path / "other.txt")
    check_report_place(str(tmp_path))
    put(tmp_path / name, b"{}")
    with pytest.raises(InputError, match=rf"holds {name}, but no report of this program"):
        check_report_place(str(tmp_path))
    (tmp_path / "metrics.json").write_text(json.dumps({"provenance": {}, "measures": []}))
    check_report_place(str(tmp_path))


def test_scenes_refuse_occupied_folder(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, places=2, size=(80, 60))
    write_scenes(tmp_path / "scenes", 1, places=2, size=(80, 60))
    put(tmp_path / "mine" / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"it holds images/a\.jpg"):
        write_scenes(tmp_path / "mine", 1)
    assert len(iter_files_below(str(tmp_path / "mine"))) == 1
