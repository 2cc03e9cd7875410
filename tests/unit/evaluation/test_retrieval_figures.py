"""Tests of the figures of retrieval reports against stored values, on made-up inputs.

The stored values are those of the first implementation. To store them anew:
`SEGREC_STORE_EXPECTED=1 pytest tests/unit/evaluation/test_retrieval_figures.py`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.retrieval.collection import FEATURE, REGIONS, Collection, Regions, load
from segrec_batch.evaluation.retrieval.latency import Latency
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.methods import BASE_METHODS
from segrec_batch.evaluation.retrieval.ranking import count_block
from segrec_batch.evaluation.retrieval.report import build_report
from segrec_batch.evaluation.retrieval.run import dimension_grid
from segrec_batch.evaluation.retrieval.settings import feedback_settings, filter_settings
from segrec_batch.evaluation.retrieval.truth import Folders, GroundTruth, Pairs
from segrec_batch.search.database import open_index
from tests.support.builders import write_png
from tests.support.feature_index import write_index
from tests.support.retrieval_counts import counts_table

EXPECTED = Path(__file__).parent / "expected"
Figures = dict[str, Any]


def collection(n: int = 30, seed: int = 11) -> Collection:
    """Return made-up images of two classes with every part that a method reads."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    counts = rng.multinomial(8, [0.4, 0.4, 0.2], n)
    masks = (
        rng.integers(-(2**63), 2**63, (n, 2, 4)) & rng.integers(-(2**63), 2**63, (3, 2, 4))[kind]
    )
    masks[counts[:, 1:] == 0] = 0
    members = {k: np.flatnonzero(counts[:, k]) for k in (1, 2)}
    ids = pa.array([f"{i:04x}" for i in range(n)])

    def vectors(length: int, noise: float) -> np.ndarray:
        return (rng.random((3, length))[kind] + noise * rng.random((n, length))).astype(np.float32)

    features, described = vectors(12, 3), {"hog": vectors(6, 5), "localised": vectors(5, 4)}
    features[4], features[5] = 1, features[8]
    described["hog"][3] = np.nan
    described["pca"] = features[:, :8] - features[:, :8].mean(axis=0)
    categories = {name: np.full(n, -1) for name in described}
    categories["localised"] = rng.integers(-1, 2, n)
    return Collection(
        ids=ids,
        uris=pa.array([f"/images/{'abc'[k]}/{i:02}.jpg" for i, k in enumerate(kind)]),
        contents=ids,
        classes=("car", "tree"),
        coverages=(counts / 8).astype(np.float32),
        features=features,
        sign_bits=np.where(rng.random((n, 1)) < 0.5, rng.integers(-(2**63), 2**63, (3, 1))[kind],
                           rng.integers(-(2**63), 2**63, (n, 1))),
        masks=masks.reshape(n, -1),
        regions={k: Regions(rows, vectors(6, 3)[rows]) for k, rows in members.items()},
        foreground=np.tile(masks[:, 0], 4),
        vectors=described,
        categories=categories,
    )  # fmt: skip


def by_masks(folder: Path) -> Figures:
    """Evaluate all methods, filters, feedback rounds and dimensions by masks."""
    images = collection()
    rng = np.random.default_rng(3)
    for i in range(len(images) - 2):
        mask = np.where(np.arange(64)[:, None] < rng.integers(8, 64), i % 3, 0) + np.zeros(64, int)
        mask[:, : rng.integers(1, 9)] = 2
        write_png(folder / "masks" / f"{i:02}.png", mask.astype(np.uint8))
    (folder / "classes.json").write_text(json.dumps({"car": [1], "tree": [2]}))
    truth = Masks(str(folder / "masks"), str(folder / "classes.json"), (0.1, 0.9)).read(images)
    names = (*BASE_METHODS, "dot", "hog", "hog-cosine", "pca-cosine", "localised")
    of = (*filter_settings([(0.29, 0.96)], [0.5, 0.9]), *feedback_settings(2))
    rows = truth.queries(20, 1)
    counts = [count_block(rows, images, truth, names, of)]
    counts.append(count_block(rows, images, truth, *dimension_grid(images)))
    return figures(pa.concat_tables(counts), truth)


