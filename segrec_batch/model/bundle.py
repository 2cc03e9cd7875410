"""The model bundle: a folder of `model.json`, `head.safetensors` and `backbone.safetensors`.

No pickle. The backbone's weights are in the bundle, so that a worker needs nothing else. A bundle
is identified by `model_id`, a hash of all that changes an output; an index belongs to one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from segrec_batch import storage
from segrec_batch.errors import ModelError
from segrec_batch.model.backbone import fingerprint
from segrec_batch.model.head import Tap
from segrec_batch.model.spec import ModelSpec, read_spec


@dataclass(frozen=True)
class Model:
    """A bundle in memory: the spec and the tensors of `head` and `backbone`.

    head: `svm.TAP` (M, C) per tap, `svm.bias` (M,), `signature.centre` (512,) and
    `signature.rotation` (512, 512), float32. backbone: a state dict of VGG-16's features.
    """

    spec: ModelSpec
    head: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor]

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The layers of the SVM."""
        return tuple(Tap.parse(t) for t in self.spec.taps)

    @property
    def svm_weights(self) -> dict[Tap, Tensor]:
        """SVM weights (M, C) by tap."""
        return {tap: self.head[f"svm.{tap}"] for tap in self.taps}

    @property
    def svm_bias(self) -> Tensor:
        """SVM intercepts (M,)."""
        return self.head["svm.bias"]

    @property
    def signature_centre(self) -> Tensor:
        """See `describe.signature_bits`."""
        return self.head["signature.centre"]

    @property
    def signature_rotation(self) -> Tensor:
        """See `describe.signature_bits`."""
        return self.head["signature.rotation"]

    @cached_property
    def model_id(self) -> str:
        """16 hex digits over all that changes an output."""
        identity = self.spec.to_json()
        for provenance in ("training", "weights"):
            identity.pop(provenance)
        text = json.dumps(identity, sort_keys=True) + fingerprint(self.head)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, uri: str) -> None:
        """Write the bundle to a folder; `model.json` comes last and makes it one."""
        storage.write_bytes(storage.join(uri, "backbone.safetensors"), save(dict(self.backbone)))
        storage.write_bytes(storage.join(uri, "head.safetensors"), save(dict(self.head)))
        text = json.dumps({"model_id": self.model_id, **self.spec.to_json()}, indent=2)
        storage.write_bytes(storage.join(uri, "model.json"), text.encode() + b"\n")


def load_model(uri: str) -> Model:
    """Read a bundle and check it against its own fingerprints. Raises ModelError."""
    spec, stated_id = read_spec(uri)
    try:
        head = load(storage.read_bytes(storage.join(uri, "head.safetensors")))
        backbone = load(storage.read_bytes(storage.join(uri, "backbone.safetensors")))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{uri}: the bundle is not complete: {error}") from error
    model = Model(spec, head, backbone)
    if fingerprint(backbone) != spec.weights_fingerprint or model.model_id != stated_id:
        raise ModelError(f"{uri}: the tensors are not those that model.json was written for")
    return model
