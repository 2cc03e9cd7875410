"""`pearson_udf`: the formula as it is printed, in NumPy, to check the SQL macro against."""

import duckdb
import numpy as np
import pyarrow as pa
from duckdb import sqltypes
from duckdb.func import FunctionNullHandling, PythonUDFType


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Add `pearson_udf(a, b)` to a connection; many times slower than `pearson`."""
    vector = duckdb.list_type(sqltypes.DOUBLE)
    connection.create_function(
        "pearson_udf",
        _pearson,
        [vector, vector],
        sqltypes.DOUBLE,
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )


def _pearson(a: pa.Array, b: pa.Array) -> pa.Array:
    return pa.array([_of_one(x.values, y.values) for x, y in zip(a, b, strict=True)], pa.float64())


def _of_one(a: pa.Array | None, b: pa.Array | None) -> float | None:
    """Abdullah 2026, eq. 6; None where it is undefined: a constant vector, NaN, NULL."""
    if a is None or b is None:
        return None
    x, y = a.to_numpy(zero_copy_only=False), b.to_numpy(zero_copy_only=False)
    if len(x) != len(y):
        raise ValueError(f"vectors of {len(x)} and {len(y)} dimensions")
    if not len(x) or not np.ptp(x) > 0 or not np.ptp(y) > 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    return float((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum()))
