"""Tests of the files of cluster/ for cron and systemd."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from croniter import croniter

from tests.support.commands import find_program
from tests.support.head_node import ROOT

CLUSTER = ROOT / "cluster"
CRONTAB = (CLUSTER / "crontab").read_text()
UNITS = CLUSTER / "systemd"
HOME = "/opt/segrec_batch"  # where the files say that the project is
ENTRY = re.compile(r"^((?:\S+ +){4}\S+) +(set -a; .*)$", re.MULTILINE)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """A checker, to its end."""
    program = find_program(str(command[0]))
    return subprocess.run(
        [program, *map(str, command[1:])], capture_output=True, text=True, timeout=60
    )


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_nightly_passes_shellcheck(tmp_path: Path) -> None:
    script = CLUSTER / "nightly.sh"
    assert os.access(script, os.X_OK)
    assert run("shellcheck", script).stdout == ""
    broken = written(tmp_path / "nightly.sh", script.read_text().replace('"$submission"', "$sub"))
    assert "SC2154" in run("shellcheck", broken).stdout


def test_cron_accepts_crontab(tmp_path: Path) -> None:
    assert run("crontab", "-n", CLUSTER / "crontab").returncode == 0
    broken = written(tmp_path / "crontab", CRONTAB.replace("0 1 * * *", "0 25 * * *"))
    assert run("crontab", "-n", broken).returncode == 1


def test_crontab_runs_once_a_night() -> None:
    (entry,) = ENTRY.findall(CRONTAB)
    assert croniter.is_valid(entry[0])
    assert not croniter.is_valid(entry[0].replace("1", "25"))
    nights = croniter(entry[0], datetime(2026, 11, 22, 12, tzinfo=UTC))
    result = [nights.get_next(datetime) for _ in range(2)]
    assert result == [datetime(2026, 11, day, 1, tzinfo=UTC) for day in (23, 24)]


@pytest.mark.parametrize(("code", "mail"), [(0, ""), (1, "exit code 1"), (75, "exit code 75")])
def test_cron_mails_only_failures(code: int, mail: str, tmp_path: Path) -> None:
    """The command of the table, as cron would run it, on a script that ends as it is told."""
    (tmp_path / "cluster").mkdir()
    shutil.copy(CLUSTER / "nightly.env", tmp_path / "cluster")
    ends = f"#!/bin/bash\necho $SEGREC_INDEX\nexit {code}\n"
    written(tmp_path / "cluster" / "nightly.sh", ends).chmod(0o755)
    table = CRONTAB.replace(HOME, str(tmp_path)).replace("/var/log/segrec", str(tmp_path))
    settings = dict(re.findall(r"^(\w+)=(.*)$", table, re.MULTILINE))
    ((_, command),) = ENTRY.findall(table)
    done = subprocess.run(
        [settings["SHELL"], "-c", command], env=settings, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"nightly.sh: {mail}") if mail else done.stdout == ""
    assert (tmp_path / "nightly.log").read_text() == "s3://bucket/index\n"


def verified(folder: Path, change: tuple[str, str] = ("", "")) -> str:
    """Return the complaints of systemd on the units, one of them changed."""
    folder.mkdir()
    for unit in UNITS.iterdir():
        text = unit.read_text().replace(HOME, str(ROOT))
        written(folder / unit.name, text.replace(*change) if change[0] else text)
    completed = run("systemd-analyze", "verify", "--man=no", *sorted(folder.iterdir()))
    assert completed.returncode == 0 or completed.stderr
    return completed.stderr


def test_systemd_accepts_units(tmp_path: Path) -> None:
    assert verified(tmp_path / "units") == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("KillMode", "KilMode"), "KilMode"),  # and the exit code 0
        (("SuccessExitStatus=75", "SuccessExitStatus=x"), "Failed to parse"),
        (("nightly.sh", "nighly.sh"), "is not executable"),
        (("01:00:00", "25:00:00"), "Failed to parse calendar"),
    ],
)
def test_systemd_finds_errors(change: tuple[str, str], complaint: str, tmp_path: Path) -> None:
    assert complaint in verified(tmp_path / "units", change)


def exposure(unit: Path) -> float:
    """Return the exposure of a service by systemd, from 0 to 10."""
    result = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit).stdout
    (level,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d+)", result)
    return float(level)


def test_service_is_confined(tmp_path: Path) -> None:
    unit = UNITS / "segrec-nightly.service"
    assert exposure(unit) <= 2.0  # the bound of the house is 4.0
    bare = re.sub(
        r"^(Protect|Private|Restrict|SystemCall|Capab).*\n", "", unit.read_text(), flags=re.M
    )
    assert exposure(written(tmp_path / unit.name, bare)) > 4.0


def test_service_owns_lock_folder() -> None:
    service = (UNITS / "segrec-nightly.service").read_text()
    assert "\nRuntimeDirectory=segrec\nRuntimeDirectoryMode=0700\n" in service
    assert "RUNTIME_DIRECTORY" in (CLUSTER / "nightly.sh").read_text()


def test_shell_and_systemd_agree_on_environment(tmp_path: Path) -> None:
    """Both take what needs no quotes as it stands, and '…' without its quotes."""
    lines = (CLUSTER / "nightly.env").read_text().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in settings if not re.fullmatch(r"\w+=[\w:/.,=-]*", line)] == []
    file = written(tmp_path / "env", "\n".join([*lines, "SEGREC_NAME='a b; $(touch x)'"]))
    show = subprocess.run(
        ["bash", "-c", 'set -a; . "$0"; env -0', file], cwd=tmp_path, capture_output=True, text=True
    )
    assert {*settings, "SEGREC_NAME=a b; $(touch x)"} <= set(show.stdout.split("\0"))
    assert not (tmp_path / "x").exists()


def test_timer_and_crontab_agree() -> None:
    (when,) = re.findall(r"OnCalendar=(.*)", (UNITS / "segrec-nightly.timer").read_text())
    completed = run("systemd-analyze", "calendar", "--base-time=2026-11-22 12:00 UTC", when)
    assert "Mon 2026-11-23 01:00:00 UTC" in completed.stdout
    assert run("systemd-analyze", "calendar", when.replace("01", "25")).returncode == 1


def test_service_waits_for_job_to_stop() -> None:
    service = (UNITS / "segrec-nightly.service").read_text()
    for line in ("Type=oneshot", "SuccessExitStatus=75", "KillMode=mixed"):
        assert f"\n{line}\n" in service
    (seconds,) = re.findall(r"TimeoutStopSec=(\d+)", service)
    assert int(seconds) >= 60 + 60  # of `ray job stop`, and of the list of jobs before it
    assert "\nPersistent=true\n" in (UNITS / "segrec-nightly.timer").read_text()


def test_example_environment_is_complete() -> None:
    lines = (CLUSTER / "nightly.env").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if not line.startswith("#")]
    help_ = run(CLUSTER / "nightly.sh", "--help").stdout
    assert len(names) >= 4
    assert not [name for name in names if f"  {name} " not in help_]
    assert not [line for line in lines if "$" in line and not line.startswith("#")]
