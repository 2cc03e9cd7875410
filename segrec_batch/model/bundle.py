"""The model bundle: a folder with `model.json` and safetensors files.

The files are `head.safetensors`, `backbone.safetensors`, and one for each descriptor with tensors.
There is no pickle. The bundle has the backbone's weights, so a worker needs nothing else.
`model_id` is a hash of all that changes class maps and features; an index belongs to one model.
`bundle_id` also covers the descriptors, which an index can change.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones import BackboneSpec, Tap
from segrec_batch.model.spec import DescriptorSpec, ModelSpec, bundle_id, read_spec
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, shorten

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

_MAX_HEADER = 2**20  # bytes of a safetensors header; a bundle's has at most about 10,000
_MAX_DESCRIPTOR = 2**31  # bytes of a descriptor's tensors; VGG-16's to fc7 are 538 million
_BYTES = {"F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1}  # bytes of a value, by type


def fingerprint(tensors: Mapping[str, Array]) -> str:
    """Return the SHA-256 over the names, types, shapes and values of tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Model:
    """A bundle in memory: the spec and the tensors of `head` and `backbone`.

    head: `svm.TAP` (M, C) per tap, `svm.bias` (M,), `sign_bits.centre` (C,) and
    `sign_bits.rotation` (C, C) for features of length C, float32. backbone: a state dict, see
    `BackboneSpec.tensors`.
    descriptors: the tensors of each descriptor of the spec.
    """

    spec: ModelSpec
    head: Mapping[str, Array]
    backbone: Mapping[str, Array]
    descriptors: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The layers of the SVM."""
        return self.spec.parsed_taps

    @property
    def svm_weights(self) -> dict[Tap, Array]:
        """SVM weights (M, C) by tap."""
        return {tap: self.head[f"svm.{tap}"] for tap in self.taps}

    @property
    def svm_bias(self) -> Array:
        """SVM intercepts (M,)."""
        return self.head["svm.bias"]

    @property
    def sign_centre(self) -> Array:
        """Centre (C,) of sign bits, see `pooling.sign_bits`."""
        return self.head["sign_bits.centre"]

    @property
    def sign_rotation(self) -> Array:
        """Rotation (C, C) of sign bits, see `pooling.sign_bits`."""
        return self.head["sign_bits.rotation"]

    @cached_property
    def model_id(self) -> str:
        """16 hex digits over all that changes class maps and features."""
        identity = self.spec.to_json()
        for name in ("training", "weights", "descriptors"):
            identity.pop(name)
        text = json.dumps(identity, sort_keys=True) + fingerprint(self.head)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def bundle_id(self) -> str:
        """16 hex digits over the model and its descriptors, see `spec.bundle_id`."""
        return bundle_id(self.model_id, self.spec)

    def with_descriptor(
        self, name: str, settings: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> "Model":
        """Return the model with a descriptor, in place of any of the same name."""
        others = [d for d in self.spec.descriptors if d.name != name]
        tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
        descriptor = DescriptorSpec(name, settings, fingerprint(tensors))
        descriptors = tuple(sorted([*others, descriptor], key=lambda d: d.name))
        spec = replace(self.spec, descriptors=descriptors)
        return replace(self, spec=spec, descriptors={**self.descriptors, name: tensors})

    def without_descriptor(self, name: str) -> "Model":
        """Return the model without one descriptor."""
        others = tuple(d for d in self.spec.descriptors if d.name != name)
        tensors = {d.name: self.descriptors[d.name] for d in others}
        return replace(self, spec=replace(self.spec, descriptors=others), descriptors=tensors)

    def save(self, uri: str) -> None:
        """Write the bundle to a folder, `model.json` last; a folder without it is not a bundle."""
        for name, tensors in self.descriptors.items():
            if tensors:
                storage.write_bytes(_descriptor_uri(uri, name), save(dict(tensors)))
        storage.write_bytes(storage.join(uri, "backbone.safetensors"), save(dict(self.backbone)))
        storage.write_bytes(storage.join(uri, "head.safetensors"), save(dict(self.head)))
        text = json.dumps({"model_id": self.model_id, **self.spec.to_json()}, indent=2)
        storage.write_bytes(storage.join(uri, "model.json"), text.encode() + b"\n")


def load_model(uri: str) -> Model:
    """Read a bundle and compare it with its fingerprints. Raises ModelError."""
    spec, stated_id = read_spec(uri)
    head = _load_tensors(storage.join(uri, "head.safetensors"), head_shapes(spec))
    _check_complete(head, head_shapes(spec), uri)
    backbone = _load_tensors(storage.join(uri, "backbone.safetensors"), spec.backbone_spec.tensors)
    descriptors = {d.name: load_descriptor(uri, d) for d in spec.descriptors}
    model = Model(spec, head, backbone, descriptors)
    if fingerprint(backbone) != spec.weights_fingerprint or model.model_id != stated_id:
        raise ModelError(_MISMATCH.format(uri))
    return model


def load_descriptor(uri: str, descriptor: DescriptorSpec) -> dict[str, Array]:
    """Return the tensors of a descriptor of a bundle. Raises ModelError."""
    if descriptor.fingerprint == fingerprint({}):
        return {}
    tensors = _load_tensors(_descriptor_uri(uri, descriptor.name))
    if fingerprint(tensors) != descriptor.fingerprint:
        raise ModelError(_MISMATCH.format(uri))
    return tensors


def head_shapes(spec: ModelSpec) -> Shapes:
    """Return the shapes of the tensors of a head, see `Model`."""
    components, width = len(spec.components), spec.feature_length
    return {
        **{f"svm.{tap}": (components, tap.source.channels) for tap in spec.parsed_taps},
        "svm.bias": (components,),
        "sign_bits.centre": (width,),
        "sign_bits.rotation": (width, width),
    }


def check_backbone(state: Mapping[str, Array], backbone: BackboneSpec) -> None:
    """Raise ModelError if a tensor of a backbone is missing."""
    _check_complete(state, backbone.tensors, "the backbone")


def _check_complete(tensors: Mapping[str, Array], shapes: Shapes, owner: str) -> None:
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise ModelError(f"{owner}: the bundle is not complete: {missing[0]} is missing")


def _load_tensors(uri: str, shapes: Shapes | None = None) -> dict[str, Array]:
    """Return the float32 tensors of a file with these shapes; None allows any shapes and types.

    Raises ModelError; it refuses a wrong header before it reads any tensor.
    """
    limit = _BYTES["F32"] * sum(map(math.prod, shapes.values())) if shapes else _MAX_DESCRIPTOR
    try:
        content = storage.read_bytes(uri, limit + _MAX_HEADER)
        _check_header(content, shapes)
        return load(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{uri}: the bundle is not complete: {error}") from error


def _check_header(content: bytes, shapes: Shapes | None) -> None:
    """Raise ValueError for a header that is damaged or has tensors other than `shapes`."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_MAX_HEADER, len(content) - 8):
        raise ValueError("its header is cut off or too long")
    header = parse_json(content[8 : 8 + length], _MAX_HEADER)
    if not isinstance(header, dict):
        raise ValueError("its header names no tensors")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        dtype, shape = (entry.get(key) if isinstance(entry, dict) else None for key in _ENTRY)
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"tensor {shorten(name)} has no shape")
        if not isinstance(dtype, str) or dtype not in (_BYTES if shapes is None else ("F32",)):
            raise ValueError(f"tensor {shorten(name)} is of type {shorten(dtype)}")
        if shapes is not None and shapes.get(name) != tuple(shape):
            rule = f"not {shapes[name]}" if name in shapes else "but no such tensor belongs here"
            raise ValueError(f"tensor {shorten(name)} is {shorten(tuple(shape))}, {rule}")


_ENTRY = ("dtype", "shape")


def _descriptor_uri(uri: str, name: str) -> str:
    return storage.join(uri, f"descriptor-{name}.safetensors")


_MISMATCH = "{}: the tensors are not those that model.json was written for"
