"""Which images of an index may be fetched: those below the roots that it was made from.

Rows of an index name images by URI. Whoever made the index, or changed it, chose those URIs: a URI
can name a server of the user's network, a device, or a file that is nobody's image. So what shows
or reads images of an index fetches only what lies below known roots, as what they are: regular
files or objects, of a bounded size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from segrec_batch.common.errors import InputError
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import shorten

MAX_IMAGE_BYTES = 2**28
"""Bytes of an encoded image, at most; indexing reads no larger ones."""

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory")
"""Where images and indexes lie: no other scheme in what others have made is ever opened."""

_MOST = 1000  # roots that an index remembers


class OutsideRootsError(OSError):
    """An image that is not fetched, since it does not lie below the roots of its index."""


@dataclass(frozen=True)
class ImageRoots:
    """Folders, or single files, below which images may be fetched, as `storage.absolute` has them.

    Of none nothing is fetched.
    """

    uris: tuple[str, ...]

    @classmethod
    def of(cls, uris: Iterable[str]) -> "ImageRoots":
        """The roots that a user names. Raises InputError for an empty one."""
        return cls(tuple(dict.fromkeys(map(storage.absolute, uris))))

    def extended(self, uris: Iterable[str] | None) -> "ImageRoots":
        """These and more, the newest if they are too many; none below another."""
        found = dict.fromkeys((*self.uris, *(uris or ())))
        kept = [uri for uri in found if not ImageRoots((*(found.keys() - {uri}),)).admits(uri)]
        return ImageRoots(tuple(kept[-_MOST:]))

    def admits(self, uri: str) -> bool:
        """Whether an image may be fetched: `..` counts, links do not."""
        scheme = scheme_of(uri)
        if not _is_known(uri) or scheme not in {scheme_of(root) for root in self.uris}:
            return False
        if scheme != "file" and ".." in uri.split("/"):
            return False  # a server may take it for the folder above
        try:
            place = storage.absolute(uri)
        except InputError:  # of credentials
            return False
        return any(place == root or place.startswith(root.rstrip("/") + "/") for root in self.uris)


def scheme_of(uri: str) -> str:
    """The protocol of a URI; `file` for paths.

    >>> [scheme_of(uri) for uri in ("/a", "s3a://b/c", "zip::http://a", "a/b://c")]
    ['file', 's3', 'zip::http', 'file']
    """
    protocol, separator, _ = uri.partition("://")
    if not separator or "/" in protocol or protocol in ("file", "local"):
        return "file"
    return "s3" if protocol == "s3a" else protocol


def check_root(uri: str) -> None:
    """Raise InputError for a folder that no index may be made from, since no log may name it."""
    if not _is_known(uri):
        raise InputError(
            f"--images {shorten(uri)}: images are indexed from local folders and object stores; "
            "copy them to one"
        )


def _is_known(uri: object) -> bool:
    """Return whether a URI is of a known scheme and no chain of file systems."""
    if not isinstance(uri, str) or not 0 < len(uri) <= 4096 or "\0" in uri:
        return False
    scheme = scheme_of(uri)
    return scheme in SCHEMES and (scheme in ("file", "s3") or "::" not in uri)


def parse_roots(values: object) -> ImageRoots:
    """The roots that a log states. Raises ValueError for what nobody indexes from."""
    if not isinstance(values, list) or len(values) > _MOST:
        raise ValueError(f"{shorten(values)} are no roots of images")
    for uri in values:
        if not _is_known(uri):
            raise ValueError(f"{shorten(uri)} is no root of images")
    return ImageRoots(tuple(values))


def fetch_images(uris: Sequence[str], roots: ImageRoots) -> list[storage.Content]:
    """Read images of an index, as far as they lie below its roots.

    Args:
        uris: Images as rows name them, of any scheme.
        roots: Below which they have to lie.

    Returns:
        Of each its bytes, at most `MAX_IMAGE_BYTES`; or the OSError for which it is not read, an
        `OutsideRootsError` for one that was not tried.

    Raises:
        StorageError: A store does not answer.
    """
    found: dict[str, storage.Content] = {}
    groups: dict[str, list[str]] = {}
    for uri in dict.fromkeys(uris):
        if roots.admits(uri):
            groups.setdefault(scheme_of(uri), []).append(uri)
        else:
            found[uri] = OutsideRootsError("it lies below no folder that the index was made from")
    for members in groups.values():
        contents = storage.read_bounded(members, MAX_IMAGE_BYTES)
        found.update(zip(members, contents, strict=True))
    return [found[uri] for uri in uris]
