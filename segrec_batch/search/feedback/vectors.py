"""The vectors that a method compares, made ready so that sums of them mean something."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.search.database import Database
from segrec_batch.search.filters import LOCALISED, Method
from segrec_batch.search.similarity import METRICS
from segrec_batch.search.sql.connection import query

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


def linear(name: str) -> str:
    """The method that ranks as w·x does, by the vectors of another: a distance becomes `dot`.

    Raises InputError for `localised`, which is more than its distance.

    >>> linear("sift"), linear("pca-cosine"), linear("pearson")
    ('sift-dot', 'pca-cosine', 'pearson')
    """
    if name == LOCALISED:
        raise InputError(f"{name} has no SVM: take rocchio, or start with {name}-dot")
    method = Method.of(name)
    metric = "dot" if method.metric == "euclidean" else method.metric
    return f"{method.descriptor}-{metric}" if method.descriptor else metric


def prepared(vectors: Vectors, metric: str) -> Floats:
    """Rows (m, C) as the metric sees them: for Pearson (x − x̄) / ‖x − x̄‖, for cosine x / ‖x‖, else
    as they are; NaN where that is not defined.

    Pearson with a fixed vector is then a dot product, up to a factor, and so it is with a sum of
    such vectors: a mean of scores is the score of a mean, and no image weighs more for its length.
    """
    return METRICS[metric].prepare(vectors)


def vectors(database: Database, method: Method, cls: str | None, ids: Sequence[str]) -> Vectors:
    """What a method compares of some images: (m, C), rows of NaN where there is nothing.

    cls: the class whose regions are compared, None for whole images.
    """
    where = "image_id IN (SELECT unnest($ids))"
    if method.descriptor:
        source, key = "SELECT image_id, vector FROM descriptors", "descriptor"
    elif cls is not None:
        source, key = "SELECT image_id, feature AS vector FROM regions", "class"
    else:
        source, key = "SELECT image_id, feature AS vector FROM images", ""
    of = f"{key} = $of AND " if key else ""
    named = {"of": method.descriptor or cls} if key else {}
    sql = f"{source} WHERE {of}vector IS NOT NULL AND {where}"
    rows = query(database.connection, sql, {"ids": list(ids), **named}).to_pylist()
    known = {row["image_id"]: row["vector"] for row in rows}
    found = np.full((len(ids), len(next(iter(known.values()), ()))), np.nan, np.float32)
    for i, name in enumerate(ids):
        found[i] = known.get(name, np.nan)
    return found
