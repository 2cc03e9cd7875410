"""A report and its four files.

DIR/report.html       self-contained page that opens offline
DIR/metrics.json      metric values, as declared by schemas/metrics.schema.json
DIR/metrics.parquet   the same values, one per row, for SQL over many reports
DIR/counts.parquet    the counts they are computed from, one row per image, query or bin
"""

import datetime as dt
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, cast

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import PackageLoader, Template

from segrec_batch import __version__
from segrec_batch.common.encoding import make_html_environment
from segrec_batch.common.errors import InputError, StorageError
from segrec_batch.evaluation.items import Gallery, Lead, Plot, Section, Table, Text, figure
from segrec_batch.evaluation.statistics import Estimate, Key
from segrec_batch.index.parquet import read_parquet
from segrec_batch.search.sql.views import schema_file
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import read_json

FORMAT = 1
METRICS, COUNTS = "metrics.json", "counts.parquet"
FIGURES_FILE, PAGE = "metrics.parquet", "report.html"
_METRICS_BYTES = 2**28
_COLUMNS = {"name": "measure", "cls": "class"}  # fields of a key that have another name in files


@dataclass(frozen=True)
class Provenance:
    """Origin of all metric values of a report; fields that do not apply are empty or None.

    kind: of the report. data: fingerprint of the labels or queries. ties: order of equal scores.
    model_id, weights: the model and the origin of its backbone's weights. index, version: the
    snapshot.
    """

    kind: str
    data: str
    ties: str
    seed: int = 0
    model_id: str = ""
    weights: str = ""
    index: str = ""
    version: int | None = None
    code_version: str = __version__
    created_at: str = field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    )

    def items(self) -> list[tuple[str, str]]:
        """Return the label and value of each field that applies."""
        parts = {
            "data": self.data,
            "model": self.model_id,
            "weights": self.weights,
            "index": self.index and f"{self.index} version {self.version}",
            "segrec_batch": self.code_version,
            "seed": str(self.seed),
            "ties": self.ties,
            "created": self.created_at,
        }
        return [(name, value) for name, value in parts.items() if value]


