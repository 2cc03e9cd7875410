"""Compare the cost of the backbones with VGG-16 in torch, on one thread of the CPU.

    python -m benchmarks.backbones --report backbones.json

Each backbone runs in float32 up to the layer of its features, with weights drawn at random, in each
engine that runs it. A round does one image with every backbone; of several rounds the least CPU
time counts, which other processes affect little. Prints a Markdown table.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segrec_batch.common import console
from segrec_batch.images.decode import Shape
from segrec_batch.model.backbones import BACKBONES, DEFAULT_BACKBONE
from segrec_batch.model.engines import EngineChoice, FeatureMaps, load_feature_maps, random_arrays

REFERENCE = (DEFAULT_BACKBONE.name, "torch")


def load_networks(names: Sequence[str]) -> dict[tuple[str, str], FeatureMaps]:
    """Return the networks by backbone and engine."""
    networks = {}
    for name in names:
        backbone = BACKBONES[name]
        state = random_arrays(backbone)
        for engine in backbone.engines:
            choice = EngineChoice(engine, "float32")
            networks[name, engine] = load_feature_maps(
                state, (), choice, threads=1, backbone=backbone
            )
    return networks


def measure(
    networks: dict[tuple[str, str], FeatureMaps], shape: Shape, rounds: int
) -> dict[tuple[str, str], float]:
    """Return the least CPU seconds of an image by backbone and engine, after one to warm up."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), np.uint8)
    least = dict.fromkeys(networks, float("inf"))
    for number in range(rounds + 1):
        for key, run in networks.items():
            start = time.process_time()
            run(image)
            if number:
                least[key] = min(least[key], time.process_time() - start)
    return least


def describe(seconds: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    """Return a row for each backbone: CPU seconds by engine, over those of the reference."""
    rows = []
    for name in dict.fromkeys(name for name, _ in seconds):
        backbone = BACKBONES[name]
        row: dict[str, Any] = {
            "backbone": name,
            "stride": backbone.stride,
            "feature length": backbone.feature_length,
        }
        for engine in backbone.engines:
            row[f"{engine}, CPU s"] = seconds[name, engine]
            row[f"{engine}, cost"] = seconds[name, engine] / seconds[REFERENCE]
        rows.append(row)
    return rows


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", type=_shape, default=(256, 320), metavar="WxH", help="default: 320x256")
    add("--rounds", type=console.count, default=3, metavar="N", help="default: 3")
    add("--report", metavar="FILE", help="write all figures as JSON")
    a = parser.parse_args()
    rows = describe(measure(load_networks(list(BACKBONES)), a.shape, a.rounds))
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        values = (row.get(column, "") for column in columns)
        cells = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in values)
        print(f"| {' | '.join(cells)} |")
    if a.report:
        content = {"width": a.shape[1], "height": a.shape[0], "rounds": a.rounds, "rows": rows}
        Path(a.report).write_text(json.dumps(content, indent=2) + "\n")


def _shape(text: str) -> Shape:
    width, _, height = text.partition("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
