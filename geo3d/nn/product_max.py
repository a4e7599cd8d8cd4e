"""The largest of every channel over the members of groups, of a product that never exists as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geo3d.nn.batch_norm import VoxelNorm1d, input_gradient
from geo3d.nn.tile_conv import under_autocast

#: Values of the product at a time: four megabytes of float32 stay in a processor's caches (one to eight take the same
#: time); a GPU wants more at once.
_VALUES = {"cpu": 1 << 20, "cuda": 1 << 25}


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
    x, weight = under_autocast(x, weight)
    if torch.compiler.is_exporting():
        return _whole(x, weight, members)
    return _ProductMax.apply(x, weight, members)


def normalised_product_max(x: Tensor, norm: VoxelNorm1d, weight: Tensor, members: int) -> Tensor:
    """``product_max(norm(x).relu(), weight, members)``, for which no more than x is held.

    Args:
        x, weight, members: as :func:`product_max` takes them.
        norm: over the rows of x.

    Returns:
        (M, out).
    """
    x, weight = under_autocast(x, weight)
    statistics = norm.statistics(x)
    if torch.compiler.is_exporting():
        mean, scale, _ = statistics
        factor = scale * norm.weight
        return _whole(torch.addcmul(norm.bias - mean * factor, x, factor).relu().to(weight.dtype), weight, members)
    return _NormalisedProductMax.apply(x, norm.weight, norm.bias, *statistics, norm.shared, weight, members)


def _whole(x: Tensor, weight: Tensor, members: int) -> Tensor:
    """The same of a program, whose sizes are not known when it is made: at once, and without a gradient."""
    return (x @ weight.t()).unflatten(0, (-1, members)).amax(1)


def _parts(groups: int, x: Tensor, weight: Tensor, members: int) -> Iterator[tuple[slice, slice]]:
    """Groups that are worked on at a time, and their members."""
    step = max(1, _VALUES.get(x.device.type, _VALUES["cpu"]) // (members * max(weight.shape)))
    for start in range(0, groups, step):
        end = min(start + step, groups)
        yield slice(start, end), slice(start * members, end * members)


class _Largest:
    """The largest product of each group, and which member's it is."""

    def __init__(self, groups: int, weight: Tensor, members: int) -> None:
        self.value = weight.new_empty(groups, len(weight))
        self.member = torch.empty_like(self.value, dtype=torch.uint8)
        self.weight = weight
        self.number = torch.arange(members, dtype=weight.dtype, device=weight.device).view(-1, 1)

    def find(self, groups: slice, x: Tensor) -> None:
        product = (x @ self.weight.t()).unflatten(0, (-1, len(self.number)))
        best = product.amax(1, keepdim=True)
        self.value[groups] = best.squeeze(1)
        # As numbers, in place: torch finds the place of a maximum, and makes truth values, far more slowly.
        self.member[groups] = product.eq_(best).mul_(self.number).amax(1)


def _spread(gradient: Tensor, member: Tensor, members: int) -> Tensor:
    """(M, out) gradients at maxima -> (M * members, out), at the members whose these are."""
    spread = gradient.new_zeros(len(gradient), members, gradient.shape[1])
    return spread.scatter_(1, member.long().unsqueeze(1), gradient.unsqueeze(1)).flatten(0, 1)


class _ProductMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, members: int) -> Tensor:
        largest = _Largest(len(x) // members, weight, members)
        with torch.autocast(x.device.type, enabled=False):
            for groups, rows in _parts(len(largest.value), x, weight, members):
                largest.find(groups, x[rows])
        ctx.save_for_backward(x, weight, largest.member)
        ctx.members = members
        return largest.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, member = ctx.saved_tensors
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.promote_types(x.dtype, torch.float32))
        for groups, rows in _parts(len(member), x, weight, ctx.members):
            spread = _spread(gradient[groups], member[groups], ctx.members)
            of_weight += spread.t() @ x[rows]
            if of_x is not None:
                torch.mm(spread, weight, out=of_x[rows])
        return of_x, of_weight.to(weight.dtype), None


class _NormalisedProductMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
        shared: bool,
        weight: Tensor,
        members: int,
    ) -> Tensor:
        largest = _Largest(len(x) // members, weight, members)
        factor = scale * norm_weight
        shift = norm_bias - mean * factor
        with torch.autocast(x.device.type, enabled=False):
            for groups, rows in _parts(len(largest.value), x, weight, members):
                largest.find(groups, torch.addcmul(shift, x[rows], factor).relu_().to(weight.dtype))
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, scale, count, weight, largest.member)
        ctx.shared, ctx.members = shared, members
        return largest.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, scale, count, weight, member = ctx.saved_tensors
        factor = scale * norm_weight
        shift = norm_bias - mean * factor
        of_x = torch.empty_like(x)
        of_norm_weight, of_norm_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        of_weight = torch.zeros_like(weight, dtype=mean.dtype)
        parts = list(_parts(len(member), x, weight, ctx.members))
        for groups, rows in parts:
            y = torch.addcmul(shift, x[rows], factor).relu_().to(weight.dtype)
            spread = _spread(gradient[groups], member[groups], ctx.members)
            of_weight += spread.t() @ y
            of_y = torch.mm(spread, weight, out=of_x[rows])
            of_y.mul_(y.sign_())  # of what is not negative: 1 where ReLU let it through
            of_norm_bias += of_y.sum(0, dtype=mean.dtype)
            of_norm_weight += (x[rows] - mean).mul_(of_y).sum(0)
        of_norm_weight *= scale
        a, factor, b = input_gradient(norm_weight, mean, scale, count, of_norm_weight, of_norm_bias, ctx.shared)
        for _, rows in parts:
            of_x[rows] = torch.addcmul(b, x[rows], a).addcmul_(of_x[rows], factor)
        return of_x, of_norm_weight, of_norm_bias, None, None, None, None, of_weight.to(weight.dtype), None


__all__ = ["normalised_product_max", "product_max"]
