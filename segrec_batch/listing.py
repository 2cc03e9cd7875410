"""List the pictures under a URI: the first step of every job."""

from typing import Any

import pyarrow as pa

from segrec_batch import storage
from segrec_batch.errors import InputError

EXTENSIONS = frozenset({"bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"})

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_size", pa.int64(), nullable=False),
        # the ETag of an object store; of a local file its modification time in seconds
        pa.field("source_etag", pa.string(), nullable=False),
    ]
)


def list_pictures(uri: str) -> pa.Table:
    """The pictures under `uri` (a folder, searched through, or one file), sorted by URI.

    Columns as in `SOURCES`. Files are taken by extension (`EXTENSIONS`, any case); the rest is
    not listed. One listing, no request per file. Raises InputError when there are none, or when the
    store does not let itself be listed.
    """
    fs, path = storage.filesystem(uri)
    try:
        found = fs.find(path, detail=True)
    except Exception as error:  # an object store's client has errors of its own
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{uri} cannot be listed: {why}; check the name and AWS_*") from error
    pictures = sorted(p for p in found if p.rpartition(".")[2].lower() in EXTENSIONS)
    if not pictures:
        raise InputError(
            f"{uri}: no pictures found ({len(found)} other files; "
            f"looked for {', '.join(sorted(EXTENSIONS))})"
        )
    infos = [found[p] for p in pictures]
    return pa.table(
        [
            pa.array([storage.to_uri(fs, p) for p in pictures], pa.string()),
            pa.array([i["size"] for i in infos], pa.int64()),
            pa.array([_etag(i) for i in infos], pa.string()),
        ],
        schema=SOURCES,
    )


def _etag(info: dict[str, Any]) -> str:
    if "ETag" in info:
        return str(info["ETag"]).strip('"')
    return f"{info['mtime']:.6f}"
