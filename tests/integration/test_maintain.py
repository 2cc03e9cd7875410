"""Tests of `segrec maintain` at every version and after crashes."""

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segrec_batch
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.index import delta, staging
from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import image_id
from segrec_batch.index.files import (
    DataFile,
    count_rows,
    group_by_part,
    iter_parquet_files,
    new_part,
)
from segrec_batch.index.history import history
from segrec_batch.index.parts import read_file, write_file, write_part
from segrec_batch.index.schema import TABLES, failures_schema
from segrec_batch.maintenance.compact import compact
from segrec_batch.maintenance.purge import purge
from segrec_batch.maintenance.verify import verify
from segrec_batch.maintenance.versions import rollback, vacuum
from segrec_batch.model.bundle import load_model
from segrec_batch.pipeline.plan import Request
from segrec_batch.pipeline.run import Execution, index_images
from segrec_batch.pipeline.run_stats import RunStats
from segrec_batch.sources import storage
from tests.support.builders import (
    encoded,
    failure_file,
    png_by_hand,
    smooth_pixels,
    tiny_model,
    write_png,
)
from tests.support.commands import job

pytestmark = pytest.mark.usefixtures("ray_cluster")

Row = dict[str, Any]
HOUR = dt.timedelta(hours=1)
NOW = dt.timedelta(0)


