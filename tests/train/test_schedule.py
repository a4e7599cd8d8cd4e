"""Schedules against their formulas and against torch's."""

from __future__ import annotations

import math

import pytest
import torch

from geo3d.errors import InputError
from geo3d.train.config import TrainConfig
from geo3d.train.schedule import Schedule


def test_cosine_rises_linearly_and_falls_to_its_minimum() -> None:
    schedule = Schedule("cosine", peak=2.0, steps=110, warmup=10, minimum=0.5)
    assert [schedule.lr(step) for step in range(11)] == pytest.approx([0.2 * step for step in range(11)])
    assert schedule.lr(60) == pytest.approx((2.0 + 0.5) / 2)
    assert schedule.lr(35) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.lr(110) == pytest.approx(0.5)
    assert schedule.lr(500) == pytest.approx(0.5)  # trained for longer than the schedule
    assert schedule.beta1(3) is None


def test_constant_rises_and_stays() -> None:
    schedule = Schedule("constant", peak=3.0, steps=5, warmup=6)
    assert [schedule.lr(step) for step in (0, 3, 6, 100)] == [0, 1.5, 3, 3]
    assert Schedule("constant", 3.0, 5).lr(0) == 3


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0), (41, 7), (200, 100), (10, 3), (4, 0)])
def test_one_cycle_is_that_of_torch(steps: int, warmup: int) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = warmup / steps if warmup else 0.3
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps, pct_start=rise)
    schedule = Schedule("one_cycle", peak=0.3, steps=steps, warmup=warmup)
    for step in range(steps):
        assert schedule.lr(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        assert schedule.beta1(step) == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-12)
        if step < steps - 1:
            optimizer.step()
            reference.step()


def test_warm_up_longer_than_the_schedule_is_refused() -> None:
    with pytest.raises(InputError, match=r"warm-up takes 10 steps of a schedule of 10"):
        Schedule("cosine", 1.0, steps=10, warmup=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 6, "warmup_steps": 20}, "takes 20 steps of a schedule of 6"),
        ({"steps": 5, "warmup_epochs": 6.0}, "takes 6 steps of a schedule of 5"),  # however few samples there are
        ({"epochs": 3, "warmup_epochs": 3.5}, "takes 3.5 epochs of a schedule of 3"),
        ({"steps": 900, "schedule_epochs": 2.0, "warmup_epochs": 2.0}, "takes 2 epochs of a schedule of 2"),
    ],
)
def test_warm_up_too_long_for_any_data_is_refused_before_they_are_there(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**changes).check()
    TrainConfig(**changes, schedule="constant").check()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 6, "warmup_steps": 5},
        {"steps": 5, "warmup_epochs": 0.1},
        {"epochs": 2, "warmup_steps": 100},  # the data will tell
        {"epochs": 0.5, "warmup_epochs": 0.0},
    ],
)
def test_warm_up_that_may_fit_is_left_to_the_schedule(changes: dict) -> None:
    TrainConfig(**changes).check()


def test_weight_decay_runs_along_half_a_cosine_or_stays() -> None:
    schedule = Schedule("cosine", 1.0, 100, weight_decay=(0.04, 0.2))
    expected = [0.04, 0.12, 0.2, 0.2]
    assert [schedule.decay(step) for step in (0, 50, 100, 130)] == pytest.approx(expected)
    assert schedule.decay(25) == pytest.approx(0.2 - 0.08 * (1 + math.cos(math.pi / 4)))
    assert Schedule("cosine", 1.0, 100).decay(50) is None
