"""Tests of indexing under seeded faults; tests/support/chaos.py runs for longer."""

from collections.abc import Iterator

import pytest

from tests.support.chaos import Stage, open_stage, run_trial

pytestmark = pytest.mark.slow

# seeds: each begins with another fault; `python tests/support/chaos.py --trials N` runs more
TRIALS = 10


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("chaos")) as stage:
        yield stage


@pytest.mark.parametrize("seed", range(TRIALS))
def test_index_survives_chaos(stage: Stage, seed: int) -> None:
    outcome = run_trial(stage, seed)
    assert outcome.rows > 0
