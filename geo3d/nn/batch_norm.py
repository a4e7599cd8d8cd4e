"""Batch normalisation whose statistics are those of all processes, of images and of rows of voxels.

A single site has no spread, so that in training there is nothing to divide by. Over *voxels* the running statistics
stand in: how many voxels there are at a coarse level is up to the scenes, a small one may well come down to one voxel
or none, and that must not end a run. Over *images* it is torch's error: how many sites there are is up to the
settings (image size, batch size, mask), so that one site is a mistake in these, and would be one at every step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

#: Values that are worked on at a time, a megabyte of float32.
_CACHED = 1 << 18
#: Sites that have a spread.
_SPREAD = 2


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, with the statistics of all processes while several train; CPU or GPU, any number of sites.

    Processes may hold different numbers of sites; each site counts alike. Inputs are (N, C, ...). On CPUs torch adds
    up the sites of channels-last tensors one after the other, which costs float32 two digits in a map of 100,000
    sites; here they are added up in a tree. A single site in training is an error, unlike with :class:`VoxelNorm1d`:
    see the module.

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
        shared = self.synchronised and _several_processes()
        # In half precision the sums are float32's anyway, and torch's kernel is quicker.
        exact = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        channels_last = exact and x.movedim(1, -1).is_contiguous()
        lone = x.numel() <= x.shape[1]  # one site has no spread, which torch refuses
        if not shared and (lone or not channels_last):
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, shared, None)
        if self.training and self.track_running_stats:
            self._track(mean, variance * count / (count - 1))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class VoxelNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over rows of voxels (N, C), with the statistics of all processes while several train.

    Processes may hold different numbers of voxels, even none; each voxel counts alike. In one process it is torch's,
    bit by bit. Over fewer than two voxels in training the running statistics stand in, and stay as they are, unlike
    with :class:`SyncBatchNorm2d`: see the module.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not self.training:
            return super().forward(x)
        if self.shared:
            y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, True, self._running)
            self._track(mean, variance, count)
            return y
        if len(x) < _SPREAD:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)

    @property
    def shared(self) -> bool:
        """Whether the statistics are those of all processes."""
        return self.training and _several_processes()

    @property
    def _running(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    @torch.no_grad()
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rows are normalised by, for those who do it themselves; in training the running statistics follow.

        Args:
            x: (N, C).

        Returns:
            (C,) mean, (C,) one over the deviation, and (1,) the number of rows that these are of: infinite where they
            do not depend on the rows.
        """
        mean, variance = self._running
        if not self.training:
            return mean, (variance + self.eps).rsqrt(), torch.full_like(mean[:1], torch.inf)
        mean, variance, count, weighed = _moments(x, self.shared, self._running)
        scale = (variance + self.eps).rsqrt()
        self._track(mean, variance, count)
        return mean, scale, weighed

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """As torch does, where there was any spread; on a GPU nobody waits to learn whether."""
        spread = count >= _SPREAD
        self.num_batches_tracked.add_(spread[0])
        share = self.momentum * spread.to(self.running_mean.dtype)
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """Normalised sites, and the mean, the biased variance and the number of sites that they were normalised by.

    ``running`` mean and variance, where given, are taken as constants in place of those of fewer than two sites.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        shared: bool,
        running: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, ...]:
        mean, variance, count, weighed = _moments(_rows(x), shared, running)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, weighed)
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
            a, factor, b = input_gradient(weight, mean, scale, count, of_weight, of_bias, ctx.shared)
            of_x = torch.empty_like(x, memory_format=torch.preserve_format)
            for out, (part, g) in zip(_parts(of_x.movedim(1, -1).view(-1, x.shape[1])), pairs):
                out.copy_(torch.addcmul(b, part, a).addcmul_(g, factor))
        # Each process hands on its own share; the trainer adds them up.
        return of_x, of_weight if needs_weight else None, of_bias if needs_bias else None, None, None, None


def _moments(
    rows: Tensor, shared: bool, running: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance and (1,) number of rows (N, C); and how many they count as in the backward pass.

    ``running`` mean and variance, where given, stand in for those of fewer than two rows.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    sums = torch.cat([rows.sum(0, dtype=wide), rows.new_full((1,), len(rows), dtype=wide)])
    *mean, count = _over_all(sums, shared).split([rows.shape[1], 1])
    size = count if running is None else count.clamp_min(1)
    mean = mean[0] / size
    variance = _over_all(sum((part - mean).square_().sum(0) for part in _parts(rows)), shared) / size
    if running is None:
        return mean, variance, count, count
    few = count < _SPREAD
    mean, variance = (torch.where(few, r, v) for r, v in zip(running, (mean, variance)))
    # Running statistics do not depend on the rows: as over infinitely many, of which each weighs nothing.
    return mean, variance, count, torch.where(few, torch.inf, count)


def input_gradient(
    weight: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    count: Tensor,
    of_weight: Tensor,
    of_bias: Tensor,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) a, factor and b, by which the gradient at the input x is x * a + g * factor + b, of g that at the output.

    Args:
        weight, mean, scale, count: what x was normalised by.
        of_weight, of_bias: gradients of these, of this process.
        shared: whether the statistics are those of all processes.
    """
    gradient_mean, product_mean = _over_all(torch.stack([of_bias, of_weight]), shared) / count
    factor = scale if weight is None else scale * weight
    # factor * (g - mean of g - normalised x * mean of their product)
    a = -product_mean * scale * factor
    return a, factor, -gradient_mean * factor - mean * a


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


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
