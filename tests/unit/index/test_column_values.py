"""Tests of column values and of the Z-order of rows."""

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.index.column_values import (
    compute_bounding_box,
    compute_inverse_norms,
    encode_mask,
    pack_bitmaps,
)
from segrec_batch.index.parts import compute_z_order
from tests.support.builders import quick

COLOURS = ["#e6194b", "#4363d8", "#3cb44b", "#f58231"]
bitmaps = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 15, 16, 255])
def test_a_mask_comes_back_with_its_palette(classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes + 1, (37, 53), dtype=np.uint8)
    colours = [COLOURS[i % 4] for i in range(classes)]
    with Image.open(io.BytesIO(encode_mask(labels, colours))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (53, 37))
        np.testing.assert_array_equal(np.asarray(image), labels)
        rgb = np.asarray(image.convert("RGB"))
    palette = [(0, 0, 0), *(tuple(bytes.fromhex(c[1:])) for c in colours)]
    np.testing.assert_array_equal(rgb, np.array(palette, np.uint8)[labels])


@given(
    member=hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 4).map(lambda n: 64 * n)))
)
@quick
def test_words_are_the_digits_of_big_integers(member: NDArray[np.bool_]) -> None:
    words = pack_bitmaps(member)
    assert (words.shape, words.dtype) == ((len(member), member.shape[1] // 64), np.int64)
    for bits, row in zip(member, words, strict=True):
        number = sum(1 << i for i in np.flatnonzero(bits).tolist())
        assert number == sum((int(word) % 2**64) << (64 * i) for i, word in enumerate(row))


def test_a_grid_of_32_by_32_is_16_words() -> None:
    member = np.zeros(1024, bool)
    member[[0, 63, 64, 1023]] = True
    words = pack_bitmaps(member)
    assert words.shape == (16,)
    assert [int(w) % 2**64 for w in words[[0, 1, 15]]] == [1 | 1 << 63, 1, 1 << 63]


@given(member=bitmaps)
@quick
def test_boxes_are_the_tightest(member: NDArray[np.bool_]) -> None:
    assume(member.any())
    h, w = member.shape
    cells = np.argwhere(member)
    expected = (
        min(c for _, c in cells) / w, min(r for r, _ in cells) / h,
        (max(c for _, c in cells) + 1) / w, (max(r for r, _ in cells) + 1) / h,
    )  # fmt: skip
    assert compute_bounding_box(member) == pytest.approx(expected)


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (5, 1), (0, 1e-3), (0.1, 30)])
def test_one_dot_product_and_the_inverse_norm_give_pearson(shift: float, scale: float) -> None:
    x = (np.random.default_rng(0).random((7, 512)) * scale + shift).astype(np.float32)
    exact = x.astype(np.float64)
    query = exact[0] - exact[0].mean()
    result = (exact @ (query / np.linalg.norm(query))) * compute_inverse_norms(x)
    assert compute_inverse_norms(x).dtype == np.float32
    np.testing.assert_allclose(result, np.corrcoef(exact)[0], atol=1e-5)


def test_constant_features_have_no_norm() -> None:
    x = np.random.default_rng(0).random((6, 512)).astype(np.float32)
    x[1], x[3], x[4] = 0, 0.1, 1.9108851
    np.testing.assert_array_equal(
        np.isnan(compute_inverse_norms(x)), [False, True, False, True, True, False]
    )
    nearly = np.full((1, 512), 0.1, np.float32)
    nearly[0, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    assert np.isfinite(compute_inverse_norms(nearly)).all()
    assert compute_inverse_norms(np.zeros((0, 512), np.float32)).shape == (0,)


def _levels(coverages: NDArray[np.float32]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.minimum(coverages * 8, 7).astype(int)]


coverage_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    elements=st.sampled_from([0, 0.1, 0.125, 0.3, 0.5, 0.99, 1.0]).map(np.float32),
)


@given(coverages=coverage_rows)
@quick
def test_z_order_keeps_equal_rows_together(
    coverages: NDArray[np.float32],
) -> None:
    order = compute_z_order(coverages)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(coverages)))
    ordered = _levels(coverages[order])
    changes = sum(a != b for a, b in pairwise(ordered))
    assert changes == len(set(ordered)) - 1


@given(coverages=coverage_rows, seed=st.integers(0, 99))
@quick
def test_the_z_order_does_not_depend_on_the_order_of_the_rows(
    coverages: NDArray[np.float32], seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation(coverages)
    ordered = shuffled[compute_z_order(shuffled)]
    assert _levels(coverages[compute_z_order(coverages)]) == _levels(ordered)


def test_the_z_order_interleaves_bits() -> None:
    grid = np.array([(x, y) for x in range(4) for y in range(4)], np.float32) / 4
    ordered = (grid[compute_z_order(grid, bits=2)] * 4).astype(int).tolist()
    assert ordered[:6] == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
    assert ordered[-3:] == [[2, 3], [3, 2], [3, 3]]


def test_z_order_uses_the_first_21_classes() -> None:
    coverages = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    np.testing.assert_array_equal(compute_z_order(coverages), compute_z_order(coverages[:, :21]))


def test_z_order_excludes_most_row_groups() -> None:
    coverages = np.random.default_rng(0).dirichlet([0.3] * 4, 4096).astype(np.float32)[:, :3]
    groups = coverages[compute_z_order(coverages)].reshape(64, 64, 3)
    low, high = groups.min(axis=1), groups.max(axis=1)
    touched = ((high >= 0.6) & (low <= 0.9)).mean(axis=0)
    assert (touched < 0.5).all()  # unsorted: all of them