def by_folders(folder: Path) -> Figures:
    """Evaluate an index on disk by folders; some images are equal."""
    rng = np.random.default_rng(2)
    features = (rng.random((4, 16))[np.arange(24) % 4] + 2 * rng.random((24, 16))).astype(
        np.float32
    )
    features[7], features[9] = features[3], 0
    index = str(folder / "index")
    write_index(index, features, (rng.integers(0, 5, 24) / 4).astype(np.float32))
    images = load(open_index(index), [FEATURE, REGIONS])
    number = [int(uri[-10:-4]) % 4 for uri in images.uris.to_pylist()]
    uris = [f"/{k}/{i}.jpg" for i, k in enumerate(number)]
    images = Collection(**{**vars(images), "uris": pa.array(uris)})
    truth = Folders().read(images)
    counts = count_block(
        np.arange(24), images, truth, ("pearson", "region", "euclidean", "random"),
        filter_settings([(0.2, 1), (0.29, 0.96)], [0.5]),
    )  # fmt: skip
    return figures(counts, truth)


def by_pairs(folder: Path) -> Figures:
    """Evaluate one round of feedback by the pairs of a file."""
    images = collection(24, 5)
    lines = ["query,relevant,class"]
    lines += [f"{i:02}.jpg,{i * 7 % 24:02}.jpg,{'xy'[i % 2]}" for i in range(2, 20)]
    lines += [f"{i:02}.jpg,{(i + 3) % 24:02}.jpg,{'xy'[i % 2]}" for i in range(2, 14)]
    (folder / "pairs.csv").write_text("\n".join(lines))
    truth = Pairs(str(folder / "pairs.csv")).read(images)
    of = (*filter_settings([], [0.9]), *feedback_settings(1))
    rows = truth.queries(100, 0)
    return figures(count_block(rows, images, truth, ("cosine", "sign-bits"), of), truth)


def by_counts(_: Path) -> Figures:
    """Evaluate a table of counts."""
    return figures(counts_table(40, settings=("", "query kept", "ε 0.9"), seed=4), None)


def figures(counts: pa.Table, truth: GroundTruth | None) -> Figures:
    """Return the metric values of a report by key, and its details."""
    latency, provenance = Latency("pearson", "", 1.5, 4.0, 0.75, 20), Provenance("", "", "", seed=3)
    report = build_report(counts, provenance, "Truth.", latency=[latency])
    return {
        **of_report(report),
        "labels": None if truth is None else list(truth.details.values()),
        "counts": counts.num_rows,
    }


def of_report(report: Report) -> Figures:
    metrics = report.metrics()
    values: dict[str, list[float | None]] = {}
    for row in metrics["measures"]:
        key = (row["method"], row["setting"], row["class"], row["measure"], row["k"])
        values[" | ".join(map(str, key))] = [row[n] for n in ("value", "low", "high", "units")]
    details = {k: v for k, v in metrics["details"].items() if k != "truth"}
    return {"measures": values, "details": details}


@pytest.mark.parametrize("make", [by_masks, by_folders, by_pairs, by_counts])
def test_report_reproduces_stored_values(make: Callable[[Path], Figures], tmp_path: Path) -> None:
    values = make(tmp_path)
    path = EXPECTED / f"retrieval_{make.__name__}.json"
    if os.environ.get("SEGREC_STORE_EXPECTED"):
        path.write_text(one_a_line(rounded(values)))
    expected = json.loads(path.read_text())
    assert list(values["measures"]) == list(expected["measures"])
    assert_equal(json.loads(json.dumps(values)), expected)


def one_a_line(values: Figures) -> str:
    """Return JSON with one metric value a line."""
    text = json.dumps(values, ensure_ascii=False)
    return text.replace('], "', '],\n"').replace('}, "', '},\n"') + "\n"


def rounded(value: Any) -> Any:
    """Return a JSON value with numbers to 12 places."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(value, 12) if isinstance(value, float) else value


def assert_equal(value: Any, expected: Any, where: str = "") -> None:
    """Compare JSON values, numbers to 12 places: sums depend on the processor beyond these."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys(), where
        for name, part in expected.items():
            assert_equal(value[name], part, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for i, part in enumerate(expected):
            assert_equal(value[i], part, f"{where}/{i}")
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, abs=2e-12), where
    else:
        assert value == expected, where
