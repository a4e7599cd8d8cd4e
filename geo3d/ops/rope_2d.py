"""Rotary position embedding of tokens that lie on a plane (CroCo v2, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geo3d.ops.registry import Kernel, define_operator

SCHEMA = "rope_2d(Tensor tokens, Tensor positions, float base, bool inverse) -> Tensor"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The CUDA kernel gets the head's frequencies in its argument, which holds this many.
_CUDA_MAX_HEAD_DIM = 512


def rope_2d(tokens: Tensor, positions: Tensor, base: float = 100.0) -> Tensor:
    """Rotate every head's channels by angles proportional to the token's row and column.

    The first half of a head is rotated by y, the second by x. In each half of 2 Q channels (Q = D / 4), channel t
    and channel t + Q form a plane that turns by ``position / base ** (t / Q)``. Scalar products of rotated queries and
    keys then depend on their positions only through the difference.

    Differentiable any number of times with respect to ``tokens``. Angles are computed in float64 and products in
    float32 (float64 for float64 tokens); the result is rounded once to the tokens' dtype.

    Args:
        tokens: (B, H, N, D) queries or keys: float32, bfloat16, float16 or float64, any strides, D a multiple of 4.
        positions: (B, N, 2) int64 rows and columns (y, x); may be negative.
        base: of the geometric series of wavelengths; CroCo uses 100.

    Returns:
        (B, H, N, D) rotated tokens in the dtype and memory layout of ``tokens`` (that of ``torch.empty_like``).

    Raises:
        TypeError: a dtype other than those above.
        ValueError: shapes that do not fit each other, tensors on different devices, or a base that is not positive.
    """
    return torch.ops.geo3d.rope_2d.default(tokens, positions, base, False)


def rope_2d_reference(tokens: Tensor, positions: Tensor, base: float, inverse: bool) -> Tensor:
    """What ``geo3d::rope_2d`` computes, in plain PyTorch. ``inverse`` turns the other way."""
    return torch.empty_like(tokens).copy_(rotated(tokens, positions, base, inverse))


def rotated(
    tokens: Tensor, positions: Tensor, base: float, inverse: bool, angle_dtype: torch.dtype = torch.float64
) -> Tensor:
    """The same in memory of its own, in float32 or better; angles in float32 are for runtimes that know no better."""
    compute_dtype = torch.promote_types(tokens.dtype, torch.float32)
    quarter = tokens.shape[-1] // 4
    channel = torch.arange(quarter, dtype=torch.float64, device=tokens.device)
    frequency = base ** (-channel / quarter)  # (Q,)
    frequency = (-frequency if inverse else frequency).to(angle_dtype)
    angle = positions.to(angle_dtype).unsqueeze(-1) * frequency  # (B, N, 2, Q)
    angle = angle.unsqueeze(1)  # (B, 1, N, 2, Q), equal for all heads
    cos, sin = angle.cos().to(compute_dtype), angle.sin().to(compute_dtype)
    u, v = tokens.unflatten(-1, (2, 2, quarter)).to(compute_dtype).unbind(-2)  # each (B, H, N, 2, Q)
    return torch.stack([u * cos - v * sin, v * cos + u * sin], -2).flatten(-3)


def _check(tokens: Tensor, positions: Tensor, base: float, inverse: bool) -> None:
    if tokens.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"rope_2d: tokens must be float32, bfloat16, float16 or float64, got {tokens.dtype}")
    if positions.dtype != torch.int64:
        raise TypeError(f"rope_2d: positions must be int64, got {positions.dtype}")
    if tokens.ndim != 4 or tokens.shape[-1] % 4 != 0:
        raise ValueError(f"rope_2d: tokens must be (B, H, N, D) with D a multiple of 4, got {tuple(tokens.shape)}")
    expected = (tokens.shape[0], tokens.shape[2], 2)
    if tuple(positions.shape) != expected:
        raise ValueError(f"rope_2d: positions must be (B, N, 2) = {expected}, got {tuple(positions.shape)}")
    if tokens.device != positions.device:
        raise ValueError(f"rope_2d: tokens are on {tokens.device} but positions on {positions.device}")
    if not base > 0:
        raise ValueError(f"rope_2d: base must be positive, got {base}")


def _fake(tokens: Tensor, positions: Tensor, base: float, inverse: bool) -> Tensor:
    return torch.empty_like(tokens)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: Tensor) -> None:
    _, positions, ctx.base, ctx.inverse = inputs
    ctx.save_for_backward(positions)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    """A rotation's transpose is its inverse, so the backward is the operator itself, turning the other way."""
    (positions,) = ctx.saved_tensors
    return torch.ops.geo3d.rope_2d.default(gradient, positions, ctx.base, not ctx.inverse), None, None, None


def _refuse_on_cuda(tokens: Tensor, *args: Any) -> str | None:
    if tokens.shape[-1] > _CUDA_MAX_HEAD_DIM:
        return f"head dimension {tokens.shape[-1]} is over {_CUDA_MAX_HEAD_DIM}"
    return None


define_operator(
    SCHEMA,
    reference=rope_2d_reference,
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    kernels=(Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES, _refuse_on_cuda)),
)
