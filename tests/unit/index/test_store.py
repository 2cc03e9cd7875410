"""Tests of the index on disk: schemas, snapshots, and other readers."""

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import segrec_batch
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.index import commits, replacements, staging
from segrec_batch.index import snapshot as store
from segrec_batch.index.history import history
from segrec_batch.index.schema import regions_schema, schemas
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.spec import FORMAT
from tests.support.builders import failure_file
from tests.support.regenerate_schemas import FOLDER, snapshots


def as_text(row: dict[str, object]) -> str:
    """A row as text; times in seconds, since readers name UTC in two ways."""
    return repr({k: v.timestamp() if isinstance(v, dt.datetime) else v for k, v in row.items()})


@pytest.fixture
def empty(model: Model, tmp_path: Path) -> store.Snapshot:
    return store.create(str(tmp_path / "index"), model)


@pytest.mark.parametrize("name", sorted(snapshots()))
def test_schemas_are_those_of_the_json_snapshots(name: str) -> None:
    assert (FOLDER / name).read_text() == snapshots()[name], (
        "python tests/support/regenerate_schemas.py"
    )


@pytest.mark.parametrize("table", store.TABLES)
def test_delta_and_duckdb_read_the_same_rows(index: str, table: str) -> None:
    snapshot = store.open_snapshot(index)
    delta = DeltaTable(f"{index}/{table}", snapshot.versions[table])
    columns = schemas(snapshot.spec.classes)[table].names
    from_delta = pa.table(delta.to_pyarrow_table()).select(columns).to_pylist()
    from_sql = (
        segrec_batch.connect(index).sql(f"SELECT * FROM {table}").to_arrow_table().to_pylist()
    )
    assert len(from_delta) == snapshot.rows(table)
    assert sorted(map(as_text, from_sql)) == sorted(map(as_text, from_delta))


def test_the_views_have_the_columns_of_the_schemas(index: str) -> None:
    connection = segrec_batch.connect(index)
    for table, schema in schemas(("car", "person", "tree")).items():
        assert connection.sql(f"SELECT * FROM {table}").columns == schema.names


def test_an_empty_index_has_the_same_views(empty: store.Snapshot) -> None:
    connection = segrec_batch.connect(empty.index)
    for table, schema in schemas(empty.spec.classes).items():
        relation = connection.sql(f"SELECT * FROM {table}")
        assert (relation.columns, relation.fetchall()) == (schema.names, [])
    assert connection.sql("FROM recommend('x', class := 'car')").fetchall() == []


def test_files_hold_statistics_that_match_their_rows(index: str) -> None:
    for file in store.open_snapshot(index).files["regions"]:
        rows = pq.read_table(f"{index}/regions/{file.path}", partitioning=None)
        assert file.rows == rows.num_rows
        assert set(rows.column_names) == set(regions_schema().names) - {"class"}
        shares = rows["coverage"].to_pylist()
        assert shares == sorted(shares), "sorted by coverage, so that row groups can be skipped"
        stats = json.loads(file.stats)
        ends = [stats[key]["coverage"] for key in ("minValues", "maxValues")]
        assert ends == pytest.approx([shares[0], shares[-1]])
        assert stats["minValues"].keys() == {"coverage"}, "the log outlives purged rows"


def test_delta_prunes_files_by_coverage(index: str) -> None:
    actions = pa.table(DeltaTable(f"{index}/images").get_add_actions(flatten=True)).to_pylist()
    connection = segrec_batch.connect(index)
    ((low, high),) = connection.sql(
        "SELECT min(coverage_tree), max(coverage_tree) FROM images"
    ).fetchall()
    assert min(a["min.coverage_tree"] for a in actions) == pytest.approx(low)
    assert max(a["max.coverage_tree"] for a in actions) == pytest.approx(high)


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexStateError, match="segrec index"):
        segrec_batch.connect(str(tmp_path))


def test_a_version_that_is_not_there_is_an_error(empty: store.Snapshot) -> None:
    with pytest.raises(IndexStateError, match="version 7"):
        segrec_batch.connect(empty.index, 7)


def test_the_index_keeps_the_model_that_made_it(empty: store.Snapshot, model: Model) -> None:
    assert load_model(empty.model_uri).model_id == empty.model_id == model.model_id


def test_of_two_runs_that_publish_the_second_fails(empty: store.Snapshot) -> None:
    first = store.commit(empty, [failure_file(empty.index, "first")])
    with pytest.raises(IndexStateError, match="another run has published"):
        store.commit(empty, [failure_file(empty.index, "second")])
    result = segrec_batch.connect(empty.index).sql("SELECT uri FROM failures").fetchall()
    assert result == [("first",)]
    assert store.open_snapshot(empty.index) == first


def test_files_of_a_dead_run_stay_invisible(empty: store.Snapshot) -> None:
    orphan = failure_file(empty.index, "orphan")
    commits.replace_files(empty.index, "failures", [orphan])  # and died before `images`
    assert store.open_snapshot(empty.index).rows("failures") == 0
    after = store.commit(empty, [failure_file(empty.index, "next")])
    assert segrec_batch.connect(empty.index).sql("SELECT uri FROM failures").fetchall() == [
        ("next",)
    ]
    assert orphan.path not in {f.path for f in after.files["failures"]}


def test_a_file_that_a_dead_run_removed_is_brought_back(empty: store.Snapshot) -> None:
    kept = store.commit(empty, [failure_file(empty.index, "kept")])
    commits.replace_files(kept.index, "failures", [])
    assert store.open_snapshot(empty.index).rows("failures") == 1
    after = store.commit(kept, [failure_file(empty.index, "next")])
    assert after.rows("failures") == 2


