"""Fixed inputs of reports: made-up counts of segmentation, and an index before and after a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation.segmentation.counts import SEGREC, counts_table
from segrec_batch.evaluation.segmentation.figures import GROUPED, RANDOM
from segrec_batch.index import snapshot as store
from segrec_batch.index.column_values import image_id
from segrec_batch.index.files import DataFile
from segrec_batch.index.parts import write_part
from segrec_batch.index.schema import failures_schema
from segrec_batch.index.snapshot import Snapshot
from tests.support.feature_index import Bundle, image_files, names

CLASSES = ("car", "person", "tree")


def segmentation_counts(seed: int = 0, images: int = 18, offset: float = 0.0) -> pa.Table:
    """Return counts of three methods and two splits; persons are rare and one method has no cells.

    offset: added to the share of pixels that `segrec` labels correctly.
    """
    rng = np.random.default_rng(seed)
    k = len(CLASSES) + 1
    prior = np.array([0.6, 0.15, 0.01, 0.24])
    rows = []
    truth = rng.multinomial(400, prior, size=images)
    truth[: images // 3, 1] = 0
    light = rng.random(images).round(6)
    for split, gain in ((GROUPED, 0.0), (RANDOM, 0.1)):
        for method, skill in ((SEGREC, 0.7 + offset), ("svm", 0.6), ("unet", 0.5)):
            for i in range(images):
                matrix = np.stack([
                    rng.multinomial(n, (1 - skill - gain) * prior + (skill + gain) * np.eye(k)[c])
                    for c, n in enumerate(truth[i])
                ])  # fmt: skip
                cells = rng.multinomial(64, matrix.sum(axis=0) / matrix.sum())
                rows.append({
                    "split": split, "method": method, "image": f"{i:03}.jpg", "group": f"g{i % 4}",
                    "luminance": float(light[i]), "confusion": matrix.ravel().tolist(),
                    "cells": None if method == "unet" else cells.tolist(),
                })  # fmt: skip
    return counts_table(rows, CLASSES)


RNG = np.random.default_rng(5)
FEATURES = RNG.random((45, 16), dtype=np.float32)
COVERAGE = np.where(RNG.random(45) < 0.3, 0, RNG.random(45)).astype(np.float32)
NEW_FEATURES, NEW_COVERAGE = FEATURES[::-1].copy(), COVERAGE / 2
URIS = names(45)
GOLDEN = [0, 28, 32, 34]  # in a common file, changed, same content with a new feature, deleted


def failures(index: str, rows: Sequence[tuple[str, str, str]]) -> list[DataFile]:
    """Write a part with failures: URI, stage, reason."""
    values: list[dict[str, Any]] = [
        {
            "image_id": image_id(uri), "uri": uri, "source_size": 1, "source_etag": "1",
            "stage": stage, "reason": reason, "run_id": "r", "failed_at": 0,
        }
        for uri, stage, reason in rows
    ]  # fmt: skip
    return write_part(index, [("failures", None, pa.Table.from_pylist(values, failures_schema()))])


def changed_index(index: str) -> tuple[Snapshot, Snapshot]:
    """Write an index and a second snapshot with every kind of change.

    Of 40 images 0 to 19 lie in a file that both snapshots share; 28 to 31 change; 32 and 33 change
    their feature only; 34 and 35 are deleted; 40 to 44 are new, and 40 had failed before.
    """
    base = store.create(index, Bundle())  # type: ignore[arg-type]
    shared = image_files(index, URIS[:20], FEATURES[:20], COVERAGE[:20])
    old = image_files(index, URIS[20:40], FEATURES[20:40], COVERAGE[20:40])
    failed = failures(index, [
        (URIS[40], "decode", "cut"), ("/still.jpg", "decode", "cut"), ("/gone.jpg", "read", "no"),
    ])  # fmt: skip
    before = store.commit(base, [*shared, *old, *failed])
    rest = [*range(20, 34), *range(36, 45)]
    features, coverage = FEATURES.copy(), COVERAGE.copy()
    features[28:34], coverage[28:32] = NEW_FEATURES[28:34], NEW_COVERAGE[28:32]
    contents = [image_id(u) if not 28 <= i < 32 else f"new {i}" for i, u in enumerate(URIS)]
    new = image_files(
        index, [URIS[i] for i in rest], features[rest], coverage[rest], [contents[i] for i in rest]
    )
    fails = failures(index, [("/still.jpg", "decode", "cut"), ("/new.jpg", "segment", "huge")])
    return before, store.commit(before, [*new, *fails], [*old, *failed])
