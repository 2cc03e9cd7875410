"""Tables of counts of synthetic rankings by methods of known strength."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval.counts import COUNTS, DEPTH
from segrec_batch.evaluation.retrieval.settings import KEPT, PLAIN, Setting

STRENGTHS = {
    "region Pearson": 1.6,
    "image Pearson": 1.3,
    "semantic histogram": 1.0,
    "sign bits, then Pearson": 1.3,
    "Pearson, then mask IoU": 1.65,
}
CLASSES = ["building", "car", "person", "road", "sky", "tree"]
_WINDOWS = [Setting(window=(low, 0.96)) for low in (0.05, 0.15, 0.29, 0.4)]
_LIMITS = [Setting(epsilon=limit) for limit in (0.3, 0.5, 0.7, 0.9, 1.1, 1.5)]
SETTINGS = {s.name: s for s in (PLAIN, KEPT, *_WINDOWS, *_LIMITS)}
FEW = ("", KEPT.name, "σ 0.29–0.96", "ε 0.5", "ε 0.9")

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def counts_table(
    queries: int = 60,
    methods: Sequence[str] = tuple(STRENGTHS)[:3],
    settings: Sequence[str] = FEW,
    gains: bool = True,
    seed: int = 0,
) -> pa.Table:
    """Return the counts of queries of six classes, each among all other images.

    A method adds its strength to the scores of the query's class; a filter drops images, relevant
    ones less often.
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
            for setting in (SETTINGS[name] for name in settings):
                candidate = (np.arange(queries) != q) | setting.keeps_query
                kept = candidate & (luck[q] ** (1 + 2 * relevant) < passing(setting))
                row = ranked(relevant, score, candidate, kept, worth[q] if gains else None)
                about = {"query": f"{q:032x}", "uri": f"{q}.jpg", "class": CLASSES[labels[q]]}
                about |= {"method": method, "setting": setting.name}
                rows.append({**about, "condition": asdict(setting), **row})
    return pa.Table.from_pylist(rows, COUNTS)


def ranked(
    relevant: Flags, score: Floats, candidate: Flags, kept: Flags, worth: Floats | None = None
) -> dict[str, Any]:
    """Return the counts of one ranking of the kept candidates, best scores first."""
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


def passing(setting: Setting) -> float:
    """Return the share of irrelevant images that pass a made-up filter."""
    if setting.window:
        return 1 - setting.window[0]
    return 1.0 if setting.epsilon is None else min(setting.epsilon / 1.2, 1.0)
