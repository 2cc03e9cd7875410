"""Counts tables of made-up rankings by methods of known strength."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval.conditions import KEPT, Setting
from segrec_batch.evaluation.retrieval.counts import COUNTS
from segrec_batch.evaluation.retrieval.rankings import DEPTH

STRENGTHS = {
    "region Pearson": 1.6,
    "image Pearson": 1.3,
    "semantic histogram": 1.0,
    "sign bits, then Pearson": 1.3,
    "Pearson, then mask IoU": 1.65,
}
CLASSES = ["building", "car", "person", "road", "sky", "tree"]
WINDOWS = [f"σ {low}–0.96" for low in (0.05, 0.15, 0.29, 0.4)]
LIMITS = [f"ε {limit}" for limit in (0.3, 0.5, 0.7, 0.9, 1.1, 1.5)]
FEW = ("", KEPT, "σ 0.29–0.96", "ε 0.5", "ε 0.9")

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def counts_table(
    queries: int = 60,
    methods: Sequence[str] = tuple(STRENGTHS)[:3],
    settings: Sequence[str] = FEW,
    gains: bool = True,
    seed: int = 0,
) -> pa.Table:
    """Each query is an image of one of six classes, to be found among all others. A method adds its
    strength to the scores of that class; a filter drops images, relevant ones less often.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=queries)
    hard, luck, worth = (rng.random((queries, queries)) for _ in range(3))
    rows = []
    for method in methods:
        noise = 4 * hard + rng.normal(size=(queries, queries))
        for q in range(queries):
            relevant = labels == labels[q]
            score = STRENGTHS[method] * relevant + noise[q]
            score[q] = np.inf
            for setting in settings:
                candidate = (np.arange(queries) != q) | (setting == KEPT)
                kept = candidate & (luck[q] ** (1 + 2 * relevant) < passing(setting))
                row = ranked(relevant, score, candidate, kept, worth[q] if gains else None)
                about = {"query": f"{q:032x}", "uri": f"{q}.jpg", "class": CLASSES[labels[q]]}
                rows.append({**about, "method": method, "setting": setting, **row})
    return pa.Table.from_pylist(rows, COUNTS)


def ranked(
    relevant: Flags, score: Floats, candidate: Flags, kept: Flags, worth: Floats | None = None
) -> dict[str, Any]:
    """What a counts table holds of one ranking: the kept candidates, best scores first."""
    places = np.flatnonzero(kept)
    order = places[np.argsort(-score[places], kind="stable")]
    return {
        "candidates": int(candidate.sum()),
        "retrieved": len(order),
        "relevant": int((relevant & candidate).sum()),
        "ranks": (np.flatnonzero(relevant[order]) + 1).tolist(),
        "gains": None if worth is None else worth[order][:DEPTH].tolist(),
        "ideal": None if worth is None else np.sort(worth[candidate])[::-1][:DEPTH].tolist(),
    }


def passing(setting: str) -> float:
    """How strong a made-up filter is: the share of irrelevant images that pass."""
    if edges := Setting.parse(setting).window:
        return 1 - edges[0]
    limit = Setting.parse(setting).epsilon
    return 1.0 if limit is None else min(limit / 1.2, 1.0)
