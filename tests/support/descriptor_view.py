"""Descriptor vectors of a test, as a view in one SQL connection to an index."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.index.schema import descriptors_schema
from segrec_batch.model.spec import DescriptorSpec
from segrec_batch.search.database import Database


def with_descriptors(
    database: Database,
    ids: Sequence[str],
    vectors: Mapping[str, NDArray[np.float32]],
    categories: Sequence[str | None],
) -> Database:
    """Return the database with a view `descriptors`: a vector of each descriptor for each image.

    A vector with NaN is NULL. Categories are for `localised` alone.
    """
    rows = [
        {
            "image_id": name,
            "uri": name,
            "descriptor": descriptor,
            "category": category if descriptor == "localised" else None,
            "vector": None if np.isnan(vector).any() else vector.tolist(),
            "reason": "too small" if np.isnan(vector).any() else None,
            "content_hash": name,
            "run_id": "r",
        }
        for descriptor, values in vectors.items()
        for name, vector, category in zip(ids, values, categories, strict=True)
    ]
    table = pa.Table.from_pylist(rows, descriptors_schema())
    database.connection.register("given", table)
    database.connection.execute("CREATE OR REPLACE TABLE described AS FROM given")
    database.connection.execute("CREATE OR REPLACE VIEW descriptors AS FROM described")
    specs = tuple(DescriptorSpec(name, {}, "0" * 64) for name in vectors)
    return replace(database, spec=replace(database.spec, descriptors=specs))
