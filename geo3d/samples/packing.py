"""Packing: items of different sizes joined one after the other, never padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def pack(samples: Sequence[dict[str, Any]], counted: str = "xyz") -> dict[str, Any]:
    """Join drawn items into one batch.

    Args:
        samples: tensors (N_i, ...) by the same names in every item.
        counted: name of the tensors whose rows ``offsets`` counts; others may have another number of rows.

    Returns:
        Each tensor of all items (sum N_i, ...), and ``offsets`` (B + 1,) int64: item i has rows ``offsets[i]`` to
        ``offsets[i + 1]``.
    """
    sizes = torch.tensor([0, *(len(sample[counted]) for sample in samples)])
    packed = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    return packed | {"offsets": sizes.cumsum(0)}