@dataclass(frozen=True)
class Report:
    """Metric values, their counts, and the page that shows them.

    lead: first screen of the page. details: further values for programs, by name. not_run: reason
    for each method that could not be evaluated. notice: a warning.
    """

    title: str
    provenance: Provenance
    estimates: Sequence[Estimate]
    counts: pa.Table
    sections: Sequence[Section]
    lead: Lead | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    notice: str | None = None

    @property
    def headline(self) -> Table:
        """First table with estimates on the page, for a terminal."""
        items = (item for section in self.sections for item in section.items)
        tables = (item for item in items if isinstance(item, Table))
        return next(t for t in tables if any(isinstance(c, Estimate) for r in t.rows for c in r))

    def metrics(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        metrics: dict[str, Any] = _writable({
            "format": FORMAT,
            "provenance": asdict(self.provenance),
            "notice": self.notice,
            "measures": [_row(e) for e in self.estimates],
            "not_run": self.not_run,
            "details": self.details,
        })  # fmt: skip
        return metrics

    def write(self, folder: str) -> None:
        """Write the four files into a folder, the page last.

        Raises InputError if the folder has files of these names that are not of a report.
        """
        check_report_place(folder)
        metrics = self.metrics()
        check_metrics(metrics)
        text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        page = _template().render(report=self)
        for name, content in (
            (COUNTS, _parquet(self.counts)),
            (FIGURES_FILE, _parquet(_figures(metrics))),
            (METRICS, text.encode()),
            (PAGE, page.encode(errors="backslashreplace")),
        ):
            storage.write_bytes(storage.join(folder, name), content)


_TYPES = {
    "created_at": pa.timestamp("us", tz="UTC"), "version": pa.int64(), "seed": pa.int64(),
    "k": pa.int32(), "value": pa.float64(), "low": pa.float64(), "high": pa.float64(),
    "units": pa.int64(),
}  # fmt: skip
_NAMES = (
    "kind created_at code_version model_id weights data index version seed ties measure method "
    "split setting class k value low high units"
)
FIGURES = pa.schema([
    pa.field(n, _TYPES.get(n, pa.string()), nullable=n in ("version", "value", "low", "high"))
    for n in _NAMES.split()
])  # fmt: skip
"""Columns of `metrics.parquet`: one metric value per row."""


def _figures(metrics: Mapping[str, Any]) -> pa.Table:
    """Return the content of `metrics.json` as a FIGURES table."""
    origin = dict(metrics["provenance"])
    origin["created_at"] = dt.datetime.fromisoformat(origin["created_at"])
    return pa.Table.from_pylist([{**origin, **row} for row in metrics["measures"]], FIGURES)


def _writable(value: Any) -> Any:
    """Return a value whose texts are valid UTF-8; other bytes of file names are escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_writable(k): _writable(v) for k, v in value.items()}
    return [_writable(v) for v in value] if isinstance(value, list | tuple) else value


def _row(estimate: Estimate) -> dict[str, Any]:
    row = asdict(estimate.key) | asdict(estimate)
    del row["key"]
    return {_COLUMNS.get(name, name): value for name, value in row.items()}


def read_estimate(row: Mapping[str, Any]) -> Estimate:
    """Return the estimate of a row of `measures` in `metrics.json`."""
    key = Key(row["measure"], row["method"], row["split"], row["setting"], row["class"], row["k"])
    return Estimate(key, row["value"], row["low"], row["high"], row["units"])


def _parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def check_metrics(metrics: object) -> None:
    """Raise InputError unless this is the content of a `metrics.json` of this version."""
    try:
        jsonschema.validate(metrics, json.loads(schema_file("metrics.schema.json")))
    except jsonschema.ValidationError as error:
        raise InputError(f"{error.json_path}: {error.message}") from error


def check_report_place(folder: str) -> None:
    """Raise InputError if a folder has files with a report's names, but no report.

    A bucket that cannot be listed, such as the write-only one of nightly reports, is not checked.
    """
    root = storage.absolute(folder)
    try:
        paths = {uri.removeprefix(f"{root}/") for uri, *_ in storage.find_files(root, links=True)}
    except StorageError:
        return
    taken = sorted(paths & {COUNTS, FIGURES_FILE, METRICS, PAGE})
    if taken and not _is_report(root):
        raise InputError(
            f"{folder} holds {taken[0]}, but no report of this program; give another --report"
        )


def _is_report(folder: str) -> bool:
    try:
        metrics = read_json(storage.join(folder, METRICS), _METRICS_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and {"provenance", "measures"} <= metrics.keys()


def read_metrics(uri: str) -> dict[str, Any]:
    """Return the content of a `metrics.json`, given its URI or its folder. Raises InputError."""
    uri = uri if uri.endswith(".json") else storage.join(uri, METRICS)
    try:
        metrics = read_json(uri, _METRICS_BYTES)
        check_metrics(metrics)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{uri}: not the metrics of a report: {error}") from error
    return cast(dict[str, Any], metrics)


def read_counts(uri: str) -> pa.Table | None:
    """Return the counts beside a `metrics.json`, or in a report's folder; None without a file.

    Raises InputError.
    """
    uri = counts_uri(uri)
    try:
        return read_parquet(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri}: not readable: {error}") from error


def counts_uri(uri: str) -> str:
    """Return the URI of the counts beside a `metrics.json`, or in a report's folder."""
    folder = (uri.rpartition("/")[0] or ".") if uri.endswith(".json") else uri
    return storage.join(folder, COUNTS)


def own_ids(svg: str, number: int) -> str:
    """Return an SVG element with ids that are unique on the page.

    >>> own_ids('<path id="m"/><use xlink:href="#m"/>', 3)
    '<path id="plot-3-m"/><use xlink:href="#plot-3-m"/>'
    """
    tag = re.compile("<[^>]*>")  # text between tags is not changed
    return tag.sub(lambda m: re.sub(r'( id="|"#|\(#)', rf"\g<1>plot-{number}-", m[0]), svg)


_KINDS = {"text": Text, "table": Table, "plot": Plot, "gallery": Gallery}


@cache
def _template() -> Template:
    environment = make_html_environment(PackageLoader("segrec_batch", ""))
    environment.filters["figure"] = figure
    environment.filters["own_ids"] = own_ids
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    for name, kind in _KINDS.items():
        environment.tests[name] = lambda item, kind=kind: isinstance(item, kind)
    return environment.get_template("evaluation/report.html.j2")
