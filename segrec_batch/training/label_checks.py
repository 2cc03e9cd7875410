"""Checks of the labels of sampled positions before and after cross-validation."""

import logging
from collections import Counter

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.labels.labelled import VOID, Classes, describe_unnamed
from segrec_batch.training.sampling import Samples
from segrec_batch.training.validation import find_evaluable_classes, split_groups

log = logging.getLogger(__name__)

_MAX_VALUES = 20  # maximum number of mask values in a message


def check_groups(groups: set[str]) -> None:
    """Raise InputError if there are fewer than two groups."""
    if len(groups) < 2:
        raise InputError(
            "cross-validation needs labelled images of at least two groups: put images of one "
            "place into one folder or name (--groups folder, prefix or none selects the rule)"
        )


def check_classes(samples: Samples, classes: Classes) -> None:
    """Raise InputError if a foreground class has no sampled position."""
    pixels = count_pixels(samples)
    if not pixels.keys() - {VOID}:
        raise InputError("the masks have no labelled pixel: every value is ignored")
    sampled = _sampled_classes(samples, classes)
    missing = [
        (name, values, sum(pixels[value] for value in values))
        for k, (name, values) in enumerate(classes.values.items(), start=1)
        if k not in sampled
    ]
    absent = [f"{name} {list(values)}" for name, values, count in missing if not count]
    if absent:
        present = ", ".join(str(value) for value in sorted(pixels.keys() - {VOID})[:_MAX_VALUES])
        raise InputError(
            f"no labelled pixels of: {', '.join(absent)}; the masks of {len(samples.pixels):,} "
            f"images have the values {present}: correct the class file, or leave these out"
        )
    if missing:
        counts = ", ".join(f"{name} ({count:,})" for name, _, count in missing)
        raise InputError(
            f"too few labelled pixels to learn from: {counts}; none is at the centre of a cell of "
            "the feature map: label more, leave the class out, or try a larger --input-size"
        )


def report_background(samples: Samples, classes: Classes) -> None:
    """Log which mask values count as background, or that no position is background."""
    if unnamed := describe_unnamed(count_pixels(samples), classes):
        log.info(unnamed)
    sampled = _sampled_classes(samples, classes)
    if sampled == {1}:
        log.warning(
            f"every labelled pixel is of class {classes.names[0]}: there is nothing to tell "
            "apart, and the model will predict this class everywhere"
        )
    elif 0 not in sampled:
        log.info("no position is background: the model will give every pixel one of the classes")


def report_unevaluable(samples: Samples, classes: Classes) -> None:
    """Warn of classes whose IoU in cross-validation has no meaning."""
    labels = classes.to_classes(samples.values).astype(np.int64)
    evaluable = find_evaluable_classes(labels, split_groups(samples.groups))
    names = [name for k, name in enumerate(classes.names, 1) if k not in evaluable]
    if names:
        log.warning(
            f"too few groups have pixels of {', '.join(names)} for cross-validation: an IoU of 0 "
            "has no meaning for them; label them in images of more groups"
        )


def count_pixels(samples: Samples) -> Counter[int]:
    """Return the number of pixels of all masks by value."""
    return sum((Counter(pixels) for pixels in samples.pixels), Counter())


def _sampled_classes(samples: Samples, classes: Classes) -> set[int]:
    return {classes.class_of(int(value)) for value in np.unique(samples.values)}
