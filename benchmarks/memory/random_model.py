"""A model with random weights, for measurements of memory."""

import numpy as np

from segrec_batch.images.decode import shapes_of_size
from segrec_batch.model.backbones import DEFAULT_BACKBONE, Tap
from segrec_batch.model.bundle import Model
from segrec_batch.model.pooling import random_rotation
from segrec_batch.model.spec import ModelSpec
from segrec_batch.model.weights import load_weights


def random_model(size: int, classes: int) -> Model:
    """Return a model of the default layers with random weights and a random head.

    `classes` counts the background.
    """
    weights = load_weights("random:0")
    taps = [Tap.parse(t) for t in DEFAULT_BACKBONE.default_layers.split(",")]
    rng = np.random.default_rng(0)
    head = {
        f"svm.{tap}": rng.standard_normal((classes, tap.source.channels), np.float32)
        / tap.source.channels
        for tap in taps
    }
    head |= {"svm.bias": np.zeros(classes, np.float32)}
    head["sign_bits.centre"] = np.zeros(DEFAULT_BACKBONE.feature_length, np.float32)
    head["sign_bits.rotation"] = random_rotation(DEFAULT_BACKBONE.feature_length).numpy()
    spec = ModelSpec(
        classes=tuple(f"class_{k}" for k in range(1, classes)),
        taps=tuple(map(str, taps)),
        components=tuple(range(classes)),
        shapes=shapes_of_size(size, DEFAULT_BACKBONE.stride),
        mean=weights.mean,
        std=weights.std,
        weights=weights.origin,
        weights_fingerprint=weights.fingerprint,
    )
    return Model(spec, head, weights.arrays)
