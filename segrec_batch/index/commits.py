"""Calls of delta-rs through a network that loses answers.

delta-rs tries a request again that was refused for the moment. It does not where the answer was cut
off, and it takes a commit of its own, the answer to which was lost, for another's.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.transaction import CommitProperties, Transaction

T = TypeVar("T")

_TRIES = 5  # of a call in which an answer was cut off
_MARK = "commit"  # tells a commit from all others, in its information


def whole(call: Callable[[], T]) -> T:
    """What a call returns; it is made again if an answer was cut off."""
    for _ in range(_TRIES - 1):
        try:
            return call()
        except (DeltaError, OSError) as error:
            if "response body" not in str(error):
                raise
    return call()


@contextmanager
def commit(
    version: Callable[[], DeltaTable],
    info: Mapping[str, Any] | None = None,
    names: Sequence[Transaction] = (),
) -> Iterator[CommitProperties]:
    """Properties, with information and transaction identifiers, of a commit that the block makes.

    Errors of the block count only if the version that it makes (`version` opens it) is not there
    then, or is another's.
    """
    mark = uuid.uuid4().hex

    def made() -> bool:
        (last,) = whole(lambda: version().history(1))
        return bool(last.get(_MARK) == mark)

    with unless(made):
        yield CommitProperties({**(info or {}), _MARK: mark}, 0, list(names))


@contextmanager
def unless(done: Callable[[], bool]) -> Iterator[None]:
    """Errors of the block count only if what it does is not done then."""
    try:
        yield
    except (DeltaError, OSError):
        with suppress(DeltaError, OSError):
            if done():
                return
        raise
