"""Metric values of the categories report, computed from counts.

All values are pure functions of counts.parquet: reading the file back gives the same values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation.categories.study import category_names
from segrec_batch.evaluation.retrieval.collection import Ints
from segrec_batch.evaluation.segmentation.figures import MEAN, Pixels
from segrec_batch.evaluation.statistics import Evaluation, Key, Measure

RATIOS = ("precision", "accuracy", "recall", "f1")
"""The measures of tables 1 and 2 of Abdullah 2026."""
RIGHT = "images_right"
"""Share of the images whose predicted category is theirs."""


def evaluate(counts: pa.Table) -> list[Evaluation]:
    """Return the measures of all methods, and of predicting the largest category everywhere."""
    names = category_names(counts)
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in counts.to_pylist():
        methods.setdefault(row["method"], []).append(row)
    units: tuple[str, ...] = ()
    true = np.zeros(0, np.int64)
    measures: dict[Key, Measure] = {}
    for method, rows in methods.items():
        rows.sort(key=lambda row: row["image"])
        units = tuple(row["image"] for row in rows)
        true = np.array([row["category"] for row in rows])
        predicted = np.array([row["predicted"] for row in rows])
        measures |= _measures(method, true, predicted, names)
    largest = int(np.bincount(true).argmax())
    name = majority_name(names[largest])
    measures |= _measures(name, true, np.full_like(true, largest), names)
    return [Evaluation(units, measures)]


def majority_name(category: str) -> str:
    """Return the name of the method that predicts one category everywhere."""
    return f"all {category}"


def _measures(method: str, true: Ints, predicted: Ints, names: Sequence[str]) -> dict[Key, Measure]:
    one_hot = np.eye(len(names))
    labelled, chosen = one_hot[true], one_hot[predicted]
    ratios = Pixels(labelled * chosen, labelled, chosen, np.ones_like(labelled)).ratios()
    results = {Key(RIGHT, method): Measure.of((true == predicted).astype(np.float64))}
    for ratio in RATIOS:
        parts = (*ratios[ratio], labelled)
        for k, name in enumerate(names):
            results[Key(ratio, method, cls=name)] = Measure(*(part[:, [k]] for part in parts))
        results[Key(ratio, method, cls=MEAN)] = Measure(*parts)
    return results
