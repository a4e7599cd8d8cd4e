"""Schedules: ticks of steps and of a clock, grids from coarse to fine."""

from __future__ import annotations

import pytest

from geo3d.errors import InputError
from geo3d.reconstruction.fit_schedule import TICKS, Pace, Stages, falling


@pytest.mark.parametrize("steps", [1, 7, 256, 1000])
def test_ticks_of_steps_are_even(steps: int) -> None:
    pace = Pace.of_steps(steps)
    assert pace.steps == steps
    assert [pace.tick(step) for step in range(steps)] == [TICKS * step // steps for step in range(steps)]
    assert pace.tick(steps) == TICKS


def test_a_clock_is_noted_and_can_be_repeated() -> None:
    by_clock, step, seen = Pace(), 0, []
    while (tick := by_clock.advance(step, 0.011 * step, 3.0)) < TICKS:
        seen.append(tick)
        step += 1
    assert step == by_clock.steps == 280  # 3 / 0.011 = 272.7, and the clock is asked every 8 steps
    again = Pace.given(by_clock.starts)
    assert [again.tick(s) for s in range(step)] == seen
    assert again.tick(step) == TICKS


def test_grids_grow() -> None:
    stages = Stages(160)
    way = [(0, 32), (0.06, 32), (0.08, 64), (0.19, 64), (0.21, 96), (0.34, 96), (0.36, 160), (1, 160)]
    assert [stages.at(round(TICKS * part)) for part, _ in way] == [longest for _, longest in way]
    assert Stages(16).at(0) == 8
    assert falling(0.5, 0.05)(0) == 0.5
    assert falling(0.5, 0.05)(TICKS) == pytest.approx(0.05)


@pytest.mark.parametrize("starts", [[], [0, 1], [1] * 257, [0] * 257, [0, 2, 1, *range(3, 257)]])
def test_no_pace_of_a_fit(starts: list[int]) -> None:
    with pytest.raises(InputError, match="rising steps of an earlier fit"):
        Pace.given(starts)
    with pytest.raises(InputError, match="at least 1"):
        Pace.of_steps(0)
