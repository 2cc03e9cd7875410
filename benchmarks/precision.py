"""What bf16 arithmetic changes: the same model and pictures in bfloat16 and in float32.

    python benchmarks/precision.py --model MODEL --images DIR [--count 40] [--device cuda]

Prints the share of grid cells with the same class, the largest difference of a coverage σ, and the
smallest Pearson correlation between the two feature vectors of a picture.
"""

import argparse
from dataclasses import replace

import numpy as np
from segrec_batch.model.segmenter import Segmenter

from segrec_batch import console, storage
from segrec_batch.decode import decode
from segrec_batch.listing import list_pictures
from segrec_batch.model.bundle import load_model


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="of the bfloat16 model (default: cpu)")
    a = parser.parse_args()
    model = load_model(a.model)
    exact, fast = (
        Segmenter(replace(model, spec=replace(model.spec, dtype=dtype)), device)
        for dtype, device in (("float32", "cpu"), ("bfloat16", a.device))
    )
    uris = list_pictures(a.images)["uri"].to_pylist()
    same, cells, shift, pearson = 0, 0, 0.0, 1.0
    for uri in console.track(uris[:: max(1, len(uris) // a.count)], "pictures"):
        pixels = decode(storage.read_bytes(uri), model.spec.shapes).pixels[None]
        one, two = exact(pixels), fast(pixels)
        same += int((one.labels == two.labels).sum())
        cells += one.labels.size
        shift = max(shift, float(np.abs(one.counts - two.counts).max()) / one.labels.size)
        pearson = min(pearson, float(np.corrcoef(one.feature[0], two.feature[0])[0, 1]))
    print(
        f"cells with the same class: {same / cells:.2%} of {cells:,}; "
        f"largest difference of a coverage: {shift:.4f}; "
        f"smallest Pearson correlation of features: {pearson:.6f}"
    )


if __name__ == "__main__":
    main()
