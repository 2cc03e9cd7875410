"""A report: a page to look at, and its figures for programs.

DIR/report.html       self-contained, opens offline
DIR/metrics.json      the figures, as schemas/metrics.schema.json says
DIR/metrics.parquet   the same figures, one a row, for SQL over many reports
DIR/counts.parquet    what they follow from, one row an image, query or bin
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
from segrec_batch.common.encoding import html_environment
from segrec_batch.common.errors import InputError, StorageError
from segrec_batch.evaluation.items import Gallery, Plot, Section, Table, Text, figure
from segrec_batch.evaluation.statistics import Estimate
from segrec_batch.index.parquet import read_parquet
from segrec_batch.search.sql.views import schema_file
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import read_json

FORMAT = 1
METRICS, COUNTS = "metrics.json", "counts.parquet"
FIGURES_FILE, PAGE = "metrics.parquet", "report.html"
_METRICS_BYTES = 2**28


@dataclass(frozen=True)
class Provenance:
    """What every figure of a report rests on; what does not apply is empty or None.

    kind: of the report. data: fingerprint of the labels or queries. ties: which of equal scores
    goes first. model_id, weights: the model and where its backbone's weights are from. index,
    version: the snapshot.
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
        """Name and value of all that applies, in words."""
        parts = {
            "data": self.data,
            "model": self.model_id,
            "weights": self.weights,
            "index": self.index and f"{self.index} version {self.version}",
            "segrec_batch": self.code_version,
            "seed": str(self.seed),
            "ties": self.ties,
            "made": self.created_at,
        }
        return [(name, value) for name, value in parts.items() if value]

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.items())


@dataclass(frozen=True)
class Report:
    """All that a report says. counts: what the estimates follow from. details: what else programs
    may want, by name. not_run: methods that could not be judged, and why. notice: a warning.
    """

    title: str
    provenance: Provenance
    estimates: Sequence[Estimate]
    counts: pa.Table
    sections: Sequence[Section]
    details: Mapping[str, Any] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    notice: str | None = None

    @property
    def headline(self) -> Table:
        """The first table of figures on the page, for a terminal."""
        items = (item for section in self.sections for item in section.items)
        tables = (item for item in items if isinstance(item, Table))
        return next(t for t in tables if any(isinstance(c, Estimate) for r in t.rows for c in r))

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
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
        """Put the four files into a folder, the page last. Raises InputError for a file of one of
        these names that is no report's.
        """
        check_report_place(folder)
        metrics = self.metrics()
        check_metrics(metrics)
        text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        page = _template().render(report=self)
        for name, content in (
            (COUNTS, parquet(self.counts)),
            (FIGURES_FILE, parquet(_figures(metrics))),
            (METRICS, text.encode()),
            (PAGE, page.encode(errors="backslashreplace")),
        ):
            storage.write_bytes(storage.join(folder, name), content)


FIGURES = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("weights", pa.string(), nullable=False),
        pa.field("data", pa.string(), nullable=False),
        pa.field("index", pa.string(), nullable=False),
        pa.field("version", pa.int64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("ties", pa.string(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("units", pa.int64(), nullable=False),
    ]
)
"""`metrics.parquet`: a figure of a report."""


def _figures(metrics: Mapping[str, Any]) -> pa.Table:
    """FIGURES rows of what `metrics.json` holds."""
    given = dict(metrics["provenance"])
    given["created_at"] = dt.datetime.fromisoformat(given["created_at"])
    return pa.Table.from_pylist([{**given, **row} for row in metrics["measures"]], FIGURES)


def _writable(value: Any) -> Any:
    """With what is no UTF-8 in names of files escaped, as on the page."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_writable(k): _writable(v) for k, v in value.items()}
    return [_writable(v) for v in value] if isinstance(value, list | tuple) else value


def _row(estimate: Estimate) -> dict[str, Any]:
    key = estimate.key
    return {
        "measure": key.name,
        "method": key.method,
        "split": key.split,
        "setting": key.setting,
        "class": key.cls,
        "k": key.k,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "units": estimate.units,
    }


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def check_metrics(metrics: object) -> None:
    """Raises InputError for what is not a `metrics.json` of this version."""
    try:
        jsonschema.validate(metrics, json.loads(schema_file("metrics.schema.json")))
    except jsonschema.ValidationError as error:
        raise InputError(f"{error.json_path}: {error.message}") from error


def check_report_place(folder: str) -> None:
    """Raise InputError for a folder that has files of a report's names, but is no report.

    A bucket that one may write to, but not list, as the nightly run's reports, is not looked at.
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
    """A `metrics.json`, or that of a report's folder. Raises InputError."""
    uri = uri if uri.endswith(".json") else storage.join(uri, METRICS)
    try:
        metrics = read_json(uri, _METRICS_BYTES)
        check_metrics(metrics)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{uri}: not the metrics of a report: {error}") from error
    return cast(dict[str, Any], metrics)


def read_counts(uri: str) -> pa.Table | None:
    """The counts beside a `metrics.json`, or of a report's folder; None if there are none.

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
    """An SVG element whose ids no other of the page has.

    >>> own_ids('<path id="m"/><use xlink:href="#m"/>', 3)
    '<path id="plot-3-m"/><use xlink:href="#plot-3-m"/>'
    """
    tag = re.compile("<[^>]*>")  # labels stay as they are
    return tag.sub(lambda m: re.sub(r'( id="|"#|\(#)', rf"\g<1>plot-{number}-", m[0]), svg)


_KINDS = {"text": Text, "table": Table, "plot": Plot, "gallery": Gallery}


@cache
def _template() -> Template:
    environment = html_environment(PackageLoader("segrec_batch", ""))
    environment.filters["figure"] = figure
    environment.filters["own_ids"] = own_ids
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    for name, kind in _KINDS.items():
        environment.tests[name] = lambda item, kind=kind: isinstance(item, kind)
    return environment.get_template("evaluation/report.html.j2")
