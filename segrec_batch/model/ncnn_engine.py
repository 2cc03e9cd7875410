"""The segmenter in ncnn: float32 on CPUs by Winograd's algorithm, without torch.

Backbone, 1×1 heads, context pooling and resizing of the scores are one ncnn network, built from the
bundle's weights in memory. Results do not depend on what else is in a batch, or on threads: of a
batch each thread takes whole images, which leaves none of them idle in small maps; all threads of a
process share the weights.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import ncnn
import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import EngineError
from segrec_batch.images.decode import Shape
from segrec_batch.model import class_maps
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap
from segrec_batch.model.bundle import Model
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.spec import COMMON_GRID, Scaling

_INPUT, _SCORES = "image", "scores"
_MAGIC = 7767517  # of ncnn's text format
_RAW = bytes(4)  # the tag of float32 weights in ncnn's binary format
_NO_MEMORY = -100  # ncnn's code for an allocation that failed

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """Linear SVMs of M components: `weights[tap]` (M, C) and `bias` (M,)."""

    weights: Mapping[Tap, Floats]
    bias: Floats


class _Graph:
    """Layers of a network in ncnn's text format, and their weights in the order of the layers."""

    def __init__(self) -> None:
        self._layers: list[tuple[str, str, list[str], list[str], str]] = []
        self._weights: list[Floats] = []

    def add(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        parameters: str = "",
        outputs: Sequence[str] | None = None,
    ) -> str:
        """Append a layer; returns the name of its output."""
        self._layers.append((kind, name, list(inputs), list(outputs or [name]), parameters))
        return name

    def convolve(
        self, name: str, source: str, weight: Floats, bias: Floats | None, relu: bool
    ) -> str:
        """Append a convolution of weight (C', C, k, k), padded to keep the size of the map."""
        channels, _, side, _ = weight.shape
        parameters = f"0={channels} 1={side} 4={side // 2} 5={int(bias is not None)}"
        parameters += f" 6={weight.size} 9={int(relu)}"
        self._weights += [weight] if bias is None else [weight, bias]
        return self.add("Convolution", name, [source], parameters)

    def text(self, kept: Iterable[str]) -> str:
        """Return the network in text; of blobs with several readers ncnn wants explicit copies.

        kept: blobs that are taken out of the network.
        """
        readers: dict[str, int] = dict.fromkeys(kept, 1)
        for _, _, inputs, _, _ in self._layers:
            for blob in inputs:
                readers[blob] = readers.get(blob, 0) + 1
        lines, blobs, used = [], 0, dict.fromkeys(readers, 0)
        for kind, name, inputs, outputs, parameters in self._layers:
            read = []
            for blob in inputs:
                read.append(_copy(blob, used[blob]) if readers[blob] > 1 else blob)
                used[blob] += 1
            lines.append(_line(kind, name, read, outputs, parameters))
            blobs += len(outputs)
            for blob in outputs:
                if readers.get(blob, 0) > 1:
                    copies = [_copy(blob, i) for i in range(readers[blob])]
                    lines.append(_line("Split", f"split_{blob}", [blob], copies, ""))
                    blobs += len(copies)
        return "\n".join([str(_MAGIC), f"{len(lines)} {blobs}", *lines]) + "\n"

    def output_name(self, blob: str) -> str:
        """Return the name under which a blob is taken out: its last copy, if it has readers."""
        readers = sum(inputs.count(blob) for _, _, inputs, _, _ in self._layers)
        return _copy(blob, readers) if readers else blob

    def write_weights(self, file: BinaryIO) -> None:
        """Write all weights in ncnn's binary format; biases have no tag."""
        for array in self._weights:
            if array.ndim > 1:
                file.write(_RAW)
            file.write(np.ascontiguousarray(array, np.float32).data)


def _line(
    kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], parameters: str
) -> str:
    blobs = " ".join([*inputs, *outputs])
    return f"{kind} {name} {len(inputs)} {len(outputs)} {blobs} {parameters}".rstrip()


def _copy(blob: str, number: int) -> str:
    return f"{blob}_{number}"


