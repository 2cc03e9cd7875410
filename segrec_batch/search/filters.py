"""What to ask an index for, as the arguments of the SQL macro `recommend`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from segrec_batch.common.errors import InputError
from segrec_batch.model.spec import BACKGROUND, ModelSpec
from segrec_batch.search.methods import LOCALISED, Method
from segrec_batch.sheets.card import EVERYTHING


@dataclass(frozen=True)
class Criteria:
    """What to rank: regions of a class with their coverage σ in a window, or whole images.

    The other fields are as the arguments of the SQL macro `recommend`.
    """

    cls: str | None = None
    coverage: tuple[float, float] = EVERYTHING
    k: int = 10
    scope: str = "region"
    epsilon: float | None = None
    penalise: bool = False
    rerank: str | None = None
    depth: int = 100
    distinct_content: bool = True
    method: str = "pearson"

    def check(self, spec: ModelSpec) -> None:
        """Raises InputError for a class or method that the index does not know, or a window that is
        empty.
        """
        classes = spec.all_classes
        if self.cls is not None and self.cls not in classes:
            raise InputError(f"no class {self.cls!r} in this index; it has {', '.join(classes)}")
        low, high = self.coverage
        if not 0 <= low <= high <= 1:
            raise InputError(f"coverage {low:g} {high:g}: give 0 <= LOW <= HIGH <= 1")
        if self.cls is None and self.coverage != EVERYTHING:
            raise InputError("a coverage window needs a class")
        if self.epsilon is not None and not 0 <= self.epsilon <= 2:
            raise InputError(f"epsilon is {self.epsilon:g}; a semantic distance is 0 to 2")
        for name, number in (("k", self.k), ("depth", self.depth)):
            if number < 1:
                raise InputError(f"{name} is {number}; ask for at least 1")
        Method.of(self.method).check([d.name for d in spec.descriptors])

    @property
    def _described(self) -> bool:
        return Method.of(self.method).descriptor is not None

    @property
    def regional(self) -> bool:
        """Whether regions are compared, not whole images, as descriptors are."""
        return self.cls is not None and self.scope == "region" and not self._described

    def __str__(self) -> str:
        low, high = self.coverage
        what = f"regions of class {self.cls}" if self.regional else "whole images"
        window = f"{'' if self.regional else f' with {self.cls}'}, σ {low:g} to {high:g}"
        window = window if self.cls else ""
        order = str(Method.of(self.method))
        if self.reranked:
            order += f", the first {self.depth} by {self.reranked.replace('_iou', ' IoU')}"
        beyond = "last" if self.penalise else "left out"
        distance = "" if self.epsilon is None else f", beyond distance {self.epsilon:g} {beyond}"
        return f"{what}{window}, ranked by {order}{distance}"

    @property
    def reranked(self) -> str | None:
        """By what the first are ranked again, if the method does not say otherwise."""
        return self.rerank or ("foreground_iou" if self.method == LOCALISED else None)

    def compared_masks(self, classes: Sequence[str]) -> Sequence[str]:
        """The classes whose masks say by what the first are ranked again."""
        if self.reranked == "foreground_iou":
            return (BACKGROUND,)
        return (self.cls,) if self.cls else classes

    def arguments(self) -> dict[str, Any]:
        """The arguments of the SQL macro, by name."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = found.pop("coverage")
        return {"class": found.pop("cls"), "min_coverage": low, "max_coverage": high, **found}
