"""What configs check of their fields; each raises an :class:`InputError` that names field and value.

None passes: it is of a field that may be left open, or else of the wrong type, which :func:`geo3d.config.coerce` tells.
``where`` stands in front of a field's name, such as ``train.``.
"""

from __future__ import annotations

import math
from typing import Any

from geo3d.errors import InputError

_LARGEST_SIDE = 16_384  # pixels


def _require(config: Any, name: str, holds: bool, rule: str, where: str) -> None:
    if not holds:
        raise InputError(f"{where}{name} must {rule}, got {getattr(config, name)}")


def check_between(config: Any, low: float, high: float, *names: str, where: str = "") -> None:
    """Fields lie strictly between two bounds."""
    rule = "be positive and finite" if (low, high) == (0, math.inf) else f"lie between {low} and {high}"
    for name in names:
        value = getattr(config, name)
        _require(config, name, value is None or low < value < high, rule, where)


def check_positive(config: Any, *names: str, where: str = "") -> None:
    """Fields are above 0 and finite."""
    check_between(config, 0, math.inf, *names, where=where)


def check_at_least(config: Any, low: float, *names: str, where: str = "") -> None:
    """Fields are finite and no smaller than a bound."""
    for name in names:
        value = getattr(config, name)
        _require(config, name, value is None or low <= value < math.inf, f"be at least {low}", where)


def check_share(config: Any, *names: str, where: str = "") -> None:
    """Fields lie in [0, 1]."""
    for name in names:
        _require(config, name, 0 <= getattr(config, name) <= 1, "lie in [0, 1]", where)


def check_below_one(config: Any, *names: str, where: str = "") -> None:
    """Fields, or all of their values, lie in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        _require(config, name, all(0 <= part < 1 for part in values), "lie in [0, 1)", where)


def check_seed(config: Any, where: str = "") -> None:
    """The field ``seed`` is one that torch and numpy take."""
    _require(config, "seed", 0 <= config.seed < 2**63, "be at least 0 and below 2^63", where)


def check_image_size(config: Any) -> None:
    """The field ``image_size`` is two sides that images can have."""
    _require(config, "image_size", _are_sides(config.image_size), f"be two sides of 1 to {_LARGEST_SIDE} pixels", "")


def check_image_sizes(config: Any, name: str) -> None:
    """All of a field's values are two sides each that images can have."""
    fits = all(map(_are_sides, getattr(config, name)))
    _require(config, name, fits, f"be pairs of sides of 1 to {_LARGEST_SIDE} pixels", "")


def _are_sides(size: tuple[int, int]) -> bool:
    return all(1 <= side <= _LARGEST_SIDE for side in size)


def check_range(config: Any, name: str, most: float = math.inf) -> None:
    """A field is two positive factors, the smaller one first, of which none exceeds ``most``."""
    low, high = getattr(config, name)
    upper = "" if most == math.inf else f" and none above {most:g}"
    fits = 0 < low <= high <= most and high < math.inf
    _require(config, name, fits, f"be two positive factors, the smaller one first{upper}", "")


__all__ = [
    "check_at_least",
    "check_below_one",
    "check_between",
    "check_image_size",
    "check_image_sizes",
    "check_positive",
    "check_range",
    "check_seed",
    "check_share",
]
