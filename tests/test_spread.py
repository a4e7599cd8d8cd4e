"""Some of many, evenly spread."""

from __future__ import annotations

from geo3d.spread import evenly_spread


def test_from_the_first_to_the_last() -> None:
    assert evenly_spread(5) == evenly_spread(5, 9) == [0, 1, 2, 3, 4]
    assert evenly_spread(9, 3) == [0, 4, 8]
    assert evenly_spread(4, 1) == [0]
    assert evenly_spread(0, 3) == []
