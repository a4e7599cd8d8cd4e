"""Batch normalisation whose statistics are those of all processes, and exact whatever the layout in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, with the statistics of all processes while several train; CPU or GPU, any number of sites.

    Processes may hold different numbers of sites; each site counts alike. Inputs are (N, C, ...). On CPUs torch adds up
    the sites of channels-last tensors one after the other, which costs float32 two digits in a map of 100,000 sites; here
    they are added up in a tree.

    Args:
        as :class:`torch.nn.BatchNorm2d`.
    """

    synchronised: bool = True

    def _check_input_dim(self, input: Tensor) -> None:  # rows of sites are normalised as well
        pass

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same, each channel normalised."""
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        shared = self.synchronised and distributed.is_available() and distributed.is_initialized()
        shared = shared and distributed.get_world_size() > 1
        channels_last = x.movedim(1, -1).is_contiguous() and x.device.type == "cpu"
        if not (shared or channels_last):
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, shared)
        if self.training and self.track_running_stats:
            self._track(mean, variance * count / (count - 1))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """Normalised sites, and the mean, the biased variance and the number of sites that they were normalised by."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shared: bool
    ) -> tuple[Tensor, ...]:
        rows = _rows(x)
        sums = _over_all(
            torch.cat([rows.sum(0, dtype=_wide(x)), rows.new_full((1,), len(rows), dtype=_wide(x))]), shared
        )
        mean, count = sums[:-1] / sums[-1], sums[-1]
        variance = _over_all((rows - mean).square_().sum(0), shared) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.shared = shared
        factor = scale if weight is None else scale * weight
        shift = -mean * factor if bias is None else bias - mean * factor
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = torch.addcmul(shift.view(shape), x, factor.view(shape)).to(
            x.dtype
        )  # no view, so that ReLU may overwrite it
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        rows = _rows(gradient).to(mean.dtype)
        centred = _rows(x) - mean
        own = torch.stack([rows.sum(0), (rows * centred).sum(0) * scale])
        of_bias, of_weight = own
        of_x = None
        if ctx.needs_input_grad[0]:
            mean_gradient, mean_product = _over_all(own.clone(), ctx.shared) / count
            factor = scale if weight is None else scale * weight
            of_x = centred.mul_(-mean_product * scale).add_(rows).sub_(mean_gradient).mul_(factor).to(x.dtype)
            of_x = of_x.view(len(x), *x.shape[2:], -1).movedim(-1, 1)
        # Each process hands on its own share; the trainer adds them up.
        return (
            of_x,
            of_weight if ctx.needs_input_grad[1] else None,
            of_bias if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor) -> Tensor:
    """(N, C, ...) -> (sites, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _over_all(sums: Tensor, shared: bool) -> Tensor:
    """Sums over all processes, in place."""
    if shared:
        distributed.all_reduce(sums)
    return sums
