"""Tests of logging: messages as text and as JSON, exit codes."""

import argparse
import datetime as dt
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from segrec_batch.cli.options import add_logging
from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import InputError
from segrec_batch.common.logs import run_command

log = logging.getLogger("segrec_batch.tests")


def parsed(text: str) -> list[dict[str, Any]]:
    """Each line of it is a JSON object with what all messages have."""
    lines = [json.loads(line) for line in text.splitlines()]
    for message in lines:
        assert {"time", "level", "event", "message"} <= message.keys()
        assert dt.datetime.fromisoformat(message["time"]).utcoffset() == dt.timedelta(0)
    return lines


def test_log_lines_of_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lambda: [log.info("x" * 99) for _ in range(50)]  # noqa: E731
    threads = [threading.Thread(target=lines) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err == f"{'x' * 99}\n" * 200


SPEAKERS = """
import logging, os, time, warnings
from segrec_batch.common import console
from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.logs import bind, run_command

log = logging.getLogger("segrec_batch.tests")

def command():
    log.info("before\\nthe run é", extra={"n": 1})
    bind(run_id="r1")
    with ProgressMeter("indexed", 10) as meter:
        meter.advance(5)
        time.sleep(0.08)
    logging.getLogger("some.library").warning("of %s", "a library")
    warnings.warn("Python's")
    os.write(2, b"from C++\\n")

console._LOG_SECONDS = 0.05
assert run_command(command, "json") == 0
run_command(lambda: log.warning("text again"))
"""


def test_json_format_covers_libraries_and_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKERS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.splitlines()
    assert last == "warning: text again"
    messages = parsed("\n".join(lines))
    texts = [m["message"] for m in messages]
    assert texts[0] == "before\nthe run é"
    assert "run_id" not in messages[0]
    assert all(m["run_id"] == "r1" for m in messages[1:])
    (progress, *_) = [m for m in messages if m["event"] == "progress"]
    assert (progress["label"], progress["done"], progress["total"]) == ("indexed", 5, 10)
    assert progress["per_second"] > 0
    assert progress["seconds_left"] >= 0
    assert ("warning", "of a library") in [(m["level"], m["message"]) for m in messages]
    assert any("Python's" in text for text in texts)
    assert "from C++" in texts


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such"), 1), (RuntimeError("a bug"), 1)]
)
def test_json_error_has_level_and_type(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run_command(command, "json") == code
    (messages,) = parsed(capsys.readouterr().err)
    assert (messages["level"], messages["error"]) == ("error", type(error).__name__)
    assert str(error) in messages["message"]
    assert ("a bug" in messages.get("traceback", "")) == isinstance(error, RuntimeError)


def test_text_format_is_the_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    add_logging(parser)
    assert parser.parse_args([]).log_format == "text"
    assert parser.parse_args(["--log-format", "json"]).log_format == "json"

    def command(error: Exception) -> Callable[[], None]:
        def raising() -> None:
            raise error

        return raising

    assert run_command(command(InputError("no such"))) == 1
    assert capsys.readouterr().err == "error: no such\n"
    assert run_command(command(RuntimeError("a bug"))) == 1
    assert capsys.readouterr().err.startswith("error: RuntimeError: a bug; this is a fault of")


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        log.info("of no account")
        with ProgressMeter("steps", 2) as meter:
            meter.advance()
        log.warning("of some account")
        raise InputError("no such")

    assert run_command(command, is_quiet=True) == 1
    assert capsys.readouterr().err == "warning: of some account\nerror: no such\n"


def test_text_format_leaves_values_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("disk full", extra={"event": "full", "bytes": 7})
    assert capsys.readouterr().err == "warning: disk full\n"
