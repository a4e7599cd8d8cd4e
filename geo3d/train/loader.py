"""Loader: draws and collates the samples of each forward pass, in worker processes or in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from geo3d.errors import InputError, MissingExtra
from geo3d.methods.method import SampleSet, SharesDraws
from geo3d.train.order import BatchKey, StepPlan, epoch_order, sample_generator, shared_generator
from geo3d.train.workers import Packed, main_hidden, set_up_worker, worker_context

#: Broken samples in a row after which the data as a whole is taken to be unreadable.
MAX_REPLACEMENTS = 100


class BrokenSample(NamedTuple):
    """An item that could not be drawn, and why."""

    index: int
    name: str
    reason: str


class Batch(NamedTuple):
    """The samples of one forward pass, collated.

    ``error`` is the one line to stop with when no samples could be drawn; ``data`` is None then.
    """

    key: BatchKey
    data: Any
    indices: list[int]
    broken: list[BrokenSample]
    error: str | None = None


class DrawnBatches(Dataset):
    """Maps a :class:`BatchKey` to a :class:`Batch`; what it holds is sent to every worker.

    Args:
        samples: the items.
        collate: joins drawn items.
        plan: how epochs are cut into steps.
        seed: seed of the run.
        strict: whether a broken sample is an error at once.
    """

    def __init__(
        self, samples: SampleSet, collate: Callable[[list[dict]], Any], plan: StepPlan, seed: int, strict: bool = False
    ) -> None:
        self.samples, self.collate, self.plan, self.seed, self.strict = samples, collate, plan, seed, strict

    def __getitem__(self, key: BatchKey) -> Batch:
        indices: list[int] = []
        broken: list[BrokenSample] = []
        drawn = []
        samples = self.samples
        if isinstance(samples, SharesDraws):
            samples = samples.of_step(shared_generator(self.seed, key.step))
        try:
            for position in range(key.first, key.first + key.count):
                index, sample = self._draw(samples, key.epoch, position, broken)
                indices.append(index)
                drawn.append(sample)
        except InputError as error:  # handed over as text: exceptions are mangled on their way out of a worker
            return Batch(key, None, indices, broken, str(error))
        return Batch(key, self.collate(drawn), indices, broken)

    def _draw(
        self, samples: SampleSet, epoch: int, position: int, broken: list[BrokenSample]
    ) -> tuple[int, dict[str, Any]]:
        """Draw the sample of a position; a broken item is replaced by that of the next position, and so on."""
        order = epoch_order(self.seed, epoch, len(samples), self.plan.epoch_length)
        for offset in range(min(len(order), MAX_REPLACEMENTS)):
            index = int(order[(position + offset) % len(order)])
            try:
                return index, samples.draw(index, sample_generator(self.seed, epoch, position))
            except MissingExtra:
                raise
            except InputError as error:
                if self.strict:
                    raise
                broken.append(BrokenSample(index, samples.describe(index), str(error)))
        raise InputError(
            f"{len(broken)} samples in a row cannot be read; the last: {broken[-1].name}: {broken[-1].reason}"
        )


class _Keys:
    """The keys of one process for the rest of the run, as a sampler for the loader."""

    def __init__(self, plan: StepPlan, start: int, stop: int, rank: int) -> None:
        self._arguments = plan, start, stop, rank

    def __iter__(self) -> Iterator[BatchKey]:
        plan, *rest = self._arguments
        return plan.keys(*rest)


def _identity(batch: Batch) -> Batch:
    return batch


@contextmanager
def load_batches(
    batches: DrawnBatches, start: int, stop: int, rank: int = 0, workers: int = 0, pin_memory: bool = False
) -> Iterator[Iterator[Batch]]:
    """Context of an iterator over the batches of process ``rank`` in steps ``start`` to ``stop`` - 1, in order.

    The iterator spans all epochs, so workers live as long as the run; they end with the context.

    Raises:
        InputError: there are workers, and ``batches`` cannot be sent to them.
    """
    dataset: Dataset = batches
    options: dict[str, Any] = {}
    if workers:
        dataset = Packed(batches, type(batches.samples).__name__)
        options = {"multiprocessing_context": worker_context(), "worker_init_fn": set_up_worker}
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_Keys(batches.plan, start, stop, rank),
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader seeds its workers; nothing draws from that, and the global one stays
        **options,
    )
    with main_hidden(workers > 0 and not dataset.needs_main):
        iterator = iter(loader)
    try:
        yield iterator
    finally:
        if workers:  # not left to the garbage collector: an exception's traceback keeps the iterator alive
            iterator._shutdown_workers()