def test_old_versions_stay_readable(empty: store.Snapshot) -> None:
    one = store.commit(empty, [failure_file(empty.index, "one")])
    two = store.commit(one, [failure_file(empty.index, "two")], one.files["failures"])
    at = {v: store.open_snapshot(empty.index, v).rows("failures") for v in (0, 1, 2)}
    assert (one.version, two.version, at) == (1, 2, {0: 0, 1: 1, 2: 1})


def test_history_returns_the_info_of_runs(empty: store.Snapshot) -> None:
    store.commit(empty, [failure_file(empty.index, "x")], info={"segrec": {"run_id": "r1"}})
    assert history(empty.index)[0].info["segrec"] == {"run_id": "r1"}


def test_create_completes_an_unfinished_index(model: Model, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    store.create(index, model)
    shutil.rmtree(f"{index}/images")
    assert not store.exists(index)
    assert store.create(index, model).version == 0


def test_an_index_of_another_spec_format_is_refused(empty: store.Snapshot) -> None:
    spec = replace(empty.spec, training={"note": "x"})
    assert spec.to_json()["format"] == FORMAT
    with pytest.raises(Exception, match="format"):
        type(spec).from_json({**spec.to_json(), "format": 0})


def other_model(model: Model) -> Model:
    """Another model, of fewer classes, so that `images` has other columns."""
    classes = model.spec.classes[:1]
    components = tuple(min(c, 1) for c in model.spec.components)
    return replace(model, spec=replace(model.spec, classes=classes, components=components))


def test_replace_publishes_another_model_in_one_commit(empty: store.Snapshot, model: Model) -> None:
    old = store.commit(empty, [failure_file(empty.index, "old")])
    other = other_model(model)
    other.save(store.model_uri(empty.index, other.model_id))
    expected = store.empty_snapshot(empty.index, other.model_id, other.spec)
    expected = store.with_changes(expected, [failure_file(empty.index, "new")])
    new = store.replace(old, expected)
    assert (new.model_id, new.spec.classes) == (other.model_id, other.spec.classes)
    back = store.open_snapshot(empty.index, old.version)
    assert (back, load_model(back.model_uri).model_id) == (old, model.model_id)
    columns = segrec_batch.connect(empty.index).sql("FROM images").columns
    assert [c for c in columns if c.startswith("coverage_")] == [
        "coverage_background", f"coverage_{other.spec.classes[0]}"
    ]  # fmt: skip
    actual = segrec_batch.connect(empty.index).sql("SELECT uri FROM failures").fetchall()
    assert actual == [("new",)]
    again = store.replace(new, old)
    assert (again.model_id, again.files) == (old.model_id, old.files)


def test_staged_files_are_invisible_and_kept(empty: store.Snapshot, model: Model) -> None:
    other = other_model(model)
    a, b = (failure_file(empty.index, name) for name in "ab")
    staged = staging.stage(staging.open_staging(empty, other), [a])
    staged = staging.stage(staged, [b], [a])
    assert store.open_snapshot(empty.index) == empty
    assert staging.list_rebuilds(empty.index) == [other.model_id]
    assert staging.open_staging(empty, other).files["failures"] == (b,) == staged.files["failures"]
    published = store.replace(empty, staged)
    assert staging.open_staging(published, other).files["failures"] == (), "it was published"


def test_of_two_rebuilds_with_one_model_the_second_fails(
    empty: store.Snapshot, model: Model
) -> None:
    first = second = staging.open_staging(empty, model)
    for name in "ab":  # when there is nothing yet, and later
        first = staging.stage(first, [failure_file(empty.index, name)])
        with pytest.raises(IndexStateError, match="another run rebuilds it"):
            staging.stage(second, [failure_file(empty.index, "c")])
        second = staging.open_staging(empty, model)
        first, second = second, first
        second = replace(second, versions={**second.versions, "rebuild": -1})
    assert len(staging.open_staging(empty, model).files["failures"]) == 2


def test_replacements_of_purged_files_are_followed_to_the_last(empty: store.Snapshot) -> None:
    a, b, c = (failure_file(empty.index, name) for name in "abc")
    old = store.commit(empty, [a])
    now = store.commit(old, [b], [a])
    replacements.write_replacements(empty.index, [(a, b)])
    replacements.write_replacements(empty.index, [(b, c)])
    assert store.open_snapshot(empty.index, old.version).files["failures"] == (c,)
    replacements.write_replacements(empty.index, [(c, None)])
    assert store.open_snapshot(empty.index, old.version).files["failures"] == ()
    assert store.open_snapshot(empty.index) == now


def test_an_index_path_with_pattern_characters_is_no_pattern(model: Model, tmp_path: Path) -> None:
    index = str(tmp_path / "a[1]*? b'c")
    store.commit(store.create(index, model), [failure_file(index, "x")])
    result = segrec_batch.connect(index).sql("SELECT uri FROM failures").fetchall()
    assert result == [("x",)]


def test_an_index_path_with_a_percent_sign_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="%"):
        store.create(str(tmp_path / "a%20b"), model)


def test_a_version_whose_files_are_gone_says_so(empty: store.Snapshot) -> None:
    one = store.commit(empty, [failure_file(empty.index, "one")])
    Path(one.files["failures"][0].uri(empty.index)).unlink()
    with pytest.raises(IndexStateError, match="vacuum"):
        segrec_batch.connect(empty.index, one.version)
