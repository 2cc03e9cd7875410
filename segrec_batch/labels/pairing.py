"""Pairing of images with masks by path, then by file name."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from segrec_batch.common.errors import InputError
from segrec_batch.sources import storage
from segrec_batch.sources.listing import list_images

Parts = tuple[str, ...]
"""Components of a path without extension, in NFC (macOS stores names in NFD)."""

_Key = Callable[[Parts], Parts | None]
_Round = tuple[_Key, _Key]  # keys of images and of masks; a path may have none


@dataclass(frozen=True)
class Files:
    """Files on one side of a pairing.

    Attributes:
        root: listed folder; "" for none.
        uris: sorted.
        problems: reasons why files cannot be read, by URI.
    """

    root: str
    uris: tuple[str, ...]
    problems: dict[str, str]

    @property
    def parts(self) -> list[Parts]:
        """Path components of each file below the root."""
        return [_split_path(uri.removeprefix(f"{self.root}/")) for uri in self.uris]

    def check(self, number: int) -> None:
        """Raise InputError if a file cannot be read, for example because it is a device."""
        uri = self.uris[number]
        if uri in self.problems:
            raise InputError(f"{uri}: {self.problems[uri]}; remove it or put a file in its place")

    def example(self) -> str:
        """Return the path of the first file below the root."""
        return self.uris[0].removeprefix(f"{self.root}/")


@dataclass(frozen=True)
class Pairing:
    """Result of a pairing, as positions in `Files.uris`.

    Attributes:
        pairs: image and mask, in order of images.
        images, masks: files without a partner.
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
    """Pair files of two folders by equal paths, then the rest by equal file names.

    Extensions are ignored.

    Raises:
        InputError: nothing pairs, or a file has two possible partners.
    """
    pairing = _pair(images, masks, [(_whole_path, _whole_path), (_file_name, _file_name)])
    if not pairing.pairs:
        raise InputError(
            f"no image has a mask: the images are like {images.example()} in {images.root}, the "
            f"masks like {masks.example()} in {masks.root}; give a mask the path or at least the "
            "name of its image, with any extension"
        )
    for i, j in pairing.pairs:
        images.check(i)
        masks.check(j)
    return pairing


def pair_indexed(images: Files, masks: Files) -> Pairing:
    """Pair images of an index, in any folders, with the files of a folder of masks.

    A mask belongs to the image whose path ends with the path of the mask; longer paths are compared
    first, file names last.

    Raises:
        InputError: a file has two possible partners.
    """
    depths = sorted({len(parts) for parts in masks.parts} - {1}, reverse=True)
    rounds: list[_Round] = [(_match_end(depth), _match_depth(depth)) for depth in depths]
    return _pair(images, masks, [*rounds, (_file_name, _file_name)])


def describe_unpaired(images: Files, masks: Files, pairing: Pairing) -> str | None:
    """Return a message on files without a partner; None if all have one."""
    unpaired = [
        f"{len(numbers):,} without {partner} {'is' if len(numbers) == 1 else 'are'} not used, "
        f"such as {files.uris[numbers[0]]}"
        for numbers, partner, files in (
            (pairing.images, "a mask", images),
            (pairing.masks, "an image", masks),
        )
        if numbers
    ]
    if not unpaired:
        return None
    return f"{len(images.uris):,} images, {len(masks.uris):,} masks: {'; '.join(unpaired)}"


def _pair(images: Files, masks: Files, rounds: Sequence[_Round]) -> Pairing:
    pairs: list[tuple[int, int]] = []
    unpaired = [dict(enumerate(files.parts)) for files in (images, masks)]
    for keys in rounds:
        groups = [_group_by_key(part, key) for part, key in zip(unpaired, keys, strict=True)]
        for key in sorted(groups[0].keys() & groups[1].keys()):
            same_images, same_masks = groups[0][key], groups[1][key]
            _check_single(
                [images.uris[i] for i in same_images], [masks.uris[i] for i in same_masks]
            )
            image, mask = same_images[0], same_masks[0]
            pairs.append((image, mask))
            del unpaired[0][image], unpaired[1][mask]
    return Pairing(sorted(pairs), list(unpaired[0]), list(unpaired[1]))


def _group_by_key(files: dict[int, Parts], key: _Key) -> dict[Parts, list[int]]:
    groups: dict[Parts, list[int]] = {}
    for number, parts in files.items():
        if (name := key(parts)) is not None:
            groups.setdefault(name, []).append(number)
    return groups


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


def _split_path(path: str) -> Parts:
    folders, _, name = unicodedata.normalize("NFC", path).rpartition("/")
    return (*(folders.split("/") if folders else ()), PurePosixPath(name).stem)


def _whole_path(parts: Parts) -> Parts:
    return parts


def _file_name(parts: Parts) -> Parts:
    return parts[-1:]


def _match_end(depth: int) -> _Key:
    return lambda parts: parts[-depth:] if len(parts) >= depth else None


def _match_depth(depth: int) -> _Key:
    return lambda parts: parts if len(parts) == depth else None
