"""Recognise images by file name and, for names without an extension, by content."""

import re
from collections.abc import Sequence

from segrec_batch.images.signatures import find_format
from segrec_batch.sources import storage

JPEG_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp"})
EXTENSIONS = JPEG_EXTENSIONS | {"avif", "bmp", "gif", "png", "tif", "tiff", "webp"}

_EXTENSION = re.compile(r"(?=.*[a-z])[a-z0-9_+-]{1,10}", re.ASCII)
_LITTER = {"thumbs.db": "Thumbs.db", ".ds_store": ".DS_Store"}  # files of file managers

HEAD = 32
"""Number of bytes to read of a file whose content is tested."""

_BATCH = 1024  # files; 128 of them at a time are read from a remote store

_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes of the second header


def is_image(head: bytes) -> bool:
    """Return whether a file that begins with `head` has an image format that can be indexed.

    >>> is_image(b"GIF89a..."), is_image(b"BMW and other cars of this street in 32 bytes")
    (True, False)
    """
    if find_format(head) != "BMP":
        return find_format(head) is not None
    # the signature of BMP is two letters only; four reserved bytes of its header are 0
    return head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def are_images(uris: Sequence[str], sizes: Sequence[int]) -> list[bool]:
    """Return for each file of one file system whether its first bytes are those of an image.

    A file that cannot be read counts as an image, so that a temporary fault does not silently
    leave it out.

    Args:
        uris: The files.
        sizes: Sizes in bytes; an empty file is no image.

    Raises:
        StorageError: The store does not answer.
    """
    results = [False] * len(uris)
    filled = [i for i, size in enumerate(sizes) if size]
    for start in range(0, len(filled), _BATCH):
        batch = filled[start : start + _BATCH]
        heads = storage.read_many([uris[i] for i in batch], [min(sizes[i], HEAD) for i in batch])
        for i, head in zip(batch, heads, strict=True):
            results[i] = not isinstance(head, bytes) or is_image(head)
    return results


def get_extension(name: str) -> str:
    """Return the extension of a file name in lower case, "" if it has none.

    An extension has 1 to 10 ASCII characters, at least one of them a letter; `scan.2019` has none.
    """
    _, dot, extension = name.rpartition(".")
    extension = extension.lower()
    return extension if dot and _EXTENSION.fullmatch(extension) else ""


def classify_left_out(name: str) -> str | None:
    """Return the kind of a file that is left out by its name; None if it may be an image.

    >>> names = ("a.JFIF", "0f3a", "a.heic", "._a.jpg", "a.jpg~", ".a.jpg.Xb2")
    >>> [classify_left_out(name) for name in names]
    [None, None, '.heic', '._*', '*~', '.*']
    """
    if name.startswith("._"):  # AppleDouble: attributes of another file
        return "._*"
    if name.lower() in _LITTER:
        return _LITTER[name.lower()]
    if name.endswith("~"):
        return "*~"
    extension = get_extension(name)
    if extension in EXTENSIONS:
        return None
    if name.startswith("."):  # hidden: temporary files of editors, rsync and NFS
        return ".*"
    return f".{extension}" if extension else None


def has_image_name(name: str) -> bool:
    """Return whether the extension of a file name is that of an image."""
    return get_extension(name) in EXTENSIONS
