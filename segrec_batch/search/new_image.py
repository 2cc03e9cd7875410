"""Query images that are not in the index, segmented by the model of the index."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import ImageError, InputError
from segrec_batch.images import sandbox
from segrec_batch.images.decode import DecodedImage, mask_shape
from segrec_batch.index import column_values
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.database import Database
from segrec_batch.search.filters import Filters, Method
from segrec_batch.sheets.card import Card


def segment_query_image(
    database: Database, name: str, content: bytes, filters: Filters, engine: EngineChoice
) -> tuple[Card, dict[str, Any]]:
    """Return the image as a card, and the arguments query, coverages, masks and category of SQL.

    Raises InputError for bytes that are no image, or an image without a region of the class.
    """
    spec = database.spec
    filters.check(spec)
    try:
        image = sandbox.shared().decode(content, spec.shapes, sandbox.INTERACTIVE_SECONDS)
    except ImageError as error:
        raise InputError(f"{name}: {error.reason}") from error
    segmenter = load_segmenter(load_model(database.model_uri), engine, few=True)
    segmentation = segmenter(image.pixels[None], [mask_shape(image.height, image.width)])
    counts = segmentation.counts[0]
    shares = dict(zip(spec.all_classes, (counts / counts.sum()).tolist(), strict=True))
    mask = segmentation.masks[0]
    png = column_values.mask_png(mask, list(spec.colours.values()))
    vector, category = _compared_vector(database, name, image, segmentation, mask, filters, engine)
    arguments = {
        "query": vector.tolist(),
        "coverages": list(shares.values()),
        "masks": _bitmaps(segmentation, filters, spec),
        "category": category,
    }
    return Card(name, content, png, shares, None), arguments


def _compared_vector(
    database: Database,
    name: str,
    image: DecodedImage,
    segmentation: Segmentation,
    mask: column_values.Labels,
    filters: Filters,
    engine: EngineChoice,
) -> tuple[NDArray[np.float32], str | None]:
    """Return the vector that the method compares, and the category of the image."""
    descriptor = Method.of(filters.method).descriptor
    if descriptor is not None:
        return _describe(database, name, image, segmentation, mask, descriptor, engine)
    if filters.cls is None or not filters.is_regional:
        return segmentation.feature[0], None
    k = database.spec.all_classes.index(filters.cls)
    if segmentation.counts[0, k] == 0:
        raise InputError(f"{name}: the model sees no {filters.cls} in it")
    return segmentation.region_features[0, k], None


def _describe(
    database: Database,
    name: str,
    image: DecodedImage,
    segmentation: Segmentation,
    mask: column_values.Labels,
    descriptor: str,
    engine: EngineChoice,
) -> tuple[NDArray[np.float32], str | None]:
    from segrec_batch.descriptors.runtime import load

    row: dict[str, Any] = {
        "shape": image.pixels.shape[:2],
        "pixels": image.pixels.tobytes(),
        "mask_shape": mask.shape,
        "mask": mask.tobytes(),
        "counts": segmentation.counts[0],
        "feature": segmentation.feature[0],
        "region_features": segmentation.region_features[0].ravel(),
        "described": [],
    }
    (loaded,) = load(database.model_uri, (descriptor,), engine.device, engine.precision)
    loaded([row])
    (entry,) = row["described"]
    if entry["vector"] is None:
        raise InputError(f"{name}: {descriptor}: {entry['reason']}")
    return np.frombuffer(entry["vector"], np.float32), entry["category"]


def _bitmaps(segmentation: Segmentation, filters: Filters, spec: ModelSpec) -> dict[str, list[int]]:
    """Return the bitmaps of the classes by which the first images are ranked again."""
    classes = filters.mask_classes(spec.classes)
    return {
        label: column_values.bitmap_words((segmentation.common[0] == i).ravel()).tolist()
        for i, label in enumerate(spec.all_classes)
        if segmentation.counts[0, i] and label in classes
    }
