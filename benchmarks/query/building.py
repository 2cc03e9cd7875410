"""Build the index, the cache and the files of the peers; each step in a new process."""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common.peak_memory import check_count, measure
from benchmarks.common.stand_in import StandInModel
from benchmarks.query.synthetic import (
    Case,
    blocks,
    draw_coverages,
    draw_features,
    make_part,
    make_region,
    make_table,
    standardise,
)
from segrec_batch.index import parts
from segrec_batch.index import snapshot as index
from segrec_batch.index.files import group_by_part
from segrec_batch.index.parts import write_part
from segrec_batch.index.schema import regions_schema
from segrec_batch.model.backbones import DEFAULT_BACKBONE

log = logging.getLogger("segrec_batch.benchmarks")


def build(case: Case, peers: list[str]) -> dict[str, dict[str, float]]:
    """Run the missing steps; return seconds, peak memory in MB and MB on disk of every step."""
    Path(case.folder).mkdir(parents=True, exist_ok=True)
    record = Path(case.folder, "built.json")
    done = json.loads(record.read_text()) if record.exists() else {}
    if done.get("cache", {}).get("sql") != _hash_recipe():
        done.pop("cache", None)  # it holds the macros of another version
    for name, step in _STEPS.items():
        if name in done or (name in _PEER_STEPS and name not in peers):
            continue
        log.info(f"{case.rows:,} images: {name}")
        measured = measure(step, case)
        seconds, size = measured.result
        done[name] = {
            "s": seconds,
            "MB": size / 1e6,
            "peak MB": measured.total / 1e6,
            "sql": _hash_recipe(),
        }
        record.write_text(json.dumps(done))
    return {name: done[name] for name in _STEPS if name in done}


def _hash_recipe() -> int:
    """Return a hash of the files that determine the content of a cache."""
    root = Path(__file__).parents[2]
    paths = [*sorted((root / "schemas").glob("*.sql")), root / "segrec_batch/search/cache.py"]
    return zlib.crc32(b"".join(path.read_bytes() for path in paths))


def _write_index(case: Case) -> tuple[float, int]:
    shutil.rmtree(case.index, ignore_errors=True)
    clock = time.perf_counter()
    base = index.create(case.index, StandInModel())  # type: ignore[arg-type]
    parts = [write_part(case.index, make_part(0, *block)) for block in blocks(case.rows)]
    snapshot = index.commit(base, [file for part in parts for file in part])
    check_count(snapshot.rows("images"), case.rows)
    check_count(snapshot.version, 1)
    return time.perf_counter() - clock, sum(f.size for f in snapshot.all_files)


def _read_index(case: Case) -> tuple[float, int]:
    """Read the files of the index with PyArrow, as a bound for the cache."""
    files = list(index.open_snapshot(case.index).all_files)
    clock = time.perf_counter()
    for file in files:
        check_count(pq.read_table(file.uri(case.index), partitioning=None).num_rows, file.rows)
    return time.perf_counter() - clock, sum(f.size for f in files)


def _create_cache(case: Case) -> tuple[float, int]:
    from segrec_batch.search.cache import refresh_cache

    clock = time.perf_counter()
    refresh_cache(case.index, case.cache, rebuild=Path(case.cache).exists())
    return time.perf_counter() - clock, Path(case.cache).stat().st_size


def _refresh_cache(case: Case) -> tuple[float, int]:
    """Change 1 % of the images, refresh a copy of the cache, and restore the index."""
    from segrec_batch.search.cache import refresh_cache

    base = index.open_snapshot(case.index)
    start, rows = blocks(case.rows)[-1]
    old = next(p for p in group_by_part(base.all_files).values() if p[0].rows == rows)
    changed = index.commit(base, write_part(case.index, make_part(2, start, rows)), old)
    link = f"{case.cache}.link"  # the refreshed file replaces this link, not the cache
    Path(link).unlink(missing_ok=True)
    os.link(case.cache, link)
    clock = time.perf_counter()
    changes = refresh_cache(case.index, link)
    seconds, size = time.perf_counter() - clock, Path(link).stat().st_size
    Path(link).unlink()
    check_count(changes.added, sum(f.rows for f in old))
    index.replace(changed, base)
    return seconds, size


def _write_unsorted(case: Case) -> tuple[float, int]:
    clock = time.perf_counter()
    schema = regions_schema()
    with pq.ParquetWriter(case.unsorted, schema, compression="none", use_dictionary=False) as sink:
        for start, rows in blocks(case.rows):
            vectors = draw_features(0, start, rows)
            cars = make_table(
                schema, make_region(vectors, "car", draw_coverages(start, rows), start)
            )
            sink.write_table(cars, row_group_size=parts.ROW_GROUP)
    return time.perf_counter() - clock, Path(case.unsorted).stat().st_size


def _write_lance(case: Case) -> tuple[float, int]:
    import lancedb

    shutil.rmtree(case.lance, ignore_errors=True)
    vector = pa.list_(pa.float32(), DEFAULT_BACKBONE.feature_length)
    kinds = {"row": pa.int64(), "coverage": pa.float32(), "vector": vector}
    schema = pa.schema(kinds.items())

    def batches() -> Iterator[pa.RecordBatch]:
        for start, rows in blocks(case.rows):
            vectors = pa.array(standardise(draw_features(0, start, rows)).ravel())
            yield pa.record_batch(
                [
                    pa.array(range(start, start + rows)),
                    pa.array(draw_coverages(start, rows)),
                    pa.FixedSizeListArray.from_arrays(vectors, type=vector),
                ],
                schema,
            )

    clock = time.perf_counter()
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lancedb.connect(case.lance).create_table("car", reader)
    size = sum(p.stat().st_size for p in Path(case.lance).rglob("*") if p.is_file())
    return time.perf_counter() - clock, size


_STEPS: dict[str, Callable[[Case], tuple[float, int]]] = {
    "index": _write_index,
    "bare": _read_index,
    "cache": _create_cache,
    "refresh": _refresh_cache,
    "parquet": _write_unsorted,
    "lancedb": _write_lance,
}
_PEER_STEPS = ("lancedb",)
