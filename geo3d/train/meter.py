"""What is measured in a run: its losses, how fast it goes, and how much of it is waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from geo3d.methods.method import MethodOutput


def scalars(output: MethodOutput) -> dict[str, Tensor]:
    """``loss``, each ``loss/<name>`` and ``metric/<name>``, detached float32 scalars."""
    named = {"loss": output.loss}
    named |= {f"loss/{name}": value for name, value in output.losses.items()}
    named |= {f"metric/{name}": value for name, value in output.metrics.items()}
    return {name: value.detach().float() for name, value in named.items()}


class Timer:
    """Tells when some minutes have passed; never where ``minutes`` is None."""

    def __init__(self, minutes: float | None) -> None:
        self._minutes = minutes
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._start = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return self._minutes is not None and time.monotonic() - self._start >= 60 * self._minutes


class Meter:
    """Counts time and steps of one call to fit.

    Args:
        samples_per_step: over all processes.
    """

    def __init__(self, samples_per_step: int) -> None:
        self._samples_per_step = samples_per_step
        self._started = self._last = time.perf_counter()
        self._steps = self._last_steps = 0
        self._waited = self._last_waited = 0.0
        self._step_end = self._first_step_end = self._started
        self._first_step_waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count_step(self) -> None:
        """A step has ended."""
        self._steps += 1
        self._step_end = time.perf_counter()
        if self._steps == 1:
            self._first_step_end, self._first_step_waited = self._step_end, self._waited

    @property
    def seconds(self) -> float:
        """Seconds from the beginning to the end of the last step."""
        return self._step_end - self._started

    @property
    def overall_rate(self) -> float:
        """Samples per second from the beginning to the end of the last step."""
        return self._steps * self._samples_per_step / self.seconds if self._steps else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time after the first step spent waiting for data; 0 where there was but one step."""
        if self._steps < 2:
            return 0.0
        return (self._waited - self._first_step_waited) / (self._step_end - self._first_step_end)

    def since_last_record(self) -> dict[str, float]:
        """Samples per second, and seconds of waiting for data, since this was last asked."""
        now = time.perf_counter()
        rate = (self._steps - self._last_steps) * self._samples_per_step / (now - self._last)
        record = {"samples_per_second": rate, "wait_seconds": self._waited - self._last_waited}
        self._last, self._last_steps, self._last_waited = now, self._steps, self._waited
        return record
