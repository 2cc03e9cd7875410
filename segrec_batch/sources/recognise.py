"""Recognition of images: by the names of their files and, where these do not tell, by content."""

import re
from collections.abc import Sequence

from segrec_batch.images.signatures import find_format
from segrec_batch.sources import storage

JPEG_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp"})
EXTENSIONS = JPEG_EXTENSIONS | {"avif", "bmp", "gif", "png", "tif", "tiff", "webp"}

_EXTENSION = re.compile(r"(?=.*[a-z])[a-z0-9_+-]{1,10}", re.ASCII)
_LITTER = {"thumbs.db": "Thumbs.db", ".ds_store": ".DS_Store"}  # of file managers
HEAD = 32
"""Bytes that are read of a file."""

_AT_ONCE = 1024  # files; a remote store is asked for 128 of them at a time

_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes of the second header


def is_image(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of an image format that can be indexed.

    >>> is_image(b"GIF89a..."), is_image(b"BMW and other cars of this street in 32 bytes")
    (True, False)
    """
    if find_format(head) != "BMP":
        return find_format(head) is not None
    # two letters are not enough; of the BMP header four bytes are reserved, and 0
    return head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def find_images(uris: Sequence[str], sizes: Sequence[int]) -> list[bool]:
    """Return for each file of one file system whether it is an image, by its first bytes.

    A file that cannot be read counts as one: only reading it will tell, and a fault that passes
    must not leave it out without a word.

    Args:
        uris: The files.
        sizes: Their sizes in bytes; an empty file is no image.

    Raises:
        StorageError: if the store does not answer.
    """
    found = [False] * len(uris)
    filled = [i for i, size in enumerate(sizes) if size]
    for start in range(0, len(filled), _AT_ONCE):
        chosen = filled[start : start + _AT_ONCE]
        heads = storage.read_many([uris[i] for i in chosen], [min(sizes[i], HEAD) for i in chosen])
        for i, head in zip(chosen, heads, strict=True):
            found[i] = not isinstance(head, bytes) or is_image(head)
    return found


def extension_of(name: str) -> str:
    """Return the extension of a file name in lower case, "" if it has none.

    An extension has 1 to 10 characters of ASCII, a letter among them: `scan.2019` has none.
    """
    _, dot, extension = name.rpartition(".")
    extension = extension.lower()
    return extension if dot and _EXTENSION.fullmatch(extension) else ""


def left_out_as(name: str) -> str | None:
    """Return the kind of a file that is left out for its name; None for what may be an image.

    >>> [left_out_as(n) for n in ("a.JFIF", "0f3a", "a.heic", "._a.jpg", "a.jpg~", ".a.jpg.Xb2")]
    [None, None, '.heic', '._*', '*~', '.*']
    """
    if name.startswith("._"):  # AppleDouble: attributes of the file of the same name
        return "._*"
    if name.lower() in _LITTER:
        return _LITTER[name.lower()]
    if name.endswith("~"):
        return "*~"
    extension = extension_of(name)
    if extension in EXTENSIONS:
        return None
    if name.startswith("."):  # hidden: temporary files of editors, rsync and NFS
        return ".*"
    return f".{extension}" if extension else None


def has_image_name(name: str) -> bool:
    """Return whether the extension of a file name is that of an image."""
    return extension_of(name) in EXTENSIONS
