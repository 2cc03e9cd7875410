"""Tests of the pairing of images with masks."""

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrec_batch.common.errors import InputError
from segrec_batch.labels.pairing import (
    Files,
    Pairing,
    describe_unpaired,
    list_files,
    pair_folders,
    pair_indexed,
)
from tests.support.builders import quick


def _files(root: str, *paths: str, problems: dict[str, str] | None = None) -> Files:
    return Files(root, tuple(f"{root}/{path}" for path in paths), problems or {})


def _pairs(images: Files, masks: Files, result: Pairing) -> dict[str, str]:
    return {images.uris[i]: masks.uris[j] for i, j in result.pairs}


def _paired(images: list[str], masks: list[str]) -> dict[str, str]:
    sides = _files("/i", *images), _files("s3://bucket/m", *masks)
    result = _pairs(*sides, pair_folders(*sides))
    return {i.removeprefix("/i/"): m.removeprefix("s3://bucket/m/") for i, m in result.items()}


def test_pair_prefers_path_over_name() -> None:
    images = ["train/1.jpg", "val/1.jpg", "2.jpg"]
    masks = ["train/1.png", "val/1.png", "deep/2.png"]
    expected = {"train/1.jpg": "train/1.png", "val/1.jpg": "val/1.png", "2.jpg": "deep/2.png"}
    assert _paired(images, masks) == expected


def test_pair_uses_each_mask_once() -> None:
    assert _paired(["1.jpg", "val/1.jpg"], ["1.png"]) == {"1.jpg": "1.png"}


def test_pair_ignores_extensions() -> None:
    expected = {"a.JPG": "a.PNG", "b.v1.jpeg": "b.v1.Tif"}
    assert _paired(["a.JPG", "b.v1.jpeg"], ["a.PNG", "b.v1.Tif"]) == expected


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("path", ["Straße Köln/Café.jpg", "ガラス.jpg", "Å.jpg"])
def test_pair_ignores_unicode_form(path: str, forms: tuple[str, str]) -> None:
    image, mask = (unicodedata.normalize(form, path) for form in forms)
    assert _paired([image], [f"{PurePosixPath(mask).with_suffix('')}.png"]).keys() == {image}


