"""Batch normalisation whose statistics are those of all processes, and exact whatever the layout in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

#: Values that are worked on at a time, a megabyte of float32.
_CACHED = 1 << 18


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, with the statistics of all processes while several train; CPU or GPU, any number of sites.

    Processes may hold different numbers of sites; each site counts alike. Inputs are (N, C, ...). On CPUs torch adds
    up the sites of channels-last tensors one after the other, which costs float32 two digits in a map of 100,000
    sites; here they are added up in a tree.

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
        # In half precision the sums are float32's anyway, and torch's kernel is quicker.
        exact = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        channels_last = exact and x.movedim(1, -1).is_contiguous()
        lone = x.numel() <= x.shape[1]  # one site has no spread, which torch refuses
        if not shared and (lone or not channels_last):
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
        wide, rows = torch.promote_types(x.dtype, torch.float32), _rows(x)
        sums = torch.cat([rows.sum(0, dtype=wide), rows.new_full((1,), len(rows), dtype=wide)])
        *mean, count = _over_all(sums, shared).split([rows.shape[1], 1])
        mean = mean[0] / count
        variance = _over_all(sum((part - mean).square_().sum(0) for part in _parts(rows)), shared) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.shared = shared
        factor = scale if weight is None else scale * weight
        shift = -mean * factor if bias is None else bias - mean * factor
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = torch.addcmul(shift.view(shape), x, factor.view(shape)).to(x.dtype)  # no view: ReLU may overwrite it
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        pairs = list(zip(_parts(_rows(x)), _parts(_rows(gradient))))
        of_bias = sum(g.sum(0, dtype=mean.dtype) for _, g in pairs)
        of_weight = sum((part - mean).mul_(g).sum(0) for part, g in pairs) * scale
        of_x = None
        if needs_x:
            gradient_mean, product_mean = _over_all(torch.stack([of_bias, of_weight]), ctx.shared) / count
            factor = scale if weight is None else scale * weight
            # factor * (g - mean of g - normalised x * mean of their product), as x * a + g * factor + b
            a = -product_mean * scale * factor
            b = -gradient_mean * factor - mean * a
            of_x = torch.empty_like(x, memory_format=torch.preserve_format)
            for out, (part, g) in zip(_parts(of_x.movedim(1, -1).view(-1, x.shape[1])), pairs):
                out.copy_(torch.addcmul(b, part, a).addcmul_(g, factor))
        # Each process hands on its own share; the trainer adds them up.
        return of_x, of_weight if needs_weight else None, of_bias if needs_bias else None, None, None


def _rows(x: Tensor) -> Tensor:
    """(N, C, ...) -> (sites, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in parts that stay in a processor's cache between two passes over them."""
    return rows.split(max(1, _CACHED // rows.shape[1]))


def _over_all(sums: Tensor, shared: bool) -> Tensor:
    """Sums over all processes, in place."""
    if shared:
        distributed.all_reduce(sums)
    return sums
