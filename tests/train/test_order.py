"""Order and generators come from counters alone."""

from __future__ import annotations

import numpy as np
import pytest

from geo3d.train.order import StepPlan, epoch_order, sample_generator, shared_generator, step_seed


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    order = epoch_order(seed=3, epoch=0, size=100, length=100)
    assert sorted(order) == list(range(100))
    assert not np.array_equal(order, np.arange(100))
    assert not np.array_equal(order, epoch_order(3, 1, 100, 100))
    assert not np.array_equal(order, epoch_order(4, 0, 100, 100))
    assert np.array_equal(order[:90], epoch_order(3, 0, 100, 90))


def test_few_items_are_repeated_evenly_to_fill_a_step() -> None:
    plan = StepPlan(size=5, batch_size=6, accumulate=2)
    assert (plan.steps_per_epoch, plan.epoch_length) == (1, 12)
    counts = np.bincount(epoch_order(0, 0, 5, plan.epoch_length), minlength=5)
    assert counts.min() == 2
    assert counts.max() == 3


def test_incomplete_step_is_dropped() -> None:
    plan = StepPlan(size=29, batch_size=4, accumulate=2)
    assert (plan.effective_batch, plan.steps_per_epoch, plan.epoch_length) == (8, 3, 24)


@pytest.mark.parametrize(("batch_size", "accumulate", "world_size"), [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)])
def test_a_step_takes_the_same_positions_however_it_is_shared(batch_size, accumulate, world_size) -> None:
    plan = StepPlan(30, batch_size, accumulate, world_size)
    taken: dict[int, list[tuple[int, int]]] = {}
    for rank in range(world_size):
        for key in plan.keys(2, 7, rank):
            taken.setdefault(key.step, []).extend((key.epoch, key.first + i) for i in range(key.count))
    # 30 items make 3 steps of 8: step 2 is the last of epoch 0, step 6 the first of epoch 2
    expected = {step: [(step // 3, 8 * (step % 3) + i) for i in range(8)] for step in range(2, 7)}
    assert {step: sorted(positions) for step, positions in taken.items()} == expected


def test_generators_differ_in_every_counter_and_repeat() -> None:
    counters = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [sample_generator(*counter).integers(2**62) for counter in counters]
    seeds = [step_seed(*counter) for counter in counters]
    orders = [int(np.random.SeedSequence(0, spawn_key=(0, 0)).generate_state(1)[0])]
    shared = [int(shared_generator(*counter).integers(2**62)) for counter in ((0, 0), (1, 0), (0, 1))]
    assert len({*draws, *seeds, *orders, *shared}) == 12
    assert draws == [sample_generator(*counter).integers(2**62) for counter in counters]
    assert seeds == [step_seed(*counter) for counter in counters]
    assert all(0 <= seed < 2**63 for seed in seeds)
