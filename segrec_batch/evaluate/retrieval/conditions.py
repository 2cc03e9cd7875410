"""The settings under which methods are judged: texts, each one condition away from none.

"" no filter, the query left out · "query kept" · "σ 0.29–0.96" a window on coverage · "ε 0.9" a
limit on the semantic distance
"""

import re
from collections.abc import Iterable

NONE, KEPT = "", "query kept"


def window(setting: str) -> tuple[float, float] | None:
    """Least and greatest σ of a window, None for any other setting.

    >>> window("σ 0.29–0.96"), window("ε 0.9")
    ((0.29, 0.96), None)
    """
    found = re.fullmatch(r"σ ([\d.]+)–([\d.]+)", setting)
    return (float(found[1]), float(found[2])) if found else None


def epsilon(setting: str) -> float | None:
    """The limit on the semantic distance, None for any other setting.

    >>> epsilon("ε 0.9"), epsilon("")
    (0.9, None)
    """
    found = re.fullmatch(r"ε ([\d.]+)", setting)
    return float(found[1]) if found else None


def in_order(settings: Iterable[str]) -> list[str]:
    """No filter, the query kept, windows by their edges, ε ascending, then the others by name.

    >>> in_order(["ε 1.1", "σ 0.3–0.9", "ε 0.9", "query kept", "", "σ 0.1–0.9"])
    ['', 'query kept', 'σ 0.1–0.9', 'σ 0.3–0.9', 'ε 0.9', 'ε 1.1']
    """
    return sorted(set(settings), key=_place)


def named(setting: str) -> str:
    """A setting in words."""
    return setting or "no filter"


def _place(setting: str) -> tuple[int, tuple[float, ...], str]:
    if setting in (NONE, KEPT):
        return (NONE, KEPT).index(setting), (), setting
    if edges := window(setting):
        return 2, edges, setting
    limit = epsilon(setting)
    return (3, (limit,), setting) if limit is not None else (4, (), setting)
