"""Matrix products at single sites, by the quicker of two kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.ops import sparse_conv
from geo3d.ops.registry import get_operator

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
    rows = x.reshape(-1, x.shape[-1])
    itself = torch.arange(len(rows), dtype=torch.int32).unsqueeze(0)
    y = sparse_conv(rows, weight.t().contiguous().unsqueeze(0), itself, itself)
    return (y if bias is None else y + bias).view(*x.shape[:-1], -1)
