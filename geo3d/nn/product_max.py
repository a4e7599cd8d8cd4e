"""The largest of every channel over the members of groups, of a product that never exists as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geo3d.nn.tile_conv import under_autocast

#: Values of the product at a time: a megabyte of float32 stays in a processor's cache; a GPU wants more at once.
_VALUES = {"cpu": 1 << 18, "cuda": 1 << 25}


def product_max(x: Tensor, weight: Tensor, members: int) -> Tensor:
    """``(x @ weight.T).unflatten(0, (-1, members)).amax(1)``, of which only the winners are kept for the backward pass.

    Of equal values that of the last member wins, and has the gradient.

    Args:
        x: (M * members, in), those of one group one after the other.
        weight: (out, in).
        members: of each group, up to 256.

    Returns:
        (M, out).
    """
    return _ProductMax.apply(*under_autocast(x, weight), members)


def _groups_at_once(x: Tensor, weight: Tensor, members: int) -> int:
    return max(1, _VALUES.get(x.device.type, _VALUES["cpu"]) // (members * max(weight.shape)))


class _ProductMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, members: int) -> Tensor:
        groups = len(x) // members
        largest = x.new_empty(groups, len(weight))
        winner = torch.empty_like(largest, dtype=torch.uint8)
        number = torch.arange(members, dtype=x.dtype, device=x.device).view(-1, 1)
        step = _groups_at_once(x, weight, members)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, groups, step):
                rows = slice(start, start + step)
                product = (x[start * members : (start + step) * members] @ weight.t()).unflatten(0, (-1, members))
                best = torch.amax(product, 1, keepdim=True)
                largest[rows] = best.squeeze(1)
                # As numbers, in place: torch finds the place of a maximum, and makes truth values, far more slowly.
                winner[rows] = product.eq_(best).mul_(number).amax(1)
        ctx.save_for_backward(x, weight, winner)
        ctx.members, ctx.step = members, step
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        members, step = ctx.members, ctx.step
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        of_x = torch.empty_like(x) if needs_x else None
        of_weight = torch.zeros_like(weight, dtype=torch.promote_types(x.dtype, torch.float32))
        for start in range(0, len(winner), step):
            part, chosen = gradient[start : start + step], winner[start : start + step].long()
            rows = slice(start * members, (start + step) * members)
            spread = part.new_zeros(len(part), members, part.shape[1])
            spread = spread.scatter_(1, chosen.unsqueeze(1), part.unsqueeze(1)).flatten(0, 1)
            if needs_x:
                torch.mm(spread, weight, out=of_x[rows])
            if needs_weight:
                of_weight += spread.t() @ x[rows]
        return of_x, of_weight.to(weight.dtype) if needs_weight else None, None


__all__ = ["product_max"]
