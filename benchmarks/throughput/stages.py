"""Measurement of each stage of segrec alone: images/s, CPU seconds and bytes per image."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.throughput.case import Case
from benchmarks.throughput.segrec import load_stage
from segrec_batch.images import sandbox
from segrec_batch.images.decode import decode
from segrec_batch.index.column_values import encode_mask, image_id
from segrec_batch.index.parts import write_part
from segrec_batch.model.segmented_image import from_arrow
from segrec_batch.model.spec import read_spec
from segrec_batch.pipeline.rows import make_image_rows
from segrec_batch.pipeline.stages import decode_batch, describe_batch, write_batch
from segrec_batch.sources.storage import read_many

ROUNDS = 3  # the best counts
Row = dict[str, Any]


class StageMeasurements:
    """Images of a case, and the measurements of the stages by name."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.count = case.count
        self.spec, self.model_id = read_spec(case.model)
        self.measured: dict[str, dict[str, float]] = {}

    def measure(self, name: str, work: Callable[[], Any], rounds: int = ROUNDS) -> Any:
        """Run `work` several times, record its best times, and return its result."""
        seconds, cpu = [], []
        for _ in range(rounds):
            clock, spent = time.perf_counter(), _cpu_seconds()
            result = work()
            seconds.append(time.perf_counter() - clock)
            cpu.append(_cpu_seconds() - spent)
        figures = {"images/s": self.count / min(seconds), "cpu": min(cpu) / self.count}
        if isinstance(result, pa.Table):
            figures["bytes"] = result.nbytes / self.count
        self.measured[name] = figures
        return result


def measure_stages(case: Case) -> dict[str, dict[str, float]]:
    """Measure all stages in the order of the job."""
    stages = StageMeasurements(case)
    decoded = _measure_reading(stages)
    segmented = _measure_model(stages, decoded)
    _measure_writing(stages, segmented)
    return stages.measured


def measure_commit(case: Case) -> dict[str, float]:
    """Commit one part to a new index: the logs of four Delta tables."""
    from segrec_batch.index import snapshot as store
    from segrec_batch.index.files import DataFile
    from segrec_batch.model.bundle import load_model

    bundle = load_model(case.model)
    base = store.create(case.output, bundle)
    stages = StageMeasurements(case)
    receipts = _write(stages, load_stage(case)(_decode(stages)), case.output)
    names = ("table", "path", "size", "rows", "partition", "stats")
    files = [DataFile(**{n: row[n] for n in names}) for row in receipts.to_pylist()]
    clock = time.perf_counter()
    store.commit(base, files)
    return {"seconds": time.perf_counter() - clock}


def _measure_reading(stages: StageMeasurements) -> pa.Table:
    """Measure reading, decoding in this process and in the sandbox, and the stage with both."""
    paths, shapes = stages.case.paths(), stages.spec.shapes
    contents = stages.measure("read", lambda: read_many(paths))
    box = sandbox.shared()
    box.decode(contents[0], shapes)  # starts the sandbox
    stages.measure("decode, bare Pillow", lambda: [decode(c, shapes) for c in contents])
    stages.measure("decode, in the sandbox", lambda: [box.decode(c, shapes) for c in contents])
    return stages.measure("read + decode, to Arrow", lambda: _decode(stages))


def _decode(stages: StageMeasurements) -> pa.Table:
    spec = stages.spec
    return pa.concat_tables([decode_batch(b, spec.shapes) for b in stages.case.blocks()])


def _measure_model(stages: StageMeasurements, decoded: pa.Table) -> pa.Table:
    """Measure the model alone and from Arrow to Arrow, then the descriptors on the host."""
    device, size = stages.case.device, stages.case.batch_size
    stage = load_stage(stages.case)
    batches = [decoded.slice(i, size) for i in range(0, decoded.num_rows, size)]
    pixels = [_pixels(batch) for batch in batches]
    stage.segmenter(pixels[0])  # warm
    rounds = ROUNDS if device == "cuda" else 1
    bare = "model, forward and head"
    stages.measure(bare, lambda: [stage.segmenter(p) for p in pixels], rounds)
    segmented = stages.measure(
        "model, Arrow to Arrow", lambda: pa.concat_tables([stage(b) for b in batches]), rounds
    )
    if not stages.spec.descriptors:
        return segmented
    model, spec = stages.case.model, stages.spec
    describe_batch(segmented.slice(0, 1), model, spec)  # loads the descriptors
    return stages.measure(
        "describe, off the device", lambda: describe_batch(segmented, model, spec), 1
    )


def _pixels(batch: pa.Table) -> np.ndarray[Any, Any]:
    rows = batch.to_pylist()
    return np.stack([np.frombuffer(r["pixels"], np.uint8).reshape(*r["shape"], 3) for r in rows])


def _measure_writing(stages: StageMeasurements, segmented: pa.Table) -> None:
    """Measure masks as PNG, rows of the tables, writing a part, and the stage with all three."""
    images, spec = [image for image in from_arrow(segmented) if image is not None], stages.spec
    colours = list(spec.colours.values())
    stages.measure("encode masks as PNG", lambda: [encode_mask(i.mask, colours) for i in images])
    sources = segmented.filter(segmented["labels"].is_valid())
    count = sources.num_rows
    for name, values in (
        ("image_id", [image_id(uri) for uri in sources["uri"].to_pylist()]),
        ("run_id", ["bench"] * count),
        ("model_id", [stages.model_id] * count),
    ):
        sources = sources.append_column(name, pa.array(values, pa.string()))
    rows = stages.measure("masks and rows", lambda: list(make_image_rows(sources, images, spec)))
    output = stages.case.output
    stages.measure("write Parquet", lambda: write_part(output, rows))
    stages.measure("encode + write, from Arrow", lambda: _write(stages, segmented, output))


def _write(stages: StageMeasurements, segmented: pa.Table, output: str) -> pa.Table:
    return write_batch(segmented, output, stages.spec, stages.model_id, "bench")


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, such as the sandbox."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(float(t.user + t.system) for t in children)
