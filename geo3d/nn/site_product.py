"""Matrix products at single sites, by the quicker of two kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from geo3d.ops import sparse_conv
from geo3d.ops.registry import get_operator
from geo3d.ops.sparse_conv import sparse_conv_weight_gradient

#: Below so many rows a product reads more weights than features, which the library's kernel does better.
LEAST_ROWS = 128


def why_not_own_kernel(x: Tensor) -> str | None:
    """Why a product with ``x`` (..., C) is left to PyTorch instead of the kernel of ``geo3d::sparse_conv``, or None.

    With float32 on CPUs that kernel, given every row as its own only neighbour, is up to twice as quick where PyTorch's
    library does not use the processor's wide vectors, and as quick elsewhere.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"only float32 on a CPU gains, this is {x.dtype} on {x.device.type}"
    rows = x.numel() // x.shape[-1]
    if rows < LEAST_ROWS:
        return f"{rows} rows are fewer than {LEAST_ROWS}"
    _, refusals = get_operator("sparse_conv").choose(x)
    return refusals.get("cpu")


def site_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of sites.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    if why_not_own_kernel(x) is not None:
        return F.linear(x, weight, bias)
    itself = torch.arange(x.numel() // x.shape[-1], dtype=torch.int32).unsqueeze(0)
    y = KernelProduct.apply(x.reshape(-1, x.shape[-1]), weight.unsqueeze(-1), itself, itself)
    return (y if bias is None else y + bias).view(*x.shape[:-1], -1)


class KernelProduct(torch.autograd.Function):
    """``geo3d::sparse_conv`` with the weights of a dense layer, which are turned round on the fly instead of kept.

    Rows (N, I), weight (O, I, K), neighbours (K, M) and (K, N) as the operator takes them -> (M, O).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, neighbours, transposed)
        return sparse_conv(rows, _taps(weight).transpose(1, 2).contiguous(), neighbours, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, neighbours, transposed = ctx.saved_tensors
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = sparse_conv(gradient, _taps(weight), transposed, neighbours)
        if ctx.needs_input_grad[1]:
            # With the sides exchanged, so that it comes out as (K, O, I).
            of_weight = sparse_conv_weight_gradient(gradient, rows, transposed, neighbours)
            of_weight = of_weight.flatten(1).t().contiguous().view_as(weight)
        return of_rows, of_weight, None, None


def _taps(weight: Tensor) -> Tensor:
    """(O, I, K) -> (K, O, I)."""
    out, channels, taps = weight.shape
    return weight.reshape(out * channels, taps).t().contiguous().view(taps, out, channels)
