"""The tests for GPUs and the whole job."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.case import GpuCase, Row, write_shape

ROOT = Path(__file__).parents[2]
MENTIONS_DEVICE = re.compile(r"mark\.gpu\b|\bdevice: str\b")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|deselected|errors?|xfailed|xpassed)\b")
SUMMARY = re.compile(
    r"^.*\d+ (?:passed|failed|skipped|deselected|error).* in [\d.]+s.*$", re.MULTILINE
)
TESTS_SECONDS = 75
_TAIL = 6000  # characters at the end of pytest's output that the row keeps


def run_tests(case: GpuCase) -> Iterator[Row]:
    """Run the tests that are marked gpu, from the files that mention a device.

    Yields the counts and the tail of pytest's output. Raises RuntimeError if pytest fails.
    """
    files = sorted(
        p for p in ROOT.glob("tests/**/test_*.py") if MENTIONS_DEVICE.search(p.read_text())
    )
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    names = [str(path.relative_to(ROOT)) for path in files]
    output, code = _run_pytest([*options, *names])
    summaries = list(SUMMARY.finditer(output))
    if summaries:  # libraries may write more while Python ends
        output = output[: summaries[-1].end()]
    summary = output.strip().rsplit("\n", 1)[-1]
    counts = {status: int(count) for count, status in COUNT.findall(summary)}
    yield {"exit code": code, "files": names, **counts, "output": output[-_TAIL:]}
    if code != 0:
        raise RuntimeError(f"pytest ended with code {code}: {summary}")


def _run_pytest(options: list[str]) -> tuple[str, int | None]:
    """Return output and exit code; the code is None if it took too long."""
    try:
        done = subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-m", "pytest", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TESTS_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        text = (error.output or b"").decode(errors="replace")
        return f"{text}\nstopped after {TESTS_SECONDS} s", None
    return done.stdout.decode(errors="replace"), done.returncode


def measure_whole(case: GpuCase) -> Iterator[Row]:
    """Yield the speed of the whole job without Ray, for each shape.

    It indexes N images and then 2 N, each in a new process: the difference is the rate without
    start-up.
    """
    from benchmarks.throughput.case import Case
    from benchmarks.throughput.rates import Run
    from segrec_batch.model.engines import EngineChoice

    sizes = case.sizes
    for shape in sizes.shapes:
        row: Row = {"shape": write_shape(shape), "batch": sizes.batch, "images": sizes.indexed}
        job = Case(
            case.folder,
            tuple(case.images),
            case.model(shape),
            EngineChoice("torch", "bfloat16", case.device),
            sizes.batch,
            sizes.batch,
        )
        run = Run(write_shape(shape), sizes.indexed)
        try:
            run.add_round("benchmarks.throughput.segrec:run_chained", job)
        except Exception as error:  # the other shape may succeed
            yield row | {"error": f"{type(error).__name__}: {error}"}
            continue
        row |= {"images/s with start-up": run.whole[0], **run.pairs[0][1].result}
        if math.isnan(run.rates[0]):
            yield row | {"skipped": "too few images: twice as many took no longer"}
            continue
        yield row | {"images/s": run.rates[0], "cpu": run.cpu[0], "start-up": run.start_up[0]}