def run(made: Path, index: str, rebuild: bool = False) -> tuple[RunStats, store.Snapshot]:
    model = made / ("other" if rebuild else "model")
    execution = Execution("cpu", batch_size=2, commit_seconds=-1)  # a commit for each part
    return index_images(Request(str(made / "images")), str(model), index, execution, rebuild)


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, one of them broken; index/ with a few versions, in the last an image is gone;
    rebuilt/, the same with a last version of another model; model/, other/.
    """
    folder, model = tmp_path_factory.mktemp("made"), tiny_model(taps=("conv3_3", "conv5_3"))
    model.save(str(folder / "model"))
    replace(model, spec=replace(model.spec, minmax=False)).save(str(folder / "other"))
    for i in range(12):
        write_png(folder / "images" / f"{i:02}.png", smooth_pixels(48, 64, seed=i))
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    run(folder, str(folder / "index"))
    (folder / "images" / "05.png").unlink()
    run(folder, str(folder / "index"))
    shutil.copytree(folder / "index", folder / "rebuilt")
    run(folder, str(folder / "rebuilt"), rebuild=True)
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> str:
    return shutil.copytree(made / "index", str(tmp_path / "index"))


@pytest.fixture
def rebuilt(made: Path, tmp_path: Path) -> str:
    return shutil.copytree(made / "rebuilt", str(tmp_path / "rebuilt"))


def contents(index: str, version: int | None = None, less: Iterable[str] = ()) -> dict[str, Any]:
    """The rows of all tables, sorted; less those of some URIs."""
    connection = segrec_batch.connect(index, version)
    tables = {t: connection.sql(f"FROM {t}").to_arrow_table().to_pylist() for t in TABLES}
    return {t: sorted(repr(r) for r in rows if r["uri"] not in less) for t, rows in tables.items()}


def versions(index: str) -> list[int]:
    return [entry.version for entry in history(index)]


def in_place(index: str) -> set[str]:
    return {file.uri(index) for table in TABLES for file, _ in iter_parquet_files(index, table)}


def sources(index: str, version: int | None = None) -> list[str]:
    sql = "SELECT uri FROM images UNION ALL SELECT uri FROM failures ORDER BY uri"
    return [uri for (uri,) in segrec_batch.connect(index, version).sql(sql).fetchall()]


def holding(index: str, text: str, but: str = "/.../") -> list[str]:
    """Files below the index in whose bytes a text is."""
    files = [path for path in Path(index).rglob("*") if path.is_file() and but not in str(path)]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def again(index: str, file: DataFile, rows: pa.Table, part: str | None = None) -> DataFile:
    """Write rows in place of a file, or as one of another part."""
    return write_file(index, part or file.part, file.table, rows, file.partition)


def copy_of_a_part(index: str) -> list[DataFile]:
    """An orphan: the files of a part again, by another name."""
    parts = group_by_part(store.open_snapshot(index).all_files)
    part, files = new_part(), next(iter(parts.values()))
    return [again(index, file, read_file(index, file), part) for file in files]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


# compact


@pytest.mark.parametrize("part_rows", [65_536, 8])
def test_compact_keeps_rows_and_versions(made: Path, index: str, part_rows: int) -> None:
    before, rows = store.open_snapshot(index), contents(index)
    reader = segrec_batch.connect(index)
    after = compact(before, part_rows)
    parts = group_by_part(after.all_files).values()
    assert len(group_by_part(before.all_files)) > len(parts)
    assert max(count_rows(part, "images") for part in parts) <= part_rows
    assert contents(index) == contents(index, before.version) == rows
    assert reader.sql("SELECT count(feature) FROM regions").fetchall() == [
        (before.rows("regions"),)
    ]
    for file in after.files["regions"]:
        shares = read_file(index, file)["coverage"].to_pylist()
        assert shares == sorted(shares)
    assert verify(after) == []
    assert compact(after, part_rows) == after, "there is nothing left to merge"
    stats, unchanged = run(made, index)
    assert (stats.unchanged, stats.skipped, stats.gone, unchanged) == (11, 1, 0, after)


def random_part(index: str, rng: np.random.Generator, n: int) -> list[DataFile]:
    """A part of random coverages, otherwise of copies of a row."""
    snapshot = store.open_snapshot(index)
    one, tree = (
        next(read_file(index, f) for f in snapshot.files[t] if f.partition == c).slice(0, 1)
        for t, c in (("images", None), ("regions", "class_2"))
    )
    ids = [f"{x:032x}" for x in rng.integers(0, 2**62, n)]
    shares = rng.dirichlet(np.ones(3), n).astype(np.float32)
    names = ["image_id", *(f"coverage_{c}" for c in snapshot.spec.all_classes)]
    values = dict(zip(names, [ids, *shares.T], strict=True)) | {"coverage": shares[:, -1]}

    def tiled(row: pa.Table) -> pa.Table:
        columns = [
            pa.array(values[f.name], f.type) if f.name in values else row[f.name].take([0] * n)
            for f in row.schema
        ]
        return pa.table(columns, row.schema)

    return write_part(index, [("images", None, tiled(one)), ("regions", "class_2", tiled(tree))])


def groups_read(index: str, version: int, table: str, column: str) -> tuple[int, int]:
    """Return the row groups that DuckDB reads for a narrow window of a column, and all."""
    profile = Path(index, "profile.json")
    connection = segrec_batch.connect(index, version, locked=False)
    connection.execute("PRAGMA enable_profiling = 'json'")
    connection.execute(f"PRAGMA profiling_output = '{profile}'")
    connection.sql(
        f"SELECT sum({column}) FROM {table} WHERE {column} BETWEEN 0.5 AND 0.55"
    ).fetchall()
    result = json.loads(profile.read_text())["query"]
    return result["total_row_groups_scanned"], result["total_row_groups_to_scan"]


def test_compact_lets_filters_skip_row_groups(index: str) -> None:
    rng = np.random.default_rng(0)
    base = store.open_snapshot(index)
    added = [file for _ in range(16) for file in random_part(index, rng, 1024)]
    before = store.commit(base, added, list(base.all_files))
    after = compact(before)
    for table, column, most in (("regions", "coverage", 1), ("images", "coverage_class_2", 4)):
        assert groups_read(index, before.version, table, column) == (16, 16)
        scanned, there = groups_read(index, after.version, table, column)
        assert (scanned <= most, there) == (True, 8)


def test_compact_crash_changes_nothing(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, files = store.open_snapshot(index), in_place(index)
    monkeypatch.setattr("segrec_batch.maintenance.compact.commit", stop)
    with pytest.raises(KeyboardInterrupt):
        compact(before)
    monkeypatch.undo()
    orphans = in_place(index) - files
    assert orphans
    assert store.open_snapshot(index) == before
    assert verify(before) == []
    assert verify(compact(before)) == []
    assert orphans <= {uri for uri, _ in vacuum(index, NOW, force=True)}


# beside jobs and readers

OPERATIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "compact": ("maintenance.compact.commit", lambda index: compact(store.open_snapshot(index))),
    "purge": ("maintenance.purge.commit", lambda index: purge(index, sources(index)[:1], 0)),
    "rollback": ("maintenance.versions.replace", lambda index: rollback(index, 1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_concurrent_task_and_job_second_stops(
    index: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, operate = OPERATIONS[name]
    commit = getattr(store, place.split(".")[-1])
    theirs = []

    def overtaken(*arguments: Any) -> store.Snapshot:
        theirs.append(store.commit(store.open_snapshot(index), [failure_file(index, "theirs")]))
        return commit(*arguments)

    monkeypatch.setattr(f"segrec_batch.{place}", overtaken)
    with pytest.raises(IndexStateError, match="another run has published"):
        operate(index)
    monkeypatch.undo()
    assert [store.open_snapshot(index)] == theirs
    assert "theirs" in sources(index)
    operate(index)
    assert store.open_snapshot(index).version == theirs[0].version + 1


def test_vacuum_keeps_snapshots_of_readers(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, sql = segrec_batch.connect(index), "SELECT uri, feature, mask FROM images ORDER BY uri"
    expected, waited = reader.sql(sql).fetchall(), []
    compact(store.open_snapshot(index))
    rollback(index, 1)

    def sleep(seconds: float) -> None:
        waited.append((seconds, reader.sql(sql).fetchall() == expected))

    monkeypatch.setattr("segrec_batch.maintenance.purge.time", SimpleNamespace(sleep=sleep))
    purge(index, sources(index)[:1], 7)
    assert waited == [(7, True)]


# vacuum


def age(index: str, between: dt.timedelta, table: str = "images") -> None:
    """Make all files old, and commits of a table `between` apart, the newest that long ago."""
    for path in Path(index).rglob("*"):
        os.utime(path, (1e9, 1e9))
    for n, entry in enumerate(delta.read_history(index, table), 1):
        path = Path(index, table, "_delta_log", f"{entry['version']:020}.json")
        then = (dt.datetime.now(dt.UTC) - n * between).timestamp()
        was, now = (f'"timestamp":{time:.0f}' for time in (entry["timestamp"], 1000 * then))
        assert was in path.read_text()
        path.write_text(path.read_text().replace(was, now))


@pytest.mark.parametrize("retained", [0, 1, 3])
def test_vacuum_keeps_retained_versions(index: str, retained: int) -> None:
    rollback(index, 1)  # of which an older version has all files, too
    compact(rollback(index, store.open_snapshot(index).version - 1))
    rows = {v: contents(index, v) for v in versions(index)}
    young = copy_of_a_part(index)
    age(index, 10 * HOUR)
    old = copy_of_a_part(index)
    torn = Path(index, "images", f".segrec-{new_part()}.tmp")
    torn.touch()
    for path in (torn, *(file.uri(index) for file in old)):
        os.utime(path, (1e9, 1e9))
    for file in young:
        os.utime(file.uri(index))
    before = in_place(index)
    would = vacuum(index, (10 * retained + 5) * HOUR, dry_run=True)
    assert (in_place(index), torn.exists()) == (before, True)
    assert vacuum(index, (10 * retained + 5) * HOUR) == would
    gone = {uri for uri, _ in would}
    assert before - in_place(index) == gone - {str(torn)}
    assert gone >= {str(torn), *(file.uri(index) for file in old)}
    assert not gone & {file.uri(index) for file in young}
    kept = versions(index)[: retained + 1]  # the last of them was the newest for a while
    assert all(contents(index, v) == rows[v] for v in kept)
    if retained == 0:
        with pytest.raises(IndexStateError, match="vacuum keeps those of its retention only"):
            segrec_batch.connect(index, kept[-1] - 1)
    assert verify(store.open_snapshot(index)) == []


def test_vacuum_below_an_hour_needs_force(index: str) -> None:
    with pytest.raises(InputError, match="--force"):
        vacuum(index, 0.9 * HOUR)
    newest, rows = store.open_snapshot(index), contents(index)
    vacuum(index, NOW, force=True)
    assert in_place(index) == {file.uri(index) for file in newest.all_files}
    assert contents(index) == rows


def test_vacuum_deletes_unused_models(rebuilt: str) -> None:
    newest, old = (store.open_snapshot(rebuilt, v) for v in versions(rebuilt)[:2])
    age(rebuilt, 10 * HOUR)
    vacuum(rebuilt, 15 * HOUR)
    assert store.open_snapshot(rebuilt, old.version) == old
    doomed = {uri for uri, _ in vacuum(rebuilt, 5 * HOUR)}
    assert f"{old.model_uri}/model.json" in doomed
    assert not Path(old.model_uri, "model.json").exists()
    for operate in (segrec_batch.connect, rollback):
        with pytest.raises(IndexStateError, match="vacuum keeps those of its retention only"):
            operate(rebuilt, old.version)
    assert vacuum(rebuilt, 15 * HOUR) == [], "of which some versions are gone already"
    assert verify(newest) == []


def stage_a_rebuild(made: Path, index: str) -> store.Snapshot:
    other = load_model(str(made / "other"))
    staged = staging.open_staging(store.open_snapshot(index), other)
    return staging.stage(staged, copy_of_a_part(index))


def test_vacuum_keeps_staged_rebuild(made: Path, index: str) -> None:
    staged = stage_a_rebuild(made, index)
    age(index, 10 * HOUR)
    vacuum(index, HOUR)
    assert {file.uri(index) for file in staged.all_files} <= in_place(index)
    assert load_model(staged.model_uri).model_id == staged.model_id


def test_vacuum_deletes_abandoned_rebuild(made: Path, index: str) -> None:
    staged = stage_a_rebuild(made, index)
    age(index, 10 * HOUR)
    age(index, 10 * HOUR, f"rebuild/{staged.model_id}")
    vacuum(index, 5 * HOUR)
    assert not {file.uri(index) for file in staged.all_files} & in_place(index)
    assert not Path(staged.model_uri, "model.json").exists()
    assert staging.list_rebuilds(index) == []


# purge


def assert_purged(index: str, gone: Sequence[str], before: dict[int, Any]) -> None:
    """No row, no byte of them is left; all versions have the rows they had less theirs."""
    for version, rows in [*before.items(), (None, before[max(before)])]:
        assert contents(index, version) == rows
        assert verify(store.open_snapshot(index, version)) == []
    for uri in gone:
        assert holding(index, uri) == []
        assert holding(index, image_id(uri)) == []


def less(index: str, gone: Sequence[str]) -> dict[int, Any]:
    return {v: contents(index, v, gone) for v in versions(index)}


@pytest.mark.parametrize("chosen", [slice(-1, None), slice(2, 9, 3), slice(None)])
def test_purge_removes_rows_of_every_version(index: str, chosen: slice) -> None:
    compact(store.open_snapshot(index))
    gone = sources(index)[chosen]
    before = less(index, gone)
    copy_of_a_part(index)
    torn = Path(index, "images", f".segrec-{new_part()}.tmp")
    torn.write_bytes(f"PAR1...{image_id(gone[0])}".encode())
    done = purge(index, [*gone, "/nowhere.jpg"], 0)
    assert (set(done.purged), done.unknown) == (set(gone), ("/nowhere.jpg",))
    assert_purged(index, gone, before)
    assert not torn.exists()
    details = history(index)[0].info["segrec"]
    assert details == {"operation": "purge", "sources": len(gone)}
    with pytest.raises(InputError, match="no file of"):
        purge(index, gone, 0)


def test_purge_leaves_foreign_files(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even one that holds such rows, or text like theirs; but all that is its own."""
    uri = sources(index)[0]
    file = next(f for f in store.open_snapshot(index).files["images"]
                if uri in read_file(index, f)["uri"].to_pylist())  # fmt: skip
    mine = [
        Path(shutil.copy(file.uri(index), Path(index, "images", "copy.parquet"))),
        Path(shutil.copy(file.uri(index), Path(index, "images", f"{new_part()}.parquet"))),
        Path(index, "images", ".notes.tmp"),
    ]
    mine[2].write_text(image_id(uri))
    kept = [path.read_bytes() for path in mine]
    before = less(index, [uri])
    assert purge(index, [uri], 0).purged == (uri,)
    assert "2 files are not the index's own and were not searched" in capsys.readouterr().err
    assert [path.read_bytes() for path in mine] == kept
    assert {Path(path) for path in holding(index, image_id(uri))} == set(mine)
    for version, rows in before.items():
        assert contents(index, version) == rows


