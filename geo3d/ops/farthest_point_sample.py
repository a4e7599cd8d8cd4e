"""Farthest point sampling of packed clouds, exact."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = (
    "farthest_point_sample(Tensor points, Tensor offsets, Tensor? start, SymInt count, bool published_ties, "
    "bool skip_near_origin) -> Tensor"
)

Ties = Literal["lowest", "published"]

_FARTHEST_START = 1e10  # squared distance before there is a sample
_NEAR_ORIGIN = 1e-3  # squared radius, compared in float64
_PUBLISHED_THREADS = 512


def farthest_point_sample(
    points: Tensor,
    offsets: Tensor,
    count: int,
    start: Tensor | None = None,
    ties: Ties = "lowest",
    skip_near_origin: bool = False,
) -> Tensor:
    """Points of each cloud, one after the other, each as far as can be from those taken before.

    Squared distances are ``((dx * dx + dy * dy) + dz * dz)`` in the dtype of ``points``, without fused operations; a
    point's is the smallest to any sample so far, and at most 1e10. The point with the largest is taken next. So every
    implementation takes the same points. A cloud of fewer distinct points than ``count`` gives some of them again, as
    the rule for ties says.

    Args:
        points: (P, 3) float32 or float64, finite; cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``.
        offsets: (B + 1,) int64, rising from 0 to P; no cloud is empty.
        count: samples of each cloud, at least 1; it may be more than a cloud has points.
        start: (B,) int64 the first sample, a row within its cloud; None: the first row of each.
        ties: which of equally far points is taken. ``lowest``: that of the lowest row. ``published``: as the kernel
            does that published point networks were trained with. It splits N points over T = min(512, the largest
            power of two in N) threads, row k to thread k mod T; the smallest bit-reversed number of a thread comes
            first, then the lowest row.
        skip_near_origin: as that kernel does, never take points with a squared norm of at most 1e-3, but for the
            start; where there are no others, row 0 is taken again and again.

    Returns:
        (B * count,) int64 rows of ``points``; cloud b owns ``b * count`` to ``(b + 1) * count``, in the order in which
        they are taken.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that do not fit each other, different devices, a count below 1 or an unknown rule for ties.
        InputError: offsets that are no partition, an empty cloud, a start outside its cloud, or coordinates that are
            not finite; tensors on the CPU only.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"farthest_point_sample: ties must be one of {', '.join(get_args(Ties))}, got {ties!r}")
    return torch.ops.geo3d.farthest_point_sample.default(
        points, offsets, start, count, ties == "published", skip_near_origin
    )


def farthest_point_sample_reference(
    points: Tensor, offsets: Tensor, start: Tensor | None, count: int, published_ties: bool, skip_near_origin: bool
) -> Tensor:
    """What ``geo3d::farthest_point_sample`` computes, in plain PyTorch: all clouds a sample at a time."""
    sizes = offsets.diff()
    clouds, longest = len(sizes), int(sizes.max()) if len(sizes) else 0
    if longest == 0:
        return offsets.new_full((clouds * count,), -1)
    column = torch.arange(longest, device=points.device)
    usable = column < sizes[:, None]
    xyz = points.new_zeros(clouds, longest, 3)
    xyz[usable] = points
    x, y, z = xyz.unbind(2)
    rank = _published_rank(column, sizes[:, None]) if published_ties else column.expand(clouds, longest)
    if skip_near_origin:
        usable = usable & ((x * x + y * y) + z * z > torch.tensor(_NEAR_ORIGIN, dtype=torch.float64))
    distance = torch.where(usable, x.new_tensor(_FARTHEST_START), x.new_tensor(-1.0))
    row = torch.zeros_like(sizes) if start is None else start
    samples = [row]
    for _ in range(count - 1):
        dx, dy, dz = (c - c.gather(1, row[:, None]) for c in (x, y, z))
        distance = distance.minimum((dx * dx + dy * dy) + dz * dz)
        farthest = distance.amax(1, keepdim=True)
        row = rank.masked_fill(distance < farthest, torch.iinfo(torch.int64).max).argmin(1)
        row = row.masked_fill(farthest[:, 0] < 0, 0)
        samples.append(row)
    rows = torch.stack(samples, 1) + offsets[:-1, None]
    return rows.masked_fill(sizes[:, None] == 0, -1).flatten()


def _published_rank(row: Tensor, size: Tensor) -> Tensor:
    """(B, N) ascending in the order in which equally far points are taken."""
    threads = torch.ones_like(size)
    while (grown := (2 * threads <= size) & (threads < _PUBLISHED_THREADS)).any():
        threads = torch.where(grown, 2 * threads, threads)
    thread, reversed_thread, bit = row % threads, torch.zeros_like(row * threads), threads
    for _ in range(_PUBLISHED_THREADS.bit_length() - 1):
        bit = bit // 2
        reversed_thread = reversed_thread + (thread & 1) * bit
        thread = thread // 2
    return reversed_thread * row.numel() + row


def _check(
    points: Tensor, offsets: Tensor, start: Tensor | None, count: int, published_ties: bool, skip_near_origin: bool
) -> None:
    name = "farthest_point_sample"
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: points must be float32 or float64, got {points.dtype}")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{name}: points must be (P, 3), got {tuple(points.shape)}")
    for label, tensor in (("offsets", offsets), ("start", start)):
        if tensor is None:
            continue
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name}: {label} must be int64, got {tensor.dtype}")
        if tensor.device != points.device:
            raise ValueError(f"{name}: points are on {points.device} but {label} on {tensor.device}")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name}: offsets must be (B + 1,), got {tuple(offsets.shape)}")
    if start is not None and start.shape != (offsets.shape[0] - 1,):
        raise ValueError(f"{name}: start must be (B,) = ({offsets.shape[0] - 1},), got {tuple(start.shape)}")
    if count < 1:
        raise ValueError(f"{name}: count must be at least 1, got {count}")


def _check_values(points: Tensor, offsets: Tensor, start: Tensor | None, *_: int) -> None:
    # In Python: each of torch's calls takes as long as sampling a hundred points does.
    name, bounds = "farthest_point_sample", offsets.tolist()
    sizes = [last - first for first, last in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != len(points) or min(sizes, default=0) < 0:
        raise InputError(f"{name}: offsets must rise from 0 to {len(points)}, got {bounds[:8]}")
    if 0 in sizes:
        raise InputError(f"{name}: cloud {sizes.index(0)} has no points; leave out empty clouds")
    # A sum is finite only if all that it is of is; the sum of large numbers may be infinite too.
    if not math.isfinite(points.sum().item()) and not points.isfinite().all():
        row = int((~points.isfinite()).any(1).nonzero()[0, 0])
        raise InputError(f"{name}: point {row} is {points[row].tolist()}; remove points that are not finite")
    for cloud, (first, size) in enumerate(zip(start.tolist(), sizes) if start is not None else ()):
        if not 0 <= first < size:
            raise InputError(f"{name}: start {first} of cloud {cloud} must be a row within it, 0 to {size - 1}")


def _fake(points: Tensor, offsets: Tensor, start: Tensor | None, count: int, *_: bool) -> Tensor:
    return offsets.new_empty(((offsets.shape[0] - 1) * count,))


define_operator(
    SCHEMA,
    reference=farthest_point_sample_reference,
    check=_check,
    fake=_fake,
    kernels=(Kernel("cpu", (torch.float32,)), Kernel("cuda", (torch.float32,))),
    check_values=_check_values,
)
