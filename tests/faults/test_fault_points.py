"""Killed between any two steps: a sample of all points; `scripts/fault_points` strikes at every one of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.points import PHASES, strike, strike_many

#: Of each phase. All phases together take about 40 s on two cores.
SAMPLE = 12
#: Each line counts as a point at its first so many visits.
VISITS = 3
#: Fixed, so that a failure can be repeated.
SEED = 4


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_killed_between_two_steps(tmp_path: Path, phase: str) -> None:
    """kill -9 at every k-th step: the work is done, no limit is exceeded, no token is lost, nothing is left."""
    calm = strike(tmp_path / "calm", phase, 0, visits=VISITS)
    assert calm.problem == ""
    assert calm.points > 200
    every = calm.points // SAMPLE
    first = random.Random(f"{SEED} {phase}").randint(1, every)
    points = [(phase, at) for at in range(first, calm.points + 1, every)]
    outcomes = list(strike_many(tmp_path, points, visits=VISITS, at_once=4))
    assert [outcome for outcome in outcomes if outcome.problem] == []
    # Threads make the last points come and go; the others are there each time.
    assert sum(outcome.hit for outcome in outcomes) >= len(outcomes) - 2
