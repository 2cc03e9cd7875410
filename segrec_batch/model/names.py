"""Names of classes, descriptors and bundles, which become columns, folders and files."""

import re
from collections.abc import Sequence

from segrec_batch.common.errors import ModelError
from segrec_batch.sources.strict_json import shorten

BACKGROUND = "background"
MAX_CLASSES = 255  # labels are bytes, and 0 is the background
NAME_RULE = "use 1 to 64 letters, digits and _ only"
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
DESCRIPTOR_RULE = "use 1 to 64 letters, digits and _, and single hyphens between them"

_ID = re.compile(r"[0-9a-f]{16}")
_DESCRIPTOR = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")
_HASH = re.compile(r"[0-9a-f]{8}")


def is_name(text: object) -> bool:
    """Return True for a name that a class may have."""
    return isinstance(text, str) and bool(NAME.fullmatch(text))


def is_descriptor_name(text: object) -> bool:
    """Return True for a name that a descriptor may have."""
    return isinstance(text, str) and bool(_DESCRIPTOR.fullmatch(text)) and len(text) <= 64


def is_bundle_id(text: object) -> bool:
    """Return True for text in the form of a model_id or a bundle_id."""
    return isinstance(text, str) and bool(_ID.fullmatch(text))


def is_descriptor_id(text: object) -> bool:
    """Return True for text in the form of a `DescriptorSpec.id`."""
    if not isinstance(text, str):
        return False
    name, _, digits = text.rpartition("-")
    return is_descriptor_name(name) and bool(_HASH.fullmatch(digits))


def check_class_names(names: Sequence[str]) -> None:
    """Raise ModelError for class names that cannot be names of columns and folders."""
    if len(names) > MAX_CLASSES:
        raise ModelError(
            f"{len(names):,} classes are too many; a model tells up to {MAX_CLASSES} apart"
        )
    for name in names:
        if not is_name(name):
            raise ModelError(f"class name {shorten(name)}: {NAME_RULE}")
    lower = [name.lower() for name in names]
    taken = sorted({n for n in lower if lower.count(n) > 1 or n in (BACKGROUND, "ignore")})
    if taken:
        raise ModelError(f"class names must differ beyond case and not be reserved: {taken}")
