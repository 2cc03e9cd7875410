"""Tests of indexes from untrusted sources: logs, manifests and Parquet files are only data."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrec_batch.common.errors import IndexStateError, InputError, SegrecError
from segrec_batch.index import replacements, staging
from segrec_batch.index import snapshot as store
from segrec_batch.index.files import DataFile, parse_data_file
from segrec_batch.index.parquet import open_parquet, read_parquet
from segrec_batch.index.parts import (
    compute_statistics,
    merge_parts,
    read_column,
    read_file,
    read_images,
    rewrite_part,
    write_file,
    write_part,
)
from segrec_batch.index.schema import PARTITION, TABLES, check_columns, descriptors_schema, schemas
from segrec_batch.maintenance import verify
from segrec_batch.model.spec import DescriptorSpec
from segrec_batch.search.database import open_index
from segrec_batch.search.feedback.session import read as read_session
from tests.support.commands import exit_code
from tests.support.feature_index import SPEC, image_files, write_index
from tests.support.mutations import changed_bytes, mutated
from tests.support.payloads import Payload

FEATURES = np.random.default_rng(0).random((6, 512), np.float32)
PART = "0" * 32


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> str:
    index = str(tmp_path_factory.mktemp("pristine") / "index")
    write_index(index, FEATURES)
    return index


@pytest.fixture
def index(pristine: str, tmp_path: Path) -> str:
    shutil.copytree(pristine, tmp_path / "index")
    return str(tmp_path / "index")


def change_log(index: str, table: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each action of the newest commit of a table."""
    log = max(Path(index, table, "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        change(action)
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def of_add(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(action: dict[str, Any]) -> None:
        if "add" in action:
            action["add"].update(fields)

    return change


def of_transaction(name: str, version: int) -> Callable[[dict[str, Any]], None]:
    def change(action: dict[str, Any]) -> None:
        if action.get("txn", {}).get("appId") == name:
            action["txn"]["version"] = version

    return change


def inserted(**action: Any) -> Callable[[dict[str, Any]], None]:
    """In place of what the commit says of itself, another action."""

    def change(old: dict[str, Any]) -> None:
        if "commitInfo" in old:
            old.clear()
            old.update(action)

    return change


def named(path: str) -> dict[str, Any]:
    return {"path": path}


def of_class(value: str) -> dict[str, Any]:
    return {"path": f"class={value}/{PART}.parquet", "partitionValues": {"class": value}}


FORGED: Mapping[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "an absolute path": ("images", of_add(**named("/etc/passwd.parquet"))),
    "a path upwards": ("images", of_add(**named(f"../../{PART}.parquet"))),
    "a path upwards, escaped": ("images", of_add(**named(f"%2e%2e/%2e%2e/{PART}.parquet"))),
    "a URI": ("images", of_add(**named(f"s3://bucket/{PART}.parquet"))),
    "a file URI": ("images", of_add(**named(f"file:///tmp/{PART}.parquet"))),
    "a folder below": ("images", of_add(**named(f"a/{PART}.parquet"))),
    "a pattern": ("images", of_add(**named("*.parquet"))),
    "a quote": ("images", of_add(**named("a'b.parquet"))),
    "another extension": ("images", of_add(**named("x.csv"))),
    "a partition that is SQL": ("regions", of_add(**of_class("'; DROP TABLE x; --"))),
    "a partition that is a path": ("regions", of_add(**of_class(".."))),
    "a partition of another folder": ("regions", of_add(partitionValues={"class": "person"})),
    "a class that the model lacks": ("regions", of_add(**of_class("tree"))),
    "a size below 0": ("images", of_add(size=-1)),
    "a size of exabytes": ("images", of_add(size=2**60)),
    "rows below 0": ("images", of_add(stats='{"numRecords": -1}')),
    "rows beyond counting": ("images", of_add(stats='{"numRecords": 99999999999}')),
    "no rows said": ("images", of_add(stats=None)),
    "a version below 0": ("images", of_transaction("regions", -5)),
    "a version that is not there": ("images", of_transaction("regions", 2**40)),
    "another bundle": ("images", of_transaction("model", 7)),
    "mapped columns": (
        "images",
        inserted(protocol={"minReaderVersion": 2, "minWriterVersion": 5}),
    ),
    "deletion vectors": (
        "images",
        inserted(
            protocol={
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": ["deletionVectors"],
                "writerFeatures": ["deletionVectors"],
            }
        ),
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_log_is_refused_in_one_line(what: str, index: str) -> None:
    table, change = FORGED[what]
    change_log(index, table, change)
    with pytest.raises(SegrecError) as caught:
        store.open_snapshot(index)
    assert str(caught.value).startswith(index)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def _schema_of(index: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the columns of `images` in the log."""

    def replace(action: dict[str, Any]) -> None:
        if "metaData" in action:
            schema = json.loads(action["metaData"]["schemaString"])
            change(schema["fields"])
            action["metaData"]["schemaString"] = json.dumps(schema)

    log = Path(index, "images", "_delta_log", f"{0:020}.json")
    newest = log.with_name(f"{1:020}.json")
    kept = newest.read_text()
    newest.unlink()
    change_log(index, "images", replace)
    newest.write_text(kept)


def _rename(fields: list[dict[str, Any]]) -> None:
    place = next(f for f in fields if f["name"] == "coverage_car")
    place["name"] = "coverage_car\"; COPY (SELECT 1) TO '/tmp/x'; --"


def _other_class(fields: list[dict[str, Any]]) -> None:
    next(f for f in fields if f["name"] == "coverage_car")["name"] = "coverage_tree"


def _extension(fields: list[dict[str, Any]]) -> None:
    fields[-3]["metadata"] = {"ARROW:extension:name": "ray.data.arrow_pickled_object"}


def _other_type(fields: list[dict[str, Any]]) -> None:
    fields[0]["type"] = "binary"


@pytest.mark.parametrize("change", [_rename, _other_class, _extension, _other_type])
def test_columns_of_another_kind_are_refused(
    change: Callable[[list[dict[str, Any]]], None], index: str
) -> None:
    _schema_of(index, change)
    with pytest.raises(IndexStateError, match=index):
        store.open_snapshot(index)


def test_a_bundle_of_other_classes_does_not_open(index: str) -> None:
    path = Path(store.open_snapshot(index).model_uri, "model.json")
    path.write_text(path.read_text().replace('"person"', '"tree"'))
    with pytest.raises(IndexStateError, match="its model 'car, tree'"):
        store.open_snapshot(index)


def test_a_folder_with_anothers_bundle_does_not_open(index: str) -> None:
    path = Path(store.open_snapshot(index).model_uri, "model.json")
    path.write_text(path.read_text().replace(f"{1:016x}", f"{2:016x}"))
    with pytest.raises(IndexStateError, match="holds another bundle"):
        store.open_snapshot(index)


def test_a_footer_that_duckdb_cannot_read_is_damage(index: str) -> None:
    path = Path(_of_table(index, "images").uri(index))
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(start, start + 400):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            duckdb.sql(f"DESCRIBE FROM read_parquet('{path}')").fetchall()
        except duckdb.Error as error:
            if type(error) is duckdb.Error:  # Thrift's: without a kind, and without the file's name
                break
    else:
        raise AssertionError("no such byte")
    with pytest.raises(IndexStateError, match="damaged files"):
        open_index(index)


@given(data=st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_log_is_read_or_refused(
    data: st.DataObject, pristine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    index = tmp_path_factory.getbasetemp() / "forged index"
    if not index.exists():
        shutil.copytree(pristine, index)
    log = index / "images" / "_delta_log" / f"{data.draw(st.integers(0, 1)):020}.json"
    whole = log.read_text()
    lines = whole.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    changed = data.draw(mutated(lines[place].encode()))
    content = [line.encode() for line in lines]
    content[place] = changed
    log.write_bytes(b"\n".join(content) + b"\n")
    try:
        snapshot = store.open_snapshot(str(index))
    except SegrecError:
        pass
    else:
        assert all(f.uri(str(index)).startswith(f"{index}/") for f in snapshot.all_files)
    finally:
        log.write_text(whole)


def test_files_are_those_of_this_project() -> None:
    good = ("regions", f"class=car/{PART}.parquet", 1, 1, "car", "{}")
    assert parse_data_file(*good) == DataFile(*good)
    descriptor = DescriptorSpec("pca", {}, "0" * 64).id
    assert parse_data_file(
        "descriptors", f"descriptor={descriptor}/a.parquet", 1, 0, descriptor, ""
    )
    for place, value in (
        (0, "secrets"), (0, "images"), (1, f"class=car/../{PART}.parquet"), (1, None), (2, True),
        (2, 1.5), (3, None), (4, None), (4, "a b"), (5, None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r".+"):
            parse_data_file(*good[:place], value, *good[place + 1 :])


def _of_table(index: str, table: str) -> DataFile:
    return store.open_snapshot(index).files[table][0]


def test_purges_that_go_in_a_circle_end(index: str) -> None:
    a = _of_table(index, "images")
    b = DataFile("images", f"{PART}.parquet", 1, 1, None, a.stats)
    replacements.write_replacements(index, [(a, b), (b, a)])
    with pytest.raises(IndexStateError, match="its own successor"):
        store.open_snapshot(index, 1)


def test_replacements_of_foreign_files_are_refused(index: str) -> None:
    a = _of_table(index, "images")
    b = DataFile("images", "../../../secret.parquet", 1, 1, None, "{}")
    replacements.write_replacements(index, [(a, b)])
    with pytest.raises(IndexStateError, match="not what a purge has written"):
        store.open_snapshot(index, 1)
    (manifest,) = Path(index, "purged").iterdir()
    for content in (b"", b"PAR1", b"x" * 100):
        manifest.write_bytes(content)
        with pytest.raises(IndexStateError, match="not what a purge has written"):
            replacements.read_replacements(index)


def test_a_rebuild_cannot_stage_a_file_from_elsewhere(index: str) -> None:
    base = store.open_snapshot(index)
    empty = store.empty_snapshot(index, f"{2:016x}", SPEC)
    base = store.copy_with(empty, versions={**base.versions, "rebuild": -1})
    staging.stage(base, [DataFile("images", "../../secret.parquet", 1, 1, None, "{}")])
    with pytest.raises(IndexStateError, match="not what a rebuild has staged"):
        staging.read_staged_files(index, base.bundle_id)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def pickled(canary: Path, rows: int) -> pa.Array:
    """A column of Ray's pickled objects; importing it registers the type, as in a worker."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    storage = pa.array([pickle.dumps(Payload(canary))] * rows, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


def _additional(rows: pa.Table, column: pa.Array) -> pa.Table:
    return rows.append_column("payload", column)


def _in_place(rows: pa.Table, column: pa.Array) -> pa.Table:
    name = next(n for n in ("mask", "reason", "feature") if n in rows.column_names)
    return rows.set_column(rows.column_names.index(name), name, column)


def _nested(rows: pa.Table, column: pa.Array) -> pa.Table:
    inside = pa.StructArray.from_arrays([column], ["value"])
    return rows.append_column("payload", pa.ListArray.from_arrays(range(len(column) + 1), inside))


def _in_a_dictionary(rows: pa.Table, column: pa.Array) -> pa.Table:
    fields = [*rows.schema, pa.field("payload", pa.large_binary(), metadata={
        "ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": "",
    })]  # fmt: skip
    return pa.table([*rows.columns, column.storage], schema=pa.schema(fields))


def infected(index: str, canary: Path, change: Callable[[pa.Table, pa.Array], pa.Table]) -> Any:
    """The index with a part of all tables whose files have a pickled column; its files."""
    snapshot = store.open_snapshot(index)
    descriptor = DescriptorSpec("pca", {}, "0" * 64).id
    files = image_files(index, [f"/new/{i}.jpg" for i in range(3)], FEATURES[:3])
    row = {f.name: "x" for f in descriptors_schema() if f.name not in ("vector", "descriptor")}
    schema = descriptors_schema()
    schema = schema.remove(schema.names.index("descriptor"))
    described = pa.Table.from_pylist([{**row, "vector": None}], schema)
    files += write_part(index, [("descriptors", descriptor, described)])
    for file in files:
        rows = read_file(index, file)
        changed = change(rows, pickled(canary, rows.num_rows))
        pq.write_table(changed, file.uri(index), write_page_checksum=True)
    return store.commit(snapshot, files), files


INFECTIONS = [_additional, _in_place, _nested, _in_a_dictionary]


def test_arrow_alone_would_run_pickled_code(canary: Path, tmp_path: Path) -> None:
    """The payload is a real one."""
    pq.write_table(pa.table({"a": pickled(canary, 1)}), tmp_path / "a.parquet")
    pq.read_table(tmp_path / "a.parquet")["a"].to_pylist()
    assert canary.exists()


@pytest.mark.parametrize("change", INFECTIONS)
def test_pickled_columns_are_read_by_nobody(
    change: Callable[[pa.Table, pa.Array], pa.Table], index: str, canary: Path
) -> None:
    from segrec_batch.pipeline.rows import make_copied_rows

    snapshot, files = infected(index, canary, change)
    for file in files:
        for read in (
            lambda file=file: read_file(index, file),
            lambda file=file: read_column(index, file, "image_id"),
            lambda file=file: read_images(index, file, ["x"]),
            lambda file=file: merge_parts(index, [file, file]),
            lambda file=file: rewrite_part(index, [file], ["x"]),
        ):
            with pytest.raises(IndexStateError, match="extension types") as caught:
                read()
            assert str(caught.value).startswith(file.uri(index))
    images = next(f for f in files if f.table == "images")
    rows = pa.Table.from_pylist([{"donor": {"part": images.part, "image_id": "x"}}])
    with pytest.raises(IndexStateError, match="extension types"):
        list(make_copied_rows(rows, index, SPEC))
    problems = verify.check_part((index, list(files[:2]), SPEC, snapshot.model_id))
    assert len(problems) == 2
    assert all("extension types" in problem for problem in problems)
    assert not canary.exists()


def test_sql_and_batch_search_see_bytes(
    index: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segrec_batch.search.batch.selection import Request, Selection
    from segrec_batch.search.filters import Filters

    snapshot, _ = infected(index, canary, _additional)
    sql = "SELECT count(*) AS n, count(mask) AS m FROM images"
    assert exit_code("segrec", "sql", "--index", index, "--format", "csv", sql) == 1
    assert "lost or damaged files" in capsys.readouterr().err, "their size is not that of the log"
    with Selection(snapshot, Request(Filters()), tmp_path) as plan:
        plan.prepare()
        assert sum(len(block.places) for block in plan.candidates(100)) == 9
    ids = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"image_id": pickled(canary, 2)}), ids)
    with pytest.raises(InputError, match="extension types"):
        Selection(snapshot, Request(Filters(), str(ids)), tmp_path)
    assert not canary.exists()


def test_files_of_users_with_pickled_columns_are_refused(canary: Path, tmp_path: Path) -> None:
    from segrec_batch.evaluation.drift.golden import read_golden
    from segrec_batch.evaluation.report import read_counts
    from segrec_batch.search.batch.output import read_receipt

    path = str(tmp_path / "counts.parquet")
    pq.write_table(pa.table({"image_id": pickled(canary, 2)}), path)
    for read in (read_golden, read_session, read_receipt):
        with pytest.raises(InputError, match=path):
            read(path)
    with pytest.raises(InputError, match=path):
        read_counts(str(tmp_path))
    assert not canary.exists()


@pytest.mark.parametrize("table", TABLES)
def test_our_own_files_need_no_embedded_schema(table: str, tmp_path: Path) -> None:
    schema = schemas(("car", "tree"))[table]
    rows = schema.empty_table()
    file = write_file(str(tmp_path), PART, table, rows)
    content = Path(file.uri(str(tmp_path))).read_bytes()
    assert b"ARROW:schema" in content
    result = read_parquet(content)
    assert result.schema.equals(schema)
    assert result.schema.metadata == {b"segrec.part": f"{table}/{PART}".encode()}
    columns = [name for name in schema.names if name != PARTITION.get(table)]
    check_columns(table, result.select(columns).schema)
    assert compute_statistics(result) == compute_statistics(rows)


@given(data=st.data())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_any_bytes_are_rows_or_refused(data: st.DataObject) -> None:
    rows = pa.table({"a": pa.array([1, 2, 3]), "b": pa.array(["x", None, "ARROW:schema"])})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, write_page_checksum=True)
    whole = sink.getvalue().to_pybytes()
    assert read_parquet(whole).equals(rows)
    with suppress(pa.ArrowException, OSError):
        read_parquet(data.draw(changed_bytes(whole) | st.binary(max_size=60)))


def test_a_footer_is_not_believed_to_be_longer_than_its_file() -> None:
    for content in (b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", b"PAR1", b"", b"PAR1\0\0\0\0PAR1"):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            open_parquet(content)
