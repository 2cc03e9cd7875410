"""Small real inputs of tests: images, weights, a model, labelled images on disk."""

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

import segrec_batch
from segrec_batch.index.files import DataFile, new_part
from segrec_batch.index.parts import write_file
from segrec_batch.index.schema import failures_schema
from segrec_batch.labels.labelled import Classes, LabelledImage
from segrec_batch.model import pooling
from segrec_batch.model.backbones import DEFAULT_BACKBONE, Tap
from segrec_batch.model.bundle import Model, fingerprint
from segrec_batch.model.network import Backbone
from segrec_batch.model.spec import ModelSpec, Scaling
from segrec_batch.model.torch_engine import Normalise
from segrec_batch.model.weights import Weights, load_weights

Pixels = NDArray[np.uint8]
quick = settings(deadline=None, max_examples=50, derandomize=True)
TAPS = ("conv3_3", "conv4_3", "conv5_3", "conv5_3@3")
ODD_NAMES = [  # of files and objects; the first eight cover most problems
    "a space.jpg", "quo'te\".jpg", "100%41%s.jpg", "st*r.jpg", "[a-z]/wh?t.jpg", "a+b=c&d.jpg",
    "new\nline.jpg", "café 😀.jpg",
    "cafe\u0301.jpg", "tab\t.jpg", "re\rturn.jpg", "\x01.jpg", "a::b.jpg", " .jpg", "#.jpg",
    "~.jpg", "&<>;.jpg", "back\\slash.jpg", "a.jpg.jpg", "$(reboot) `id`.jpg", "-rf.jpg",
    "UPPER.JPEG", "'; DROP TABLE images; --.jpg", "folder.jpg/inside.jpg",
]  # fmt: skip


def smooth_pixels(height: int, width: int, seed: int = 0, cells: int = 5) -> Pixels:
    """Return an RGB image of soft random blobs, uint8 (height, width, 3), without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells + 2, 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(soft, np.uint8)


def smooth_batch(n: int, height: int = 64, width: int = 96, seed: int = 0) -> Pixels:
    """Return several images of `smooth_pixels`, uint8 (n, height, width, 3)."""
    return np.stack([smooth_pixels(height, width, seed * 1000 + i) for i in range(n)])


def noise_pixels(height: int, width: int, seed: int = 0) -> Pixels:
    """Return white noise, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | Pixels, format_: str, **options: Any) -> bytes:
    """Return the bytes of an image file."""
    out = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(out, format_, **options)
    return out.getvalue()


@cache
def random_weights(seed: int = 0) -> Weights:
    """Return backbone weights `random:SEED`."""
    return load_weights(f"random:{seed}")


@cache
def random_backbone(layers: tuple[str, ...], seed: int = 0) -> Backbone:
    """Return the backbone with weights `random:SEED`, float32."""
    return Backbone(random_weights(seed).state, layers)


