"""Description of a model without its tensors: `model.json` of a bundle. Imports no torch."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from segrec_batch.common.errors import ModelError
from segrec_batch.images.decode import MAX_PIXELS, Shape
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap, find_backbone
from segrec_batch.model.names import (
    BACKGROUND,
    DESCRIPTOR_RULE,
    MAX_CLASSES,
    NAME,
    check_class_names,
    is_bundle_id,
    is_descriptor_name,
)
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import check_values, read_json, shorten

FORMAT = 3
"""Format of the bundle and of its arithmetic; part of model_id."""
COMMON_GRID = 32
"""Side of the square grid on which masks of images are compared."""
BUNDLE_FILE = r"model\.json|(head|backbone|descriptor-[\w-]+)\.safetensors"
"""Pattern of the file names of a bundle."""
_COLOURS = ("#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MAX_COMPONENTS = 2**16
_MAX_VALUE = 2**64  # of a mean or a deviation
_ANY_TEXT = re.compile(r".{0,4096}", re.DOTALL)


@dataclass(frozen=True)
class Scaling:
    """Normalisation of uint8 pixels for the backbone: to [0, 1], then (x − mean) / std.

    minmax: True maps an image's smallest value to 0 and its largest to 1 (Abdullah 2026,
        section 3), and a constant image to 0; False divides values by 255.
    mean, std: by RGB channel.
    """

    minmax: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class DescriptorSpec:
    """A descriptor of a model: its name, settings and the fingerprint of its tensors."""

    name: str
    settings: Mapping[str, Any]
    fingerprint: str

    def __post_init__(self) -> None:
        if not is_descriptor_name(self.name):
            raise ModelError(f"descriptors: name {shorten(self.name)}: {DESCRIPTOR_RULE}")
        if not isinstance(self.settings, Mapping):
            raise ModelError(f"settings of descriptor {self.name}: not an object")
        try:
            check_values(self.settings)
        except ValueError as error:
            raise ModelError(f"settings of descriptor {self.name}: {error}") from error
        _check_text(f"fingerprint of descriptor {self.name}", self.fingerprint, _FINGERPRINT)

    @property
    def id(self) -> str:
        """The name and 8 hex digits over all that changes a vector; its partition in an index."""
        text = json.dumps([self.name, self.settings, self.fingerprint], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class ModelSpec:
    """Content of `model.json`. Invalid values raise ModelError at construction.

    classes: names of the foreground classes; label i is classes[i-1], label 0 the background.
    taps: layers of the SVM, see `Tap`.
    components: class of each SVM.
    shapes: (height, width) to which images are resized, see `images.decode`.
    mean, std: normalisation by RGB channel.
    weights: origin of the backbone's weights.
    weights_fingerprint: SHA-256 of the weights.
    minmax: see `Scaling`.
    backbone: name of the backbone network.
    descriptors: ordered by name; `DescriptorSpec.id` identifies each.
    training: provenance and validation; not part of model_id.
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
    backbone: str = DEFAULT_BACKBONE.name
    descriptors: tuple[DescriptorSpec, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_sequence("classes", self.classes, str)
        check_class_names(list(self.classes))
        _check_text("backbone", self.backbone, NAME)
        try:
            find_backbone(self.backbone)
        except ModelError as error:
            raise ModelError(f"backbone: {error}") from error
        _check_sequence("taps", self.taps, str)
        try:
            _check_unique("taps", [str(tap) for tap in self.parsed_taps])
        except ModelError as error:
            raise ModelError(f"taps: {str(error).removeprefix('taps: ')}") from error
        _check_sequence("components", self.components, int, limit=_MAX_COMPONENTS)
        if not all(0 <= c <= len(self.classes) for c in self.components):
            raise ModelError(f"components: each is the number of a class, 0 to {len(self.classes)}")
        missing = [n for k, n in enumerate(self.classes, start=1) if k not in set(self.components)]
        if missing:
            raise ModelError(f"components: class {missing[0]} has none")
        _check_sequence("shapes", self.shapes, tuple)
        for shape in self.shapes:
            _check_sequence("shapes", shape, int)
            if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > MAX_PIXELS:
                raise ModelError(f"shapes: {shorten(shape)} is not a height and width")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            _check_sequence(name, numbers, int, float)
            if len(numbers) != 3 or not all(-_MAX_VALUE <= n <= _MAX_VALUE for n in numbers):
                raise ModelError(f"{name}: {shorten(numbers)} is not a number for each RGB channel")
        if min(self.std) <= 0:
            raise ModelError(f"std: {shorten(self.std)} is not above 0")
        _check_text("weights", self.weights, _ANY_TEXT)
        _check_text("weights_fingerprint", self.weights_fingerprint, _FINGERPRINT)
        if not isinstance(self.minmax, bool):
            raise ModelError(f"minmax: {shorten(self.minmax)} is neither true nor false")
        _check_sequence("descriptors", self.descriptors, DescriptorSpec)
        _check_unique("descriptors", [d.name for d in self.descriptors])
        if not isinstance(self.training, Mapping):
            raise ModelError(f"training: {shorten(self.training)} is not an object")

    @property
    def backbone_spec(self) -> BackboneSpec:
        """The backbone network."""
        return find_backbone(self.backbone)

    @property
    def parsed_taps(self) -> tuple[Tap, ...]:
        """The layers of the SVM."""
        return tuple(Tap.parse(text, self.backbone_spec) for text in self.taps)

    @property
    def feature_length(self) -> int:
        """Values of a feature."""
        return self.backbone_spec.feature_length

    @property
    def sign_words(self) -> int:
        """Words of 64 bits of `sign_bits`, one bit for each value of a feature."""
        return self.backbone_spec.sign_words

    @property
    def scaling(self) -> Scaling:
        """Normalisation of pixels."""
        return Scaling(self.minmax, self.mean, self.std)

    @property
    def is_trained(self) -> bool:
        """True unless the backbone's weights are random."""
        return not _is_random(self.weights)

    @property
    def notice(self) -> str | None:
        """A warning for outputs of a model with random weights; None for others."""
        notices = (
            [] if self.is_trained else [f"Untrained backbone ({self.weights}): random filters"]
        )
        networks = [d.name for d in self.descriptors if _is_random(d.settings.get("weights"))]
        if networks:
            notices.append(f"Untrained networks of {', '.join(networks)}")
        return f"{'; '.join(notices)}, for trying out only." if notices else None

    @property
    def all_classes(self) -> tuple[str, ...]:
        """The background, then `classes`, by label."""
        return (BACKGROUND, *self.classes)

    @property
    def colours(self) -> dict[str, str]:
        """A `#rrggbb` colour for each foreground class."""
        return {c: _COLOURS[i % len(_COLOURS)] for i, c in enumerate(self.classes)}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers of `training` that are not finite become null."""
        return {"format": FORMAT, **asdict(self), "training": _replace_nonfinite(self.training)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Return the spec of JSON values. Raises ModelError for another format or other fields."""
        values = dict(values)
        version = values.pop("format", None)
        if version != FORMAT:
            raise ModelError(
                f"the bundle has format {version}, this version reads format {FORMAT}: train the "
                "model again with segrec train, and index with it into a new --index"
            )
        try:
            for key in ("classes", "taps", "components", "shapes", "mean", "std", "descriptors"):
                if not isinstance(values[key], list):
                    raise ModelError(f"{key}: {shorten(values[key])} is not a list")
                values[key] = tuple(values[key])
            values["shapes"] = tuple(
                tuple(shape) if isinstance(shape, list) else shape for shape in values["shapes"]
            )
            for entry in values["descriptors"]:
                if not isinstance(entry, dict):
                    raise ModelError(f"descriptors: {shorten(entry)} is not an object")
            values["descriptors"] = tuple(DescriptorSpec(**d) for d in values["descriptors"])
            return cls(**values)
        except (KeyError, TypeError) as error:  # fields that are missing or unknown
            raise ModelError(f"not a segrec model: {error}") from error


def _check_sequence(name: str, values: object, *kinds: type, limit: int = MAX_CLASSES) -> None:
    """Raise ModelError unless `values` is a tuple of values of some types; a bool is no number."""
    if not isinstance(values, tuple):
        raise ModelError(f"{name}: {shorten(values)} is not a list")
    if len(values) > limit:
        raise ModelError(f"{name}: {len(values):,} are too many; there may be {limit:,}")
    if not values and name in ("taps", "components", "shapes"):
        raise ModelError(f"{name}: a model needs at least one")
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ModelError(f"{name}: {shorten(value)} is not allowed")


def _check_text(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ModelError(f"{name}: {shorten(value)} is not allowed")


def _check_unique(name: str, names: Sequence[str]) -> None:
    """Raise ModelError for names that differ in case only: some file systems ignore case."""
    lower = [n.lower() for n in names]
    if len(set(lower)) < len(lower):
        repeated = next(n for n in lower if lower.count(n) > 1)
        raise ModelError(f"{name}: {shorten(repeated)} occurs twice")


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_random(weights: object) -> bool:
    return str(weights).startswith("random:")


def bundle_id(model_id: str, spec: ModelSpec) -> str:
    """Return 16 hex digits over a model and its descriptors; model_id if there are none."""
    if not spec.descriptors:
        return model_id
    text = " ".join([model_id, *(d.id for d in spec.descriptors)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_spec(uri: str) -> tuple[ModelSpec, str]:
    """Return the spec of a bundle and the model_id it states. Raises ModelError."""
    file = storage.join(uri, "model.json")
    try:
        values = read_json(file)
    except FileNotFoundError as error:
        raise ModelError(f"{uri}: it has no model.json; train a model with segrec train") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: not a segrec model")
    stated_id = values.pop("model_id", None)
    try:
        spec = ModelSpec.from_json(values)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    if not is_bundle_id(stated_id):
        raise ModelError(f"{file}: model_id {shorten(stated_id)} is not 16 hex digits")
    return spec, stated_id
