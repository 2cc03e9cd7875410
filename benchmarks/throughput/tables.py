"""Tables of the throughput benchmark."""

import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from segrec_batch.common import console

log = logging.getLogger("segrec_batch.benchmarks")

NAMES = {"a": "(a) limit", "b": "(b) segrec", "c": "(c) DataLoader", "d": "(d) Ray Data"}
STAGES = "driver", "segrec_batch.images.sandbox", "decode, write"
MODEL, DECODE = "model, Arrow to Arrow", "read + decode, to Arrow"


def _format_spread(values: Sequence[float], digits: str = ".2f") -> str:
    """Return the median, and the range of several values."""
    middle = f"{statistics.median(values):{digits}}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{digits}} to {max(values):{digits}})"


def limit_table(limits: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of (a) by batch size, with its share of the device."""
    rows = [
        [f"images/s, {way}", _format_spread([limit["rates"][way] for limit in limits])]
        for way in limits[0]["rates"]
    ]
    rows.append(["GFLOP an image", f"{limits[0]['flops'] / 1e9:.1f}"])
    best = [limit["images/s"] * limit["flops"] / 1e12 for limit in limits]
    rows.append(["TFLOP/s, best way", _format_spread(best, ".3g")])
    if "share of peak" in limits[0]:
        peaks = [limit["peak flops/s"] / 1e12 for limit in limits]
        rows.append(["TFLOP/s, bf16 product of 8192² matrices", _format_spread(peaks, ".0f")])
        rows.append(["share of that", _format_spread([limit["share of peak"] for limit in limits])])
        rows.append(["peak device memory, GB", f"{limits[0]['peak bytes'] / 1e9:.1f}"])
    return console.table("(a) the limit: bare VGG-16", ["", "median (range)"], rows)


def rates_table(runs: Mapping[str, Any], limits: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of images/s of all ways, with and without start-up."""
    rows = []
    if limits:
        rate = _format_spread([limit["images/s"] for limit in limits])
        cpu = _format_spread([limit["cpu"] for limit in limits])
        rows.append([NAMES["a"], "absent", rate, "absent", "absent", cpu])
    for way, run in runs.items():
        figures = [_format_spread(x) for x in (run.rates, run.whole, run.start_up, run.cpu)]
        rows.append([NAMES[way], str(run.count), *figures])
    header = ["way", "N", "images/s", "whole job", "start-up s", "CPU s an image"]
    return console.table("images/s: of the second N of 2 N, and of the whole 2 N", header, rows)


def ratios_table(
    ratios: Mapping[str, Mapping[str, Sequence[float]]], targets: Mapping[str, float]
) -> str:
    """Return the table of the ratios of (b) to the other ways, with their targets."""
    rows = []
    for way, values in ratios.items():
        rates = values["rate"]
        figures = [f"{f(rates):.2f}" for f in (statistics.median, min)]
        figures.append(f"{statistics.median(values['cpu']):.2f}")
        target = targets.get(way)
        if target is None:
            rows.append([f"(b)/({way})", *figures, "absent", ""])
            continue
        verdict = "too few images" if any(map(math.isnan, rates)) else "missed"
        rows.append(
            [f"(b)/({way})", *figures, f"{target:g}", "met" if min(rates) >= target else verdict]
        )
    header = ["", "median", "min", "by CPU seconds", "target", ""]
    return console.table("ratios, without start-up", header, rows)


def stages_table(stages: Mapping[str, Mapping[str, float]], limit: float | None) -> str:
    """Return the table of the stages alone, with the processes that keep up with one model."""
    rate = stages[MODEL]["images/s"]
    rows = []
    for name, stage in stages.items():
        if "seconds" in stage:
            rows.append([name, f"{1 / stage['seconds']:.1f} /s", "absent", "absent", "absent"])
            continue
        size = f"{stage['bytes'] / 1024:,.1f}" if "bytes" in stage else "absent"
        cores = "absent" if name.startswith("model") else f"{rate / stage['images/s']:.3f}"
        rows.append([name, f"{stage['images/s']:.1f}", f"{stage['cpu'] * 1000:.1f}", cores, size])
    header = ["stage alone", "images/s", "CPU ms an image", "processes a model", "KB passed on"]
    text = console.table("images/s of each stage alone", header, rows)
    share = f"; model, Arrow to Arrow / limit: {rate / limit:.2f}" if limit else ""
    passed = sum(stages[name]["bytes"] for name in (DECODE, MODEL)) / 1e6
    log.info(f"through the object store: {passed:.2f} MB an image{share}")
    return text


def cpu_table(once: Mapping[str, float], twice: Mapping[str, float], count: int) -> str:
    """Return the table of CPU seconds of (b) by process: of the second N, and of start-up."""
    first, both = _by_stage(once), _by_stage(twice)
    rows = []
    for name in sorted(both, key=lambda n: -both[n]):
        more = both[name] - first.get(name, 0)
        rows.append([name, f"{1000 * more / count:.1f}", f"{first.get(name, 0) - more:.1f}"])
    header = ["process", "CPU ms an image", "CPU s of start-up"]
    return console.table("(b): CPU by process", header, rows)


def _by_stage(cpu: Mapping[str, float]) -> dict[str, float]:
    """Return CPU seconds by stage; all of Ray's own processes and starting workers are one."""
    sums: dict[str, float] = defaultdict(float)
    for name, seconds in cpu.items():
        sums[name if name in STAGES or "batch" in name.lower() else "Ray itself"] += seconds
    return sums
