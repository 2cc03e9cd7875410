"""Cost of descriptors beside VGG-16's forward pass over the same images.

    OMP_NUM_THREADS=1 python -m benchmarks.throughput.descriptors --model MODEL --images DIR

MODEL is a bundle that has descriptors. An image at a time, in one thread, in float32; images are
those of the commonest shape. The forward pass is that of the 13 convolution layers; a descriptor
takes turns with it, image by image. The features that the model finds anyway are given.

Prints a Markdown table: values of a vector; the median of milliseconds per image; the median of
the ratios to the forward pass of the same image; bytes per image of an index on an object store
(zstd, split bytes), and uncompressed.
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


def read(uris: Sequence[str], model: Model) -> list[NDArray[np.uint8]]:
    """Images of the commonest shape as batches of one."""
    decoded = [decode(storage.read_bytes(uri), model.spec.shapes).pixels for uri in uris]
    ((shape, _),) = Counter(pixels.shape for pixels in decoded).most_common(1)
    return [pixels[None] for pixels in decoded if pixels.shape == shape]


def seen(pixels: NDArray[np.uint8], segmenter: TorchSegmenter) -> ImageBatch:
    """Return an image as descriptors take it."""
    found = segmenter(pixels, [pixels.shape[1:3]])
    return ImageBatch(
        pixels, np.stack(found.masks), found.feature, found.region_features, found.counts
    )


def timed(step: Callable[[Any], Any], case: Any) -> tuple[float, Any]:
    """Seconds of a step, and what it returned."""
    start = perf_counter()
    result = step(case)
    return perf_counter() - start, result


def stored(vectors: NDArray[np.float32], **encoding: Any) -> float:
    """Bytes per row of a column of vectors in a Parquet file."""
    sink = pa.BufferOutputStream()
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": column}), sink, use_dictionary=False, **encoding)
    chunk = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0).column(0)
    return float(chunk.total_compressed_size) / len(vectors)


def row(
    name: str, describe: Descriptor, images: Sequence[ImageBatch], forward: TorchSegmenter
) -> str:
    """Return a row of the table."""
    describe(images[0])  # for what is done once
    times, vectors = [], []
    for image in console.track(images, name):
        peer, _ = timed(forward.maps, image.pixels)
        own, described = timed(describe, image)
        times.append((own, own / peer))
        vectors.append(described.vectors[0])
    seconds, ratio = np.median(times, axis=0)
    split = {"compression": "zstd", "use_byte_stream_split": ["vector.list.element"]}
    found = np.stack(vectors)
    return (
        f"| {name} | {describe.length:,} | {seconds * 1e3:.2f} | {ratio:.4f} "
        f"| {stored(found, **split):,.0f} | {stored(found, compression='none'):,.0f} |"
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
    pixels = read(uris[:: max(1, len(uris) // a.count)], model)
    images = [seen(one, segmenter) for one in pixels]
    forward = [timed(segmenter.maps, one)[0] for one in pixels]
    height, width = pixels[0].shape[1:3]
    print(f"{len(pixels)} images of {height}×{width}, one thread, float32\n")
    print("| descriptor | values | ms/image | of VGG-16's forward pass | bytes, zstd | bytes |")
    print("|---|---|---|---|---|---|")
    print(f"| VGG-16, forward pass | | {np.median(forward) * 1e3:.2f} | 1 | | |")
    for spec in model.spec.descriptors:
        parameters = Parameters(spec.settings, model.descriptors[spec.name])
        module = descriptors.module(spec.name)
        describe = module.Descriptor(parameters, len(model.spec.all_classes), "cpu")
        print(row(spec.name, describe, images, segmenter))


if __name__ == "__main__":
    main()
