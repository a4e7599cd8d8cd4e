"""Which sample comes when, and the generators that draw it: all from counters, never from the state of a process.

The samples of a run are numbered by (epoch, position in the epoch's global order). A step takes a run of consecutive
positions, shared among processes and accumulated passes, so neither the number of workers nor of processes nor an
interruption changes which samples a step sees or how they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from geo3d.random import TrainingStream, training_sequence


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Generator of the sample at ``position`` of the epoch's global order."""
    return np.random.default_rng(training_sequence(seed, TrainingStream.SAMPLE, epoch, position))


def shared_generator(seed: int, step: int) -> np.random.Generator:
    """Generator of what all samples of a step share, on all processes and in all of its forward passes."""
    return np.random.default_rng(training_sequence(seed, TrainingStream.SHARED, step))


def step_seed(seed: int, step: int, first: int) -> int:
    """Seed, in [0, 2^63), of what is drawn in the forward pass of ``step`` that begins at position ``first``."""
    state = training_sequence(seed, TrainingStream.STEP, step, first).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int, length: int) -> np.ndarray:
    """Item at each position of an epoch, (length,) int64.

    A permutation of ``size`` items cut to ``length``; where ``length`` is more than ``size``, others follow.
    """
    generator = np.random.default_rng(training_sequence(seed, TrainingStream.ORDER, epoch))
    rounds = [generator.permutation(size) for _ in range(-(-length // size))]
    order = np.concatenate(rounds)[:length]
    order.flags.writeable = False
    return order


class BatchKey(NamedTuple):
    """One forward pass of one process: ``count`` samples of ``epoch`` from position ``first`` on."""

    step: int
    epoch: int
    first: int
    count: int


@dataclass(frozen=True)
class StepPlan:
    """How an epoch is cut into steps, and a step into the forward passes of each process.

    The last, incomplete step of an epoch is dropped; other samples are dropped in each epoch. Where there are fewer
    items than one step takes, an epoch is one step and goes through the items again, drawn anew, until it is filled.

    Args:
        size: number of items.
        batch_size: samples per process and forward pass.
        accumulate: forward passes per step.
        world_size: processes.
    """

    size: int
    batch_size: int
    accumulate: int = 1
    world_size: int = 1

    @property
    def effective_batch(self) -> int:
        """Samples per step, over all processes."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, at least one."""
        return max(1, self.size // self.effective_batch)

    @property
    def epoch_length(self) -> int:
        """Samples drawn in an epoch."""
        return self.steps_per_epoch * self.effective_batch

    def keys(self, start: int, stop: int, rank: int) -> Iterator[BatchKey]:
        """Forward passes of process ``rank`` in steps ``start`` to ``stop`` - 1, ``accumulate`` for each step."""
        for step in range(start, stop):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            for accumulated in range(self.accumulate):
                before = step_in_epoch * self.accumulate + accumulated
                first = (before * self.world_size + rank) * self.batch_size
                yield BatchKey(step, epoch, first, self.batch_size)
