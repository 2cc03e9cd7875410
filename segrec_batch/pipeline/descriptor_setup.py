"""Add descriptors, fitted on images of an index, to its model, and remove descriptors.

The next indexing run computes the vectors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from segrec_batch import descriptors
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.descriptors import Parameters, Samples
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.sources import storage

_PAIR_SEPARATOR = re.compile(r",(?=\w+=)")  # any other comma is part of a value


@dataclass(frozen=True)
class Addition:
    """A descriptor to add, and its arguments."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)


def parse_addition(text: str) -> Addition:
    """Parse `NAME[:KEY=VALUE[,KEY=VALUE…]]`. Raises InputError.

    >>> parse_addition("localised:weights=s3://bucket/a.pth,grey=no").arguments
    {'weights': 's3://bucket/a.pth', 'grey': 'no'}
    """
    name, colon, rest = text.partition(":")
    descriptors.module(name)
    arguments: dict[str, str] = {}
    for pair in _PAIR_SEPARATOR.split(rest) if colon else ():
        key, equals, value = pair.partition("=")
        if not (key and equals and value) or key in arguments:
            raise InputError(f"{text!r}: write NAME or NAME:KEY=VALUE,KEY=VALUE, each KEY once")
        arguments[key] = value
    return Addition(name, arguments)


def load_index_model(snapshot: Snapshot, uri: str | None) -> Model:
    """Load the bundle at a URI, by default that of the index.

    Raises:
        IndexStateError: the bundle is of another model.
    """
    model = load_model(uri or snapshot.model_uri)
    if model.model_id != snapshot.model_id:
        raise IndexStateError(
            f"{snapshot.index} belongs to model {snapshot.model_id}, not to {model.model_id} "
            f"({uri}); give the model of the index, or omit --model"
        )
    return model


def check_output(snapshot: Snapshot, output: str) -> None:
    """Raise InputError if the folder lies in the index, whose bundles must not change."""
    index = storage.absolute(snapshot.index).rstrip("/")
    if f"{storage.absolute(output)}/".startswith(f"{index}/"):
        raise InputError(f"{output} lies in the index; write the bundle to another folder")


def change_descriptors(
    model: Model, add: Sequence[Addition], drop: Sequence[str], samples: Samples
) -> Model:
    """Return the model without `drop` and with fitted `add`; equal names are replaced.

    Raises:
        InputError: a descriptor is added twice, the model lacks one to drop, or a descriptor
            refuses its arguments.
    """
    names = [addition.name for addition in add]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(
            f"--add {duplicates[0]} is given twice; a model has one descriptor of each name"
        )
    present = [d.name for d in model.spec.descriptors]
    for name in drop:
        if name not in present:
            raise InputError(
                f"cannot drop {name}: the model has {', '.join(present) or 'no descriptors'}"
            )
        model = model.without_descriptor(name)
    for addition in add:
        try:
            fitted = descriptors.module(addition.name).fit(addition.arguments, samples)
        except InputError as error:
            raise InputError(f"{addition.name}: {error}") from error
        model = model.with_descriptor(addition.name, fitted.settings, fitted.tensors)
    return model


def vector_lengths(model: Model) -> dict[str, int]:
    """Return the length of the vectors of each descriptor, by descriptor id."""
    classes = len(model.spec.all_classes)
    lengths = {}
    for descriptor in model.spec.descriptors:
        parameters = Parameters(descriptor.settings, model.descriptors[descriptor.name])
        built = descriptors.module(descriptor.name).Descriptor(parameters, classes, "cpu")
        lengths[descriptor.id] = int(built.length)
    return lengths