def random_maps(pixels: Pixels, layers: Iterable[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return float32 feature maps of uint8 (B, H, W, 3) images by `random:SEED` weights."""
    weights = random_weights(seed)
    normalise = Normalise(Scaling(True, weights.mean, weights.std))
    backbone = random_backbone(tuple(dict.fromkeys(layers)), seed)
    with torch.inference_mode():
        maps: dict[str, torch.Tensor] = backbone(normalise(torch.from_numpy(pixels)))
    return maps


@cache
def tiny_model(
    taps: tuple[str, ...] = TAPS,
    components: tuple[int, ...] = (0, 1, 0, 2),
    minmax: bool = True,
) -> Model:
    """Return a model on `random:0` weights whose random head gives every class some cells."""
    weights, parsed = random_weights(), [Tap.parse(t) for t in taps]
    generator = torch.Generator().manual_seed(1)
    maps = random_maps(smooth_batch(4, seed=9), [t.layer for t in parsed])
    head: dict[str, NDArray[Any]] = {}
    bias = torch.zeros(len(components))
    for tap in parsed:
        width = tap.source.channels
        svm = torch.randn(len(components), width, generator=generator) / width**0.5
        svm -= svm.mean(dim=0)
        head[f"svm.{tap}"] = svm.numpy()
        bias -= svm @ maps[tap.layer].mean(dim=(0, 2, 3))  # centred: no SVM always wins
    head["svm.bias"] = bias.numpy()
    head["sign_bits.centre"] = np.zeros(DEFAULT_BACKBONE.feature_length, np.float32)
    head["sign_bits.rotation"] = pooling.random_rotation(DEFAULT_BACKBONE.feature_length).numpy()
    spec = ModelSpec(
        classes=tuple(f"class_{k}" for k in range(1, max(components) + 1)),
        taps=tuple(map(str, parsed)),
        components=components,
        shapes=((64, 96), (96, 64)),
        mean=weights.mean,
        std=weights.std,
        weights=weights.origin,
        weights_fingerprint=weights.fingerprint,
        minmax=minmax,
    )
    return Model(spec, head, weights.arrays)


def uris(index: str, table: str = "images", version: int | None = None) -> list[str]:
    """Return the file names of the images in a table of an index, sorted by URI."""
    rows = segrec_batch.connect(index, version).sql(f"SELECT uri FROM {table} ORDER BY uri")
    return [Path(uri).name for (uri,) in rows.fetchall()]


def write_png(path: Path, values: Image.Image | NDArray[Any]) -> Path:
    """Write a PNG file and make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, "PNG")
    return path


def void_variants(
    images: Sequence[LabelledImage], classes: Classes, folder: Path
) -> tuple[list[list[LabelledImage]], Classes]:
    """Return the images twice, with the left third of each mask void by two different values."""
    variants = []
    for value in (254, 255):
        items = []
        for item in images:
            mask = np.array(Image.open(item.mask))
            mask[:, : mask.shape[1] // 3] = value
            path = write_png(folder / str(value) / Path(item.mask).name, mask)
            items.append(replace(item, mask=str(path)))
        variants.append(items)
    return variants, replace(classes, ignore=(254, 255))


def slow_jpeg(scans: int = 2000) -> bytes:
    """Return a small file that takes seconds to decode: many scans of 16 megapixels."""
    data = encoded(Image.new("RGB", (4000, 4000), "#456"), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * scans + data[-2:]


def png_by_hand(
    width: int, height: int, depth: int = 8, colour: int = 2, raw: bytes = b""
) -> bytes:
    """Return a PNG file that Pillow does not write, for example with a false size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def quality(confusion: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return pixel accuracy, that of the commonest class alone, and the mean foreground IoU.

    confusion: (K, K) pixels.
    """
    hit, either = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    iou = hit / (either - hit)
    total = confusion.sum()
    return hit.sum() / total, confusion.sum(axis=1).max() / total, float(iou[1:].mean())


def tiff_by_hand(
    tags: dict[int, Sequence[int] | str], strips: Sequence[bytes], order: str = "<"
) -> bytes:
    """Return a TIFF file that no library here writes; strips and their offsets are added."""
    tags = {273: [0] * len(strips), 279: [len(strip) for strip in strips], **tags}
    at = 8 + 2 + 12 * len(tags) + 4
    wide = {tag: _packed(value, order) for tag, value in tags.items()}
    body = at + sum(len(value) for value in wide.values() if len(value) > 4)
    starts = [body + sum(map(len, strips[:i])) for i in range(len(strips))]
    if tags[273] != () and not any(tags[273]):
        wide[273] = _packed(starts, order)
    entries, values = b"", b""
    for tag, packed in sorted(wide.items()):
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place, values = struct.pack(f"{order}I", at + len(values)), values + packed
        kind = 2 if isinstance(tags[tag], str) else 4
        entries += struct.pack(f"{order}HHI", tag, kind, len(tags[tag])) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + values + b"".join(strips)


def _packed(value: Sequence[int] | str, order: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return struct.pack(f"{order}{len(value)}I", *value)


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i:03}.png"
        if not path.exists():
            Image.fromarray(smooth_pixels(48, 64, seed=i)).save(path)
    return folder


def failure_file(index: str, name: str) -> DataFile:
    row = {f.name: name if f.type == pa.string() else 0 for f in failures_schema()}
    return write_file(index, new_part(), "failures", pa.Table.from_pylist([row], failures_schema()))


def small_model() -> Model:
    """Return a model of few bytes, whose backbone can be stored but not run."""
    backbone = {
        "0.weight": np.arange(1728, dtype=np.float32).reshape(64, 3, 3, 3),
        "0.bias": np.zeros(64, np.float32),
    }
    spec = ModelSpec(
        classes=("car", "person"), taps=("conv1_1",), components=(0, 1, 2),
        shapes=((64, 96), (96, 64)), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3),
        weights="random:0", weights_fingerprint=fingerprint(backbone), training={"images": 1},
    )  # fmt: skip
    head = {
        "svm.conv1_1": np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 64),
        "svm.bias": np.array([0.1, 0.2, 0.3], np.float32),
        "sign_bits.centre": np.linspace(0, 1, 512, dtype=np.float32),
        "sign_bits.rotation": np.eye(512, dtype=np.float32),
    }
    return Model(spec, head, backbone)
