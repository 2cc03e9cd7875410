"""Tests of cluster/nightly.sh: one run at a time, exit codes 0, 1 and 75, stopping."""

import datetime as dt
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from segrec_batch.index.snapshot import open_snapshot
from segrec_batch.maintenance.verify import verify
from tests.support.builders import tiny_model, uris, write_images
from tests.support.head_node import BIN, ROOT, Head, head_node

NIGHTLY = ROOT / "cluster" / "nightly.sh"
BUSY = 75
MANY = 3_000  # images: a run takes longer than it takes to stop it
NOWHERE = {
    "SEGREC_IMAGES": "/images", "SEGREC_MODEL": "/model", "SEGREC_INDEX": "/index",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1", "PATH": f"{BIN}:{os.environ['PATH']}",
}  # fmt: skip


def nightly(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NIGHTLY, *arguments], env=environment, capture_output=True, text=True, timeout=400
    )


def test_help_names_every_variable() -> None:
    done = nightly("--help", PATH=NOWHERE["PATH"])
    assert done.returncode == 0
    read = set(re.findall(r"\$\{?((?:SEGREC|RAY)_\w+)", NIGHTLY.read_text()))
    assert len(read) > 10
    assert not {name for name in read if name not in done.stdout}
    assert "#" not in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SEGREC_INDEX": "", "RAY_API_SERVER_ADDRESS": ""}, "SEGREC_INDEX RAY_API_SERVER_ADDRESS"),
        ({"SEGREC_NAME": "a b"}, "letters, digits"),
        ({"RAY_AUTH_MODE": "token"}, "needs RAY_AUTH_TOKEN"),
        ({"PATH": "/usr/bin:/bin"}, "ray is not on the PATH"),
        ({"SEGREC_LOCK": "/nowhere/lock"}, "/nowhere/lock cannot be written"),
        ({}, "no list of jobs from http://127.0.0.1:1"),
    ],
)
def test_missing_variable_is_named(change: dict[str, str], message: str, tmp_path: Path) -> None:
    given = {**NOWHERE, "SEGREC_LOCK": str(tmp_path / "lock"), **change}
    done = nightly(**given)
    assert done.returncode == 1
    assert f"nightly: error: {message}" in done.stderr or message in done.stderr.split("error:")[1]
    assert "Traceback" not in done.stderr


