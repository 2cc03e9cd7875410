"""What commands print: bars in tables, and terminals that cannot say them."""

import subprocess
import sys

import pytest

from segrec_batch.console import share_bar, table


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
