"""Arguments of descriptors, as their users write them."""

from collections.abc import Mapping
from typing import Any

from segrec_batch.errors import InputError


def whole_numbers(arguments: Mapping[str, Any], **defaults: int) -> dict[str, int]:
    """All settings: those of `arguments`, numbers or their digits, in place of the defaults.

    Raises InputError for other names, and for what is not a whole number above 0.
    """
    unknown = sorted(set(arguments) - set(defaults))
    if unknown:
        raise InputError(f"no setting {', '.join(unknown)}; there are {', '.join(defaults)}")
    return {name: _counted(name, arguments.get(name, n)) for name, n in defaults.items()}


def _counted(name: str, value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text)):
        raise InputError(f"{name} must be a whole number above 0, not {value!r}")
    return int(text)
