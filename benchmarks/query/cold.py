"""Time of a query by a new image in a new process, compared with its unavoidable parts.

    (a) segrec query --image in a new process, files cached: imports, index, model, answer
    (b) python -c pass, plus the 13 convolutions of one image in a warm engine on all cores

Without --index, scenes are drawn and indexed with a model of input size 224 on random filters,
which are as fast as trained ones. All figures are written as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segrec_batch.common import console, logs
from segrec_batch.common.errors import SegrecError
from segrec_batch.common.host import read_processor, usable_cores
from segrec_batch.images.decode import decode
from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.model.backbones import DEFAULT_BACKBONE
from segrec_batch.model.bundle import load_model
from segrec_batch.model.class_maps import normalise
from segrec_batch.model.ncnn_network import NcnnNetwork
from segrec_batch.sources.listing import list_images
from segrec_batch.sources.storage import read_bytes

EXAMPLES = """\
examples:
  python -m benchmarks.query.cold
  python -m benchmarks.query.cold --index indexes/streets --image photo.jpg --repeat 10
"""
BAR = 1.2  # seconds, on two cores with AVX2
SCENES, SIZE = 64, 224


def draw_index(folder: Path) -> tuple[str, str]:
    """Draw scenes, train a model and index; return the index and one of the images."""
    from benchmarks.throughput.case import train_model
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import Execution, index_images
    from segrec_batch.sample_data import write_scenes

    write_scenes(folder / "scenes", SCENES)
    model, index = train_model((folder, SIZE)), str(folder / "index")
    index_images(Request(str(folder / "scenes/images")), model, index, Execution("cpu"))
    return index, list_images(str(folder / "scenes/images"))["uri"][0].as_py()


def measure_process(command: list[str], repeat: int) -> list[float]:
    """Return the seconds of the runs of a command after a first run, which fills the file cache."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise SegrecError(f"{' '.join(command)}: {done.stderr.strip()}")
    return seconds[1:]


def measure_forward(index: str, image: str, repeat: int) -> list[float]:
    """Return the seconds of bare forward passes of one image on all cores."""
    model = load_model(open_snapshot(index).model_uri)
    pixels = decode(read_bytes(image), model.spec.shapes).pixels
    network = NcnnNetwork(model.backbone, [DEFAULT_BACKBONE.feature_layer], threads=usable_cores())
    scaled = normalise(pixels, model.spec.scaling)
    return [_measure_seconds(lambda: network(scaled)) for _ in range(repeat + 2)][2:]


def _measure_seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(a: argparse.Namespace) -> None:
    """Run the benchmark: measure, print a table, write the report."""
    with tempfile.TemporaryDirectory(prefix="segrec-cold-", dir=a.workdir) as name:
        index, image = (a.index, a.image) if a.index else draw_index(Path(name))
        query = [sys.executable, "-m", "segrec_batch.cli.main", "query", "--index", index]
        seconds = {
            "query": measure_process([*query, "--image", image, "-k", "3"], a.repeat),
            "python": measure_process([sys.executable, "-c", "pass"], a.repeat),
            "forward": measure_forward(index, image, a.repeat),
        }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["query"] / (medians["python"] + medians["forward"])
    names = ("segrec query --image", "python -c pass", "bare forward pass")
    rows = [
        [label, f"{statistics.median(s):.3f}", f"{min(s):.3f} to {max(s):.3f}"]
        for label, s in zip(names, seconds.values(), strict=True)
    ]
    rows.append(["query / (python + forward)", f"{ratio:.1f}", ""])
    title = f"{usable_cores()} cores of {read_processor().name}; bar: {BAR} s on AVX2"
    console.show(console.table(title, ["", "median, s", "range"], rows))
    report = {
        **seconds,
        "ratio": ratio,
        "processor": read_processor().name,
        "cores": usable_cores(),
    }
    Path(a.report).write_text(json.dumps(report, indent=2) + os.linesep)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--index", help="an index (default: one of drawn scenes)")
    add("--image", help="with --index: the query image")
    add("--repeat", type=console.count, default=7, metavar="N", help="queries (default: 7)")
    add("--workdir", default=tempfile.gettempdir(), metavar="DIR")
    add("--report", default="cold.json", metavar="FILE", help="default: cold.json")
    parsed = parser.parse_args()
    if bool(parsed.index) != bool(parsed.image):
        parser.error("--index and --image go together")
    return parsed


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: run(arguments)))
