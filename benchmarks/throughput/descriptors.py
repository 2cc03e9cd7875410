"""Cost of descriptors relative to the forward pass of VGG-16 over the same images.

    OMP_NUM_THREADS=1 python -m benchmarks.throughput.descriptors --model MODEL --images DIR

MODEL is a bundle with descriptors. Images are computed one at a time, in one thread, in float32;
only those of the most common shape count. The forward pass is that of the 13 convolution layers; a
descriptor takes turns with it, image by image, and gets the features of the model as input.

The benchmark prints a Markdown table: values of a vector; median milliseconds per image; median
ratio to the forward pass of the same image; bytes per image in an index on an object store (zstd,
split bytes), and uncompressed.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from segrec_batch import descriptors
from segrec_batch.common import console
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Descriptor, ImageBatch, Parameters
from segrec_batch.images.decode import decode
from segrec_batch.model.bundle import Model, load_model
from segrec_batch.model.torch_engine import TorchSegmenter
from segrec_batch.sources import storage
from segrec_batch.sources.listing import list_images


def read_images(uris: Sequence[str], model: Model) -> list[NDArray[np.uint8]]:
    """Return the images of the most common shape as batches of one."""
    decoded = [decode(storage.read_bytes(uri), model.spec.shapes).pixels for uri in uris]
    ((shape, _),) = Counter(pixels.shape for pixels in decoded).most_common(1)
    return [pixels[None] for pixels in decoded if pixels.shape == shape]


def segment(pixels: NDArray[np.uint8], segmenter: TorchSegmenter) -> ImageBatch:
    """Return an image as input of descriptors."""
    result = segmenter(pixels, [pixels.shape[1:3]])
    return ImageBatch(
        pixels, np.stack(result.masks), result.feature, result.region_features, result.counts
    )


def time_step(step: Callable[[Any], Any], case: Any) -> tuple[float, Any]:
    """Run a step; return its seconds and its result."""
    start = perf_counter()
    result = step(case)
    return perf_counter() - start, result


def measure_size(vectors: NDArray[np.float32], **encoding: Any) -> float:
    """Return bytes per row of a column of vectors in a Parquet file."""
    sink = pa.BufferOutputStream()
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": column}), sink, use_dictionary=False, **encoding)
    chunk = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0).column(0)
    return float(chunk.total_compressed_size) / len(vectors)


def measure_descriptor(
    name: str, describe: Descriptor, images: Sequence[ImageBatch], forward: TorchSegmenter
) -> str:
    """Measure a descriptor and return its row of the table."""
    describe(images[0])  # warm up
    times, vectors = [], []
    for image in console.track(images, name):
        forward_seconds, _ = time_step(forward.maps, image.pixels)
        seconds, described = time_step(describe, image)
        times.append((seconds, seconds / forward_seconds))
        vectors.append(described.vectors[0])
    median_seconds, ratio = np.median(times, axis=0)
    split = {"compression": "zstd", "use_byte_stream_split": ["vector.list.element"]}
    matrix = np.stack(vectors)
    return (
        f"| {name} | {describe.length:,} | {median_seconds * 1e3:.2f} | {ratio:.4f} "
        f"| {measure_size(matrix, **split):,.0f} "
        f"| {measure_size(matrix, compression='none'):,.0f} |"
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=40)
    a = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(a.model)
    if not model.spec.descriptors:
        raise InputError(f"{a.model} has no descriptors")
    segmenter = TorchSegmenter(model)
    uris = list_images(a.images)["uri"].to_pylist()
    pixels = read_images(uris[:: max(1, len(uris) // a.count)], model)
    images = [segment(image, segmenter) for image in pixels]
    forward = [time_step(segmenter.maps, image)[0] for image in pixels]
    height, width = pixels[0].shape[1:3]
    print(f"{len(pixels)} images of {height}×{width}, one thread, float32\n")
    print("| descriptor | values | ms/image | of VGG-16's forward pass | bytes, zstd | bytes |")
    print("|---|---|---|---|---|---|")
    print(f"| VGG-16, forward pass | | {np.median(forward) * 1e3:.2f} | 1 | | |")
    for spec in model.spec.descriptors:
        parameters = Parameters(spec.settings, model.descriptors[spec.name])
        module = descriptors.module(spec.name)
        describe = module.Descriptor(parameters, len(model.spec.all_classes), "cpu")
        print(measure_descriptor(spec.name, describe, images, segmenter))


if __name__ == "__main__":
    main()
