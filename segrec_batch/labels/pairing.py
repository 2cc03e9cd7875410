"""Which image a mask belongs to: by its path, then by its name alone."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from segrec_batch.common.errors import InputError
from segrec_batch.sources import storage
from segrec_batch.sources.listing import list_images

Parts = tuple[str, ...]
"""The components of a path without the extension, composed (NFC): macOS stores names decomposed."""

_Key = Callable[[Parts], Parts | None]
_Round = tuple[_Key, _Key]  # keys of images and of masks; a path without one sits the round out


@dataclass(frozen=True)
class Files:
    """The files of one side of a pairing.

    root: the folder that was listed, "" for none. uris: sorted. problems: why a file cannot be
    read, by URI.
    """

    root: str
    uris: tuple[str, ...]
    problems: dict[str, str]

    @property
    def parts(self) -> list[Parts]:
        """Of each file, below the root."""
        return [_parts(uri.removeprefix(f"{self.root}/")) for uri in self.uris]

    def check(self, number: int) -> None:
        """Raise InputError for a file that cannot be read at all, as one that is a device."""
        uri = self.uris[number]
        if uri in self.problems:
            raise InputError(f"{uri}: {self.problems[uri]}; remove it or put a file in its place")

    def example(self) -> str:
        """Return the path of the first file below the root."""
        return self.uris[0].removeprefix(f"{self.root}/")


@dataclass(frozen=True)
class Pairing:
    """pairs: numbers of an image and its mask, in order of images. images, masks: numbers of those
    without a partner, in order.
    """

    pairs: list[tuple[int, int]]
    images: list[int]
    masks: list[int]


def list_files(uri: str) -> Files:
    """List the image files under `uri`. Raises InputError if there are none."""
    rows = list_images(uri).to_pylist()
    problems = {row["uri"]: row["problem"] for row in rows if row["problem"]}
    root = storage.absolute(uri)
    root = "/".join(root.split("/")[:-1]) if rows[0]["uri"] == root else root
    return Files(root, tuple(row["uri"] for row in rows), problems)


def pair_folders(images: Files, masks: Files) -> Pairing:
    """Pair files of two folders: first those of the same path in both, then the rest by their names
    alone; extensions do not count.

    Raises InputError where two files could be the partner of one, naming them, and if nothing
    pairs.
    """
    pairing = _pair(images, masks, [(_whole, _whole), (_name, _name)])
    if not pairing.pairs:
        raise InputError(
            f"no image has a mask: the images are like {images.example()} in {images.root}, the "
            f"masks like {masks.example()} in {masks.root}; give a mask the path of its image, or "
            "at least its name, whatever the extension"
        )
    for i, j in pairing.pairs:
        images.check(i)
        masks.check(j)
    return pairing


def pair_indexed(images: Files, masks: Files) -> Pairing:
    """Pair images of an index, which lie anywhere, with the files of a folder of masks: first where
    the path of a mask ends that of an image, longer ones before shorter ones, then by names alone.

    Raises InputError where two files could be the partner of one, naming them.
    """
    depths = sorted({len(parts) for parts in masks.parts} - {1}, reverse=True)
    rounds: list[_Round] = [(_end_of(depth), _of_depth(depth)) for depth in depths]
    return _pair(images, masks, [*rounds, (_name, _name)])


def describe_lone(images: Files, masks: Files, pairing: Pairing) -> str | None:
    """Return a sentence about the files that have no partner; None if all have one."""
    lone = [
        f"{len(numbers):,} without {partner} {'is' if len(numbers) == 1 else 'are'} not used, "
        f"such as {files.uris[numbers[0]]}"
        for numbers, partner, files in (
            (pairing.images, "a mask", images),
            (pairing.masks, "an image", masks),
        )
        if numbers
    ]
    if not lone:
        return None
    return f"{len(images.uris):,} images, {len(masks.uris):,} masks: {'; '.join(lone)}"


def _pair(images: Files, masks: Files, rounds: Sequence[_Round]) -> Pairing:
    pairs: list[tuple[int, int]] = []
    left = [dict(enumerate(files.parts)) for files in (images, masks)]
    for keys in rounds:
        groups = [_grouped(part, key) for part, key in zip(left, keys, strict=True)]
        for key in sorted(groups[0].keys() & groups[1].keys()):
            own, others = groups[0][key], groups[1][key]
            _check_single([images.uris[i] for i in own], [masks.uris[j] for j in others])
            pairs.append((own[0], others[0]))
            del left[0][own[0]], left[1][others[0]]
    return Pairing(sorted(pairs), list(left[0]), list(left[1]))


def _grouped(left: dict[int, Parts], key: _Key) -> dict[Parts, list[int]]:
    found: dict[Parts, list[int]] = {}
    for number, parts in left.items():
        if (name := key(parts)) is not None:
            found.setdefault(name, []).append(number)
    return found


def _check_single(images: Sequence[str], masks: Sequence[str]) -> None:
    if len(masks) > 1:
        raise InputError(
            f"two masks have the name of {images[0]}: {masks[0]} and {masks[1]}; keep one of them, "
            "or give each the path of its image"
        )
    if len(images) > 1:
        raise InputError(
            f"{masks[0]} is the mask of more than one image: {images[0]} and {images[1]}; "
            "give masks the paths of their images"
        )


def _parts(path: str) -> Parts:
    folders, _, name = unicodedata.normalize("NFC", path).rpartition("/")
    return (*(folders.split("/") if folders else ()), PurePosixPath(name).stem)


def _whole(parts: Parts) -> Parts:
    return parts


def _name(parts: Parts) -> Parts:
    return parts[-1:]


def _end_of(depth: int) -> _Key:
    return lambda parts: parts[-depth:] if len(parts) >= depth else None


def _of_depth(depth: int) -> _Key:
    return lambda parts: parts if len(parts) == depth else None
