"""Limits of a run: a share of a total in percent, or a count."""

import argparse
import re
from dataclasses import dataclass
from decimal import Decimal

_LIMIT = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)(\s*%)?", re.ASCII)


@dataclass(frozen=True)
class Limit:
    """The greatest accepted value: a count `number`, or `number` percent of a total.

    >>> str(parse_limit("1%")), parse_limit("1%").is_exceeded(1, 100)
    ('1%', False)
    >>> parse_limit("1%").is_exceeded(1, 99), parse_limit("5").is_exceeded(6, 1_000_000)
    (True, True)
    """

    number: Decimal
    is_share: bool

    def __str__(self) -> str:
        return f"{self.number:f}%" if self.is_share else f"{self.number:f}"

    def is_exceeded(self, count: int, total: int) -> bool:
        """Return whether `count` of `total` is above this limit."""
        return count * 100 > self.number * total if self.is_share else count > self.number


def parse_limit(text: str) -> Limit:
    """Parse a limit such as `1%` or `5`; for use as an argument's type.

    Raises:
        argparse.ArgumentTypeError: the text is no limit.
    """
    match = _LIMIT.fullmatch(text.strip())
    if not match or (not match[2] and "." in match[1]) or (match[2] and Decimal(match[1]) > 100):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share like 1% nor a count like 5")
    return Limit(Decimal(match[1]), bool(match[2]))
