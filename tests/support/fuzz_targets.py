"""Targets of fuzzing: each makes a valid input, changes it and loads it."""

import dataclasses
import io
import itertools
import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_tensors

from segrec_batch.common.errors import ModelError, SegrecError
from segrec_batch.descriptors import runtime as describer
from segrec_batch.evaluation.report import read_counts, read_metrics
from segrec_batch.index import delta, replacements, staging
from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import image_id
from segrec_batch.index.files import group_by_part
from segrec_batch.index.history import choose_roots, history
from segrec_batch.index.parts import read_file, write_part
from segrec_batch.index.schema import TABLES, descriptors_schema, failures_schema
from segrec_batch.labels.labelled import load_classes
from segrec_batch.maintenance.verify import check_part
from segrec_batch.maintenance.versions import read_named_files
from segrec_batch.model.bundle import load_model
from segrec_batch.model.spec import DescriptorSpec, read_spec
from segrec_batch.search.batch.output import read_receipt
from segrec_batch.search.cache import refresh_cache
from segrec_batch.search.database import Database, is_cache, open_index
from segrec_batch.search.feedback import rounds
from segrec_batch.search.feedback.refine import Weights
from segrec_batch.search.feedback.session import KEY, Session, ShownImage
from segrec_batch.search.feedback.session import read as read_session
from segrec_batch.search.feedback.session import write as write_session
from segrec_batch.search.filters import Filters
from segrec_batch.search.recommend import QueryImage, Recommender
from segrec_batch.search.sql.connection import Access, query
from segrec_batch.search.sql.guard import run_untrusted
from segrec_batch.search.sql.limits import Limits
from segrec_batch.sheets.card import Card
from segrec_batch.sources.strict_json import parse_json
from tests.support.builders import small_model
from tests.support.damage import Damage
from tests.support.feature_index import SPEC, add_images, image_files, names, write_index
from tests.support.reports import REPORT

FEATURES = np.random.default_rng(0).random((12, 512), np.float32)
COUNTS = "SELECT " + ", ".join(f"(SELECT count(*) FROM {t}) AS {t}" for t in TABLES)
VALUES = "SELECT 1 FROM " + ", ".join(
    f"(SELECT min(COLUMNS(*)::VARCHAR), max(COLUMNS(*)::VARCHAR) FROM {t})" for t in TABLES
)
ANSWER = "FROM recommend((SELECT min(image_id) FROM images), k := 3)"
LIMITS = Limits(seconds=5)


