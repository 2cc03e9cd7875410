"""Verify an index: read every file of a snapshot and compare it with the log and the schema."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import ImageError
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.images import sandbox
from segrec_batch.images.decode import mask_shape
from segrec_batch.index.column_values import compute_inverse_norms, image_id
from segrec_batch.index.files import DataFile, group_by_part
from segrec_batch.index.parquet import read_parquet
from segrec_batch.index.parts import compute_statistics
from segrec_batch.index.schema import (
    PARTITION,
    coverage_column,
    regions_schema,
    schemas,
)
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import COMMON_GRID, ModelSpec
from segrec_batch.search.database import open_files
from segrec_batch.search.sql.connection import query
from segrec_batch.sources import storage

_EXAMPLES = 5  # per kind of problem and part

_NO_REGIONS = regions_schema().empty_table()

Problem = str
VerifyTask = tuple[str, list[DataFile], ModelSpec, str]

# a source has one row, except an unreadable one with a row in `images` and one in `failures`
_DUPLICATES = """
SELECT uri FROM (
    SELECT uri FROM images GROUP BY uri HAVING count(*) > 1
    UNION SELECT uri FROM failures GROUP BY uri HAVING count(*) > 1
    UNION SELECT uri FROM failures SEMI JOIN images USING (uri) WHERE stage <> 'read'
)
ORDER BY uri LIMIT 10
"""


def verify(snapshot: Snapshot) -> list[Problem]:
    """Check all files of a snapshot and return the problems.

    It compares sizes, row counts, statistics and schemas with the log. In `images` it
    checks ids, coverages against class maps, masks and norms; in `regions` the images of the part,
    cells, norms, and the mean of the regions' features against the image's; in `descriptors` the
    images of the part, the model and the lengths of vectors. Sources with two rows, except an
    unreadable source with a row in `images`, and tables ahead of the newest snapshot are problems
    too.
    """
    index, spec, model_id = snapshot.index, snapshot.spec, snapshot.model_id
    parts = group_by_part(snapshot.all_files)
    tasks: list[VerifyTask] = [(index, files, spec, model_id) for files in parts.values()]
    problems: list[Problem] = []
    with cluster.join(), ProgressMeter("parts verified", len(tasks)) as meter:
        for _, part_problems in run_tasks(check_part, tasks, cpus=1):
            problems += part_problems
            meter.advance()
    if not problems:  # else some files may be unreadable
        duplicates = query(open_files(snapshot).connection, _DUPLICATES)["uri"].to_pylist()
        problems += [f"{uri}: has more than one row" for uri in duplicates]
    return sorted([*problems, *filter(None, [snapshot.problem])])


def check_part(task: VerifyTask) -> list[Problem]:
    """Return the problems of the files of one part."""
    index, files, spec, model_id = task
    tables: dict[tuple[str, str | None], pa.Table] = {}
    problems = []
    for file in files:
        try:
            content = storage.read_bytes(file.uri(index))
            rows = tables[file.table, file.partition] = read_parquet(content)
        except (OSError, ValueError, pa.ArrowException) as error:
            problems.append(f"{file.uri(index)}: {type(error).__name__}: {error}")
            continue
        checks = [*_check_log(file, len(content), rows, spec)] or [*_check_ids(rows)]
        problems += [f"{file.uri(index)}: {text}" for text in checks]
    if not problems:
        checks = [
            *_check_images(tables, spec, model_id),
            *_check_regions(tables, spec),
            *_check_descriptors(tables, spec),
        ]
        problems += [f"part {files[0].part}: {text}" for text in checks]
    return problems


def _check_log(file: DataFile, size: int, rows: pa.Table, spec: ModelSpec) -> Iterator[Problem]:
    if size != file.size:
        yield f"{size} bytes, but {file.size} in the log"
    if rows.num_rows != file.rows:
        yield f"{rows.num_rows} rows, but {file.rows} in the log"
        return
    schema = schemas(spec.classes)[file.table]
    fields = [field for field in schema if field.name != PARTITION.get(file.table)]
    if not rows.schema.equals(pa.schema(fields)):
        yield "columns are not those of the schema"
        return
    if _parse_statistics(compute_statistics(rows)) != _parse_statistics(file.stats):
        yield "statistics in the log are not those of the rows"
    expected = {
        "feature": spec.feature_length,
        "sign_bits": spec.sign_words,
        "mask_bits": COMMON_GRID**2 // 64,
    }
    for name, length in expected.items():
        if name in rows.column_names:
            lengths = pc.unique(pc.list_value_length(rows[name])).to_pylist()
            if lengths not in ([], [length]):
                yield f"{name} has {lengths} values in place of {length}"


def _parse_statistics(text: str) -> object:
    """Return the values of statistics, numbers as float32, in which they were computed."""
    stats = json.loads(text)
    extremes = [stats[key] for key in ("minValues", "maxValues")]
    return stats["numRecords"], [
        {n: v if isinstance(v, str) else float(np.float32(v)) for n, v in end.items()}
        for end in extremes
    ]


def _check_ids(rows: pa.Table) -> Iterator[Problem]:
    pairs = zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True)
    wrong = (uri for identifier, uri in pairs if identifier != image_id(uri))
    yield from _summarise(wrong, "image_id is not that of the URI")


def _check_images(
    tables: dict[tuple[str, str | None], pa.Table], spec: ModelSpec, model_id: str
) -> Iterator[Problem]:
    images = tables.get(("images", None))
    if images is None:
        return
    rows = images.to_pylist()
    for check, text in (
        (lambda row: row["model_id"] != model_id, "of another model"),
        (lambda row: _coverages_differ(row, spec), "coverages are not those of mask_grid"),
        (lambda row: _mask_differs(row, spec), "mask does not fit the image"),
    ):
        yield from _summarise((row["uri"] for row in rows if check(row)), text)
    yield from _check_norms(images)


def _coverages_differ(row: dict[str, Any], spec: ModelSpec) -> bool:
    labels = np.frombuffer(row["mask_grid"], np.uint8)
    if not 0 < labels.size == row["grid_h"] * row["grid_w"]:
        return True
    if labels.max() >= len(spec.all_classes):
        return True
    shares = np.bincount(labels, minlength=len(spec.all_classes)) / labels.size
    stored = [row[coverage_column(name)] for name in spec.all_classes]
    return not np.allclose(shares, stored, atol=1e-6)


def _mask_differs(row: dict[str, Any], spec: ModelSpec) -> bool:
    try:
        mask = sandbox.shared().decode_mask(row["mask"])
    except ImageError:
        return True
    expected = mask_shape(row["height"], row["width"])
    return mask.shape != expected or int(mask.max()) >= len(spec.all_classes)


def _check_norms(rows: pa.Table) -> Iterator[Problem]:
    features = _to_matrix(rows)
    stored = rows["inv_norm"].to_numpy().astype(np.float32)  # NULL becomes NaN
    wrong = ~np.isclose(compute_inverse_norms(features), stored, rtol=1e-5, equal_nan=True)
    wrong |= ~np.isfinite(features).all(axis=1)
    uris = rows["uri"].to_pylist()
    wrong_uris = (uris[i] for i in np.flatnonzero(wrong))
    yield from _summarise(wrong_uris, "inv_norm is not that of feature")


def _to_matrix(rows: pa.Table) -> NDArray[np.float32]:
    values = rows["feature"].combine_chunks().flatten()
    return np.asarray(values, np.float32).reshape(rows.num_rows, -1)


def _check_regions(
    tables: dict[tuple[str, str | None], pa.Table], spec: ModelSpec
) -> Iterator[Problem]:
    images = tables.get(("images", None))
    if images is None:
        if any(table == "regions" for table, _ in tables):
            yield "regions without images"
        return
    ids, image_features = images["image_id"].to_pylist(), _to_matrix(images)
    row_of = {i: n for n, i in enumerate(ids)}
    grid = images["grid_h"].to_numpy() * images["grid_w"].to_numpy()
    region_means = np.zeros_like(image_features)
    for name in spec.all_classes:
        shares = images[coverage_column(name)].to_numpy()
        regions = tables.get(("regions", name), _NO_REGIONS)
        ids_with_class, coverage = regions["image_id"].to_pylist(), regions["coverage"].to_numpy()
        expected = {ids[n]: shares[n] for n in np.flatnonzero(shares)}
        stored = dict(zip(ids_with_class, coverage, strict=True))
        if stored != expected or len(stored) != regions.num_rows:
            yield f"regions of {name} are not those of the images"
            continue
        if not ids_with_class:
            continue
        region_means[[row_of[i] for i in ids_with_class]] += _to_matrix(regions) * coverage[:, None]
        yield from (f"{name}: {text}" for text in _check_norms(regions))
        cells = coverage * grid[[row_of[i] for i in ids_with_class]]
        if np.any(np.rint(cells) != regions["cells"].to_numpy()):
            yield f"cells of {name} are not those of its coverage"
        if np.any(np.diff(coverage) < 0):
            yield f"regions of {name} are not sorted by coverage"
    atol = 1e-3 * np.abs(image_features).max()
    wrong = ~np.isclose(region_means, image_features, rtol=1e-2, atol=atol).all(axis=1)
    uris = images["uri"].to_pylist()
    text = "features of the regions do not average to the image's"
    yield from _summarise((uris[i] for i in np.flatnonzero(wrong)), text)


def _check_descriptors(
    tables: dict[tuple[str, str | None], pa.Table], spec: ModelSpec
) -> Iterator[Problem]:
    images = tables.get(("images", None))
    ids = set(images["image_id"].to_pylist()) if images is not None else set()
    known = {d.id for d in spec.descriptors}
    for (table, name), rows in tables.items():
        if table != "descriptors":
            continue
        ids_with_class = rows["image_id"].to_pylist()
        if name not in known:
            yield f"descriptor {name} is not of the model"
        if not set(ids_with_class) <= ids or len(set(ids_with_class)) < len(ids_with_class):
            yield f"vectors of {name} are not those of the images"
        lengths = pc.unique(pc.list_value_length(rows["vector"]).drop_null())
        if len(lengths) > 1:
            yield f"vectors of {name} have {' and '.join(map(str, lengths.to_pylist()))} values"
        pairs = zip(*(rows[c].to_pylist() for c in ("uri", "vector", "reason")), strict=True)
        wrong = (uri for uri, vector, reason in pairs if (vector is None) != (reason is not None))
        yield from _summarise(wrong, f"{name} is without vector and reason, or has both")


def _summarise(uris: Iterator[str], text: str) -> Iterator[Problem]:
    uri_list: Sequence[str] = list(uris)
    if uri_list:
        examples = ", ".join(map(repr, uri_list[:_EXAMPLES]))
        more = ", …" if len(uri_list) > _EXAMPLES else ""
        yield f"{text}: {len(uri_list)} ({examples}{more})"
