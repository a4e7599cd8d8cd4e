"""How a radiance field is fitted over time: which grid when, rates that fall, and how far along a step is.

How far a fit has come is counted in ticks, whole numbers from 0 to 256. All that changes over a fit is a function of
the tick, and the step at which each tick was reached is kept. So a fit by the clock can be repeated to the bit, given
its pace.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from geo3d.errors import InputError

TICKS = 256
#: The clock is asked every so many steps.
_LOOKED_AT = 8


@dataclass
class Pace:
    """The step at which each tick was reached.

    Args:
        starts: first step of each tick so far, ascending from 0; a tick that was skipped has the step of the next.
            A fit is done when it holds all 257.
    """

    starts: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def of_steps(cls, steps: int) -> Pace:
        """Ticks evenly over so many steps.

        Raises:
            InputError: no step at all.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        return cls([-(-steps * tick // TICKS) for tick in range(TICKS + 1)])

    @classmethod
    def given(cls, starts: Sequence[int]) -> Pace:
        """That of an earlier fit.

        Raises:
            InputError: it does not begin at 0, falls, or is not of 257 steps.
        """
        starts = [int(step) for step in starts]
        rising = all(a <= b for a, b in pairwise(starts))
        if len(starts) != TICKS + 1 or starts[0] != 0 or not rising or starts[-1] < 1:
            raise InputError(f"pace: takes the {TICKS + 1} rising steps of an earlier fit, from 0, got {starts[:4]}...")
        return cls(starts)

    def tick(self, step: int) -> int:
        """How far a step is along, 0 to 256; 256: the fit is done before it."""
        return bisect_right(self.starts, step) - 1

    def advance(self, step: int, elapsed: float, seconds: float) -> int:
        """The tick of the next step by the clock, noted where it is a new one.

        Args:
            step: its number.
            elapsed: seconds since the start of the fit.
            seconds: that it is given.
        """
        if step % _LOOKED_AT == 0 and step > 0:
            reached = min(TICKS, int(TICKS * elapsed / seconds))
            self.starts += [step] * (reached + 1 - len(self.starts))
        return self.tick(step)

    @property
    def steps(self) -> int:
        """Steps of a fit that is done; so far, of one that is not."""
        return self.starts[-1]


@dataclass(frozen=True)
class Stages:
    """Grids from coarse to fine.

    Args:
        longest_side: nodes along the longest side of the last grid.
        shares: of it, the longest side of each grid before.
        until: where on the way, 0 to 1, each of these ends.
    """

    longest_side: int
    shares: tuple[float, ...] = (0.2, 0.4, 0.6)
    until: tuple[float, ...] = (0.07, 0.2, 0.35)

    def at(self, tick: int) -> int:
        """Nodes along the longest side of the grid in use."""
        for share, until in zip(self.shares, self.until, strict=True):
            if tick < until * TICKS:
                return max(8, round(share * self.longest_side))
        return self.longest_side


def falling(first: float, last: float) -> Callable[[int], float]:
    """A factor that falls from ``first`` to ``last`` exponentially, by the tick."""
    return lambda tick: first * (last / first) ** (tick / TICKS)


__all__ = ["TICKS", "Pace", "Stages", "falling"]
