"""Query images that are not in the index, segmented by the model of the index."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import ImageError, InputError
from segrec_batch.images import sandbox
from segrec_batch.images.decode import mask_shape
from segrec_batch.index import column_values
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.database import Database
from segrec_batch.search.filters import Filters, Method
from segrec_batch.sheets.card import Card


def segment_query_image(
    database: Database, name: str, content: bytes, filters: Filters, engine: EngineChoice
) -> tuple[Card, dict[str, Any]]:
    """Return the image as a card, and its query, coverages, masks and category for SQL.

    Raises InputError for bytes that are no image, or an image without a region of the class.
    """
    spec = database.spec
    filters.check(spec)
    try:
        decoded = sandbox.shared().decode(content, spec.shapes, sandbox.INTERACTIVE_SECONDS)
    except ImageError as error:
        raise InputError(f"{name}: {error.reason}") from error
    segmenter = load_segmenter(load_model(database.model_uri), engine, few=True)
    batch = segmenter(decoded.pixels[None], [mask_shape(decoded.height, decoded.width)])
    image = SegmentedImage.of(batch, 0, decoded.pixels)
    shares = dict(zip(spec.all_classes, image.coverages.tolist(), strict=True))
    png = column_values.encode_mask(image.mask, list(spec.colours.values()))
    vector, category = _compared_vector(database, name, image, filters, engine)
    arguments = {
        "query": vector.tolist(),
        "coverages": list(shares.values()),
        "masks": _bitmaps(image, filters, spec),
        "category": category,
    }
    return Card(name, content, png, shares, None), arguments


def _compared_vector(
    database: Database,
    name: str,
    image: SegmentedImage,
    filters: Filters,
    engine: EngineChoice,
) -> tuple[NDArray[np.float32], str | None]:
    """Return the vector that the method compares, and the category of the image."""
    descriptor = Method.of(filters.method).descriptor
    if descriptor is not None:
        return _describe(database, name, image, descriptor, engine)
    if filters.cls is None or not filters.is_regional:
        return image.feature, None
    k = database.spec.all_classes.index(filters.cls)
    if image.counts[k] == 0:
        raise InputError(f"{name}: the model sees no {filters.cls} in it")
    return image.region_features[k], None


def _describe(
    database: Database, name: str, image: SegmentedImage, descriptor: str, engine: EngineChoice
) -> tuple[NDArray[np.float32], str | None]:
    from segrec_batch.descriptors.runtime import load

    (loaded,) = load(database.model_uri, (descriptor,), engine.device, engine.precision)
    (result,) = loaded([image])
    if result.vector is None:
        raise InputError(f"{name}: {descriptor}: {result.reason}")
    return result.vector, result.category


def _bitmaps(image: SegmentedImage, filters: Filters, spec: ModelSpec) -> dict[str, list[int]]:
    """Return the mask bits of the classes that the re-ranking compares."""
    assert image.common is not None  # noqa: S101 - images from the model have it
    classes = filters.mask_classes(spec.classes)
    return {
        label: column_values.pack_bitmaps((image.common == k).ravel()).tolist()
        for k, label in enumerate(spec.all_classes)
        if image.counts[k] and label in classes
    }
