"""Differences of the engines from torch in float32, on one model and the same images.

    python -m benchmarks.engines.precision --model MODEL --images DIR [--count 40] [--device cuda]

For each engine and precision it prints the share of grid cells with the same class, the largest
difference of a coverage σ, the smallest Pearson correlation of two features, the largest relative
error of a feature, and whether all are within the tolerances of docs/segmentation.md. The exit code
is 1 if one is not.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.common.host import read_processor
from segrec_batch.images.decode import Shape, decode
from segrec_batch.model.bundle import load_model
from segrec_batch.model.engine_choice import list_candidates
from segrec_batch.model.engines import EngineChoice, load_segmenter
from segrec_batch.model.segmentation import Segmentation, Segmenter
from segrec_batch.sources import storage
from segrec_batch.sources.listing import list_images

REFERENCE = EngineChoice("torch", "float32")
MIN_SAME, MAX_SHIFT, MIN_PEARSON = 0.999, 0.002, 0.9999


@dataclass
class Differences:
    """Differences of one engine from the reference, over images."""

    same: int = 0
    cells: int = 0
    shifts: list[float] = field(default_factory=list)
    pearsons: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, reference: Segmentation, other: Segmentation) -> None:
        """Add one image."""
        cells = reference.labels.size
        self.same += int((reference.labels == other.labels).sum())
        self.cells += cells
        self.shifts.append(float(np.abs(reference.counts - other.counts).max()) / cells)
        a, b = reference.feature[0], other.feature[0]
        self.pearsons.append(float(np.corrcoef(a, b)[0, 1]))
        self.errors.append(float(np.abs(a - b).max() / np.abs(a).max()))

    @property
    def is_within_tolerance(self) -> bool:
        """True if one index may have rows of this engine and of the reference."""
        share = self.same / self.cells
        return (
            share >= MIN_SAME
            and max(self.shifts) <= MAX_SHIFT
            and min(self.pearsons) >= MIN_PEARSON
        )

    def row(self, name: str) -> list[str]:
        """Return the figures as a row of the table."""
        return [
            name,
            f"{self.same / self.cells:.3%} of {self.cells:,}",
            f"{max(self.shifts):.4f}",
            f"1 − {1 - min(self.pearsons):.1e}",
            f"{max(self.errors):.1e}",
            "yes" if self.is_within_tolerance else "no",
        ]


def read_images(uris: list[str], shapes: Sequence[Shape]) -> Iterator[NDArray[np.uint8]]:
    """Yield images as the model sees them, (1, H, W, 3), with a progress bar."""
    for uri in console.track(uris, "images"):
        yield decode(storage.read_bytes(uri), shapes).pixels[None]


def list_choices(device: str, emulated: bool) -> list[EngineChoice]:
    """Return the engines and precisions to compare with the reference."""
    if device != "cpu":
        return [EngineChoice("torch", p, device) for p in ("float32", "bfloat16")]
    choices = [EngineChoice(e, p) for e, p in list_candidates(read_processor())]
    if emulated:
        choices.append(EngineChoice("torch", "bfloat16"))
    return [choice for choice in dict.fromkeys(choices) if choice != REFERENCE]


def compare(a: argparse.Namespace) -> None:
    """Run the comparison. Raises SegrecError if a tolerance is broken."""
    model = load_model(a.model)
    reference = load_segmenter(model, REFERENCE)
    others: dict[str, Segmenter] = {
        str(c): load_segmenter(model, c) for c in list_choices(a.device, a.emulated)
    }
    differences = {name: Differences() for name in others}
    uris = list_images(a.images)["uri"].to_pylist()
    for pixels in read_images(uris[:: max(1, len(uris) // a.count)], model.spec.shapes):
        expected = reference(pixels)
        for name, segmenter in others.items():
            differences[name].add(expected, segmenter(pixels))
    header = ["engine", "cells of the same class", "largest difference of σ", "smallest Pearson"]
    header += ["feature, largest error", "within tolerance"]
    title = f"against {REFERENCE}; weights: {model.spec.weights}"
    console.show(console.table(title, header, [d.row(name) for name, d in differences.items()]))
    if broken := [name for name, d in differences.items() if not d.is_within_tolerance]:
        raise SegrecError(f"out of tolerance: {'; '.join(broken)}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=console.count, default=40)
    parser.add_argument(
        "--device", default="cpu", help="device of the compared engines (default: cpu)"
    )
    parser.add_argument("--emulated", action="store_true", help="bfloat16 also where it is slow")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: compare(arguments)))
