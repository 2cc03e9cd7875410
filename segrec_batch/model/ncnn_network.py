"""A backbone and a segmentation head as one ncnn network, built from weights in memory.

ncnn computes float32 on CPUs by Winograd's algorithm, without torch.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import ncnn
import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import EngineError
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec, Tap

SCORES = "scores"
"""Name of the head's output."""

_INPUT = "image"
_MAGIC = 7767517  # of ncnn's text format
_FLOAT32_TAG = bytes(4)  # tag of float32 weights in ncnn's binary format
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
        """Append a layer; return the name of its output."""
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

    def to_text(self, network_outputs: Iterable[str]) -> str:
        """Return the network as text, with explicit copies of blobs that have several readers.

        network_outputs: names of the blobs that the network returns.
        """
        readers: dict[str, int] = dict.fromkeys(network_outputs, 1)
        for _, _, inputs, _, _ in self._layers:
            for blob in inputs:
                readers[blob] = readers.get(blob, 0) + 1
        lines, blobs, used = [], 0, dict.fromkeys(readers, 0)
        for kind, name, inputs, outputs, parameters in self._layers:
            copies_read = []
            for blob in inputs:
                copies_read.append(_name_copy(blob, used[blob]) if readers[blob] > 1 else blob)
                used[blob] += 1
            lines.append(_format_line(kind, name, copies_read, outputs, parameters))
            blobs += len(outputs)
            for blob in outputs:
                if readers.get(blob, 0) > 1:
                    copies = [_name_copy(blob, i) for i in range(readers[blob])]
                    lines.append(_format_line("Split", f"split_{blob}", [blob], copies, ""))
                    blobs += len(copies)
        return "\n".join([str(_MAGIC), f"{len(lines)} {blobs}", *lines]) + "\n"

    def output_name(self, blob: str) -> str:
        """Return the name of a blob as an output: its last copy, if it has readers."""
        readers = sum(inputs.count(blob) for _, _, inputs, _, _ in self._layers)
        return _name_copy(blob, readers) if readers else blob

    def write_weights(self, file: BinaryIO) -> None:
        """Write all weights in ncnn's binary format; biases have no tag."""
        for array in self._weights:
            if array.ndim > 1:
                file.write(_FLOAT32_TAG)
            file.write(np.ascontiguousarray(array, np.float32).data)


def _format_line(
    kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], parameters: str
) -> str:
    blobs = " ".join([*inputs, *outputs])
    return f"{kind} {name} {len(inputs)} {len(outputs)} {blobs} {parameters}".rstrip()


def _name_copy(blob: str, number: int) -> str:
    return f"{blob}_{number}"


class NcnnNetwork:
    """A backbone up to the deepest of `layers`, and a head, as one ncnn network.

    Several threads may call it at the same time.

    Args:
        state: Weights of the backbone by name, float32.
        layers: Layers whose maps are outputs.
        head: The head, whose scores are an output.
        threads: Threads that compute one image.
        few: True for a few images: Winograd's F(2×2) in place of F(4×4), whose weights take less
            time to transform.
        backbone: The network.

    Raises:
        EngineError: ncnn cannot build the network.
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
        outputs = list(layers)
        used = outputs + ([tap.layer for tap in head.weights] if head else [])
        backbone.add_to_graph(graph, _INPUT, state, used)
        if head:
            _add_head(graph, head)
            outputs.append(SCORES)
        self._outputs = {name: graph.output_name(name) for name in outputs}
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads  # before loading: Winograd layers read it then
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
        self._load(graph, outputs)

    def _load(self, graph: _Graph, outputs: Sequence[str]) -> None:
        memory = os.memfd_create("segrec-weights")  # ncnn's binding reads weights only from paths
        try:
            with os.fdopen(memory, "wb", closefd=False) as file:
                graph.write_weights(file)
            failed = self._net.load_param_mem(graph.to_text(outputs)) or self._net.load_model(
                f"/proc/self/fd/{memory}"
            )
        finally:
            os.close(memory)
        if failed:
            raise EngineError(f"ncnn cannot build the network (code {failed}); say --engine torch")

    def __call__(self, image: Floats) -> dict[str, Floats]:
        """Return maps (C, h, w) by layer and scores (M, h, w) of a normalised image (3, H, W).

        Raises RuntimeError, also for too little memory.
        """
        run = self._net.create_extractor()
        run.input(_INPUT, ncnn.Mat(image))
        outputs = {}
        for name, blob in self._outputs.items():
            code, mat = run.extract(blob)
            if code:
                reason = "out of memory" if code == _NO_MEMORY else f"failed with code {code}"
                raise RuntimeError(f"ncnn: {name}: {reason}")
            outputs[name] = np.array(mat)
        return outputs


def _add_head(graph: _Graph, head: Head) -> None:
    """Append scores of each tap at its own stride, resized to the finest stride and added."""
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
    if len(parts) > 1:
        graph.add("Eltwise", SCORES, parts, "0=1")
    else:
        graph.add("Noop", SCORES, parts)


def _add_layer_head(
    graph: _Graph, layer: str, weights: Mapping[Tap, Floats], bias: Floats | None
) -> list[str]:
    """Append one convolution for all taps of a layer, which reads the layer's map once.

    Returns the blobs of each tap's scores (M, h, w); the first tap's include `bias` (M,).
    """
    taps = list(weights)
    members = len(weights[taps[0]])
    weight = np.concatenate([weights[tap] for tap in taps])[:, :, None, None]
    if bias is not None:
        bias = np.concatenate([bias, np.zeros(len(weight) - members, np.float32)])
    joined = graph.convolve(f"head_{layer}", layer, weight, bias, relu=False)
    names = [f"{joined}_{tap.window}" for tap in taps]
    if len(taps) > 1:
        sizes = ",".join([str(members)] * len(taps))
        graph.add("Slice", f"slice_{layer}", [joined], f"-23300={len(taps)},{sizes}", names)
    else:
        names = [joined]
    return [
        _add_pooling(graph, name, tap.window) if tap.window > 1 else name
        for name, tap in zip(names, taps, strict=True)
    ]


def _add_pooling(graph: _Graph, blob: str, window: int) -> str:
    """Append means over windows (0=1) of the cells inside the map (6=0)."""
    return graph.add(
        "Pooling", f"{blob}_pooled", [blob], f"0=1 1={window} 2=1 3={window // 2} 5=0 6=0"
    )
