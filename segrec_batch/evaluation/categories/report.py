"""The categories report: settings → metric values and page."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from segrec_batch.evaluation import plots
from segrec_batch.evaluation.categories.figures import RATIOS, RIGHT, evaluate
from segrec_batch.evaluation.categories.study import (
    SVM,
    Settings,
    category_names,
    classify,
    confusion,
    read_images,
)
from segrec_batch.evaluation.figures import Figures, Names, by
from segrec_batch.evaluation.items import Lead, Plot, Section, Table, Text
from segrec_batch.evaluation.report import Provenance, Report
from segrec_batch.evaluation.segmentation.figures import MEAN
from segrec_batch.search.database import open_index

TIES = "of equal scores the first category"
_COLUMNS: Names = {"F1" if name == "f1" else name: {"name": name} for name in RATIOS}


def categories_report(settings: Settings) -> Report:
    """Classify the images of an index as the settings request. Raises SegrecError."""
    database = open_index(settings.index, settings.version)
    with database.connection:
        images, truth = read_images(database, settings.truth)
    counts = classify(images, settings)
    values = [e for one in evaluate(counts) for e in one.estimates(seed=settings.seed)]
    figures = Figures(values, method=SVM)
    return Report(
        title="Categories of images",
        provenance=Provenance(
            kind="categories",
            data=truth.fingerprint,
            ties=TIES,
            seed=settings.seed,
            model_id=database.model_id,
            weights=database.spec.weights,
            index=database.index,
            version=database.version,
        ),
        estimates=values,
        counts=counts,
        sections=list(sections(figures, counts)),
        lead=lead(figures, counts, len(images.uris)),
        details={
            "categories": list(images.names),
            "methods": settings.methods,
            "confusion": {m: confusion(counts, m).tolist() for m in settings.methods},
        },
        notice=database.spec.notice,
    )


def lead(f: Figures, counts: pa.Table, images: int) -> Lead:
    """Return the first screen of the page."""
    methods = f.distinct("method")
    right = f.get(name=RIGHT)
    tested = right.units
    answer = (
        f"A linear SVM on the mean feature of an image (Abdullah 2026, eq. 3) was trained on "
        f"{images - tested:,} images of {len(category_names(counts))} categories and tested on "
        f"{tested:,} others, drawn at random from each category. Copies were left out, but similar "
        "images, such as frames of one video, may be on both sides."
    )
    numbers = [
        ("Images right", right, "Share of the test images with the right category"),
        ("Mean F1", f.get(name="f1", cls=MEAN), "Mean over the categories"),
        ("Baseline", f.get(name=RIGHT, method=methods[-1]), f"Images right by “{methods[-1]}”"),
    ]
    plot = f.dot_plot(
        "Images right by method", "share of the test images", by("method", methods),
        {"images right": {"name": RIGHT}},
    )  # fmt: skip
    return Lead("Does the feature of an image tell its category?", answer, numbers, plot)


def sections(f: Figures, counts: pa.Table) -> Iterator[Section]:
    """Yield the sections of the page."""
    names = category_names(counts)
    yield Section("Categories", list(_categories(f, counts, names)))
    yield Section("Methods", list(_methods(f)))


def _categories(f: Figures, counts: pa.Table, names: list[str]) -> Iterator[Text | Table | Plot]:
    yield Text(
        "The measures of table 1 of Abdullah 2026. Accuracy is that of one category against the "
        "rest, (tp + tn) / all, which is high for every rare category."
    )
    rows = by("cls", (*names, MEAN))
    yield f.table("The SVM, by category", "category", rows, _COLUMNS)
    matrix = confusion(counts, SVM)
    yield Table(
        "Confusion matrix of the SVM (figure 3): test images, rows by the labels",
        ("category", *names),
        [[name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True)],
    )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = ", ".join(f"{n} {s:.2f}" for n, s in zip(names, np.diag(shares), strict=True))
    yield Plot(
        "The same matrix, rows sum to 1",
        plots.heat_map(shares, names, names, "by the labels", "by the SVM"),
        f"Diagonal: {diagonal}",
    )


def _methods(f: Figures) -> Iterator[Text | Table]:
    yield Text(
        "The comparison of table 2: all methods learn from the same features of the same images. "
        "Their settings are fixed; none was chosen on the test images."
    )
    means: Names = {label: {**of, "cls": MEAN} for label, of in _COLUMNS.items()}
    columns: Names = {**means, "images right": {"name": RIGHT}}
    yield f.table(
        "Methods, mean of the categories", "method", by("method", f.distinct("method")), columns
    )
