"""Report of `segrec doctor`: facts, choices of `auto`, and problems; as JSON or as tables.

Keys of the JSON object, which stay; sizes are in bytes:

system              kernel, architecture and C library
processor           name, architecture, native_bf16, amx, instruction_sets {name: true or false}
cores, memory       usable, present, limit: cause of a difference (affinity, cgroup) or null
shared_memory       path, size, free of /dev/shm; null if it does not exist
temporary_folder    the same of TMPDIR, else /tmp; null if none can be written to
gpus                [{device, name, memory, compute_capability, problem}]; problem may be null
engines             [{engine, precision, images_per_second, reason, fails}]: one thread, 224 × 224;
                    images_per_second is null if it was not measured; reason
decoder             confinement of the process that decodes images: landlock (version of
                    its ABI, or null), seccomp (true or false), gaps (why not); null: it fails
auto                short_run, long_run: {engine, precision, device, reason}, or null without any
environment         {variable: value} of those that change what a run does; RAY_ADDRESS: "set"
versions            {package: version}, null if it is not installed
problems            [{code, level, message}]; level: warning, or error: no run can work here
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from segrec_batch.common import host
from segrec_batch.common.console import table
from segrec_batch.common.encoding import encode_json
from segrec_batch.common.host import Cores, Memory, Processor, Space
from segrec_batch.doctor.facts import INSTRUCTION_SETS, Facts, Gpu, gather_facts
from segrec_batch.doctor.problems import Problem, find_problems, size
from segrec_batch.images.confinement import Confinement
from segrec_batch.model import engine_choice
from segrec_batch.model.engines import EngineChoice

_ABSENT, _WIDTH = "–", 100


@dataclass(frozen=True)
class Report:
    """Facts of a machine, choices of `auto` in a short and in a long run, and problems."""

    facts: Facts
    short_run: EngineChoice | None
    long_run: EngineChoice | None
    problems: tuple[Problem, ...]

    @property
    def has_errors(self) -> bool:
        """No run can work on this machine."""
        return any(problem.level == "error" for problem in self.problems)

    def to_json(self) -> str:
        """Return the object that this module's docstring describes."""
        facts = asdict(self.facts)
        keys = (
            "cores", "memory", "shared_memory", "temporary_folder", "gpus", "engines", "decoder",
        )  # fmt: skip
        processor, environment = self.facts.processor, self.facts.environment
        values: dict[str, Any] = {
            "system": platform.platform(),
            "processor": {
                "name": processor.name,
                "architecture": processor.architecture,
                "native_bf16": processor.has_native_bf16,
                "amx": processor.has_amx,
                "instruction_sets": _instruction_sets(processor),
            },
            **{key: facts[key] for key in keys},
            "auto": {
                "short_run": self.short_run and asdict(self.short_run),
                "long_run": self.long_run and asdict(self.long_run),
            },
            "environment": {  # an address is nothing for a report that others read
                name: "set" if name == "RAY_ADDRESS" else value
                for name, value in environment.items()
            },
            "versions": facts["versions"],
            "problems": [asdict(problem) for problem in self.problems],
        }
        return encode_json(values, indent=2) + "\n"

    def to_text(self) -> str:
        """Return the report as tables, and one line for each problem."""
        rates = [
            [
                rate.engine,
                rate.precision,
                _ABSENT if rate.images_per_second is None else f"{rate.images_per_second:.2f}",
                rate.reason or "",
            ]
            for rate in self.facts.engines
        ]
        parts = [
            table("This machine", ("what", "value"), [list(row) for row in self._rows()]),
            table(
                "Engines: images/s of one thread at 224 × 224",
                ("engine", "precision", "images/s", "not measured"),
                rates,
            ),
            *(fill(line, _WIDTH, break_on_hyphens=False) for line in self._lines()),
        ]
        return "\n\n".join(part.rstrip() for part in parts) + "\n"

    def _rows(self) -> Iterator[tuple[str, str]]:
        facts = self.facts
        yield "system", platform.platform()
        yield "processor", f"{facts.processor.name}, {facts.processor.architecture}"
        yield "instruction sets", _present(facts.processor)
        yield "cores", _limited(facts.cores, str)
        yield "memory", _limited(facts.memory, size)
        yield host.SHARED_MEMORY, _space(facts.shared_memory)
        yield "temporary folder", _space(facts.temporary_folder, named=True)
        yield "decoder", _confined(facts.decoder)
        yield "GPUs", "; ".join(map(_described, facts.gpus)) or "none that torch sees"

    def _lines(self) -> Iterator[str]:
        versions = self.facts.versions.items()
        yield "Versions: " + ", ".join(f"{k}=={v}" if v else f"{k} missing" for k, v in versions)
        if self.short_run is None or self.long_run is None:
            yield "auto finds no engine."
        elif str(self.short_run) == str(self.long_run):
            yield f"auto takes {self.long_run}: {self.long_run.reason}."
        else:
            yield f"auto takes in a short run {self.short_run}: {self.short_run.reason}."
            yield f"auto takes in a long run {self.long_run}: {self.long_run.reason}."
        for problem in self.problems:
            yield f"{problem.level}: {problem.code}: {problem.message}."
        if not self.problems:
            yield "No problems found."


def examine(
    seconds: float = 1.0, progress: Callable[[], None] = lambda: None, root: Path = host.ROOT
) -> Report:
    """Examine this machine; see `gather_facts` for the arguments."""
    facts = gather_facts(seconds, progress, root)
    return Report(facts, *_choose(facts), tuple(find_problems(facts)))


def _choose(facts: Facts) -> tuple[EngineChoice | None, EngineChoice | None]:
    """Return the choices of `auto` in a short run, and in one that is worth a calibration."""
    if any(not gpu.problem for gpu in facts.gpus):
        choice = engine_choice.choose_engine(device="cuda")
        return choice, choice
    measured = {
        (rate.engine, rate.precision): rate.images_per_second
        for rate in facts.engines
        if rate.images_per_second is not None
    }
    if not measured:
        return None, None
    return engine_choice.choose_engine(device="cpu"), engine_choice.choose_fastest([measured])


def _instruction_sets(processor: Processor) -> dict[str, bool]:
    names = INSTRUCTION_SETS.get(processor.architecture, ())
    return {name: name in processor.features for name in names}


def _present(processor: Processor) -> str:
    sets = _instruction_sets(processor)
    has = ", ".join(name for name in sets if sets[name]) or "none of those that matter"
    lacks = ", ".join(name for name in sets if not sets[name])
    return f"{has}; not {lacks}" if lacks else has


def _limited(amount: Cores | Memory, text: Callable[[int], str]) -> str:
    if amount.limit is None:
        return text(amount.present)
    return f"{text(amount.usable)} usable of {text(amount.present)}, limited by {amount.limit}"


def _confined(decoder: Confinement | None) -> str:
    if decoder is None:
        return "does not start"
    held = ["limits", *["seccomp"] * decoder.seccomp]
    held += [f"Landlock (ABI {decoder.landlock})"] if decoder.landlock else []
    return "; ".join([f"held by {', '.join(held)}", *decoder.gaps])


def _space(space: Space | None, named: bool = False) -> str:
    if space is None:
        return "missing"
    return f"{f'{space.path}, ' * named}{size(space.free)} free of {size(space.size)}"


def _described(gpu: Gpu) -> str:
    return f"{gpu.name}, {size(gpu.memory)}, compute capability {gpu.compute_capability}"
