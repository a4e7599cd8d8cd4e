"""The operator rope_2d, forward and with its backward, beside other ways to compute it.

The floor is memory: each pass reads and writes every element once and nothing else that counts (angles are shared by
the heads and, on a grid, by all tokens of a row or column). Tokens of (4, 12, 196, 64) are 602,112 elements, so a
pass moves 4.8 MB in float32 and 2.4 MB in bfloat16, and forward with backward twice that. A product with a number,
which does just that both ways, stands in the table for the floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.ops import rope_2d
from geo3d.ops.rope_2d import rope_2d_reference

_BASE = 100.0


@dataclass
class RopeBenchmark:
    """Rotation of one attention layer's queries by their positions on a grid."""

    batch: int = 4
    """Images."""
    heads: int = 12
    """Attention heads."""
    side: int = 14
    """Tokens along each side of the square grid."""
    head_dim: int = 64
    """Channels of a head."""
    calls: int = 20
    """Calls a turn; the time of one is reported."""
    threads: int = 1
    """CPU threads."""
    turns: int = 15
    """Timed turns of each variant; the median counts."""
    device: str = "cpu"
    """cpu or cuda."""


def _rotate_half(tokens: Tensor, cosines: tuple[Tensor, Tensor], sines: tuple[Tensor, Tensor]) -> Tensor:
    """The usual PyTorch form: ``x * cos + rotate_half(x) * sin``, with tables that were computed before."""
    halves = []
    for half, cosine, sine in zip(tokens.chunk(2, -1), cosines, sines):
        u, v = half.chunk(2, -1)
        halves.append(half * cosine + torch.cat([-v, u], -1) * sine)
    return torch.cat(halves, -1)


def _tables(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    quarter = head_dim // 4
    frequency = _BASE ** (-torch.arange(quarter, device=positions.device) / quarter)
    angle = (positions[:, None, :, :, None] * frequency).repeat(1, 1, 1, 1, 2)  # (B, 1, N, 2, D / 2)
    return angle.cos().to(dtype).unbind(3), angle.sin().to(dtype).unbind(3)


def _functions(positions: Tensor, head_dim: int, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    cosines, sines = _tables(positions, head_dim, dtype)
    return {
        "rotate-half, PyTorch": lambda tokens: _rotate_half(tokens, cosines, sines),
        "reference, PyTorch": lambda tokens: rope_2d_reference(tokens, positions, _BASE, False),
        "geo3d": lambda tokens: rope_2d(tokens, positions, _BASE),
        "times two (floor)": lambda tokens: tokens * 2,
    }


_VARIANTS = ("rotate-half, PyTorch", "reference, PyTorch", "geo3d", "times two (floor)")


def calls(
    variant: str, shape: tuple[int, int, int, int], dtype: str, device: str, backward: bool, count: int
) -> Callable[[], None]:
    """The function to time: ``count`` calls of a variant."""
    batch, heads, side, head_dim = shape
    grid = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    positions = torch.stack(grid, -1).reshape(1, side * side, 2).repeat(batch, 1, 1).to(device)
    tokens = torch.randn(batch, heads, side * side, head_dim).to(device, getattr(torch, dtype))
    gradient = torch.randn_like(tokens)
    function = _functions(positions, head_dim, tokens.dtype)[variant]
    tokens.requires_grad_(backward)

    def step() -> None:
        for _ in range(count):
            result = function(tokens)
            if backward:
                torch.autograd.grad(result, tokens, gradient)

    return step


def run(config: RopeBenchmark) -> list[dict[str, Any]]:
    """Rows of every variant in float32 and bfloat16; the usual PyTorch form is the base of the ratios."""
    rows = []
    shape = (config.batch, config.heads, config.side, config.head_dim)
    for backward in (False, True):
        for dtype in ("float32", "bfloat16"):
            variants = []
            for variant in _VARIANTS:
                arguments = {"variant": variant, "shape": shape, "dtype": dtype, "device": config.device}
                arguments |= {"backward": backward, "count": config.calls}
                factory = "benchmarks.rope_2d:calls"
                variants.append(Variant(variant, factory, arguments, dtype, config.device, config.threads))
            size = f"({config.batch}, {config.heads}, {config.side**2}, {config.head_dim})"
            case = f"rope_2d of {size}, {dtype}, {'forward and backward' if backward else 'forward'}"
            rows += race(case, variants, config.turns)
    return [row | {"seconds": row["seconds"] / config.calls} for row in rows]