@pytest.mark.parametrize(
    ("images", "masks", "named"),
    [
        (["a.jpg"], ["a.png", "a.tif"], ["/i/a.jpg", "m/a.png", "m/a.tif"]),
        (["a.jpg"], ["x/a.png", "y/a.png"], ["/i/a.jpg", "m/x/a.png", "m/y/a.png"]),
        (["a.jpg", "a.png"], ["a.png"], ["/i/a.jpg", "/i/a.png", "m/a.png"]),
        (["x/a.jpg", "y/a.jpg"], ["a.png"], ["/i/x/a.jpg", "/i/y/a.jpg", "m/a.png"]),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], ["café.png"], ["two masks", "more than one image"]),
    ],
)
def test_pair_rejects_two_candidates(images: list[str], masks: list[str], named: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        _paired(images, masks)
    if named[0] == "two masks":
        assert any(text in str(refused.value) for text in named)
    else:
        assert all(text in str(refused.value) for text in named)
    assert "give" in str(refused.value)


def test_pair_of_nothing_names_examples() -> None:
    with pytest.raises(InputError, match=r"x/1\.jpg in /i.*1_mask\.png in s3://bucket/m; give a"):
        _paired(["x/1.jpg"], ["1_mask.png"])


def test_pair_counts_unpaired_files() -> None:
    images = _files("/i", *(f"{i}.jpg" for i in range(5)))
    masks = _files("/m", "0.png", "1.png", "x.png")
    text = describe_unpaired(images, masks, pair_folders(images, masks))
    assert text == (
        "5 images, 3 masks: 3 without a mask are not used, such as /i/2.jpg; "
        "1 without an image is not used, such as /m/x.png"
    )
    same = _files("/m", *(f"{i}.png" for i in range(5)))
    assert describe_unpaired(images, same, pair_folders(images, same)) is None


def test_pair_rejects_unreadable_partner() -> None:
    masks = _files("/m", "a.png", "b.png", problems={"/m/b.png": "not a regular file"})
    pair_folders(_files("/i", "a.jpg"), masks)
    with pytest.raises(InputError, match=r"/m/b\.png: not a regular file"):
        pair_folders(_files("/i", "a.jpg", "b.jpg"), masks)


NAMES = st.lists(
    st.tuples(st.sampled_from(["", "x/", "y/", "x/y/"]), st.sampled_from("abcdé")),
    unique=True, min_size=1, max_size=10,
)  # fmt: skip


@given(images=NAMES, masks=NAMES)
@quick
def test_pairs_are_one_to_one(images: list[tuple[str, str]], masks: list[tuple[str, str]]) -> None:
    sides = [
        _files("/r", *sorted(f"{folder}{name}.{end}" for folder, name in side))
        for side, end in ((images, "jpg"), (masks, "png"))
    ]
    try:
        result = pair_folders(sides[0], sides[1])
    except InputError:
        lone = {name for side in (set(images) - set(masks), set(masks) - set(images))
                for _, name in side}  # fmt: skip
        assert lone, "only what has no path in common can be in doubt, or fit nothing"
        return
    assert len({i for i, _ in result.pairs}) == len({j for _, j in result.pairs})
    assert sorted([*(i for i, _ in result.pairs), *result.images]) == list(range(len(images)))
    assert sorted([*(j for _, j in result.pairs), *result.masks]) == list(range(len(masks)))
    paths = [[uri.rpartition(".")[0] for uri in side.uris] for side in sides]
    for i, j in result.pairs:
        assert sides[0].parts[i][-1] == sides[1].parts[j][-1]
        assert paths[0][i] == paths[1][j] or not {paths[0][i], paths[1][j]} & (
            set(paths[0]) & set(paths[1])
        )
    left = {sides[0].parts[i][-1] for i in result.images}
    assert not left & {sides[1].parts[j][-1] for j in result.masks}


@given(names=NAMES, order=st.randoms(use_true_random=False))
@quick
def test_pairs_are_independent_of_order(names: list[tuple[str, str]], order: object) -> None:
    paths = [f"{folder}{name}" for folder, name in names]
    images = _files("/i", *(f"{path}.jpg" for path in paths))
    order.shuffle(paths)  # type: ignore[attr-defined]
    masks = _files("/m", *(f"{path}.png" for path in paths))
    result = _pairs(images, masks, pair_folders(images, masks))
    assert result == {f"/i/{path}.jpg": f"/m/{path}.png" for path in paths}


def test_pair_indexed_by_end_of_path() -> None:
    images = Files("", ("/data/train/a.jpg", "/data/val/a.jpg", "s3://b/c.jpg"), {})
    masks = _files("/m", "train/a.png", "val/a.png", "old/c.png", "none.png")
    result = pair_indexed(images, masks)
    assert _pairs(images, masks, result) == {
        "/data/train/a.jpg": "/m/train/a.png",
        "/data/val/a.jpg": "/m/val/a.png",
        "s3://b/c.jpg": "/m/old/c.png",
    }
    assert result.masks == [3]


def test_list_files_skips_macos_metadata(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("apple")
    for name in ("a.png", "._a.png", "x/._b.jpg", ".DS_Store", "Thumbs.db", "._.DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    assert list_files(str(folder)).uris == (str(folder / "a.png"),)
    (folder / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"no images found \(5 other files: \._\* 3, Thumbs.db 1, .DS_Store 1;"
    ):
        list_files(str(folder))


def test_list_files_of_single_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("one") / "a.png"
    path.write_bytes(b"")
    assert list_files(str(path)).parts == [("a",)]
