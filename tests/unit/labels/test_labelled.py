"""Tests of labelled images: class files, pairs, groups, masks."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.labels.labelled import (
    VOID,
    Classes,
    LabelledImage,
    count_values,
    describe_unnamed,
    fingerprint,
    load_classes,
    pair_images,
)
from tests.support.builders import png_by_hand, quick, smooth_pixels, write_png

CLASSES = Classes({"car": (8, 9), "tree": (2,)}, ignore=(11, 255))


def _classes(tmp_path: Path, text: str) -> Classes:
    (tmp_path / "classes.json").write_text(text)
    return load_classes(str(tmp_path / "classes.json"))


def test_load_classes_reads_values_and_ignore(tmp_path: Path) -> None:
    result = _classes(tmp_path, '{"tree": [2], "ignore": [11], "car": [8, 9]}')
    assert result == Classes({"tree": (2,), "car": (8, 9)}, (11,))
    assert result.names == ("tree", "car")
    assert [result.class_of(v) for v in (2, 8, 9, 0, 7)] == [1, 2, 2, 0, 0]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"ignore": [1]}', '{"car": 8}', '{"car": [8.0]}',
     '{"car": ["8"]}', '{"car": [true]}', '{"car": [-1]}', '{"car": [32768]}', '{"car": null}',
     '{"car": [[8]]}', '{"car": [8], "tree": [8]}', '{"car": [8], "ignore": [8]}',
     '{"car": {"8": 1}}', '{"car": [NaN]}', '{"car": [1e400]}', '[["car", [8]]]', "\xff"],
)  # fmt: skip
def test_load_classes_rejects_unusable_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"classes\.json: ") as refused:
        _classes(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"car": [8], "tree": [2], "car": [9]}', "'car' occurs 2 times; write all its"),
        ('{"ignore": [8], "ignore": [2], "car": [9]}', "'ignore' occurs 2 times"),
        ('{"car": [8, 3, 8]}', "mask value 8 is listed 2 times under 'car'"),
        ('{"car": [8], "tree": [8]}', "mask value 8 is listed under 'car' and 'tree'; remove"),
        ('{"car": [8], "ignore": [8]}', "under 'car' and 'ignore'"),
        ('{"car": [true]}', "'car' has True, which is not a mask value: write whole numbers"),
        ('{"car": [65535]}', "'car' has 65535, which is not a mask value"),
        ('{"car": "8"}', r"'car' needs a list of mask values, such as \[8\]"),
        ('{"car": {"car": 1, "car": 2}}', "'car' needs a list"),
        ('{"a\\u001b[2J": "8"}', r"'a\\x1b\[2J' needs a list"),
        ("[" * 100_000, "not a readable JSON file: it is nested too deeply"),
        ('{"car": ' + "[" * 300 + "]" * 300 + "}", "'car' has .{1,60}, which is not a mask value"),
        ('{"car": [' + "9" * 5000 + "]}", "not a readable JSON file"),
    ],
    ids=range(13),
)
def test_load_classes_names_the_fault(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _classes(tmp_path, text)


@pytest.mark.parametrize("name", ["a/b", "..", "x=y", "'; drop", "é", "Ignore", "background", ""])
def test_load_classes_rejects_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"classes\.json: "):
        _classes(tmp_path, json.dumps({name: [1]}))


def test_load_classes_of_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_classes(str(tmp_path / "none.json"))


@given(values=st.lists(st.sampled_from([VOID, 0, 1, 2, 8, 9, 10, 300, 32767]), max_size=30))
@quick
def test_classes_map_values_and_keep_void(values: list[int]) -> None:
    expected = [v if v == VOID else CLASSES.class_of(v) for v in values]
    actual = CLASSES.to_classes(np.array(values, np.int16))
    assert actual.tolist() == expected
    assert actual.dtype == np.int16


def _files(folder: Path, *names: str) -> str:
    for i, name in enumerate(names):
        write_png(folder / name, np.full((2, 3), i, np.uint8))
    return str(folder)


def test_pair_images_by_stem_in_any_folder(tmp_path: Path) -> None:
    images = _files(tmp_path / "i", "b/x_2.png", "a/x_1.png", "c/y.png")
    masks = _files(tmp_path / "m", "x_1.png", "deep/er/y.png", "x_2.png")
    result = pair_images(images, masks)
    assert [Path(p.image).relative_to(images).as_posix() for p in result] == [
        "a/x_1.png", "b/x_2.png", "c/y.png",
    ]  # fmt: skip
    assert [Path(p.mask).stem for p in result] == ["x_1", "x_2", "y"]


def test_pair_images_counts_unpaired_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _files(tmp_path / "i", "a.png", "b.png", "more/b.png", "._b.png")
    masks = _files(tmp_path / "m", "b.png", "c.png", "d.png", "._b.png")
    assert [Path(item.image).name for item in pair_images(images, masks)] == ["b.png"]
    assert capsys.readouterr().err == (
        f"3 images, 3 masks: 2 without a mask are not used, such as {images}/a.png; "
        f"2 without an image are not used, such as {masks}/c.png\n"
    )
    pair_images(images, images)
    assert capsys.readouterr().err == ""


def test_pair_images_rejects_irregular_files(tmp_path: Path) -> None:
    images, masks = _files(tmp_path / "i", "a.png"), _files(tmp_path / "m", "b.png")
    os.mkfifo(f"{masks}/a.png")
    with pytest.raises(InputError, match=r"m/a\.png: not a regular file; remove it"):
        pair_images(images, masks)


def test_pair_images_rejects_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(InputError, match="no images"):
        pair_images(_files(tmp_path / "i", "a.png"), str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("names", "rule", "groups"),
    [
        (["a/s_1", "a/s_2", "b/t_1"], "folder", ["a", "a", "b"]),
        (["a/s_1", "a/s_2", "b/t_1"], "prefix", ["s", "s", "t"]),
        (["a/s_1", "a/s_2", "b/t_1"], "none", ["s_1", "s_2", "t_1"]),
        (["a/s_1", "a/s_2", "b/s_3"], "auto", ["a", "a", "b"]),
        (["s_1", "s_2", "t_1"], "auto", ["s", "s", "t"]),
        (["0001TP_006690", "0001TP_006720", "0016E5_00390"], "auto", ["0001TP"] * 2 + ["0016E5"]),
        (["v1-001", "v1-002", "v2-001"], "auto", ["v1", "v1", "v2"]),
        (["1", "2", "3"], "auto", ["1", "2", "3"]),
        (["s_1", "s_2", "s_3"], "auto", ["s_1", "s_2", "s_3"]),
        (["s"], "auto", ["s"]),
    ],
)
def test_pair_images_groups_follow_rule(
    names: list[str], rule: str, groups: list[str], tmp_path: Path
) -> None:
    images = _files(tmp_path / "i", *(f"{n}.png" for n in names))
    masks = _files(tmp_path / "m", *(f"{Path(n).name}.png" for n in names))
    result = [p.group.removeprefix(f"{images}/") for p in pair_images(images, masks, rule)]
    assert result == groups


def _labelled(tmp_path: Path, mask: object) -> LabelledImage:
    image = write_png(tmp_path / "i" / "a.png", smooth_pixels(6, 8))
    path = write_png(tmp_path / "m" / "a.png", mask)  # type: ignore[arg-type]
    return LabelledImage(str(image), str(path), "")


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_load_mask_makes_ignored_values_void(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice([0, 2, 8, 11, 255], (6, 8)).astype(np.uint8)
    mask = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    if mode == "P":
        mask.putpalette(list(range(256)) * 3)
    assert mask.mode == mode
    image, labels = _labelled(tmp_path, mask).load(CLASSES)
    expected = np.where(np.isin(values, [11, 255]), VOID, values.astype(np.int16))
    np.testing.assert_array_equal(labels, expected)
    assert (image.mode, image.size, labels.dtype) == ("RGB", (8, 6), np.int16)


@pytest.mark.parametrize("value", [32768, 40_000, 65_535])
def test_load_mask_rejects_values_over_15_bits(value: int, tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.full((6, 8), value, np.uint16))
    with pytest.raises(InputError, match=f"has the value {value}; number the labels from 0 to"):
        CLASSES.to_classes(item.load(CLASSES)[1])


@pytest.mark.parametrize("shape", [(8, 6), (6, 9), (6, 8, 3), (6, 8, 2), (3, 4)])
def test_load_rejects_mask_of_other_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m/a\.png.* one value per pixel"):
        _labelled(tmp_path, np.zeros(shape, np.uint8)).load(CLASSES)


def test_load_mask_rejects_jpeg(tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.zeros((6, 8), np.uint8))
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(item.mask, "JPEG")  # whatever it is called
    with pytest.raises(InputError, match=r"m/a\.png: a mask in JPEG is refused: .*; save masks as"):
        item.load(CLASSES)


def test_load_applies_orientation_before_shape_check(tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.zeros((8, 6), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(smooth_pixels(6, 8)).save(item.image, exif=exif)
    image, labels = item.load(CLASSES)
    assert (image.size, labels.shape) == ((6, 8), (8, 6))


@pytest.mark.parametrize("which", ["image", "mask"])
def test_load_of_unreadable_files_is_an_input_error(which: str, tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.random.default_rng(0).integers(0, 9, (6, 8), dtype=np.uint8))
    path = Path(getattr(item, which))
    whole = path.read_bytes()
    for data in (b"", b"<html>", *(whole[: len(whole) * q // 4] for q in (1, 2, 3))):
        path.write_bytes(data)
        with pytest.raises(InputError, match=str(path)):
            item.load(CLASSES)
    path.unlink()
    with pytest.raises(InputError, match=str(path)):
        item.load(CLASSES)


def test_load_mask_of_damaged_file(tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.random.default_rng(0).integers(0, 9, (6, 8), dtype=np.uint8))
    whole = Path(item.mask).read_bytes()
    for at in range(len(whole)):
        for flip in (0x01, 0x55, 0x80, 0xFF):
            data = bytearray(whole)
            data[at] ^= flip
            Path(item.mask).write_bytes(data)
            with suppress(InputError):
                item.load(CLASSES)


def test_load_mask_rejects_too_many_pixels(tmp_path: Path) -> None:
    item = _labelled(tmp_path, np.zeros((6, 8), np.uint8))
    Path(item.mask).write_bytes(png_by_hand(50_000, 50_000, colour=0))
    with pytest.raises(InputError):
        item.load(CLASSES)


def test_fingerprint_covers_content_and_classes(tmp_path: Path) -> None:
    items = [_labelled(tmp_path / k, np.zeros((6, 8), np.uint8)) for k in ("x", "y")]
    first, second = (fingerprint([item], CLASSES) for item in items)
    assert first == second
    assert len(first) == 16
    assert fingerprint(items[:1], Classes({"car": (8,)})) != first
    assert fingerprint(items, CLASSES) != first
    write_png(Path(items[0].mask), np.ones((6, 8), np.uint8))
    assert fingerprint(items[:1], CLASSES) != first


@given(values=st.lists(st.sampled_from([VOID, 0, 1, 2, 8, 300, 32767]), min_size=1, max_size=30))
@quick
def test_count_values_equals_unique(values: list[int]) -> None:
    result = count_values(np.array([values], np.int16))
    assert result == {value: values.count(value) for value in set(values)}


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ({8: 10, 2: 5, VOID: 7}, None),
        ({8: 20, 0: 80}, "0 (80.0 % of all pixels)"),
        (
            {8: 8655, 7: 310, 255: 40, VOID: 990, 4: 5},
            "4 (less than 0.1 % of all pixels), 7 (3.1 %), 255 (0.4 %); "
            'list void values under "ignore"',
        ),
        (
            dict.fromkeys(range(20, 35), 100),
            "20 (6.7 % of all pixels), "
            + ", ".join(f"{v} (6.7 %)" for v in range(21, 30))
            + ', 5 more (33.3 %); list void values under "ignore"',
        ),
    ],
)
def test_describe_unnamed_gives_shares(pixels: dict[int, int], text: str | None) -> None:
    result = describe_unnamed(pixels, CLASSES)
    assert result == (text and f"mask values that no class names count as background: {text}")
