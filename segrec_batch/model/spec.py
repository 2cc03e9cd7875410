"""What a model is, without its tensors, and without torch: `model.json` of a bundle."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segrec_batch import storage
from segrec_batch.decode import Shape
from segrec_batch.errors import ModelError

BACKGROUND = "background"
FORMAT = 3  # of the bundle and of the arithmetic behind it; part of model_id
COMMON_GRID = 32  # side of the square grid on which masks of any two pictures are compared
_COLOURS = ("#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass(frozen=True)
class Scaling:
    """How uint8 pixels become a backbone's input: scaled to [0, 1], then (x − mean) / std.

    minmax: an image's smallest value becomes 0 and its largest 1 (Abdullah 2026, section 3), and an
    image of one value becomes 0; otherwise values are divided by 255. mean, std: by RGB channel.
    """

    minmax: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class DescriptorSpec:
    """A descriptor that is switched on: its name, settings and the fingerprint of its tensors."""

    name: str
    settings: Mapping[str, Any]
    fingerprint: str

    @property
    def id(self) -> str:
        """The name and 8 hex digits over all that changes a vector: what its vectors lie under."""
        text = json.dumps([self.name, self.settings, self.fingerprint], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class ModelSpec:
    """What `model.json` says.

    classes: names of the foreground classes; class i of a map is classes[i-1], 0 the background.
    taps: layers of the SVM, as `Tap` writes them. components: the class of each SVM.
    shapes: (height, width) to which pictures are resized, see `decode`.
    descriptors: by name; each has an identity of its own, `DescriptorSpec.id`.
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
    backbone: str = "vgg16"
    descriptors: tuple[DescriptorSpec, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scaling(self) -> Scaling:
        """How pixels become the backbone's input."""
        return Scaling(self.minmax, self.mean, self.std)

    @property
    def trained(self) -> bool:
        """Whether the backbone's weights were learned, not drawn at random."""
        return not _random(self.weights)

    @property
    def notice(self) -> str | None:
        """A sentence for every output of a model that cannot be expected to be good."""
        found = [] if self.trained else [f"Untrained backbone ({self.weights}): random filters"]
        networks = [d.name for d in self.descriptors if _random(d.settings.get("weights"))]
        if networks:
            found.append(f"Untrained networks of {', '.join(networks)}")
        return f"{'; '.join(found)}, for trying out only." if found else None

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
        found = values.pop("format", None)
        if found != FORMAT:
            raise ModelError(
                f"the bundle has format {found}, this version reads format {FORMAT}: train the "
                "model again with jobs/train.py, and index with it into a new --index"
            )
        lists = ("classes", "taps", "components", "mean", "std")
        try:
            for key in lists:
                values[key] = tuple(values[key])
            values["shapes"] = tuple((int(h), int(w)) for h, w in values["shapes"])
            values["descriptors"] = tuple(DescriptorSpec(**d) for d in values["descriptors"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model.json is not a segrec model: {error}") from error


BUNDLE_FILE = r"model\.json|(head|backbone|descriptor-[\w-]+)\.safetensors"
"""A pattern of the names of the files of a bundle."""


def _random(weights: object) -> bool:
    return str(weights).startswith("random:")


def bundle_id(model_id: str, spec: ModelSpec) -> str:
    """16 hex digits over a model and its descriptors; those of the model if it has none."""
    if not spec.descriptors:
        return model_id
    text = " ".join([model_id, *(d.id for d in spec.descriptors)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_spec(uri: str) -> tuple[ModelSpec, str]:
    """What `model.json` of a bundle says, and the model_id it states. Raises ModelError."""
    try:
        values = json.loads(storage.read_bytes(storage.join(uri, "model.json")))
        stated_id = values.pop("model_id")
    except FileNotFoundError as error:
        raise ModelError(f"{uri}: no model.json there; make a model with jobs/train.py") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{uri}: model.json cannot be read: {error}") from error
    try:
        return ModelSpec.from_json(values), stated_id
    except ModelError as error:
        raise ModelError(f"{uri}: {error}") from error


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
