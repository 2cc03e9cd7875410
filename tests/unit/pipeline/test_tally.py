"""Tests of the costs of stages and the reasons of failures."""

import threading
import time

import pyarrow as pa
import pytest

from segrec_batch.pipeline.stage_schema import COST
from segrec_batch.pipeline.tally import (
    MAX_LABELS,
    OTHERS,
    FailureReason,
    Occupancy,
    add_cost,
    count_most_frequent,
    count_reasons,
    sum_costs,
)


def rows(n: int) -> pa.Table:
    return pa.table({"cost": pa.nulls(n, COST), "uri": [f"{i}" for i in range(n)]})


def test_cost_sums_survive_cut_and_joined_rows() -> None:
    batches = [add_cost(rows(n), read=0.5, bytes_read=n) for n in (1, 3, 5)]
    joined = add_cost(pa.concat_tables(batches), segment=2.0)
    cut = [joined.slice(0, 2), joined.slice(2, 5), joined.slice(7)]
    again = pa.concat_tables(add_cost(part, write=1.0) for part in cut)
    cost = sum_costs(again["cost"].to_pylist())
    assert cost == dict.fromkeys(COST.names, 0) | {
        "read": 1.5, "segment": 2.0, "write": 3.0, "bytes_read": 9
    }  # fmt: skip
    assert again["uri"].to_pylist() == joined["uri"].to_pylist()
    assert again.schema == joined.schema


def test_sum_costs_of_no_costs_is_zero() -> None:
    assert sum_costs([]) == sum_costs([None]) == dict.fromkeys(COST.names, 0)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("50000×40000 pixels are too many", "N×N pixels are too many"),
        ("OSError: broken data stream when reading image file", "OSError"),
        ("took longer than 1.5 s", "took longer than N s"),
        ("1099511627776 bytes are more than 268435456", "N bytes are more than N"),
        ("needs more than 4 GiB of memory", "needs more than N GiB of memory"),
        ("decoder crashed (SIGABRT)", "decoder crashed (SIGABRT)"),
        ("empty file", "empty file"),
        ("", ""),
        ("x" * 1000, "x" * 60),
    ],
)
def test_failure_reason_drops_numbers_and_details(reason: str, expected: str) -> None:
    assert str(FailureReason.of("decode", reason)) == f"decode: {expected}"


def test_reasons_are_counted() -> None:
    failed = [{"stage": "read", "reason": f"Error{c}: {i}"} for i, c in enumerate("aab")]
    assert sorted(count_reasons(failed), key=str) == [
        {"stage": "read", "text": "Errora", "images": 2},
        {"stage": "read", "text": "Errorb", "images": 1},
    ]


def test_most_frequent_sums_rare_labels() -> None:
    counts = {f"{i:02}": 100 - i for i in range(MAX_LABELS + 3)}
    result = count_most_frequent(counts)
    assert list(result) == [*sorted(counts)[:MAX_LABELS], OTHERS]
    assert sum(result.values()) == sum(counts.values())
    assert count_most_frequent({"a": 1}) == {"a": 1}


def test_occupancy_idle_time_is_between_calls() -> None:
    occupancy = Occupancy()
    time.sleep(0.02)
    assert occupancy.enter() < 0.01
    time.sleep(0.02)
    assert occupancy.leave() >= 0.02
    time.sleep(0.03)
    assert occupancy.enter() >= 0.03
    occupancy.leave()


def test_occupancy_counts_concurrent_calls_once() -> None:
    occupancy, spent = Occupancy(), []
    clock = time.perf_counter()

    def call() -> None:
        waited = occupancy.enter()
        time.sleep(0.05)
        spent.append((waited, occupancy.leave()))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - clock
    assert 0.05 <= sum(waited + busy for waited, busy in spent) <= elapsed