class NcnnNetwork:
    """A backbone up to the deepest of `layers`, and a head, as one ncnn network.

    state: weights of the backbone by name, float32. layers: whose maps are returned.
    threads: that compute one image together. Images may be given to it by several threads at a
    time. few: whether it is for a few images only, so that it pays to transform weights less, by
    Winograd's F(2×2) in place of F(4×4). Raises EngineError if ncnn cannot build it.
    """

    def __init__(
        self,
        state: Mapping[str, Floats],
        layers: Sequence[str],
        head: Head | None = None,
        threads: int = 1,
        few: bool = False,
        backbone: BackboneSpec = DEFAULT_BACKBONE,
    ) -> None:
        if backbone.add_to_graph is None:
            raise EngineError(f"{backbone.title} does not run in ncnn; say --engine torch")
        graph = _Graph()
        graph.add("Input", _INPUT, [])
        kept = list(layers)
        used = kept + ([tap.layer for tap in head.weights] if head else [])
        last = max(backbone.layers[name].position for name in used)
        backbone.add_to_graph(graph, _INPUT, state, last)
        if head:
            _add_head(graph, head)
            kept.append(_SCORES)
        self._outputs = {name: graph.output_name(name) for name in kept}
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads  # its Winograd layers keep what it is when they load
        self._net.opt.use_winograd43_convolution = not few
        self._net.opt.use_vulkan_compute = False
        # ncnn would compute in half precision where a processor has it
        for option in (
            "fp16_packed",
            "fp16_storage",
            "fp16_arithmetic",
            "bf16_packed",
            "bf16_storage",
        ):
            setattr(self._net.opt, f"use_{option}", False)
        self._load(graph, kept)

    def _load(self, graph: _Graph, kept: Sequence[str]) -> None:
        memory = os.memfd_create("segrec-weights")  # ncnn's binding reads weights from paths alone
        try:
            with os.fdopen(memory, "wb", closefd=False) as file:
                graph.write_weights(file)
            failed = self._net.load_param_mem(graph.text(kept)) or self._net.load_model(
                f"/proc/self/fd/{memory}"
            )
        finally:
            os.close(memory)
        if failed:
            raise EngineError(f"ncnn cannot build the network (code {failed}); say --engine torch")

    def __call__(self, image: Floats) -> dict[str, Floats]:
        """Normalised image (3, H, W) → maps (C, h, w) by layer, and `scores` (M, h, w) of the head.

        Raises RuntimeError.
        """
        run = self._net.create_extractor()
        run.input(_INPUT, ncnn.Mat(image))
        found = {}
        for name, blob in self._outputs.items():
            code, mat = run.extract(blob)
            if code:
                why = "out of memory" if code == _NO_MEMORY else f"failed with code {code}"
                raise RuntimeError(f"ncnn: {name}: {why}")
            found[name] = np.array(mat)
        return found


def _add_head(graph: _Graph, head: Head) -> None:
    """Scores of each tap at its own stride, resized to the finest and added (see `head`)."""
    strides = {tap.layer: tap.source.stride for tap in head.weights}
    layers = sorted(strides, key=lambda name: strides[name])
    parts: list[str] = []
    for layer in layers:
        bias = None if parts else head.bias
        weights = {tap: w for tap, w in head.weights.items() if tap.layer == layer}
        for part in _add_layer_head(graph, layer, weights, bias):
            if strides[layer] > strides[layers[0]]:
                # bilinear (0=2), to the size of a second blob (5=1)
                graph.add("Interp", f"{part}_resized", [part, parts[0]], "0=2 5=1")
                parts.append(f"{part}_resized")
            else:
                parts.append(part)
    graph.add("Eltwise", _SCORES, parts, "0=1") if len(parts) > 1 else graph.add(
        "Noop", _SCORES, parts
    )


def _add_layer_head(
    graph: _Graph, layer: str, weights: Mapping[Tap, Floats], bias: Floats | None
) -> list[str]:
    """Append one convolution for all taps of a layer, so that its map is read once.

    Returns the scores (M, h, w) of each tap; `bias` (M,) is added to those of the first.
    """
    taps = list(weights)
    members = len(weights[taps[0]])
    weight = np.concatenate([weights[tap] for tap in taps])[:, :, None, None]
    if bias is not None:
        bias = np.concatenate([bias, np.zeros(len(weight) - members, np.float32)])
    whole = graph.convolve(f"head_{layer}", layer, weight, bias, relu=False)
    names = [f"{whole}_{tap.window}" for tap in taps]
    if len(taps) > 1:
        sizes = ",".join([str(members)] * len(taps))
        graph.add("Slice", f"slice_{layer}", [whole], f"-23300={len(taps)},{sizes}", names)
    else:
        names = [whole]
    return [
        _add_pooling(graph, name, tap.window) if tap.window > 1 else name
        for name, tap in zip(names, taps, strict=True)
    ]


