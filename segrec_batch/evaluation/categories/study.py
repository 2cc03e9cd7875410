"""Classification of the images of an index by their features, by the methods of table 2."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.retrieval.collection import FEATURE, Collection, Ints, load
from segrec_batch.evaluation.retrieval.masks import Masks
from segrec_batch.evaluation.retrieval.truth import Folders, GroundTruth
from segrec_batch.search.database import Database
from segrec_batch.sources.strict_json import parse_json
from segrec_batch.training.holdout import SHARE, hold_out_of_each
from segrec_batch.training.rivals.classical import Scorer, fit_forest, fit_linear, fit_neighbours
from segrec_batch.training.validation import Components

log = logging.getLogger(__name__)

SVM = "svm"
"""Name of the proposed method: a linear SVM on the feature of the image."""

COUNTS = pa.schema([
    pa.field("method", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # URI
    pa.field("category", pa.int64(), nullable=False),  # by the labels
    pa.field("predicted", pa.int64(), nullable=False),
])  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Data and parameters of a study of categories.

    Attributes:
        index: URI of an index or a query cache.
        truth: source of the categories.
        version: of the index, None for the newest.
        test_share: share of the test images, in (0, 1).
        c: of the SVM and the logistic regression, see `fit_svm`.
        trees: of the random forest.
        neighbours: k of k-NN.
        seed: of the split, the forest and the bootstrap.
    """

    index: str
    truth: Folders | Masks
    version: int | None = None
    test_share: float = SHARE
    c: float = 1.0
    trees: int = 100
    neighbours: int = 15
    seed: int = 0

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Settings of each method, by name."""
        forest = {"trees": self.trees, "leaf": 1, "seed": self.seed}
        return {
            SVM: {"c": self.c},
            "logistic regression": {"c": self.c},
            "random forest": forest,
            "k-NN": {"k": self.neighbours},
        }


@dataclass(frozen=True)
class LabelledFeatures:
    """The n images that have a category, each content once, in the order of their image_id.

    Attributes:
        uris: of the images.
        features: (n, C) raw.
        names: names of the categories, sorted.
        categories: (n,) numbers of the categories.
    """

    uris: tuple[str, ...]
    features: NDArray[np.float32]
    names: tuple[str, ...]
    categories: Ints

    @classmethod
    def of(cls, images: Collection, truth: GroundTruth) -> "LabelledFeatures":
        """Return the labelled images of an index; copies of an image are left out.

        Raises:
            InputError: there are fewer than two categories, or one has a single image.
        """
        labels = truth.labels
        contents = images.contents.to_pylist()
        first = {content: i for i, content in reversed(list(enumerate(contents)))}
        rows = np.array([i for i in sorted(first.values()) if labels[i] >= 0], np.int64)
        names, categories = np.unique(
            [truth.classes[label] for label in labels[rows]], return_inverse=True
        )
        sizes = np.bincount(categories, minlength=len(names))
        if len(names) < 2:
            raise InputError(
                f"images of two categories are needed, but the labels have {len(names)}: "
                "index images of more folders, or widen --window"
            )
        if sizes.min() < 2:
            raise InputError(
                f"category {names[sizes.argmin()]} has one image, but training and test images "
                "need one each: index more images of it, or none"
            )
        log.info(f"{len(rows):,} of {len(images):,} images have a category and are no copies")
        uris = images.uris.to_pylist()
        return cls(
            tuple(uris[i] for i in rows),
            images.features[rows],
            tuple(map(str, names)),
            np.asarray(categories, np.int64),
        )


def read_images(database: Database, truth: Folders | Masks) -> tuple[LabelledFeatures, GroundTruth]:
    """Read the labelled images of an index. Raises InputError."""
    images = load(database, {FEATURE})
    read = truth.read(images)
    return LabelledFeatures.of(images, read), read


def classify(images: LabelledFeatures, settings: Settings) -> pa.Table:
    """Return the COUNTS of the test images, which every method classifies after training.

    The test images are drawn at random, the same share of each category.

    Raises:
        InputError: there are fewer test or training images than categories.
    """
    try:
        held_out = hold_out_of_each(images.categories, settings.seed, settings.test_share)
    except ValueError as error:
        raise InputError(
            f"{len(images.uris)} images of {len(images.names)} categories cannot be split with a "
            f"test share of {settings.test_share:g}: {error}"
        ) from error
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    targets, components = images.categories[train], _one_each(len(images.names))
    fits: dict[str, Callable[..., Scorer]] = {
        SVM: partial(fit_linear, loss="squared_hinge"),
        "logistic regression": partial(fit_linear, loss="log_loss"),
        "random forest": fit_forest,
        "k-NN": fit_neighbours,
    }
    tables = []
    for method, chosen in settings.methods.items():
        score = fits[method](images.features[train], targets, components, **chosen)
        tables.append(counts_table(method, images, test, score(images.features[test]).argmax(1)))
    return pa.concat_tables(tables)


def _one_each(count: int) -> Components:
    """Return components of which each is a category of its own."""
    return Components({k: k for k in range(count)}, tuple(range(count)))


def counts_table(
    method: str, images: LabelledFeatures, rows: Ints, predicted: NDArray[np.integer]
) -> pa.Table:
    """Return COUNTS of one method, with the names of the categories in the schema."""
    columns = [
        [method] * len(rows), [images.uris[i] for i in rows], images.categories[rows], predicted
    ]  # fmt: skip
    schema = COUNTS.with_metadata({"categories": json.dumps(images.names)})
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def category_names(counts: pa.Table) -> list[str]:
    """Return the names of the categories of COUNTS."""
    return [str(name) for name in parse_json((counts.schema.metadata or {})[b"categories"])]


def confusion(counts: pa.Table, method: str) -> NDArray[np.int64]:
    """Return test images (K, K) by category (row) and prediction (column) of a method."""
    k = len(category_names(counts))
    matrix = np.zeros((k, k), np.int64)
    chosen = counts.filter(pc.field("method") == method)
    np.add.at(matrix, (chosen["category"].to_numpy(), chosen["predicted"].to_numpy()), 1)
    return matrix
