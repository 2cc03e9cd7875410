"""Each stage of segrec alone: images/s, CPU seconds and bytes of an image."""

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


class Stages:
    """Images, and the results of each stage, which the rounds share."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.count = case.count
        self.spec, self.model_id = read_spec(case.model)
        self.measured: dict[str, dict[str, float]] = {}

    def measure(self, name: str, work: Callable[[], Any], rounds: int = ROUNDS) -> Any:
        """Do it some times: the best seconds and CPU seconds of an image. Returns its result."""
        seconds, cpu = [], []
        for _ in range(rounds):
            clock, spent = time.perf_counter(), _cpu_seconds()
            result = work()
            seconds.append(time.perf_counter() - clock)
            cpu.append(_cpu_seconds() - spent)
        found = {"images/s": self.count / min(seconds), "cpu": min(cpu) / self.count}
        if isinstance(result, pa.Table):
            found["bytes"] = result.nbytes / self.count
        self.measured[name] = found
        return result


def stages(case: Case) -> dict[str, dict[str, float]]:
    """All stages, in the order of an image."""
    alone = Stages(case)
    decoded = _reading(alone)
    segmented = _model(alone, decoded)
    _writing(alone, segmented)
    return alone.measured


def commit(case: Case) -> dict[str, float]:
    """Publish one part in a new index: files, and the log of four Delta tables."""
    from segrec_batch.index import snapshot as store
    from segrec_batch.index.files import DataFile
    from segrec_batch.model.bundle import load_model

    bundle = load_model(case.model)
    base = store.create(case.output, bundle)
    alone = Stages(case)
    receipts = _write(alone, load_stage(case)(_decode(alone)), case.output)
    names = ("table", "path", "size", "rows", "partition", "stats")
    files = [DataFile(**{n: row[n] for n in names}) for row in receipts.to_pylist()]
    clock = time.perf_counter()
    store.commit(base, files)
    return {"seconds": time.perf_counter() - clock}


def _reading(alone: Stages) -> pa.Table:
    """Read, decode in this process and in the sandbox, and the stage that joins them to Arrow."""
    paths, shapes = alone.case.paths(), alone.spec.shapes
    contents = alone.measure("read", lambda: read_many(paths))
    box = sandbox.shared()
    box.decode(contents[0], shapes)  # starts it
    alone.measure("decode, bare Pillow", lambda: [decode(c, shapes) for c in contents])
    alone.measure("decode, in the sandbox", lambda: [box.decode(c, shapes) for c in contents])
    return alone.measure("read + decode, to Arrow", lambda: _decode(alone))


def _decode(alone: Stages) -> pa.Table:
    found = [decode_batch(block, alone.spec.shapes) for block in alone.case.blocks()]
    return pa.concat_tables(found)


def _model(alone: Stages, decoded: pa.Table) -> pa.Table:
    """Measure the model alone and from Arrow to Arrow, then the descriptors on the host."""
    device, size = alone.case.device, alone.case.batch_size
    stage = load_stage(alone.case)
    batches = [decoded.slice(i, size) for i in range(0, decoded.num_rows, size)]
    pixels = [_pixels(batch) for batch in batches]
    stage.segmenter(pixels[0])  # warm
    rounds = ROUNDS if device == "cuda" else 1
    bare = "model, forward and head"
    alone.measure(bare, lambda: [stage.segmenter(p) for p in pixels], rounds)
    segmented = alone.measure(
        "model, Arrow to Arrow", lambda: pa.concat_tables([stage(b) for b in batches]), rounds
    )
    if not alone.spec.descriptors:
        return segmented
    model, spec = alone.case.model, alone.spec
    describe_batch(segmented.slice(0, 1), model, spec)  # loads them
    return alone.measure(
        "describe, off the device", lambda: describe_batch(segmented, model, spec), 1
    )


def _pixels(batch: pa.Table) -> np.ndarray[Any, Any]:
    rows = batch.to_pylist()
    return np.stack([np.frombuffer(r["pixels"], np.uint8).reshape(*r["shape"], 3) for r in rows])


def _writing(alone: Stages, segmented: pa.Table) -> None:
    """Masks as PNG, rows of the tables, a part in place; and the stage that does all three."""
    images, spec = [image for image in from_arrow(segmented) if image is not None], alone.spec
    colours = list(spec.colours.values())
    alone.measure("encode masks as PNG", lambda: [encode_mask(i.mask, colours) for i in images])
    sources = segmented.filter(segmented["labels"].is_valid())
    count = sources.num_rows
    for name, values in (
        ("image_id", [image_id(uri) for uri in sources["uri"].to_pylist()]),
        ("run_id", ["bench"] * count),
        ("model_id", [alone.model_id] * count),
    ):
        sources = sources.append_column(name, pa.array(values, pa.string()))
    rows = alone.measure("masks and rows", lambda: list(make_image_rows(sources, images, spec)))
    output = alone.case.output
    alone.measure("write Parquet", lambda: write_part(output, rows))
    alone.measure("encode + write, from Arrow", lambda: _write(alone, segmented, output))


def _write(alone: Stages, segmented: pa.Table, output: str) -> pa.Table:
    return write_batch(segmented, output, alone.spec, alone.model_id, "bench")


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, such as the sandbox."""
    below = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(float(t.user + t.system) for t in below)
