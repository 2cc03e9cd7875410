"""What images are ranked by: the names of `recommend(…, method := …)`."""

from collections.abc import Sequence
from dataclasses import dataclass

from segrec_batch.common.errors import InputError

METRICS = ("pearson", "cosine", "euclidean", "dot")
"""Of features."""

OF_VECTORS = METRICS[1:]
"""Of the vectors of descriptors."""

LOCALISED = "localised"
"""All of Waqas 2023: within a category, the first ranked again by their foregrounds."""

_TEXTS = {
    "pearson": ("Pearson", "Pearson correlation"),
    "cosine": ("Cosine", "cosine"),
    "euclidean": ("Distance", "Euclidean distance"),
    "dot": ("Product", "inner product"),
}


@dataclass(frozen=True)
class Method:
    """A metric of features (`descriptor` None) or of the vectors of a descriptor."""

    descriptor: str | None
    metric: str

    @classmethod
    def of(cls, name: str) -> "Method":
        """METRIC, NAME or NAME-METRIC; as SQL reads it.

        >>> Method.of("pca-cosine")
        Method(descriptor='pca', metric='cosine')
        >>> str(Method.of("texture"))
        'Euclidean distance of texture'
        """
        if name in METRICS:
            return cls(None, name)
        descriptor, _, metric = name.partition("-")
        return cls(descriptor, metric or "euclidean")

    def check(self, descriptors: Sequence[str]) -> None:
        """Raises InputError for a descriptor that is not among those of an index, or a metric that
        there is not.
        """
        if self.descriptor is None:
            return
        if self.descriptor not in descriptors:
            has = ", ".join(descriptors) or "none"
            raise InputError(
                f"no method {self.descriptor!r}: it is none of {', '.join(METRICS)}, nor a "
                f"descriptor of this index, which has {has}; segrec describe switches them on"
            )
        if self.metric not in OF_VECTORS:
            raise InputError(f"no metric {self.metric!r} of vectors: say {', '.join(OF_VECTORS)}")

    @property
    def label(self) -> str:
        """One word for the measure."""
        return _TEXTS[self.metric][0]

    def told(self, score: float | None) -> float | None:
        """A score as people read it: a distance without its minus."""
        return -score if score is not None and self.metric == "euclidean" else score

    def __str__(self) -> str:
        return _TEXTS[self.metric][1] + (f" of {self.descriptor}" if self.descriptor else "")
