"""Batch indexing for image recommendation by semantic segmentation.

The functions mirror the commands of `segrec`: parameters have the names of the options. Each name
is imported on first use, so that `import segrec_batch` loads no library.

>>> import segrec_batch
>>> connection = segrec_batch.connect("indexes/streets")  # doctest: +SKIP
>>> connection.sql("SELECT uri, coverage_car FROM images ORDER BY 2 DESC LIMIT 5")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segrec_batch.api.categories import evaluate_categories
    from segrec_batch.api.evaluate import (
        check_drift,
        compare_reports,
        evaluate_drift,
        evaluate_retrieval,
        evaluate_segmentation,
    )
    from segrec_batch.api.index import index_images
    from segrec_batch.api.train import train
    from segrec_batch.common.errors import (
        AccountingError,
        ClusterError,
        DecoderError,
        DeviceError,
        DriftError,
        EngineError,
        ImageError,
        IndexStateError,
        InputError,
        ModelError,
        SegrecError,
        SourceError,
        StorageError,
    )
    from segrec_batch.model.bundle import load_model
    from segrec_batch.search.database import connect, open_index
    from segrec_batch.search.recommend import Recommender

__version__ = "0.1.0"

_MODULES = {
    "api.categories": ("evaluate_categories",),
    "api.evaluate": (
        "check_drift", "compare_reports", "evaluate_drift", "evaluate_retrieval",
        "evaluate_segmentation",
    ),
    "api.index": ("index_images",),
    "api.train": ("train",),
    "common.errors": (
        "AccountingError", "ClusterError", "DecoderError", "DeviceError", "DriftError",
        "EngineError", "ImageError", "IndexStateError", "InputError", "ModelError", "SegrecError",
        "SourceError", "StorageError",
    ),
    "model.bundle": ("load_model",),
    "search.database": ("connect", "open_index"),
    "search.recommend": ("Recommender",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AccountingError",
    "ClusterError",
    "DecoderError",
    "DeviceError",
    "DriftError",
    "EngineError",
    "ImageError",
    "IndexStateError",
    "InputError",
    "ModelError",
    "Recommender",
    "SegrecError",
    "SourceError",
    "StorageError",
    "__version__",
    "check_drift",
    "compare_reports",
    "connect",
    "evaluate_categories",
    "evaluate_drift",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "index_images",
    "load_model",
    "open_index",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
