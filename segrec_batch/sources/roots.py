"""Roots of an index: the folders from which its images may be fetched.

Rows of an index name images by URI. An index may come from others, and its URIs may name a server
of the user's network, a device, or a file that is no image. Therefore images of an index are
fetched only from below known roots, and only regular files or objects of bounded size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from segrec_batch.common.errors import InputError
from segrec_batch.sources import storage
from segrec_batch.sources.storage import SCHEMES, scheme_of
from segrec_batch.sources.strict_json import shorten

MAX_IMAGE_BYTES = 2**28
"""Maximum size of an encoded image in bytes; larger ones are not indexed."""

_MAX_ROOTS = 1000  # roots that an index stores


class OutsideRootsError(OSError):
    """The image lies below no root of its index and is not fetched."""


@dataclass(frozen=True)
class ImageRoots:
    """Folders or single files that may be fetched, in the form of `storage.absolute`.

    Without roots nothing is fetched.
    """

    uris: tuple[str, ...]

    @classmethod
    def of(cls, uris: Iterable[str]) -> "ImageRoots":
        """Return the roots that a user names. Raises InputError for an empty URI."""
        return cls(tuple(dict.fromkeys(map(storage.absolute, uris))))

    def extend(self, uris: Iterable[str] | None) -> "ImageRoots":
        """Return these roots and `uris`, none below another; the newest 1,000."""
        roots = dict.fromkeys((*self.uris, *(uris or ())))
        topmost = [uri for uri in roots if not ImageRoots((*(roots.keys() - {uri}),)).admits(uri)]
        return ImageRoots(tuple(topmost[-_MAX_ROOTS:]))

    def admits(self, uri: str) -> bool:
        """Return whether an image may be fetched; `..` is resolved, links are not."""
        scheme = scheme_of(uri)
        if not _has_known_scheme(uri) or scheme not in {scheme_of(root) for root in self.uris}:
            return False
        if scheme != "file" and ".." in uri.split("/"):
            return False  # a server may resolve it to the parent folder
        try:
            absolute_uri = storage.absolute(uri)
        except InputError:  # the URI holds credentials
            return False
        return any(
            absolute_uri == root or absolute_uri.startswith(root.rstrip("/") + "/")
            for root in self.uris
        )


def check_root(uri: str) -> None:
    """Raise InputError for a root that the log of an index cannot store."""
    if not _has_known_scheme(uri):
        raise InputError(
            f"--images {shorten(uri)}: images are indexed from local folders and object stores; "
            "copy them to one"
        )


def _has_known_scheme(uri: object) -> bool:
    """Return whether a URI has a known scheme and is no chain of file systems."""
    if not isinstance(uri, str) or not 0 < len(uri) <= 4096 or "\0" in uri:
        return False
    scheme = scheme_of(uri)
    return scheme in SCHEMES and (scheme in ("file", "s3") or "::" not in uri)


def parse_roots(values: object) -> ImageRoots:
    """Return the roots that a log states. Raises ValueError if one cannot be indexed."""
    if not isinstance(values, list) or len(values) > _MAX_ROOTS:
        raise ValueError(f"{shorten(values)} are no roots of images")
    for uri in values:
        if not _has_known_scheme(uri):
            raise ValueError(f"{shorten(uri)} is no root of images")
    return ImageRoots(tuple(values))


def fetch_images(uris: Sequence[str], roots: ImageRoots) -> list[storage.Content]:
    """Read images of an index that lie below its roots.

    Args:
        uris: Images as rows name them, of any scheme.
        roots: The roots of the index.

    Returns:
        For each image its bytes, at most `MAX_IMAGE_BYTES`, or the OSError why it was not read;
        `OutsideRootsError` for images outside the roots.

    Raises:
        StorageError: A store does not answer.
    """
    contents: dict[str, storage.Content] = {}
    groups: dict[str, list[str]] = {}
    for uri in dict.fromkeys(uris):
        if roots.admits(uri):
            groups.setdefault(scheme_of(uri), []).append(uri)
        else:
            contents[uri] = OutsideRootsError(
                "it lies below no folder that the index was made from"
            )
    for group in groups.values():
        bounded = storage.read_bounded(group, MAX_IMAGE_BYTES)
        contents.update(zip(group, bounded, strict=True))
    return [contents[uri] for uri in uris]
