"""Read Parquet files without running code that they name; no other module reads Parquet with Arrow.

A Parquet file can embed an Arrow schema with extension types. Arrow passes their values to code
that the process has registered; Ray, for example, unpickles columns of type
`ray.data.arrow_pickled_object`. So these functions use the schema of Parquet itself, never parse
the embedded schema, and refuse a file with extension types.
"""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA_KEY, _HIDDEN_KEY = (
    b"ARROW:schema",
    b"ARROW:unread",
)  # of equal length: offsets in the footer stay valid
_EXTENSION = b"ARROW:extension:name"
_MAGIC = b"PAR1"
_TAIL = 8  # bytes: the length of the footer, the magic
_MAX_FOOTER = 2**26  # bytes
_MAX_ROWS = 2**31


def open_parquet(source: Any) -> pq.ParquetFile:
    """Open a Parquet file without its embedded Arrow schema.

    Args:
        source: The bytes of a file, or an open file that can seek.

    Raises:
        pa.ArrowInvalid: The file is damaged, or its Arrow schema has extension types.
        OSError: It cannot be read.
    """
    if isinstance(source, bytes):
        source = pa.BufferReader(source)
    footer = _read_footer(source)
    schema_only = pa.BufferReader(
        _MAGIC + footer.replace(_SCHEMA_KEY, _HIDDEN_KEY) + _make_tail(footer)
    )
    # without extension types, the Arrow schema follows from Parquet's own types
    metadata = pq.ParquetFile(schema_only, arrow_extensions_enabled=False).metadata
    if has_extension_types((metadata.metadata or {}).get(_HIDDEN_KEY, b"")):
        raise pa.ArrowInvalid("it has columns of Arrow extension types, which are never read")
    if not 0 <= metadata.num_rows < _MAX_ROWS:
        raise pa.ArrowInvalid(f"{metadata.num_rows} rows are impossible")
    source.seek(0)
    return pq.ParquetFile(
        source,
        metadata=metadata,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
    )


def read_parquet(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a Parquet file, see `open_parquet`, or some of its columns.

    Raises also KeyError for a column that does not exist.
    """
    file = open_parquet(source)
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise KeyError(name)
    return drop_embedded_schema(file.read(columns=columns))


def drop_embedded_schema(rows: pa.Table) -> pa.Table:
    """Return rows without the embedded Arrow schema of their file."""
    metadata = {k: v for k, v in (rows.schema.metadata or {}).items() if k != _HIDDEN_KEY}
    return rows.replace_schema_metadata(metadata or None)


def has_extension_types(embedded: bytes) -> bool:
    """Return True if an Arrow schema, as embedded in Parquet files, has extension types."""
    try:
        return _EXTENSION in base64.b64decode(embedded)
    except binascii.Error:
        return False  # Arrow cannot decode it either


def _read_footer(source: Any) -> bytes:
    size = source.seek(0, io.SEEK_END)
    tail = _read(source, size - _TAIL, _TAIL)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > min(_MAX_FOOTER, size - _TAIL - len(_MAGIC)):
        raise pa.ArrowInvalid("it is no Parquet file, or its end is cut off")
    return _read(source, size - _TAIL - length, length)


def _read(source: Any, schema_only: int, length: int) -> bytes:
    if schema_only < 0:
        raise pa.ArrowInvalid("it is too short for a Parquet file")
    source.seek(schema_only)
    content = bytes(source.read(length))
    if len(content) < length:
        raise pa.ArrowInvalid("it was cut off while it was read")
    return content


def _make_tail(footer: bytes) -> bytes:
    return len(footer).to_bytes(4, "little") + _MAGIC
