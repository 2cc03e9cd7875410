"""Tests of ground truths: folders, pairs in a file, label masks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import Collection
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.truth import Folders, GroundTruth, Pairs
from tests.support.builders import write_png

URIS = ["/p/x/a.jpg", "/p/x/b.jpg", "/p/y/a.jpg", "/p/y/c.jpg", "/p/y/d.jpg", "/q/y/e.jpg"]


def images(uris: list[str]) -> Collection:
    """Return images of an index with names only; their ids are in order."""
    import pyarrow as pa

    ids, n = pa.array([f"{i:02x}" for i in range(len(uris))]), len(uris)
    nothing = np.zeros((n, 0))
    return Collection(
        ids, pa.array(uris), ids, ("car",), np.zeros((n, 2), np.float32),
        nothing.astype(np.float32), nothing.astype(np.int64), nothing.astype(np.int64), {},
    )  # fmt: skip


def relevant(truth: GroundTruth) -> list[list[int]]:
    """Return for each image the others that are relevant to it."""
    n = len(truth.relevant_counts())
    result = truth.relevant(np.arange(n))
    assert result.diagonal().all()
    np.fill_diagonal(result, False)
    assert result.sum(axis=1).tolist() == truth.relevant_counts().tolist()
    return [np.flatnonzero(line).tolist() for line in result]


def test_folders_group_by_path_and_name_the_class() -> None:
    truth = Folders().read(images(URIS))
    assert relevant(truth) == [[1], [0], [3, 4], [2, 4], [2, 3], []]
    assert [truth.class_name(i) for i in range(6)] == ["x", "x", "y", "y", "y", "y"]
    assert truth.queries(10, 0).tolist() == [0, 1, 2, 3, 4]
    assert truth.gains(np.arange(2)) is None


def test_queries_are_a_sorted_sample_by_seed() -> None:
    truth = Folders().read(images([f"/p/{i % 9}/{i}.jpg" for i in range(300)]))
    drawn = truth.queries(50, 3)
    assert len(np.unique(drawn)) == 50
    assert np.array_equal(drawn, np.sort(drawn))
    assert np.array_equal(drawn, truth.queries(50, 3))
    assert not np.array_equal(drawn, truth.queries(50, 4))


def test_queries_refuse_images_without_relevant_ones() -> None:
    with pytest.raises(InputError, match="no image has a relevant image"):
        Folders().read(images(["/a/1.jpg", "/b/2.jpg"])).queries(10, 0)


# --- pairs -------------------------------------------------------------------------------------


def pairs(tmp_path: Path, text: str) -> GroundTruth:
    (tmp_path / "pairs.csv").write_bytes(text.encode())
    return Pairs(str(tmp_path / "pairs.csv")).read(images(URIS))


def test_pairs_accept_image_id_uri_and_end_of_uri(tmp_path: Path) -> None:
    text = "\ufeffquery,relevant\r\n00,/p/x/b.jpg\r\nc.jpg,y/a.jpg\n\n04,04\n00,b.jpg\n"
    truth = pairs(tmp_path, text + '"c.jpg","x/a.jpg"\n')
    assert relevant(truth) == [[1], [], [], [0, 2], [], []]
    assert truth.class_name(0) == ""
    assert truth.queries(10, 0).tolist() == [0, 3]
    assert truth.details["pairs"] == 3


def test_pairs_accept_composed_and_decomposed_accents(tmp_path: Path) -> None:
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    (tmp_path / "pairs.csv").write_text(f"query,relevant\nx/{nfc}.jpg,b.jpg\nb.jpg,{nfd}.png\n")
    listed = images([f"/p/x/{nfd}.jpg", "/p/b.jpg", f"/p/{nfd}.png", f"/p/{nfc}.png"])
    assert relevant(Pairs(str(tmp_path / "pairs.csv")).read(listed)) == [[1], [2], [], []]


def test_pairs_read_the_class_of_the_query(tmp_path: Path) -> None:
    truth = pairs(tmp_path, "query,relevant,class\n00,01,cars\n00,03,cars\n05,00,trees\n")
    assert [truth.class_name(i) for i in (0, 1, 5)] == ["cars", "", "trees"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n", "line 1: the first line is query,relevant"),
        ("query,relevant\n00,a.jpg\n", "line 2: 'a.jpg' is the end of more than one"),
        ("query,relevant\n00,01\nz.jpg,00\n", "line 3: 'z.jpg' is no image_id"),
        ("query,relevant\n00,.jpg\n", "line 2: '.jpg' is no image_id"),
        ("query,relevant\n00,\n", "line 2: '' is no image_id"),
        ("query,relevant\n00\n", "line 2: 1 cells under 2 headings"),
        ("query,relevant\n00,01,x\n", "line 2: 3 cells under 2 headings"),
        ("query,relevant,class\n00,01,x\n00,02,y\n", "line 3: '00' has class 'x' above"),
        ('query,relevant\n"00,01\n', "line 2: unexpected end of data"),
    ],
)
def test_pairs_refuse_a_bad_line_with_its_number(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pairs(tmp_path, text)


@pytest.mark.parametrize("content", [None, b"query,relevant\n\xff,00\n"])
def test_pairs_refuse_an_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"pairs\.csv: not a readable"):
        Pairs(str(tmp_path / "pairs.csv")).read(images(URIS))


# --- masks -------------------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path: Path) -> Masks:
    """Masks of 64 × 64 for p0 … p4, and one more; classes car (1) and tree (2), void 255."""

    def mask(name: str, *blocks: tuple[int, int, int]) -> None:
        values = np.zeros((64, 64), np.uint8)
        for value, start, stop in blocks:
            values[start:stop] = value
        write_png(tmp_path / "masks" / f"{name}.png", values)

    mask("p0", (1, 0, 32))
    mask("p1", (1, 16, 32), (2, 60, 64))
    mask("p2", (1, 0, 8), (2, 8, 40))
    mask("p3", (2, 40, 48), (255, 0, 40))
    mask("p4")
    mask("other", (1, 0, 64))
    (tmp_path / "classes.json").write_text(json.dumps({"car": [1], "tree": [2], "ignore": [255]}))
    return Masks(str(tmp_path / "masks"), str(tmp_path / "classes.json"))


LABELLED = [f"s3://bucket/p{i}.jpg" for i in range(6)]


def test_masks_group_by_dominant_class(masks: Masks, capsys: pytest.CaptureFixture[str]) -> None:
    truth = masks.read(images(LABELLED))
    assert relevant(truth) == [[1], [0], [3], [2], [], []]
    assert [truth.class_name(i) for i in range(6)] == ["car", "car", "tree", "tree", "", ""]
    assert dict(truth.details) == {
        "images": 6, "labelled": 5, "without a mask": 1, "masks without an image": 1,
        "outside the window or without foreground": 1,
    }  # fmt: skip
    assert "without a mask 1, masks without an image 1" in capsys.readouterr().err


def test_gains_are_overlaps_of_all_classes_together(masks: Masks) -> None:
    gains = masks.read(images(LABELLED)).gains(np.arange(6))
    assert gains is not None
    p0, p1, p2, p3 = {1: 16}, {1: 8, 2: 2}, {1: 4, 2: 16}, {2: 4}  # rows of the grid, by class
    cells = [sum(p.values()) for p in (p0, p1, p2, p3)]
    assert gains[0, 1] == pytest.approx(8 / (cells[0] + cells[1] - 8))
    assert gains[0, 2] == pytest.approx(4 / (cells[0] + cells[2] - 4))
    assert gains[1, 2] == 0
    assert gains[2, 3] == 0
    assert gains.diagonal().tolist() == [1, 1, 1, 1, 0, 0]
    assert np.array_equal(gains, gains.T)


def test_masks_window_takes_shares_without_void(masks: Masks) -> None:
    truth = replace(masks, window=(0.3, 0.5)).read(images(LABELLED))
    assert [truth.class_name(i) for i in range(6)] == ["car", "", "tree", "tree", "", ""]
    assert relevant(truth) == [[], [], [3], [2], [], []]
    with pytest.raises(InputError, match="window of the labels"):
        replace(masks, window=(0.5, 0.3)).read(images(LABELLED))


def test_fingerprint_depends_on_the_labels(masks: Masks) -> None:
    result = masks.read(images(LABELLED))
    assert masks.read(images(LABELLED)).fingerprint == result.fingerprint
    assert replace(masks, window=(0, 0.9)).read(images(LABELLED)).fingerprint != result.fingerprint
    write_png(Path(masks.masks) / "p0.png", np.ones((64, 64), np.uint8))
    assert masks.read(images(LABELLED)).fingerprint != result.fingerprint
    folders = {Folders().read(images(uris)).fingerprint for uris in (URIS, URIS[:5], LABELLED)}
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        (["/a/p0.jpg", "/b/p0.jpg"], "the mask of more than one image"),
        (["/a/p0.jpg", "/a/p0.png"], "the mask of more than one image"),
    ],
)
def test_masks_refuse_one_mask_of_two_images(masks: Masks, uris: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        masks.read(images(uris))


def test_masks_allow_equal_names_without_masks(masks: Masks) -> None:
    result = masks.read(images(["/a/new.jpg", "/b/new.jpg", *LABELLED]))
    assert result.details["without a mask"] == 3


def test_masks_refuse_equal_names_unless_paths_differ(masks: Masks) -> None:
    write_png(Path(masks.masks) / "more" / "p0.png", np.ones((4, 4), np.uint8))
    with pytest.raises(InputError, match=r"two masks have the name of s3://bucket/p0\.jpg"):
        masks.read(images(LABELLED))
    result = masks.read(images([*LABELLED, "/a/more/p0.jpg"]))
    assert dict(result.details)["labelled"] == 6


def test_masks_report_values_without_a_class(
    masks: Masks, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.full((64, 64), 7, np.uint8)
    values[:16] = 1
    write_png(Path(masks.masks) / "p0.png", values)
    masks.read(images(LABELLED))
    stderr = capsys.readouterr().err
    assert "no class names count as background: 0 (46.2 % of all pixels), 7 (15.0 %);" in stderr


def test_masks_refuse_a_mask_of_colours(masks: Masks) -> None:
    write_png(Path(masks.masks) / "p0.png", np.ones((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"p0\.png: a mask of 3 channels .* one value per pixel"):
        masks.read(images(LABELLED))