class Tree:
    """Files of a valid input; what an example changes is put back afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        result = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        self.content = {str(p.relative_to(folder)): p.read_bytes() for p in result}
        self._changed: set[str] = set()

    def write(self, path: str, content: bytes) -> None:
        """Put other content into a file, or make a new one."""
        self._changed.add(path)
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(content)

    def remove(self, path: str) -> None:
        """Take a file away."""
        self._changed.add(path)
        (self.folder / path).unlink(missing_ok=True)

    def restore(self) -> None:
        """Put everything back."""
        for path in self._changed:
            if path in self.content:
                (self.folder / path).write_bytes(self.content[path])
            else:
                (self.folder / path).unlink(missing_ok=True)
        self._changed.clear()


class Target:
    """One kind of input.

    Args:
        folder: An empty folder for it; inputs are in its `input`.
        hostile: Texts that name files, hosts and statements, see `Damage`.
    """

    def __init__(self, folder: Path, hostile: list[str]) -> None:
        self.input = folder / "input"
        self.hostile = hostile
        self.prepare()
        self.tree = Tree(self.input)
        self.rng = random.Random(0)  # noqa: S311 - it has to repeat

    def prepare(self) -> None:
        """Make the valid input."""
        raise NotImplementedError

    def change(self, damage: Damage, rng: random.Random) -> None:
        """Turn it into that of an example, of which `rng` chooses the rest."""
        raise NotImplementedError

    def load(self) -> None:
        """Have the product load it. Raises SegrecError for what is refused."""
        raise NotImplementedError

    def restore(self) -> None:
        """Make it valid again."""
        self.tree.restore()


class JsonTarget(Target):
    """Documents of JSON, and what reads them: reports, class files, receipts."""

    def prepare(self) -> None:
        self.input.mkdir(parents=True)
        (self.input / "metrics.json").write_text(json.dumps(REPORT))
        classes = {"car": [8, 9], "person": [1], "ignore": [255]}
        (self.input / "classes.json").write_text(json.dumps(classes))
        out = io.BytesIO()
        receipt = json.dumps({"queries": 3, "nothing_left": ["a"]})
        rows = pa.table({"query_id": ["a"]})
        pq.write_table(rows.replace_schema_metadata({b"segrec": receipt}), out)
        (self.input / "counts.parquet").write_bytes(out.getvalue())

    def change(self, damage: Damage, rng: random.Random) -> None:
        path = rng.choice(sorted(self.tree.content))
        change = damage.change_parquet if path.endswith(".parquet") else damage.change_document
        self.tree.write(path, change(self.tree.content[path]))

    def load(self) -> None:
        for name in ("metrics.json", "classes.json"):
            with suppress(ValueError):
                parse_json((self.input / name).read_bytes())
        refused: list[SegrecError] = []
        readers: list[tuple[Callable[[str], Any], str]] = [
            (read_metrics, ""), (read_counts, ""), (load_classes, "/classes.json"),
        ]  # fmt: skip
        for read, path in readers:
            try:
                read(f"{self.input}{path}")
            except SegrecError as error:
                refused.append(error)
        with suppress(SegrecError):
            read_receipt(f"{self.input}/counts.parquet")
        if refused:
            raise refused[0]


class BundleTarget(Target):
    """A bundle: its description and its tensors; one time in two with ids that fit them."""

    descriptors: ClassVar[Mapping[str, Any]] = {
        "pca": {"mean": np.zeros(512, np.float32), "components": np.eye(4, 512, dtype=np.float32)},
        "signature": {},
        "vlad": {"words": np.ones((4, 128), np.float32)},
        "bovw": {"words": np.ones((4, 128), np.float32)},
        "texture": {"mean": np.zeros(1044), "spread": np.ones(8)},
    }
    settings: ClassVar[Mapping[str, Any]] = {
        "dimension": 4, "feature_length": 512, "keypoints": 50, "threshold": 3,
    }  # fmt: skip

    def prepare(self) -> None:
        model = small_model()
        for name, tensors in self.descriptors.items():
            model = model.with_descriptor(name, self.settings, tensors)
        model.save(str(self.input))

    def change(self, damage: Damage, rng: random.Random) -> None:
        path = rng.choice(["model.json", *sorted(self.tree.content)])
        content = self.tree.content[path]
        if path == "model.json":
            self.tree.write(path, damage.change_document(content))
        elif rng.random() < 0.5:
            self.tree.write(path, _changed_tensors(content, damage, rng))
        else:
            self._forge(path, damage, rng)

    def _forge(self, path: str, damage: Damage, rng: random.Random) -> None:
        """Other tensors, with a model.json that was written for them."""
        tensors = {k: v.copy() for k, v in load_tensors(self.tree.content[path]).items()}
        for name in rng.sample(sorted(tensors), min(2, len(tensors))):
            tensors[name] = _changed_tensor(tensors[name], rng)
        model = load_model(str(self.input))
        stem = path.removesuffix(".safetensors")
        if stem.startswith("descriptor-"):
            settings = damage.change_tree(self.settings)
            name = stem.removeprefix("descriptor-")
            try:
                model = model.with_descriptor(name, settings, tensors)
            except ModelError:
                return
        else:
            model = dataclasses.replace(model, **{stem: tensors})
        folder = self.input.parent / "forged"
        model.save(str(folder))
        for file in folder.iterdir():
            self.tree.write(file.name, file.read_bytes())
        shutil.rmtree(folder)

    def load(self) -> None:
        spec, _ = read_spec(str(self.input))
        model = load_model(str(self.input))
        assert model.spec == spec
        describer.load.cache_clear()
        known = tuple(d.name for d in spec.descriptors if d.name in self.descriptors)
        for loaded in describer.load(str(self.input), known, "cpu"):
            assert loaded.id


def _changed_tensors(content: bytes, damage: Damage, rng: random.Random) -> bytes:
    """A safetensors file with another header, or other bytes."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.7:
        header = damage.change_document(header)
        length = rng.choice((len(header), len(header), len(header), len(header) + 1, 2**63))
        return struct.pack("<Q", length) + header + body
    return damage.change_bytes(content)


