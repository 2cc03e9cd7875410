"""Metric values of the categories report, computed from counts.

All values are pure functions of counts.parquet: reading the file back gives the same values.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation.categories.study import category_names
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
    units, true = (), np.zeros(0, np.int64)
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


def _measures(
    method: str,
    true: "np.ndarray[Any, Any]",
    predicted: "np.ndarray[Any, Any]",
    names: Sequence[str],
) -> dict[Key, Measure]:
    eye = np.eye(len(names))
    images = Pixels(
        eye[true] * eye[predicted], eye[true], eye[predicted], np.ones((len(true), len(names)))
    )
    results = {Key(RIGHT, method): Measure.of((true == predicted).astype(np.float64))}
    for ratio in RATIOS:
        each = [images.ratio(ratio, k) for k in range(len(names))]
        base = Key(ratio, method)
        results |= {replace(base, cls=n): m for n, m in zip(names, each, strict=True)}
        results[replace(base, cls=MEAN)] = Measure.mean(each)
    return results