def test_purge_behind_link_is_refused(index: str, tmp_path: Path) -> None:
    uri, before = sources(index)[0], contents(index)
    shutil.move(Path(index, "regions"), tmp_path / "elsewhere")
    Path(index, "regions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexStateError, match="lies behind a symbolic link"):
        purge(index, [uri], 0)
    assert contents(index) == before


def test_purge_of_old_source_makes_no_commit(made: Path, index: str) -> None:
    gone, newest = [str(made / "images" / "05.png")], store.open_snapshot(index)
    assert gone[0] not in sources(index)
    before = less(index, gone)
    assert purge(index, gone, 0).version == newest.version
    assert store.open_snapshot(index) == newest
    assert_purged(index, gone, before)


def delete_some(uris: Sequence[str], delete: Callable[[Sequence[str]], None]) -> None:
    delete(uris[::2])
    stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "broken"),
    [
        ("maintenance.purge.commit", stop),
        ("maintenance.purge.write_replacements", stop),
        ("sources.storage.delete", stop),
        ("sources.storage.delete", partial(delete_some, delete=storage.delete)),
    ],
)
def test_purge_finishes_interrupted_purge(
    index: str, step: str, broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sources(index)[2::4]
    before = less(index, gone)
    monkeypatch.setattr(f"segrec_batch.{step}", broken)
    with pytest.raises(KeyboardInterrupt):
        purge(index, gone, 0)
    monkeypatch.undo()
    assert verify(store.open_snapshot(index)) == []
    assert set(purge(index, gone, 0).purged) <= set(gone)
    assert_purged(index, gone, before)
    back = rollback(index, max(before))
    assert (contents(index), verify(back)) == (before[max(before)], [])


def test_purges_add_up(index: str) -> None:
    a, b, *_ = sources(index)
    before = less(index, [a, b])
    purge(index, [a], 0)
    purge(index, [b], 0)
    assert [holding(index, uri) for uri in (a, b)] == [[], []]
    age(index, HOUR)
    vacuum(index, 99 * HOUR)
    assert {v: contents(index, v) for v in before} == before
    back = rollback(index, 1)
    assert (contents(index), verify(back)) == (before[1], [])


def test_purge_refuses_during_rebuild(made: Path, index: str) -> None:
    stage_a_rebuild(made, index)
    with pytest.raises(InputError, match="rebuild is not finished"):
        purge(index, sources(index)[:1], 0)


# verify


def test_verify_accepts_every_version(rebuilt: str) -> None:
    for version in versions(rebuilt):
        assert verify(store.open_snapshot(rebuilt, version)) == []


def test_verify_finds_flipped_bit(index: str) -> None:
    """Return the hash of run_id, which nothing else equals."""
    snapshot = store.open_snapshot(index)
    run_id = history(index)[1].info["segrec"]["run_id"].encode()
    paths = [Path(file.uri(index)) for file in snapshot.all_files]
    for path in paths:
        content = bytearray(path.read_bytes())
        content[content.index(run_id)] ^= 1
        path.write_bytes(content)
    result = verify(snapshot)
    assert [sum(f"{path}: OSError" in text for text in result) for path in paths] == [1] * len(
        paths
    )


DAMAGE: dict[str, Callable[[str, DataFile, pa.Table], object]] = {
    "FileNotFoundError": lambda index, file, rows: Path(file.uri(index)).unlink(),
    "ArrowInvalid": lambda index, file, rows: os.truncate(file.uri(index), file.size - 99),
    "0 rows, but": lambda index, file, rows: again(index, file, rows.slice(0, 0)),
    "columns are not": lambda index, file, rows: again(index, file, rows.drop_columns("uri")),
    "statistics": lambda index, file, rows: again(index, file, rows.take([0] * len(rows))),
    "bytes, but": lambda index, file, rows: pq.write_table(rows, file.uri(index)),
}


@pytest.mark.parametrize("table", ["images", "regions"])
@pytest.mark.parametrize("text", DAMAGE)
def test_verify_finds_files_that_differ_from_log(index: str, text: str, table: str) -> None:
    snapshot = store.open_snapshot(index)
    file = snapshot.files[table][0]
    DAMAGE[text](index, file, read_file(index, file))
    result = verify(snapshot)
    assert any(file.uri(index) in problem and text in problem for problem in result), result


NAN, GRID = float("nan"), 4 * 6  # cells of a 64 × 96 image at stride 16
UNKNOWN = {"uri": "/x", "image_id": image_id("/x")}
WITH_LABEL_9 = encoded(np.full((48, 64), 9, np.uint8), "PNG")


def other_feature(row: Row) -> None:
    row.update(feature=[2 * x for x in row["feature"]], inv_norm=row["inv_norm"] / 2)


WRONG: list[tuple[str, str, Callable[[list[Row]], object]]] = [
    ("regions", "image_id is not", lambda r: r[0].update(image_id="0" * 32)),
    ("failures", "image_id is not", lambda r: r[0].update(uri="/x.jpg")),
    ("images", "of another model", lambda r: r[1].update(model_id="0" * 16)),
    ("images", "not those of mask_grid", lambda r: r[0].update(mask_grid=b"", grid_h=0)),
    ("images", "not those of mask_grid", lambda r: r[0].update(grid_w=r[0]["grid_w"] + 1)),
    ("images", "not those of mask_grid", lambda r: r[0].update(mask_grid=bytes(GRID))),
    ("images", "not those of mask_grid", lambda r: r[0].update(mask_grid=b"\7" * GRID)),
    ("images", "not those of mask_grid", lambda r: r[0].update(coverage_background=0.123)),
    ("images", "not those of mask_grid", lambda r: r[0].update(coverage_class_1=NAN)),
    ("images", "mask does not fit", lambda r: r[0].update(mask=b"no image")),
    ("images", "mask does not fit", lambda r: r[0].update(mask=r[0]["mask"][:-40])),
    ("images", "mask does not fit", lambda r: r[0].update(mask=png_by_hand(9**6, 9**6))),
    ("images", "mask does not fit", lambda r: r[0].update(width=r[0]["width"] + 1)),
    ("images", "mask does not fit", lambda r: r[0].update(mask=WITH_LABEL_9)),
    ("images", "inv_norm is not", lambda r: r[0].update(inv_norm=1.001 * r[0]["inv_norm"])),
    ("images", "inv_norm is not", lambda r: r[0].update(inv_norm=None)),
    ("images", "inv_norm is not", lambda r: r[0].update(feature=[NAN] * 512, inv_norm=None)),
    ("images", "feature has [511, 512] values", lambda r: r[0]["feature"].pop()),
    ("images", "sign_bits has", lambda r: r[0]["sign_bits"].append(0)),
    ("images", "regions of background are not", lambda r: r.pop()),
    ("regions", "regions of background are not", lambda r: r.pop()),
    ("regions", "regions of background are not", lambda r: r.append(r[-1])),
    ("regions", "regions of background are not", lambda r: r.append(r[-1] | UNKNOWN)),
    ("regions", "regions of background are not", lambda r: r[-1].update(coverage=0.999)),
    ("regions", "are not sorted by coverage", lambda r: r.reverse()),
    ("regions", "cells of background are not", lambda r: r[0].update(cells=r[0]["cells"] + 1)),
    ("regions", "background: inv_norm is not", lambda r: r[0].update(inv_norm=9.0)),
    ("regions", "mask_bits has", lambda r: r[0]["mask_bits"].pop()),
    ("regions", "do not average", lambda r: other_feature(r[-1])),
]  # fmt: skip


@pytest.mark.parametrize(("table", "text", "change"), WRONG)
def test_verify_finds_inconsistent_rows(
    index: str, table: str, text: str, change: Callable[[list[Row]], object]
) -> None:
    """The log is true to the files here."""
    snapshot, part, add = store.open_snapshot(index), new_part(), []
    target = snapshot.files[table][0]
    remove = group_by_part(snapshot.all_files)[target.part]
    for file in remove:
        rows = read_file(index, file)
        if file == target:
            changed = rows.to_pylist()
            change(changed)
            rows = pa.Table.from_pylist(changed, rows.schema)
        add.append(again(index, file, rows, part))
    result = verify(store.commit(snapshot, add, remove))
    assert any(text in problem and part in problem for problem in result), result


def test_verify_finds_duplicate_source(index: str) -> None:
    snapshot = store.open_snapshot(index)
    added = copy_of_a_part(index)
    doubled = sorted({u for f in added for u in read_file(index, f)["uri"].to_pylist()})
    result = verify(store.commit(snapshot, added))
    assert result == [f"{uri}: has more than one row" for uri in doubled]
    uri = sources(index)[0]
    row = {f.name: uri if f.type == pa.string() else 0 for f in failures_schema()}
    rows = pa.Table.from_pylist([row | {"image_id": image_id(uri)}], failures_schema())
    added = write_part(index, [("failures", None, rows)])
    failed = store.commit(rollback(index, snapshot.version), added)
    assert verify(failed) == [f"{uri}: has more than one row"]


# rollback and history


def test_rollback_restores_rows_and_model(made: Path, rebuilt: str) -> None:
    after_rebuild, before_rebuild, *_ = (store.open_snapshot(rebuilt, v) for v in versions(rebuilt))
    rows = contents(rebuilt, before_rebuild.version)
    back = rollback(rebuilt, before_rebuild.version)
    assert (contents(rebuilt), back.files) == (rows, before_rebuild.files)
    assert back.model_id == before_rebuild.model_id != after_rebuild.model_id
    assert verify(back) == []
    stats, unchanged = run(made, rebuilt)
    assert (stats.unchanged, stats.skipped, unchanged) == (11, 1, back)
    rollback(rebuilt, before_rebuild.version - 1)
    stats, anew = run(made, rebuilt)
    assert (stats.gone, contents(rebuilt), verify(anew)) == (1, rows, [])
    assert contents(rebuilt, after_rebuild.version) != rows


def test_rollback_refuses_version_without_files(index: str) -> None:
    newest = store.open_snapshot(index)
    old = store.open_snapshot(index, 2)
    last = next(f for f in newest.files["images"][::-1] if f in old.files["images"]).uri(index)
    Path(last).unlink()
    for version in (old.version, newest.version):
        with pytest.raises(IndexStateError, match=rf"version {version} cannot .* 1 of .*{last}"):
            rollback(index, version)
    with pytest.raises(IndexStateError, match="version 99"):
        rollback(index, 99)
    assert store.open_snapshot(index) == newest


def test_maintain_commands(rebuilt: str) -> None:
    """Run the commands that need no Ray, each in its own process."""
    newest, previous, *_ = versions(rebuilt)
    completed = job("jobs/maintain.py", "--index", rebuilt, "rollback", "--to", previous)
    assert f"version {newest + 1} is as version {previous} was" in completed.stdout
    completed = job("jobs/maintain.py", "--index", rebuilt, "vacuum", "--dry-run")
    assert completed.stdout.endswith("0 files, 0.0 MB, would be deleted\n")
    completed = job("jobs/maintain.py", "--index", rebuilt, "history", COLUMNS="200")
    lines = [line.split() for line in completed.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line[0]) for line in lines] == versions(rebuilt)
    assert [line[3:] for line in lines[:3]] == [
        ["rollback", "(to", f"{previous})"],
        [lines[1][3], "rebuild", "11", "1", "0", "12"],
        [lines[2][3], "0", "0", "1", "12"],
    ]
    assert lines[-1][3:] == ["made"]