def _changed_tensor(tensor: Any, rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return tensor.astype(rng.choice((np.float64, np.int32, np.uint8, np.int64)))
        case 1:
            return tensor[: rng.randrange(3)]
        case 2:
            return np.array(0.5, np.float32)
        case 3:
            return tensor.reshape(-1)
        case 4:
            return np.full_like(tensor, rng.choice((np.nan, np.inf, 0, -1e38)))
    return np.concatenate([tensor, tensor]) if tensor.ndim else tensor


class IndexTarget(Target):
    """An index: the logs of its tables, checkpoints, purges, a rebuild, its bundle, its rows."""

    version: int | None = None

    def prepare(self) -> None:
        index = str(self.input)
        snapshot = write_index(index, FEATURES[:6])
        snapshot = add_images(snapshot, FEATURES[6:])
        old = snapshot.files["images"][0]
        more = write_part(index, [
            ("descriptors", DescriptorSpec("pca", {}, "0" * 64).id, _descriptor_rows()),
            ("failures", None, _failure_rows()),
        ])  # fmt: skip
        snapshot = store.commit(snapshot, more)
        for table in TABLES:
            delta.open_table(index, table).create_checkpoint()
        new = image_files(index, names(6), FEATURES[:6])
        store.commit(snapshot, new, [f for f in snapshot.all_files if f.part == old.part])
        replacements.write_replacements(index, [(old, next(f for f in new if f.table == "images"))])
        base = store.copy_with(
            store.empty_snapshot(index, f"{2:016x}", SPEC),
            versions={**snapshot.versions, "rebuild": -1},
        )
        staging.stage(staging.stage(base, new), [], new[:1])
        self.bundle = base.bundle_id

    def change(self, damage: Damage, rng: random.Random) -> None:
        self.rng = rng
        self.version = rng.choice((None, None, None, 0, 1, 2, 3))
        kinds = [".json", ".json", ".json", ".checkpoint.parquet", "_last_checkpoint", ".parquet"]
        for _ in range(rng.choice((1, 1, 1, 2))):
            kind = rng.choice(kinds)
            path = rng.choice([p for p in sorted(self.tree.content) if p.endswith(kind)])
            content = self.tree.content[path]
            if rng.random() < 0.03:
                self.tree.remove(path)
            elif kind == ".json" and "_delta_log" in path:
                self.tree.write(path, _changed_entry(content, damage, rng))
            elif kind.endswith(".parquet"):
                self.tree.write(path, damage.change_parquet(content))
            else:
                self.tree.write(path, damage.change_document(content))

    def load(self) -> None:
        index = str(self.input)
        refused: list[SegrecError] = []
        steps: list[Callable[[], object]] = [
            lambda: history(index),
            lambda: staging.list_rebuilds(index),
            lambda: staging.read_staged_files(index, self.bundle),
            lambda: staging.read_last_staged(index, self.bundle),
            lambda: replacements.read_replacements(index),
            lambda: read_named_files(index),
            lambda: choose_roots(index),
            self._open,
        ]
        for step in steps:
            try:
                step()
            except SegrecError as error:
                refused.append(error)
        if refused:
            raise refused[-1]

    def _open(self) -> None:
        index = str(self.input)
        snapshot = store.open_snapshot(index, self.version)
        assert all(f.uri(index).startswith(f"{index}/") for f in snapshot.all_files)
        refused: list[SegrecError] = []
        for file in snapshot.all_files:
            try:
                read_file(index, file)
            except OSError:
                pass  # of the disk: a file that is gone
            except SegrecError as error:
                refused.append(error)
        for files in group_by_part(snapshot.all_files).values():
            check_part((index, files, snapshot.spec, snapshot.model_id))
        _ask(index, refused, self.rng, self.version)
        if refused:
            raise refused[0]


def _ask(
    index: str, refused: list[SegrecError], rng: random.Random, version: int | None = None
) -> None:
    """Some of what `segrec sql` and `segrec query` ask of an index or of a cache."""
    database = open_index(index, version, Access.SEALED, {"threads": 1})
    with database.connection:
        first, *more = rng.sample((COUNTS, VALUES, ANSWER), 3)
        calls = [lambda: run_untrusted(database, first, limits=LIMITS)]
        calls += [lambda sql=sql: query(database.connection, sql) for sql in more]
        for answer in calls:
            try:
                answer().to_pylist()
            except SegrecError as error:
                refused.append(error)
    if rng.random() < 0.6:
        return
    database = open_index(index, version)
    with database.connection:
        try:
            _recommend(database)
        except SegrecError as error:
            refused.append(error)


def _recommend(database: Database) -> None:
    recommender = Recommender(database)
    image = recommender.find_image("uri", names(1, 1)[0])
    for filters in (Filters(k=3), Filters("car", k=3), Filters("car", k=3, rerank="mask_iou")):
        recommender.rank(image, filters)


def _descriptor_rows() -> pa.Table:
    schema = descriptors_schema()
    schema = schema.remove(schema.names.index("descriptor"))
    row = {f.name: "x" for f in schema} | {"vector": [0.5] * 4, "category": None, "reason": None}
    ids = [{**row, "image_id": image_id(uri), "uri": uri} for uri in names(6)]
    return pa.Table.from_pylist([_fitting(r, schema) for r in ids], schema)


def _failure_rows() -> pa.Table:
    schema = failures_schema()
    row = {f.name: "x" for f in schema} | {"uri": "/bad.jpg", "stage": "decode"}
    return pa.Table.from_pylist([_fitting(row, schema)], schema)


def _fitting(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """A row in which what is "x" has the types of a schema."""
    numbers = {f.name for f in schema if not pa.types.is_string(f.type)}
    return {k: 1 if k in numbers and v == "x" else v for k, v in row.items()}


def _changed_entry(content: bytes, damage: Damage, rng: random.Random) -> bytes:
    """An entry of a log with a line changed, gone, twice or elsewhere, or with other bytes."""
    if rng.random() < 0.1:
        return damage.change_bytes(content)
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    match rng.randrange(12):
        case 0:
            del lines[place]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[place])
        case 2:
            rng.shuffle(lines)
        case _:
            lines[place] = damage.change_document(lines[place])
    return b"\n".join(lines) + b"\n" * (rng.random() < 0.9)


class CacheTarget(Target):
    """A query cache: its tables and views changed by SQL, its bytes, and its write-ahead log."""

    def prepare(self) -> None:
        folder = self.input.parent / "of"
        snapshot = write_index(str(folder), FEATURES)
        rows = [("failures", None, _failure_rows())]
        store.commit(snapshot, write_part(str(folder), rows))  # type: ignore[arg-type]
        self.input.mkdir()
        self.path = str(self.input / "cache.duckdb")
        refresh_cache(str(folder), self.path)
        with duckdb.connect(self.path) as connection:
            self._columns = connection.execute(
                "SELECT table_name, column_name, data_type FROM duckdb_columns() "
                "WHERE schema_name = 'segrec' ORDER BY ALL"
            ).fetchall()
            ((self._spec,),) = connection.execute("SELECT spec FROM segrec.snapshot").fetchall()

    def change(self, damage: Damage, rng: random.Random) -> None:
        self.rng = rng
        whole = self.tree.content["cache.duckdb"]
        self.tree.write("cache.duckdb", whole)
        self.tree.remove("cache.duckdb.wal")
        kind = rng.randrange(10)
        if kind < 6:
            statements = [self._statement(damage, rng) for _ in range(rng.choice((1, 1, 2, 4)))]
            _execute(self.path, statements, checkpoint=kind < 5)
            log = Path(f"{self.path}.wal")
            if log.exists() and rng.random() < 0.7:
                self.tree.write("cache.duckdb.wal", damage.change_bytes(log.read_bytes()))
        elif kind < 9:
            changed = damage.change_bytes(whole)
            self.tree.write("cache.duckdb", _with_checksums(changed) if kind == 7 else changed)
        else:
            self.tree.write("cache.duckdb.wal", rng.randbytes(rng.choice((1, 100, 5000))))

    def _statement(self, damage: Damage, rng: random.Random) -> str:
        table = rng.choice((*TABLES, "snapshot", "snapshot", "images"))
        columns = [(name, kind) for of, name, kind in self._columns if of == table]
        name, kind = rng.choice(columns)
        other = rng.choice(columns)[0]
        if table == "snapshot" and name == "spec":
            changed = damage.change_document(self._spec.encode()).decode("utf-8", "replace")
            return f"UPDATE segrec.snapshot SET spec = {_text(changed)}"
        odd = damage.odd_value()
        value = rng.choice((
            "NULL", f"TRY_CAST({_text(odd)} AS {kind})", f"TRY_CAST([] AS {kind})", _text(odd),
            f"TRY_CAST('nan' AS {kind})", f"TRY_CAST([NULL] AS {kind})", f'"{name}"',
            f"TRY_CAST(list_resize([1], 512, 'inf'::FLOAT) AS {kind})", "-1", "random()",
        ))  # fmt: skip
        read = f"(SELECT content FROM read_text({_text(rng.choice(self.hostile))}))"
        return rng.choice((
            f'UPDATE segrec.{table} SET "{name}" = {value}',
            f'UPDATE segrec.{table} SET "{name}" = {value}',
            f'UPDATE segrec.{table} SET "{name}" = {value} WHERE random() < 0.5',
            f"INSERT INTO segrec.{table} FROM segrec.{table}",
            f"DELETE FROM segrec.{table}",
            f'ALTER TABLE segrec.{table} DROP COLUMN "{name}"',
            f'ALTER TABLE segrec.{table} RENAME COLUMN "{name}" TO x',
            f'ALTER TABLE segrec.{table} ADD COLUMN more {kind} DEFAULT {value}',
            f'ALTER TABLE segrec.{table} ALTER "{name}" SET DEFAULT {value}',
            f'ALTER TABLE segrec.{table} ALTER "{name}" TYPE {rng.choice(_SQL_TYPES)}',
            f"ALTER TABLE segrec.{table} RENAME TO moved",
            f"DROP TABLE segrec.{table}",
            f"CREATE OR REPLACE VIEW {rng.choice(TABLES)} AS SELECT {read} AS image_id",
            f"CREATE VIEW segrec.more AS SELECT {read} AS image_id",
            f"ALTER TABLE segrec.{table} RENAME TO moved; CREATE VIEW segrec.{table} AS "
            f"SELECT * REPLACE ({read} AS {name}) FROM segrec.moved",
            f"CREATE OR REPLACE MACRO {rng.choice(_MACROS)}(a, b := 1) AS {read}",
            f"CREATE OR REPLACE MACRO {rng.choice(_MACROS)}(a, b := 1) AS TABLE SELECT {read}",
            f"CREATE SCHEMA {rng.choice(('segrec2', 'expected', 'system2', 'temp2', 'memory'))}",
            f"CREATE TYPE {rng.choice(('main', 'segrec'))}.{rng.choice(_SQL_TYPES[:6])} AS VARCHAR",
            f'CREATE INDEX i ON segrec.{table} ("{name}")',
            f'CREATE TABLE segrec.new AS SELECT "{name}", "{other}" FROM segrec.{table}',
            "CREATE SEQUENCE segrec.numbers",
        ))  # fmt: skip

    def load(self) -> None:
        assert is_cache(self.path)
        refused: list[SegrecError] = []
        _ask(self.path, refused, self.rng)
        if refused:
            raise refused[0]


_SQL_TYPES = [
    "FLOAT", "VARCHAR", "INTEGER", "DOUBLE", "BLOB", "BOOLEAN", "FLOAT[]", "VARCHAR[]", "HUGEINT",
    "STRUCT(a INTEGER)", "FLOAT[512]", "TIMESTAMP", "UUID", "BIT", "MAP(INTEGER, VARCHAR)",
]  # fmt: skip
_MACROS = ["pearson", "recommend", "len", "feature_error", "list_sum", "sum", "hamming", "more"]


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''").replace("\0", "") + "'"


def _with_checksums(content: bytes) -> bytes:
    """A DuckDB file whose three headers and blocks have the checksums of what is in them."""
    result = bytearray(content)
    starts = [0, 4096, 8192, *range(3 * 4096, len(result), 2**18)]
    for start, stop in itertools.pairwise([*starts, len(result)]):
        if stop - start in (4096, 2**18) and stop <= len(result):
            words = np.frombuffer(result[start + 8 : stop], np.uint64)
            mixed = np.bitwise_xor.reduce(words * np.uint64(0xBF58476D1CE4E5B9))
            result[start : start + 8] = int(mixed ^ np.uint64(5381)).to_bytes(8, "little")
    return bytes(result)


def _execute(path: str, statements: list[str], checkpoint: bool) -> None:
    """Change a cache as its maker can; a statement that DuckDB does not take is left out."""
    with duckdb.connect(path) as connection:
        if not checkpoint:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            connection.execute("SET wal_autocheckpoint = '1TB'")
        for statement in statements:
            with suppress(duckdb.Error, UnicodeError):
                connection.execute(statement)


class SessionTarget(Target):
    """A feedback session: what it says of itself, its rounds, its bytes; then it is replayed."""

    name = "indexed"

    def prepare(self) -> None:
        index = self.input.parent / "of"
        snapshot = write_index(str(index), FEATURES)
        self.input.mkdir()
        seen = {"query": FEATURES[0].tolist(), "coverages": [0.5, 0.5, 0], "category": None,
                "masks": {"car": [1, -1] * 32}}  # fmt: skip
        new = QueryImage(Card("new.jpg", None, b"png", {"car": 1.0}, None), None, seen)
        ids = [image_id(uri) for uri in names(4)]
        for name, image in (("new", new), ("indexed", ids[0])):
            shown = [ShownImage(0, "query", i + 1, ids[i], names(4)[i], 0.5, mark)
                     for i, mark in enumerate((1.0, 0.0, 0.5))]  # fmt: skip
            shown += [ShownImage(1, way, 1, ids[3], names(4)[3], None) for way in ("rocchio",)]
            filters = Filters("car", k=3) if name == "indexed" else Filters(k=3)
            session = Session(
                str(index), snapshot.version, snapshot.model_id, image, filters, Weights(), False,
                shown,
            )  # fmt: skip
            write_session(session, str(self.input / name))
        self.index = str(index)

    def change(self, damage: Damage, rng: random.Random) -> None:
        self.name = rng.choice(("new", "indexed"))
        content = self.tree.content[self.name]
        if rng.random() < 0.6:
            rows = pq.read_table(io.BytesIO(content))
            about = damage.change_document(rows.schema.metadata[KEY])
            if rng.random() < 0.3:
                rows = damage.change_rows(rows)
            changed = damage.write_parquet(rows.replace_schema_metadata({KEY: about}))
        else:
            changed = damage.change_parquet(content)
        self.tree.write(self.name, changed or damage.change_bytes(content))

    def load(self) -> None:
        session = read_session(str(self.input / self.name))
        for number, _ in session.rounds():
            session.caption(number)
        recommender = rounds.resume(session, self.index)
        with recommender.database.connection:
            rounds.replay(recommender, session)
            for way in ("rocchio", "svm"):
                rounds.mark(recommender, session, {1: 1.0, 2: 0.0}, way, 0)
