"""What configs of methods check of their fields; each raises an :class:`InputError` that names field and value."""

from __future__ import annotations

import math
from typing import Any

from geo3d.errors import InputError


def check_between(config: Any, low: float, high: float, *names: str) -> None:
    """Fields lie strictly between two bounds."""
    for name in names:
        if not low < getattr(config, name) < high:
            wanted = "be positive" if (low, high) == (0, math.inf) else f"lie between {low} and {high}"
            raise InputError(f"{name} must {wanted}, got {getattr(config, name)}")


def check_positive(config: Any, *names: str) -> None:
    """Fields are above 0 and finite."""
    check_between(config, 0, math.inf, *names)


def check_at_least(config: Any, low: float, *names: str) -> None:
    """Fields are finite and no smaller than a bound."""
    for name in names:
        if not low <= getattr(config, name) < math.inf:
            raise InputError(f"{name} must be at least {low}, got {getattr(config, name)}")


def check_share(config: Any, *names: str) -> None:
    """Fields lie in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name} must lie in [0, 1], got {getattr(config, name)}")


def check_range(config: Any, name: str, most: float = math.inf) -> None:
    """A field is two positive factors, the smaller one first, of which none exceeds ``most``."""
    low, high = getattr(config, name)
    if not (0 < low <= high <= most and high < math.inf):
        upper = "" if most == math.inf else f" and none above {most:g}"
        raise InputError(f"{name} must be two positive factors, the smaller one first{upper}, got {(low, high)}")


__all__ = ["check_at_least", "check_between", "check_positive", "check_range", "check_share"]