def test_unknown_argument_is_refused() -> None:
    done = nightly("--force", **NOWHERE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown argument --force" in done.stderr


def test_second_run_on_host_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = nightly(**NOWHERE, SEGREC_LOCK=lock.name)
    assert done.returncode == BUSY
    assert f"another run holds {lock.name}; nothing was done" in done.stderr


FREE = "no list of jobs"  # the step after the lock


@pytest.mark.parametrize(
    ("variable", "lock"),
    [
        ("RUNTIME_DIRECTORY", "nightly-segrec.lock"),
        ("XDG_RUNTIME_DIR", "nightly-segrec.lock"),
        ("XDG_STATE_HOME", "segrec/nightly-segrec.lock"),
        ("HOME", ".local/state/segrec/nightly-segrec.lock"),
    ],
)
def test_lock_folder_is_private(variable: str, lock: str, tmp_path: Path) -> None:
    done = nightly(**NOWHERE, **{variable: str(tmp_path)}, TMPDIR="/nowhere")
    assert FREE in done.stderr
    result = tmp_path / lock
    assert stat.S_IMODE(result.stat().st_mode) == 0o600
    assert stat.S_IMODE(result.parent.stat().st_mode) == 0o700
    with result.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = nightly(**NOWHERE, **{variable: str(tmp_path)})
    assert (done.returncode, f"another run holds {result}" in done.stderr) == (BUSY, True)


def test_lock_is_required_without_home() -> None:
    done = nightly(**NOWHERE)
    assert "no RUNTIME_DIRECTORY, XDG_RUNTIME_DIR or HOME; have SEGREC_LOCK name" in done.stderr
    assert FREE not in done.stderr


def test_open_lock_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    done = nightly(**NOWHERE, RUNTIME_DIRECTORY=str(folder))
    assert f"{folder} is open to other users: chmod 700 it" in done.stderr
    (tmp_path / "link").symlink_to(tmp_path)
    done = nightly(**NOWHERE, RUNTIME_DIRECTORY=str(tmp_path / "link"))
    assert f"link is not a folder of the user {os.getuid()}" in done.stderr
    assert list(folder.iterdir()) == []


def test_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    notes, link, pipe = tmp_path / "notes", tmp_path / "link", tmp_path / "pipe"
    notes.write_text("dear")
    link.symlink_to(notes)
    os.mkfifo(pipe)
    for lock, message in (
        (link, "link is a link"),
        (pipe, f"pipe is not a file of the user {os.getuid()}"),
        (tmp_path, f"{tmp_path} cannot be written"),
    ):
        done = nightly(**NOWHERE, SEGREC_LOCK=str(lock))
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
        assert FREE not in done.stderr
    assert FREE in nightly(**NOWHERE, SEGREC_LOCK=str(notes)).stderr
    assert notes.read_text() == "dear"


@pytest.mark.skipif(os.getuid() != 0, reason="another user's file is made by root")
def test_lock_of_another_user_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    os.chown(lock, 12345, 12345)
    done = nightly(**NOWHERE, SEGREC_LOCK=str(lock))
    assert f"lock is not a file of the user {os.getuid()}" in done.stderr


@dataclass(frozen=True)
class Place:
    """A cluster, images, and what the script is told of them."""

    head: Head
    images: Path
    environment: dict[str, str]

    def start(self, folder: Path, **more: str) -> subprocess.Popen[bytes]:
        """The script in the background, its output in FOLDER/log."""
        environment = {**self.environment, "SEGREC_LOCK": str(folder / "lock"), **more}
        folder.mkdir(exist_ok=True)
        with (folder / "log").open("wb") as log:
            return subprocess.Popen([NIGHTLY], env=environment, stdout=log, stderr=log)

    def run(self, folder: Path, **more: str) -> tuple[int, str]:
        """Exit code and output of the script."""
        code = self.start(folder, **more).wait(400)
        return code, (folder / "log").read_text()

    def jobs(self, name: str) -> dict[str, str]:
        """Return the status of the jobs of that name, by kind and number: index, index-2, …"""
        result = {
            re.fullmatch(rf"{name}-(\w+)-\d{{8}}(-\d+)?", id_): status
            for id_, status in self.head.statuses().items()
            if id_.startswith(f"{name}-")
        }
        return {m[1] + (m[2] or ""): status for m, status in result.items() if m}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("nightly")
    tiny_model(taps=("conv3_3",)).save(str(folder / "model"))
    with head_node() as head:
        environment = {
            **head.environment,
            "SEGREC_IMAGES": str(folder / "images"),
            "SEGREC_MODEL": str(folder / "model"),
            "SEGREC_INDEX": str(folder / "index"),
            "SEGREC_HOME": str(ROOT),
        }
        yield Place(head, write_images(folder / "images", 6), environment)


@pytest.fixture(scope="module")
def first(place: Place) -> tuple[int, str]:
    """Return exit code and output of the first night."""
    folder = place.images.parent
    reports = {"SEGREC_REPORTS": f"{folder}/reports/", "SEGREC_FAIL_OVER": "gone=0.1"}
    return place.run(folder / "first", SEGREC_NAME="first", **reports)


@pytest.mark.slow
def test_night_indexes_checks_drift_and_compacts(place: Place, first: tuple[int, str]) -> None:
    code, log = first
    assert code == 0, log
    assert place.jobs("first") == dict.fromkeys(("index", "drift", "compact"), "SUCCEEDED")
    index = place.environment["SEGREC_INDEX"]
    assert len(uris(index)) == 6
    assert f"{index} is up to date" in log
    assert "nothing was indexed before: there is no drift to judge" in log
    (report,) = (place.images.parent / "reports").iterdir()
    assert report.name in log
    assert (report / "report.html").exists()
    assert "\x1b" not in log
    assert "Traceback" not in log


def a_day_ago(index: Path) -> None:
    """Make all commits of an index a day older."""
    for commit in index.rglob("_delta_log/*.json"):
        text = commit.read_text()
        older = re.sub(r'(?<="timestamp":)\d+', lambda m: str(int(m[0]) - 86_400_000), text)
        assert older != text
        commit.write_text(older)


def wait_for(text: str, log: Path) -> None:
    for _ in range(1200):
        if text in log.read_text():
            return
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


@pytest.mark.slow
def test_stopped_night_and_night_with_drift(
    place: Place, first: tuple[int, str], tmp_path: Path
) -> None:
    """Two start at once, as on two hosts: one runs. It is stopped, and run again."""
    index = tmp_path / "index"
    shutil.copytree(place.environment["SEGREC_INDEX"], index)
    a_day_ago(index)
    before = open_snapshot(str(index))
    more = {"SEGREC_NAME": "again", "SEGREC_INDEX": str(index)}
    others = write_images(tmp_path / "images", MANY)

    hosts = [tmp_path / "host1", tmp_path / "host2"]
    runs = [place.start(host, **more, SEGREC_IMAGES=str(others)) for host in hosts]
    while all(run.poll() is None for run in runs):
        time.sleep(0.1)
    won = int(runs[0].poll() is not None)
    assert runs[1 - won].returncode == BUSY, (hosts[1 - won] / "log").read_text()
    wait_for("model on", hosts[won] / "log")
    code, log = place.run(hosts[1 - won], **more)
    assert (code, place.jobs("again")) == (BUSY, {"index": "RUNNING"})
    assert "is RUNNING on the cluster; nothing was done" in log

    runs[won].send_signal(signal.SIGTERM)
    assert runs[won].wait(60) == 1
    assert "stopped by TERM" in (hosts[won] / "log").read_text()
    assert place.jobs("again") == {"index": "STOPPED"}
    assert open_snapshot(str(index)).version == before.version
    assert verify(before) == []

    for image in sorted(others.iterdir())[3:]:
        image.unlink()
    more |= {"SEGREC_IMAGES": str(others), "SEGREC_REPORTS": str(tmp_path / "reports")}
    code, log = place.run(hosts[won], **more, SEGREC_FAIL_OVER="coverage=0.01")
    assert code == 1, log
    assert "error: drift above --fail-over: coverage 0." in log
    assert "nightly: error: the drift is above its limit" in log.splitlines()[-1]
    assert place.jobs("again") == {
        "index": "STOPPED", "index-2": "SUCCEEDED", "drift-2": "FAILED", "compact-2": "SUCCEEDED"
    }  # fmt: skip
    assert (tmp_path / "reports" / f"{dt.datetime.now(dt.UTC):%Y%m%d}-2" / "report.html").exists()


@pytest.mark.slow
def test_failing_job_ends_the_night(place: Place, tmp_path: Path) -> None:
    code, log = place.run(tmp_path, SEGREC_NAME="bad", SEGREC_MODEL="/nowhere")
    assert code == 1, log
    assert "train a model with segrec train" in log
    assert log.endswith("nightly: error: the index job did not succeed\n")
    assert place.jobs("bad") == {"index": "FAILED"}


@pytest.mark.slow
def test_stopped_job_is_no_success(place: Place, tmp_path: Path) -> None:
    """Though `ray job submit` says 0 of it."""
    others = write_images(tmp_path / "images", MANY)
    index = {"SEGREC_INDEX": str(tmp_path / "index"), "SEGREC_IMAGES": str(others)}
    run = place.start(tmp_path, SEGREC_NAME="theirs", **index)
    wait_for("model on", tmp_path / "log")
    (job,) = [id_ for id_ in place.head.statuses() if id_.startswith("theirs-")]
    assert place.head.ray("job", "stop", job).returncode == 0
    assert run.wait(60) == 1
    assert f"{job}: STOPPED" in (tmp_path / "log").read_text()
    assert place.jobs("theirs") == {"index": "STOPPED"}
