"""VGG-16's 13 convolutions in each engine, built from weights in memory.

Each builder takes a state dict of `features` as arrays and a number of threads, and returns a
network: a normalised image (3, H, W) float32 → its maps (C, h, w) float32 by tap.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.model.backbones.vgg import VGG16_LAYERS as LAYERS

Floats = NDArray[np.float32]
State = Mapping[str, Floats]
Network = Callable[[Floats], Mapping[str, Floats]]

TAPS = ("conv3_3", "conv4_3", "conv5_3")


def build_torch_float32(state: State, threads: int) -> Network:
    """Build the backbone of this package in float32, channels-last."""
    return _build_torch(state, threads, "float32")


def build_torch_bfloat16(state: State, threads: int) -> Network:
    """Build the backbone of this package in bfloat16, channels-last."""
    return _build_torch(state, threads, "bfloat16")


def _build_torch(state: State, threads: int, precision: str) -> Network:
    import torch

    from segrec_batch.model.engines import keep_memory
    from segrec_batch.model.network import Backbone
    from segrec_batch.model.torch_engine import as_tensors

    keep_memory()  # as the indexing job does
    torch.set_num_threads(threads)
    dtype = getattr(torch, precision)
    backbone = Backbone(as_tensors(state), TAPS).to(dtype)

    @torch.inference_mode()
    def run(image: Floats) -> Mapping[str, Floats]:
        maps = backbone(torch.from_numpy(image)[None].to(dtype))
        return {name: x[0].float().numpy() for name, x in maps.items()}

    return run


def build_ncnn(state: State, threads: int) -> Network:
    """Build the network of this package in ncnn, float32."""
    from segrec_batch.model.ncnn_network import NcnnNetwork

    return NcnnNetwork(state, TAPS, threads=threads)


def build_mnn(state: State, threads: int) -> Network:
    """Build the network in MNN by its converter from ONNX.

    MNN's own expressions give convolutions whose weights are inputs, for which it has no Winograd
    algorithm. This calls the converter's extension module, because importing its Python wrapper,
    `MNN.tools`, installs a package and sends a log.
    """
    import _tools
    import MNN.expr as expr
    import MNN.nn

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "vgg.onnx"), Path(folder, "vgg.mnn")
        source.write_bytes(_describe_in_onnx(state))
        options = {"-f": "ONNX", "--modelFile": source, "--MNNModel": target, "--bizCode": "vgg"}
        _tools.mnnconvert(["mnnconvert", *(str(x) for pair in options.items() for x in pair)])
        config = {"backend": "CPU", "numThread": threads, "precision": "high", "memory": "normal"}
        manager = MNN.nn.create_runtime_manager((config,))
        net = MNN.nn.load_module_from_file(
            str(target), ["image"], list(TAPS), runtime_manager=manager
        )

    def run(image: Floats) -> Mapping[str, Floats]:
        outputs = net.forward([expr.const(image, [1, *image.shape], expr.NCHW)])
        maps = (expr.convert(x, expr.NCHW).read()[0] for x in outputs)
        return dict(zip(TAPS, map(np.array, maps), strict=True))

    return run


def _describe_in_onnx(state: State) -> bytes:
    """Return the network as an ONNX model: protobuf messages, whose field numbers are ONNX's."""
    graph, blob, stride = _field(2, "vgg"), "image", 1
    for name, layer in LAYERS.items():
        if layer.stride > stride:
            pool, stride = f"pool{layer.stride}", layer.stride
            graph += _node("MaxPool", [blob], pool, kernel_shape=(2, 2), strides=(2, 2))
            blob = pool
        graph += _tensor(f"{name}.weight", state[layer.weight])
        graph += _tensor(f"{name}.bias", state[layer.bias])
        inputs = [blob, f"{name}.weight", f"{name}.bias"]
        graph += _node("Conv", inputs, f"{name}.sum", kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        graph += _node("Relu", [f"{name}.sum"], name)
        blob = name
    graph += _value(11, "image", 3)
    for tap in TAPS:
        graph += _value(12, tap, LAYERS[tap].channels)
    version, opset = 8, _field(1, "") + _field(2, 13)
    return _field(1, version) + _field(7, graph) + _field(8, opset)


def _field(number: int, content: int | str | bytes) -> bytes:
    """Return a field of a protobuf message: a whole number, or bytes with their length."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _node(kind: str, inputs: list[str], output: str, **attributes: tuple[int, ...]) -> bytes:
    node = b"".join(_field(1, name) for name in inputs)
    node += _field(2, output) + _field(3, output) + _field(4, kind)
    for name, values in attributes.items():
        numbers = b"".join(_field(8, value) for value in values)
        node += _field(5, _field(1, name) + numbers + _field(20, 7))  # 7: whole numbers
    return _field(1, node)


def _tensor(name: str, array: Floats) -> bytes:
    shape = b"".join(_field(1, size) for size in array.shape)
    return _field(5, shape + _field(2, 1) + _field(8, name) + _field(9, array.tobytes()))


def _value(number: int, name: str, channels: int) -> bytes:
    """Describe an input or output (1, channels, height, width) of floats."""
    sizes = [_field(2, "n"), _field(1, channels), _field(2, "height"), _field(2, "width")]
    shape = b"".join(_field(1, size) for size in sizes)
    kind: Any = _field(1, _field(1, 1) + _field(2, shape))
    return _field(number, _field(1, name) + _field(2, kind))


BUILDERS: Mapping[str, Callable[[State, int], Network]] = {
    "torch-float32": build_torch_float32,
    "torch-bfloat16": build_torch_bfloat16,
    "ncnn": build_ncnn,
    "mnn": build_mnn,
}
