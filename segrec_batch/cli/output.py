"""Results of commands: places that may be written to, formats, contact sheets.

`ray job submit --working-dir` copies a project into a folder of Ray's session, in which the job
then runs, and deletes the folder some time after. A relative path leads there.
"""

import io
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segrec_batch.common import console
from segrec_batch.common.encoding import encode_csv, encode_json, escape_text
from segrec_batch.common.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from segrec_batch.model.spec import ModelSpec
    from segrec_batch.search.filters import Filters
    from segrec_batch.sheets.card import Card

log = logging.getLogger(__name__)

SHEETS = ("html", "png")
_BINARY = ("parquet", "png")
_MAX_CELL = 120  # characters of a cell of a table; the other formats keep all
_UPLOADED = re.compile(r".*/runtime_resources/working_dir_files/[^/]+")  # Ray's names, in a session


def check_places(outputs: Mapping[str, object], inputs: Mapping[str, object] | None = None) -> None:
    """Refuse to write into a project that was uploaded to Ray, and report what is read from there.

    Args:
        outputs: paths or URIs by option; what is empty or None is left out.
        inputs: the same; what does not exist, such as SQL in place of a file, is left out.

    Raises:
        InputError: an output lies in such a project.
    """
    from segrec_batch.sources import storage

    for option, place in outputs.items():
        if place and _project_of(str(place)):
            raise InputError(
                f"{option} {place} lies in the project that was uploaded to Ray, a copy that Ray "
                "deletes after the job: give an absolute path that every node sees, or an s3:// URI"
            )
    places = {option: str(place) for option, place in (inputs or {}).items() if place}
    read = [o for o, p in places.items() if _project_of(p) and Path(storage.absolute(p)).exists()]
    if read:
        log.info(
            f"{', '.join(read)}: read from the project that was uploaded to Ray, "
            f"{_project_of(places[read[0]])}, a copy that Ray deletes after the job"
        )


def _project_of(place: str) -> str | None:
    """Return the uploaded project that a local path lies in."""
    from segrec_batch.sources import storage

    if storage.is_remote(place):
        return None
    match = _UPLOADED.match(storage.absolute(place))
    return match[0] if match else None


def put(content: bytes, output: str | None, kind: str) -> None:
    """Write a result to a file, or to stdout. Raises InputError for bytes on a terminal."""
    if output is not None:
        from segrec_batch.sources import storage

        check_places({"--output": output})
        storage.write_bytes(output, content)
        log.info(f"written to {storage.absolute(output)}")
    elif kind in _BINARY and sys.stdout.isatty():
        raise InputError(f"{kind} is not for a terminal: give --output FILE")
    elif kind not in _BINARY:
        console.show(content.decode())
    else:
        sys.stdout.buffer.write(content)


def formatted(
    kind: str,
    names: Sequence[str],
    columns: "Sequence[Sequence[Any] | pa.ChunkedArray]",
    title: str,
) -> bytes:
    """Encode columns as `table`, `csv`, `json` or `parquet`; only the table has the title.

    Raises InputError for a value that Python cannot hold, such as a year above 9999.
    """
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as pq

        arrays = [c if isinstance(c, pa.ChunkedArray) else pa.array(c) for c in columns]
        out = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, list(names)), out)
        return out.getvalue()
    try:
        values = [c.to_pylist() if isinstance(c, pa.ChunkedArray) else c for c in columns]
    except (OverflowError, ValueError) as error:
        raise InputError(
            f"a value cannot be shown as {kind}: {error}; cast it to VARCHAR, or take parquet"
        ) from error
    rows = list(zip(*values, strict=True))
    if kind == "json":
        named = [dict(zip(names, row, strict=True)) for row in rows]
        return f"{encode_json(named, indent=2)}\n".encode()
    if kind == "csv":
        return encode_csv([names, *rows]).encode()
    return console.table(title, names, [[_cell(v) for v in row] for row in rows]).encode()


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
    text = escape_text(text[: _MAX_CELL + 1])
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def contact_sheet(
    kind: str, cards: "Sequence[Card]", spec: "ModelSpec", filters: "Filters", caption: str
) -> bytes:
    """Encode a query and its results, the first card and the others, as `html` or `png`."""
    from segrec_batch.sheets.card import Sheet
    from segrec_batch.sheets.html import render_html
    from segrec_batch.sheets.png import render_png

    withheld = [card for card in cards if card.is_withheld]
    if withheld:
        log.warning(
            f"{len(withheld)} of {len(cards)} images are not fetched, e.g. {withheld[0].name}: it "
            "lies below no folder that the index was made from; --images-root URI names others"
        )
    query, *results = cards
    sheet = Sheet(query, results, spec.colours, caption, spec.notice, filters.cls, filters.coverage)
    return render_png(sheet) if kind == "png" else render_html(sheet).encode()
