"""Tests of tables, bars and progress on terminals and in logs."""

import subprocess
import sys
import time

import pytest

from segrec_batch.common import console
from segrec_batch.common.console import ProgressMeter, share_bar, table


@pytest.mark.parametrize("width", [1, 3, 8])
def test_share_bar_has_its_width_and_grows(width: int) -> None:
    bars = [share_bar(i / 1000, width) for i in range(1001)]
    assert {len(bar) for bar in bars} == {width}
    order = " ▏▎▍▌▋▊▉█"
    filled = [sum(map(order.index, bar)) for bar in bars]
    assert filled == sorted(filled)
    assert (filled[0], filled[-1]) == (0, 8 * width)
    assert max(abs(f / (8 * width) - i / 1000) for i, f in enumerate(filled)) <= 0.5 / (8 * width)


def test_share_bar_is_full_just_above_one() -> None:
    assert share_bar(1.0000001) == "████████"


def test_table_keeps_a_long_title_on_one_line() -> None:
    assert table("s3://bucket/a long [path]", ("n",), [["1"]]).splitlines()[0] == (
        "s3://bucket/a long [path]"
    )


def test_table_aligns_numbers_with_bars() -> None:
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
    ("encoding", "printed"),
    [
        ("utf-8", "σ 0.412 ███▎    é"),
        ("latin-1", "? 0.412 ###     é"),
        ("ascii", "? 0.412 ###     ?"),
    ],
)
def test_show_prints_in_any_encoding(encoding: str, printed: str) -> None:
    code = "from segrec_batch.common.console import share_bar, show"
    code += "; show(f'σ 0.412 {share_bar(0.412)}é')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": encoding},
    )
    assert run.stdout.decode(encoding) == printed


def test_progress_meter_logs_while_no_step_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.05)
    with ProgressMeter("indexed", 12_000) as meter:
        time.sleep(0.12)
        meter.advance(6_000)
        time.sleep(0.12)
    time.sleep(0.1)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("indexed: 0 of 12,000 in 0.")
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
def test_progress_meter_estimates_the_time_left(
    done: int, total: int | None, after: float, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    meter = ProgressMeter("x", total)
    clock += after
    meter.advance(done)
    meter._log_progress()
    assert capsys.readouterr().err == f"{line}\n"
