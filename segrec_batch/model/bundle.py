"""The model bundle: a folder of `model.json`, `head.safetensors` and `backbone.safetensors`.

No pickle. The backbone's weights are in the bundle, so that a worker needs nothing else. A bundle
is identified by `model_id`, a hash of all that changes an output; an index belongs to one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from segrec_batch import storage
from segrec_batch.decode import Shape
from segrec_batch.errors import ModelError
from segrec_batch.model.backbone import fingerprint
from segrec_batch.model.head import Tap

BACKGROUND = "background"
FORMAT = 1  # of the bundle and of the arithmetic behind it; part of model_id
_COLOURS = ("#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class ModelSpec:
    """What `model.json` says.

    classes: names of the foreground classes; class i of a map is classes[i-1], 0 the background.
    taps: layers of the SVM, as `Tap` writes them. components: the class of each SVM.
    shapes: (height, width) to which pictures are resized, see `decode`.
    training: provenance and validation figures; not part of the identity.
    """

    classes: tuple[str, ...]
    taps: tuple[str, ...]
    components: tuple[int, ...]
    shapes: tuple[Shape, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    weights_fingerprint: str
    minmax: bool = True
    dtype: str = "bfloat16"
    backbone: str = "vgg16"
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the backbone's weights were learned, not drawn at random."""
        return not self.weights.startswith("random:")

    @property
    def notice(self) -> str | None:
        """A sentence for every output of a model that cannot be expected to be good."""
        if self.trained:
            return None
        return f"Untrained backbone ({self.weights}): random filters, for trying out only."

    @property
    def all_classes(self) -> tuple[str, ...]:
        """The background, then `classes`: position is label."""
        return (BACKGROUND, *self.classes)

    @property
    def colours(self) -> dict[str, str]:
        """A `#rrggbb` colour for each foreground class."""
        return {c: _COLOURS[i % len(_COLOURS)] for i, c in enumerate(self.classes)}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Raises ModelError for another format or missing fields."""
        values = dict(values)
        if values.pop("format", None) != FORMAT:
            raise ModelError(
                f"this version reads bundles of format {FORMAT}; train the model again"
            )
        lists = ("classes", "taps", "components", "mean", "std")
        try:
            for key in lists:
                values[key] = tuple(values[key])
            values["shapes"] = tuple((int(h), int(w)) for h, w in values["shapes"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model.json is not a segrec model: {error}") from error


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


def read_spec(uri: str) -> tuple[ModelSpec, str]:
    """What `model.json` of a bundle says, and the model_id it states. Raises ModelError."""
    try:
        values = json.loads(storage.read_bytes(storage.join(uri, "model.json")))
        stated_id = values.pop("model_id")
    except FileNotFoundError as error:
        raise ModelError(f"{uri}: no model.json there; make a model with jobs/train.py") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{uri}: model.json cannot be read: {error}") from error
    return ModelSpec.from_json(values), stated_id


def check_class_names(names: list[str]) -> None:
    """Class names become column and folder names. Raises ModelError for what could not be one."""
    if len(names) > 255:  # labels are bytes, 0 the background
        raise ModelError(f"{len(names)} classes are too many; a model tells up to 255 apart")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ModelError(f"class name {name!r}: use 1 to 64 letters, digits and _ only")
    lower = [name.lower() for name in names]
    taken = sorted({n for n in lower if lower.count(n) > 1 or n in (BACKGROUND, "ignore")})
    if taken:
        raise ModelError(f"class names must differ beyond case and not be reserved: {taken}")
