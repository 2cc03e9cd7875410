"""segrec_batch: batch indexing for image recommendation by semantic segmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segrec_batch.search.database import connect

__all__ = ["__version__", "connect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`connect` is imported on first use: importing the package stays light."""
    if name == "connect":
        from segrec_batch.search.database import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