def _add_pooling(graph: _Graph, blob: str, window: int) -> str:
    """Means over windows (0=1), of the cells inside the map alone (6=0)."""
    return graph.add(
        "Pooling", f"{blob}_pooled", [blob], f"0=1 1={window} 2=1 3={window // 2} 5=0 6=0"
    )


class NcnnFeatureMaps:
    """Scaling and backbone: uint8 (B, H, W, 3) of one shape → {layer: (B, C, h, w)}."""

    def __init__(
        self,
        state: Mapping[str, Floats],
        layers: Sequence[str],
        scaling: Scaling,
        threads: "Threads",
        backbone: BackboneSpec = DEFAULT_BACKBONE,
    ) -> None:
        self._network = NcnnNetwork(state, layers, threads=threads.each, backbone=backbone)
        self._scaling = scaling
        self._threads = threads

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """See the class."""
        found = self._threads.map(self._maps, list(pixels))
        return {name: np.stack([maps[name] for maps in found]) for name in found[0]}

    def _maps(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        return self._network(class_maps.normalise(pixels, self._scaling))


T = TypeVar("T")


class Threads:
    """Threads for images: `each` compute an image together, and `images` are computed at a time.

    Batches that are given to it at the same time share them, so that none idles at a batch's end.
    """

    def __init__(self, each: int = 1, images: int = 1) -> None:
        self.each = each
        self._pool = ThreadPoolExecutor(images, "ncnn")

    def map(self, work: Callable[..., T], *batch: Sequence[Any]) -> list[T]:
        """Return what `work` makes of the items of some sequences."""
        return list(self._pool.map(work, *batch))


@dataclass(frozen=True)
class _FinishedWork:
    """A `PendingSegmentation` that is complete."""

    found: Segmentation

    def result(self) -> Segmentation:
        """Return what was found."""
        return self.found


class NcnnSegmenter:
    """A model in ncnn; see `segmentation.Segmenter`. few: see `NcnnNetwork`."""

    device = "cpu"

    def __init__(self, model: Model, threads: Threads, few: bool = False) -> None:
        self.model = model
        head = Head(model.svm_weights, model.svm_bias)
        backbone = model.spec.backbone_spec
        self._feature_layer = backbone.feature_layer
        self._network = NcnnNetwork(
            model.backbone, [self._feature_layer], head, threads.each, few, backbone
        )
        self._threads = threads
        components = np.array(model.spec.components)
        self._members = [np.flatnonzero(components == k) for k in range(components.max() + 1)]

    def __call__(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment and describe images, see `segmentation.Segmenter`."""
        found = self._threads.map(self._segment, list(pixels), masks or [None] * len(pixels))
        columns: dict[str, Any] = {
            key: np.stack([one[key] for one in found]) for key in found[0] if key != "mask"
        }
        return Segmentation(**columns, masks=[one["mask"] for one in found] if masks else [])

    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> _FinishedWork:
        """See `segmentation.Segmenter`; a CPU has done all when this returns."""
        return _FinishedWork(self(pixels, masks))

    def score(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the feature map (C, h, w) and class scores (K, h', w') of a uint8 image.

        A class scores as its best component, on the grid of the finest tap.
        """
        maps = self._network(class_maps.normalise(pixels, self.model.spec.scaling))
        best = [maps[_SCORES][members].max(axis=0) for members in self._members]
        return maps[self._feature_layer], np.stack(best)

    def _segment(self, pixels: NDArray[np.uint8], size: Shape | None) -> dict[str, Any]:
        deepest, scores = self.score(pixels)
        labels = class_maps.class_map(scores, deepest.shape[1:])
        counts, means = class_maps.class_means(deepest, labels, len(scores))
        feature = deepest.mean(axis=(1, 2))
        found = {
            "labels": labels,
            "common": class_maps.class_map(scores, (COMMON_GRID, COMMON_GRID)),
            "counts": counts,
            "feature": feature,
            "region_features": means,
            "sign_bits": class_maps.sign_bits(
                feature, self.model.sign_centre, self.model.sign_rotation
            ),
        }
        return found if size is None else {**found, "mask": class_maps.class_map(scores, size)}
