"""Tests of logs with lost or truncated entries, and of runs that stop between two commits."""

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from segrec_batch.common.errors import IndexStateError
from segrec_batch.common.limits import parse_limit
from segrec_batch.index import commits, log_entries
from segrec_batch.index import snapshot as store
from segrec_batch.index.history import history
from segrec_batch.maintenance import versions
from segrec_batch.maintenance.verify import verify
from segrec_batch.maintenance.versions import rollback, vacuum
from segrec_batch.model.bundle import Model
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from tests.support.builders import failure_file, smooth_pixels, tiny_model, uris, write_png

HOUR = dt.timedelta(hours=1)
NOW = dt.timedelta(0)


@pytest.fixture(scope="module")
def small() -> Model:
    return tiny_model(taps=("conv3_3",))


@pytest.fixture(scope="module")
def made(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 0 to 3, committed an hour ago; each has one more failure."""
    index = tmp_path_factory.mktemp("log") / "index"
    snapshot = store.create(str(index), small)
    for name in "abc":
        snapshot = store.commit(snapshot, [failure_file(str(index), name)])
    age(index)
    return index


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "index"))


def age(index: Path, seconds: float = 3600) -> None:
    """Make all commits that much older."""
    for path in index.rglob("_delta_log/*.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] -= int(1000 * seconds)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def entry(index: Path, table: str, version: int) -> Path:
    return index / table / log_entries.entry_name(version)


def interrupt(index: Path, monkeypatch: pytest.MonkeyPatch, done: int = 3) -> str:
    """A commit that dies after so many tables, of which `images` would be the fourth."""
    base = store.open_snapshot(str(index))
    added = failure_file(str(index), "of a run that died")
    bring, left = commits.replace_files, iter(range(done))

    def bring_or_die(*arguments: object, **options: object) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return bring(*arguments, **options)  # type: ignore[arg-type]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commits, "replace_files", bring_or_die)
        patch.setattr(commits, "publish_images", die)
        with pytest.raises(KeyboardInterrupt):
            store.commit(base, [added])
    return added.uri(str(index))


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


# --- the newest entry of images ----------------------------------------------------------------


def test_every_commit_of_images_moves_another_table(index: Path) -> None:
    base = store.open_snapshot(str(index))
    after = store.replace(base, base)
    assert after.versions == {**base.versions, "images": 4, "failures": 4}
    assert after.files == base.files


def test_a_lost_newest_entry_is_a_warning_for_readers(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry(index, "images", 3).unlink()
    snapshot = store.open_snapshot(str(index))
    assert (snapshot.version, snapshot.rows("failures")) == (2, 2)
    (message,) = warnings(capsys)
    assert message.startswith(
        f"warning: {index}: failures is at version 3, the snapshot names 2: a"
    )
    assert "newest entry of images/_delta_log was lost" in message
    assert "segrec index" in message
    store.open_snapshot(str(index))
    assert warnings(capsys) == [], "once is enough"
    store.open_snapshot(str(index), 2)
    assert warnings(capsys) == [], "of an older version nothing is ahead"


def test_vacuum_stops_if_the_newest_entry_may_be_lost(index: Path) -> None:
    live = {f.uri(str(index)) for f in store.open_snapshot(str(index)).all_files}
    kept = entry(index, "images", 3).read_text()
    entry(index, "images", 3).unlink()
    for path in index.rglob("*.parquet"):
        os.utime(path, (1e9, 1e9))
    for dry_run in (True, False):
        with pytest.raises(IndexStateError, match=r"newest entry .* was lost.*--force") as error:
            vacuum(str(index), 168 * HOUR, dry_run)
        assert "\n" not in str(error.value)
    assert all(Path(uri).exists() for uri in live)
    entry(index, "images", 3).write_text(kept)
    assert vacuum(str(index), NOW, force=True) == []
    entry(index, "images", 3).unlink()
    (gone,) = vacuum(str(index), NOW, force=True)
    assert gone[0] in live, "who says --force says that no entry is lost"


def test_lost_entries_are_named(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in (2, 3):
        entry(index, "images", version).unlink()
    store.open_snapshot(str(index))
    (message,) = warnings(capsys)
    assert "entries 2 to 2 of images/_delta_log are lost, maybe more" in message
    assert "interrupted" not in message


@pytest.mark.parametrize("done", [1, 2, 3])
def test_interrupted_commit_is_a_warning_later(
    index: Path, done: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan = interrupt(index, monkeypatch, done)
    snapshot = store.open_snapshot(str(index))
    assert (snapshot.version, snapshot.ahead, warnings(capsys)) == (3, {}, [])
    age(index, 61)
    assert store.open_snapshot(str(index)).ahead == {"failures": 4}
    (message,) = warnings(capsys)
    assert "failures is at version 4, the snapshot names 3: a run was interrupted" in message
    after = store.commit(snapshot, [failure_file(str(index), "next")])
    assert (after.version, after.rows("failures"), after.ahead) == (4, 4, {})
    assert orphan not in {f.uri(str(index)) for f in after.all_files}
    age(index, 61)
    assert store.open_snapshot(str(index)) == after
    assert warnings(capsys) == []
    assert [uri for uri, _ in vacuum(str(index), NOW, force=True)] == [orphan]


def test_vacuum_waits_for_a_commit_in_progress(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = store.open_snapshot(str(index))
    interrupt(index, monkeypatch)

    def sleep(_: float) -> None:
        store.replace(base, base)

    monkeypatch.setattr(versions.time, "sleep", sleep)
    vacuum(str(index), HOUR)
    assert store.open_snapshot(str(index)).version == 4


@pytest.mark.usefixtures("ray_cluster")
def test_the_next_run_mends_it_also_where_there_is_nothing_to_do(
    small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, index = str(tmp_path / "model"), tmp_path / "index"
    small.save(model)
    write_png(tmp_path / "images" / "a.png", smooth_pixels(48, 64))

    def run() -> store.Snapshot:
        request = Request(str(tmp_path / "images"), max_gone=parse_limit("100%"))
        return index_images(request, model, str(index), Execution("cpu"))[1]

    first = run()
    assert run() == first
    interrupt(index, monkeypatch)
    age(index)
    assert verify(store.open_snapshot(str(index))) == [store.open_snapshot(str(index)).problem]
    mended = run()
    assert (mended.version, mended.ahead, mended.files) == (first.version + 1, {}, first.files)
    assert (run(), verify(mended), len(uris(str(index)))) == (mended, [], 1)
    entry(index, "images", mended.version).unlink()  # that of a run which changed no row
    age(index)
    assert store.open_snapshot(str(index)).ahead
    assert run().version == mended.version
    entry(index, "images", mended.version).unlink()
    age(index)
    shutil.rmtree(tmp_path / "images")
    write_png(tmp_path / "images" / "b.png", smooth_pixels(48, 64, seed=1))
    assert (run().ahead, uris(str(index))) == ({}, ["b.png"])


# --- other entries -----------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["failures", "images"])
def test_truncated_entry_is_refused(index: Path, table: str) -> None:
    """At the end of any line, or in one: the version that needs it is not there, older ones are."""
    base = store.open_snapshot(str(index))
    version = base.versions[table]
    path = entry(index, table, version)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    cuts = [b"".join(lines[:n]) for n in range(len(lines))] + [whole[:60], whole[:-10]]
    for content in cuts:
        path.write_bytes(content)
        with pytest.raises(IndexStateError, match="backup") as error:
            store.open_snapshot(str(index))
        assert "\n" not in str(error.value)
        with pytest.raises(IndexStateError):
            vacuum(str(index), NOW, force=True)
        with pytest.raises(IndexStateError):
            store.open_snapshot(str(index), 3)
    path.write_bytes(whole)
    assert store.open_snapshot(str(index)) == base


def test_truncated_older_entry_is_detected(index: Path) -> None:
    path = entry(index, "failures", 2)
    path.write_text("".join(x for x in path.read_text().splitlines(True) if '"add"' not in x))
    with pytest.raises(IndexStateError, match=r"failures/_delta_log/0+3\.json or an entry before"):
        store.open_snapshot(str(index))
    assert store.open_snapshot(str(index), 1).rows("failures") == 1


def cut_to_two_lines(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(True)[:2]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gap": lambda log: (log / f"{2:020}.json").unlink(),
    "No table metadata": lambda log: (log / f"{0:020}.json").unlink(),
    "No table metadata found": lambda log: cut_to_two_lines(log / f"{0:020}.json"),
    "delete _last_checkpoint": lambda log: (log / f"{2:020}.checkpoint.parquet").unlink(),
    "Parquet error": lambda log: os.truncate(log / f"{2:020}.checkpoint.parquet", 99),
}


@pytest.mark.parametrize("table", ["failures", "images"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_log_that_lacks_a_file_says_so(index: Path, table: str, damage: str) -> None:
    folder = index / table / "_delta_log"
    if "heckpoint" in damage or "Parquet" in damage:
        DeltaTable(f"{index}/{table}", 2).create_checkpoint()
    DAMAGE[damage](folder)
    with pytest.raises(IndexStateError, match=rf"{table}/_delta_log is damaged: .*{damage}"):
        store.open_snapshot(str(index))
    with pytest.raises(IndexStateError, match="damaged"):
        vacuum(str(index), NOW, force=True)
    if damage == "delete _last_checkpoint":
        (folder / "_last_checkpoint").unlink()
        assert store.open_snapshot(str(index)).version == 3


def test_newest_entries_of_another_table_that_are_lost_are_named(index: Path) -> None:
    base = store.open_snapshot(str(index), 2)
    entry(index, "failures", 3).unlink()
    match = "failures is at version 2, the snapshot names 3: the newest entries of failures"
    with pytest.raises(IndexStateError, match=match):
        store.open_snapshot(str(index))
    back = rollback(str(index), 2)
    assert (back.version, back.files) == (4, base.files)
    with pytest.raises(IndexStateError, match=match):  # which another entry has taken the place of
        store.open_snapshot(str(index), 3)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "[1]", "7", '{"add": 1}', '{"commitInfo": [1]}', '{"a": NaN}']
)
def test_an_entry_that_is_no_list_of_actions_is_damage(index: Path, line: str) -> None:
    path = entry(index, "images", 0)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(IndexStateError, match="cannot be read"):
        log_entries.read_names(str(index))


def test_names_that_are_no_texts_are_none(index: Path) -> None:
    before = log_entries.read_names(str(index))
    path = entry(index, "images", 0)
    path.write_text(path.read_text() + '{"add": {"path": [1]}}\n{"remove": {"path": 7}}\n')
    assert log_entries.read_names(str(index)) == before
    path.write_text(path.read_text() + '{"txn": {"appId": "model", "version": "x"}}\n')
    with pytest.raises(IndexStateError, match="its log is damaged"):
        log_entries.read_names(str(index))


def test_a_checkpoint_with_pickled_columns_is_refused(index: Path) -> None:
    path = index / "images" / "_delta_log" / f"{3:020}.checkpoint.parquet"
    extension = {"ARROW:extension:name": "ray.data.arrow_pickled_object"}
    schema = pa.schema([pa.field("add", pa.large_binary(), metadata=extension)])
    pq.write_table(pa.table({"add": [b"x"]}, schema=schema), path)
    with pytest.raises(IndexStateError, match="extension types"):
        log_entries.read_names(str(index))


def test_history_names_the_right_versions_where_an_entry_is_lost(index: Path) -> None:
    DeltaTable(f"{index}/images", 2).create_checkpoint()
    times = {entry.version: entry.time for entry in history(str(index))}
    assert sorted(times) == [0, 1, 2, 3]
    entry(index, "images", 1).unlink()
    result = {entry.version: entry.time for entry in history(str(index))}
    assert result == {v: t for v, t in times.items() if v != 1}
    with pytest.raises(IndexStateError, match=r"images/_delta_log/0+1\.json is lost"):
        vacuum(str(index), 168 * HOUR)
    assert vacuum(str(index), HOUR / 2, force=True) == [], "no version before 2 is retained"


def test_an_index_of_commits_without_these_identifiers_opens(
    index: Path,
) -> None:
    """As they were made before; the first new commit brings them."""
    for path in index.rglob("_delta_log/*.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        new = ("version", "files", "images")
        kept = [x for x in lines if x.get("txn", {}).get("appId") not in new]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    old = store.open_snapshot(str(index))
    assert (old.version, old.rows("failures"), old.ahead) == (3, 3, {})
    after = store.commit(old, [failure_file(str(index), "new")])
    assert (after.rows("failures"), store.open_snapshot(str(index), 3).files) == (4, old.files)
