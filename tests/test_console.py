"""What commands print: messages, progress, bars in tables, terminals that cannot say them."""

import argparse
import datetime as dt
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from segrec_batch import console
from segrec_batch.console import ProgressMeter, run_command, say, share_bar, table
from segrec_batch.errors import InputError


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_bar_has_its_width_and_grows_with_the_share(width: int) -> None:
    bars = [share_bar(i / 1000, width) for i in range(1001)]
    assert {len(bar) for bar in bars} == {width}
    order = " ▏▎▍▌▋▊▉█"
    filled = [sum(map(order.index, bar)) for bar in bars]
    assert filled == sorted(filled)
    assert (filled[0], filled[-1]) == (0, 8 * width)
    assert max(abs(f / (8 * width) - i / 1000) for i, f in enumerate(filled)) <= 0.5 / (8 * width)


def test_a_share_just_above_one_fills_the_bar() -> None:
    assert share_bar(1.0000001) == "████████"


def test_a_title_longer_than_the_table_stays_on_a_line() -> None:
    assert table("s3://bucket/a long [path]", ("n",), [["1"]]).splitlines()[0] == (
        "s3://bucket/a long [path]"
    )


def test_figures_with_bars_line_up_in_a_table() -> None:
    shares = (0.0, 0.03, 0.412, 0.999, 1.0)
    rows = [(str(10**i), f"{s:.3f} {share_bar(s)}", f"p{i}.jpg") for i, s in enumerate(shares)]
    lines = table("ranked", ("rank", "σ car", "uri"), rows).splitlines()
    header = next(line for line in lines if "σ car" in line)
    body = [line for line in lines if ".jpg" in line]
    assert {line.index(f"{s:.3f}") for line, s in zip(body, shares, strict=True)} == {
        header.index("σ")
    }
    assert {line.index(f"p{i}.jpg") for i, line in enumerate(body)} == {header.index("uri")}
    assert {line.index(rank) + len(rank) for line, (rank, *_) in zip(body, rows, strict=True)} == {
        header.index("rank") + len("rank")
    }


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "σ 0.412 ███▎    é"),
        ("latin-1", "? 0.412 ###     é"),
        ("ascii", "? 0.412 ###     ?"),
    ],
)
def test_results_print_in_any_encoding(encoding: str, shown: str) -> None:
    code = "from segrec_batch.console import share_bar, show; show(f'σ 0.412 {share_bar(0.412)}é')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": encoding},
    )
    assert run.stdout.decode(encoding) == shown


def messages(text: str) -> list[dict[str, Any]]:
    """Each line of it is a JSON object with what all messages have."""
    found = [json.loads(line) for line in text.splitlines()]
    for message in found:
        assert {"time", "level", "event", "message"} <= message.keys()
        assert dt.datetime.fromisoformat(message["time"]).utcoffset() == dt.timedelta(0)
    return found


def test_a_log_gets_a_line_also_while_nothing_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.05)
    with ProgressMeter("indexed", 12_000) as meter:
        time.sleep(0.12)
        meter.advance(6_000)
        time.sleep(0.12)
    time.sleep(0.1)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("indexed: 0 of 12,000 in 0.0")
    assert "left" not in lines[0]
    assert lines[-1].startswith("indexed: 6,000 of 12,000 in 0.")
    assert lines[-1].endswith("s left")
    assert last.startswith("indexed: 6,000 in 0.")
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("done", "total", "after", "line"),
    [
        (0, 12_000, 30, "x: 0 of 12,000 in 30 s"),
        (1024, 12_000, 300, "x: 1,024 of 12,000 in 5 min, 3.4/s, about 53 min left"),
        (10**5, 10**7, 7200, "x: 100,000 of 10,000,000 in 2 h 0 min, 13.9/s, about 8 d 6 h left"),
        (9, 10, 9, "x: 9 of 10 in 9 s, 1.0/s, about 1 s left"),
        (77, None, 10, "x: 77 in 10 s, 7.7/s"),
    ],
)  # fmt: skip
def test_the_time_that_is_left_is_said_as_people_say_it(
    done: int, total: int | None, after: float, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    meter = ProgressMeter("x", total)
    clock += after
    meter.advance(done)
    meter._line()
    assert capsys.readouterr().err == f"{line}\n"


def test_lines_of_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=lambda: [say("x" * 99) for _ in range(50)]) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err == f"{'x' * 99}\n" * 200


SPEAKERS = """
import logging, os, time, warnings
from segrec_batch import console
from segrec_batch.console import ProgressMeter, bind, run_command, say

def command():
    say("before\\nthe run é", n=1)
    bind(run_id="r1")
    with ProgressMeter("indexed", 10) as meter:
        meter.advance(5)
        time.sleep(0.08)
    logging.getLogger("some.library").warning("of %s", "a library")
    warnings.warn("Python's")
    os.write(2, b"from C++\\n")

console._LOG_SECONDS = 0.05
assert run_command(command, "json") == 0
say("text again", "warning")
"""


def test_json_is_one_object_a_line_whatever_speaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKERS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.splitlines()
    assert last == "warning: text again"
    said = messages("\n".join(lines))
    texts = [m["message"] for m in said]
    assert texts[0] == "before\nthe run é"
    assert "run_id" not in said[0]
    assert all(m["run_id"] == "r1" for m in said[1:])
    (progress, *_) = [m for m in said if m["event"] == "progress"]
    assert (progress["label"], progress["done"], progress["total"]) == ("indexed", 5, 10)
    assert progress["per_second"] > 0
    assert progress["seconds_left"] >= 0
    assert ("warning", "of a library") in [(m["level"], m["message"]) for m in said]
    assert any("Python's" in text for text in texts)
    assert "from C++" in texts


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such"), 1), (RuntimeError("a bug"), 1)]
)
def test_an_error_is_a_message_at_level_error(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run_command(command, "json") == code
    (said,) = messages(capsys.readouterr().err)
    assert (said["level"], said["error"]) == ("error", type(error).__name__)
    assert str(error) in said["message"]
    assert ("a bug" in said.get("traceback", "")) == isinstance(error, RuntimeError)


def test_text_is_the_default_and_leaves_what_nobody_foresaw_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    console.add_log_format(parser)
    assert parser.parse_args([]).log_format == "text"
    assert parser.parse_args(["--log-format", "json"]).log_format == "json"

    def command(error: Exception) -> Callable[[], None]:
        def raising() -> None:
            raise error

        return raising

    assert run_command(command(InputError("no such"))) == 1
    assert capsys.readouterr().err == "error: no such\n"
    with pytest.raises(RuntimeError):
        run_command(command(RuntimeError("a bug")))
