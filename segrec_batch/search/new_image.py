"""An image that is not in the index as a query: what the index's own model sees in it."""

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


def look(
    database: Database, name: str, content: bytes, filters: Filters, engine: EngineChoice
) -> tuple[Card, dict[str, Any]]:
    """The image as a card, and the arguments of the SQL macro: query, coverages, masks, category.

    Raises InputError for what is no image, or has no region of the class.
    """
    spec = database.spec
    filters.check(spec)
    try:
        image = sandbox.shared().decode(content, spec.shapes, sandbox.INTERACTIVE_SECONDS)
    except ImageError as error:
        raise InputError(f"{name}: {error.reason}") from error
    segmenter = load_segmenter(load_model(database.model_uri), engine, few=True)
    found = segmenter(image.pixels[None], [mask_shape(image.height, image.width)])
    counts = found.counts[0]
    shares = dict(zip(spec.all_classes, (counts / counts.sum()).tolist(), strict=True))
    mask = found.masks[0]
    png = column_values.mask_png(mask, list(spec.colours.values()))
    vector, category = _compared(database, name, image, found, mask, filters, engine)
    seen = {
        "query": vector.tolist(),
        "coverages": list(shares.values()),
        "masks": _bitmaps(found, filters, spec),
        "category": category,
    }
    return Card(name, content, png, shares, None), seen


def _compared(
    database: Database,
    name: str,
    image: DecodedImage,
    found: Segmentation,
    mask: column_values.Labels,
    filters: Filters,
    engine: EngineChoice,
) -> tuple[NDArray[np.float32], str | None]:
    """What of the image is compared, and its category."""
    descriptor = Method.of(filters.method).descriptor
    if descriptor is not None:
        return _described(database, name, image, found, mask, descriptor, engine)
    if filters.cls is None or not filters.is_regional:
        return found.feature[0], None
    k = database.spec.all_classes.index(filters.cls)
    if found.counts[0, k] == 0:
        raise InputError(f"{name}: the model sees no {filters.cls} in it")
    return found.region_features[0, k], None


def _described(
    database: Database,
    name: str,
    image: DecodedImage,
    found: Segmentation,
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
        "counts": found.counts[0],
        "feature": found.feature[0],
        "region_features": found.region_features[0].ravel(),
        "described": [],
    }
    (loaded,) = load(database.model_uri, (descriptor,), engine.device, engine.precision)
    loaded([row])
    (entry,) = row["described"]
    if entry["vector"] is None:
        raise InputError(f"{name}: {descriptor}: {entry['reason']}")
    return np.frombuffer(entry["vector"], np.float32), entry["category"]


def _bitmaps(found: Segmentation, filters: Filters, spec: ModelSpec) -> dict[str, list[int]]:
    """Bitmaps of the classes by which the first images are ranked again."""
    wanted = filters.mask_classes(spec.classes)
    return {
        label: column_values.bitmap_words((found.common[0] == i).ravel()).tolist()
        for i, label in enumerate(spec.all_classes)
        if found.counts[0, i] and label in wanted
    }
