"""Layers over many rows where no gradient is recorded: in pieces that stay in the caches, by the quicker product.

Features of a scene take tens of megabytes between any two layers. What is that large is fetched from the system anew
each time, page by page, which takes as long as a matrix product over it; pieces of some thousand rows are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geo3d.nn.site_product import why_not_own_kernel
from geo3d.ops.sparse_conv import sparse_conv

#: Rows of a piece.
ROWS = 4096


def takes_pieces(x: Tensor) -> bool:
    """Whether layers over ``x`` (N, C) are run in pieces: float32 on a CPU, no gradient, not compiled or exported."""
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not recorded and why_not_own_kernel(x) is None


def in_pieces(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, for some rows after the others.

    Args:
        function: rows of all tensors (n, ...) -> (n, C), each row by itself.
        tensors: (N, ...), N at least 1.

    Returns:
        (N, C).
    """
    count = len(tensors[0])
    made = None
    for first in range(0, count, ROWS):
        part = function(*(tensor[first : first + ROWS] for tensor in tensors))
        if len(part) == count:
            return part
        if made is None:
            made = part.new_empty(count, part.shape[1])
        made[first : first + len(part)] = part
    return made


class RowProduct:
    """A linear layer for rows in pieces, by the kernel of ``geo3d::sparse_conv``; see :mod:`geo3d.nn.site_product`.

    Args:
        layer: whose weights are used; turned round here once, and not at each piece.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.t().contiguous().unsqueeze(0), layer.bias
        self.itself = torch.arange(ROWS, dtype=torch.int32).unsqueeze(0)

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, I) of up to ``ROWS`` rows -> (n, O)."""
        made = sparse_conv(rows, self.weight, self.itself[:, : len(rows)])
        return made if self.bias is None else made.add_(self.bias)


__all__ = ["ROWS", "RowProduct", "in_pieces", "takes_pieces"]
