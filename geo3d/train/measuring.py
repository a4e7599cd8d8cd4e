"""Figures on data that is not trained on, taken while a run goes on, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from geo3d.train.checkpoint import Figure

#: Stands in front of the names of measured figures in metrics.jsonl.
MEASURED = "measured/"


@dataclass(frozen=True)
class Measuring:
    """What is measured during a run, and when.

    Args:
        figures: figures of the network as it is now; called by every process, in evaluation mode and without gradients.
        every: optimizer steps between measurements; the last step of the run is measured as well.
        best: name of the figure by which the best checkpoint is told; it is drawn beside the loss.
        higher_is_better: whether it is to rise.
    """

    figures: Callable[[], dict[str, float]]
    every: int
    best: str
    higher_is_better: bool = False

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after ``step`` of ``total`` steps."""
        return step > 0 and (step % self.every == 0 or step == total)

    def figure(self, value: float | None) -> Figure:
        """The figure by which the best is told, of a value; None: nothing was measured."""
        return Figure(MEASURED + self.best, float("nan") if value is None else float(value), self.higher_is_better)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Context of evaluation that leaves buffers, the mode of every part and torch's random state as they were."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for part, training in modes.items():
            part.training = training
