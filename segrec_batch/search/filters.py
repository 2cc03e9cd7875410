"""Filters and method of a query, as arguments of the SQL macro `recommend`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from segrec_batch.common.errors import InputError
from segrec_batch.model.names import BACKGROUND
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.similarity import METRICS
from segrec_batch.sheets.card import FULL_WINDOW

VECTOR_METRICS = tuple(name for name in METRICS if name != "pearson")
"""Metrics of the vectors of descriptors."""

LOCALISED = "localised"
"""Method of Waqas 2023: rank within a category, then re-rank by the mask IoU of the foreground."""


@dataclass(frozen=True)
class Method:
    """A metric of features (`descriptor` None) or of the vectors of a descriptor."""

    descriptor: str | None
    metric: str

    @classmethod
    def of(cls, name: str) -> "Method":
        """Parse METRIC, NAME or NAME-METRIC, as SQL does.

        >>> Method.of("pca-cosine")
        Method(descriptor='pca', metric='cosine')
        >>> Method.of("root-pca").descriptor
        'root-pca'
        >>> str(Method.of("texture"))
        'Euclidean distance of texture'
        """
        if name in METRICS:
            return cls(None, name)
        descriptor, _, metric = name.rpartition("-")
        return cls(descriptor, metric) if metric in METRICS else cls(name, "euclidean")

    def check(self, descriptors: Sequence[str]) -> None:
        """Raise InputError for a descriptor that an index lacks, or an unknown metric."""
        if self.descriptor is None:
            return
        if self.descriptor not in descriptors:
            available = ", ".join(descriptors) or "none"
            raise InputError(
                f"no method {self.descriptor!r}: it is none of {', '.join(METRICS)}, nor a "
                f"descriptor of this index, which has {available}; add one with segrec describe"
            )
        if self.metric not in VECTOR_METRICS:
            metrics = ", ".join(VECTOR_METRICS)
            raise InputError(f"no metric {self.metric!r} of vectors: say {metrics}")

    @property
    def label(self) -> str:
        """One word for the score."""
        return METRICS[self.metric].label

    def to_display_score(self, score: float | None) -> float | None:
        """Return a score as pages show it: a distance without its minus sign."""
        return -score if score is not None and METRICS[self.metric].is_distance else score

    def __str__(self) -> str:
        return METRICS[self.metric].text + (f" of {self.descriptor}" if self.descriptor else "")


@dataclass(frozen=True)
class Filters:
    """Filters of a query: regions of a class with their coverage σ in a window, or whole images.

    The other fields are as the arguments of the SQL macro `recommend`.
    """

    cls: str | None = None
    coverage: tuple[float, float] = FULL_WINDOW
    k: int = 10
    scope: str = "region"
    epsilon: float | None = None
    penalise: bool = False
    rerank: str | None = None
    depth: int = 100
    distinct_content: bool = True
    method: str = "pearson"
    expand: int | None = None

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError for an unknown class or method, an empty window or a bad number."""
        classes = spec.all_classes
        if self.cls is not None and self.cls not in classes:
            raise InputError(f"no class {self.cls!r} in this index; it has {', '.join(classes)}")
        low, high = self.coverage
        if not 0 <= low <= high <= 1:
            raise InputError(f"coverage {low:g} {high:g}: give 0 <= LOW <= HIGH <= 1")
        if self.cls is None and self.coverage != FULL_WINDOW:
            raise InputError("a coverage window needs a class")
        if self.epsilon is not None and not 0 <= self.epsilon <= 2:
            raise InputError(f"epsilon is {self.epsilon:g}; a semantic distance is 0 to 2")
        for name, number in (("k", self.k), ("depth", self.depth)):
            if number < 1:
                raise InputError(f"{name} is {number}; ask for at least 1")
        method = Method.of(self.method)
        method.check([d.name for d in spec.descriptors])
        if self.expand is None:
            return
        if self.expand < 1:
            raise InputError(f"expand is {self.expand}; add at least 1 result to the query")
        if not METRICS[method.metric].is_angle:
            raise InputError(
                f"expand weighs results by similarity, and {method} is none: take pearson, cosine "
                "or NAME-cosine"
            )

    @property
    def is_regional(self) -> bool:
        """The query compares regions, not whole images; descriptors describe whole images only."""
        is_feature = Method.of(self.method).descriptor is None
        return self.cls is not None and self.scope == "region" and is_feature

    def __str__(self) -> str:
        low, high = self.coverage
        subject = f"regions of class {self.cls}" if self.is_regional else "whole images"
        window = f"{'' if self.is_regional else f' with {self.cls}'}, σ {low:g} to {high:g}"
        window = window if self.cls else ""
        order = str(Method.of(self.method))
        if self.expand:
            order += f" with the first {self.expand} added to the query"
        if self.reranking:
            order += f", the first {self.depth} by {self.reranking.replace('_iou', ' IoU')}"
        beyond = "last" if self.penalise else "left out"
        distance = "" if self.epsilon is None else f", beyond distance {self.epsilon:g} {beyond}"
        return f"{subject}{window}, ranked by {order}{distance}"

    @property
    def reranking(self) -> str | None:
        """Measure that re-ranks the first images: `rerank`, or the default of the method."""
        return self.rerank or ("foreground_iou" if self.method == LOCALISED else None)

    def mask_classes(self, classes: Sequence[str]) -> Sequence[str]:
        """Return the classes whose masks `reranking` compares."""
        if self.reranking == "foreground_iou":
            return (BACKGROUND,)
        return (self.cls,) if self.cls else classes

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the SQL macro, by name; `expand` only if it is set."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.expand is None:  # another form of the macro, which plans in half the time
            del values["expand"]
        low, high = values.pop("coverage")
        return {"class": values.pop("cls"), "min_coverage": low, "max_coverage": high, **values}
