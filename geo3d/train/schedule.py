"""Learning rate and first moment decay as closed-form functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from geo3d.errors import InputError

#: The shape of torch's OneCycleLR: start at peak / 25, end at start / 1e4, rise over 30 % unless told otherwise.
ONE_CYCLE_START, ONE_CYCLE_END, ONE_CYCLE_RISE = 1 / 25, 1 / 25 / 1e4, 0.3
ONE_CYCLE_BETA1 = (0.95, 0.85)


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run.

    Args:
        kind: ``cosine``, ``one_cycle`` or ``constant``.
        peak: highest learning rate.
        steps: length of the schedule, optimizer steps.
        warmup: steps of linear rise from 0; for ``one_cycle`` the length of its rise, 0 standing for 30 %.
        minimum: learning rate at the end of the cosine.
        weight_decay: weight decay at the start and at the end; None: it stays as it is.

    Raises:
        InputError: the warm-up is longer than the schedule.
    """

    kind: Literal["cosine", "one_cycle", "constant"]
    peak: float
    steps: int
    warmup: int = 0
    minimum: float = 0.0
    weight_decay: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind != "constant":
            check_warmup(self.warmup, self.steps, "steps")

    def lr(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, counted from 0."""
        if self.kind == "one_cycle":
            return self.peak * self._one_cycle(step, ONE_CYCLE_START, 1.0, ONE_CYCLE_END)
        if step < self.warmup:
            return self.peak * step / self.warmup
        if self.kind == "constant":
            return self.peak
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.minimum + (self.peak - self.minimum) * 0.5 * (1 + math.cos(math.pi * progress))

    def decay(self, step: int) -> float | None:
        """Weight decay at ``step``, or None where the schedule leaves it alone."""
        if self.weight_decay is None:
            return None
        return _cosine_between(*self.weight_decay, min(1.0, step / max(1, self.steps)))

    def beta1(self, step: int) -> float | None:
        """Decay of the first moment at ``step``, or None where the schedule leaves it alone."""
        if self.kind != "one_cycle":
            return None
        high, low = ONE_CYCLE_BETA1
        return self._one_cycle(step, high, low, high)

    def _one_cycle(self, step: int, start: float, middle: float, end: float) -> float:
        rise = (self.warmup or ONE_CYCLE_RISE * self.steps) - 1
        last = self.steps - 1
        step = min(step, last)
        if step <= rise:
            return _cosine_between(start, middle, step / rise if rise else 1.0)
        return _cosine_between(middle, end, (step - rise) / (last - rise))


def check_warmup(warmup: float, length: float, unit: str) -> None:
    """Raise :class:`InputError` if a warm-up leaves nothing of its schedule, both in ``unit``."""
    if warmup and warmup >= length:
        raise InputError(
            f"the warm-up takes {warmup:g} {unit} of a schedule of {length:g}; "
            "shorten train.warmup_epochs (or warmup_steps) or train longer"
        )


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
