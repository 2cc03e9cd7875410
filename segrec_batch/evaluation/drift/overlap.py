"""How much of what is recommended for golden images stays the same from snapshot to snapshot."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from segrec_batch.search.database import Database
from segrec_batch.search.sql.connection import query

WHOLE, REGION = "whole images", "regions of the dominant class"

_RECOMMEND = """
SELECT image_id FROM recommend($query::VARCHAR, k := $k, class := $class)
WHERE pearson IS NOT NULL ORDER BY rank
"""


def top_k(index: Database, image_id: str, cls: str | None, k: int) -> list[str]:
    """The image_ids recommended for an image of the index, best first, by its whole or a region."""
    asked = {"query": image_id, "k": k, "class": cls}
    answer: list[str] = query(index.connection, _RECOMMEND, asked)["image_id"].to_pylist()
    return answer


def overlap(a: Sequence[str], b: Sequence[str]) -> float | None:
    """|A ∩ B| / k of two rankings, k the length of the longer one; None if both are empty.

    >>> overlap(["x", "y"], ["y", "z"])
    0.5
    """
    longer = max(len(a), len(b))
    return len({*a} & {*b}) / longer if longer else None


def average_overlap(a: Sequence[str], b: Sequence[str]) -> float | None:
    """The mean of `overlap` over the first 1, 2, … places of two rankings: early places weigh more.

    Fagin, Kumar and Sivakumar, Comparing top k lists (2003), §2.4.

    >>> average_overlap(["x", "y"], ["y", "x"])
    0.5
    """
    depths = range(1, max(len(a), len(b)) + 1)
    shares = [len({*a[:d]} & {*b[:d]}) / d for d in depths]
    return sum(shares) / len(shares) if shares else None


def overlaps(
    before: Database, after: Database, image: Mapping[str, Any], classes: Iterable[str], k: int
) -> Iterator[dict[str, Any]]:
    """Figures of one golden image, for `golden_counts`: by its whole, and by the region of its
    dominant class if that is one of `classes`.
    """
    asks = [(WHOLE, None)]
    if image["class"] in classes:
        asks.append((REGION, image["class"]))
    for setting, cls in asks:
        a, b = (top_k(index, image["image_id"], cls, k) for index in (before, after))
        told = {"image_id": image["image_id"], "setting": setting, "class": cls or "", "k": k}
        yield {"name": "topk_overlap", "value": overlap(a, b), **told}
        yield {"name": "average_overlap", "value": average_overlap(a, b), **told}
