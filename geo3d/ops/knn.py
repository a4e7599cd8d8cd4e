"""Nearest neighbours of packed point sets, exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = (
    "knn(Tensor query, Tensor points, Tensor query_offsets, Tensor point_offsets, int k, "
    "bool float32_order=False)"
    " -> (Tensor index, Tensor distance)"
)

MAX_NEIGHBOURS = 64
_ELEMENTS_AT_ONCE = 2**22  # distances that the reference holds at a time


def knn(
    query: Tensor,
    points: Tensor,
    query_offsets: Tensor,
    point_offsets: Tensor,
    k: int,
    float32_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query among the points of its scene.

    Squared distances are ``((qx - px)**2 + (qy - py)**2) + (qz - pz)**2`` in float64 on the given coordinates, without
    fused operations; they decide the order, the smaller index among equals, and are rounded once to the dtype of
    ``query``. So a point that is its own query is at exactly zero, and every implementation gives the same bits.
    Nothing is differentiable.

    Args:
        query: (Q, 3) float32 or float64; scene b owns rows ``query_offsets[b]`` to ``query_offsets[b + 1]``.
        points: (P, 3) in the dtype of ``query``; likewise with ``point_offsets``.
        query_offsets, point_offsets: (B + 1,) int64, rising from 0 to Q and to P.
        k: 1 to 64.
        float32_order: round the coordinates to float32 and compute the squared distances so, as the neighbour search
            of published point networks does. Points of a lattice that are equally far are then often not, or the other
            way round, and others come first.

    Returns:
        index: (Q, k) int64 rows of ``points``, nearest first; -1 where the scene has fewer than k points.
        distance: (Q, k) squared distances in the dtype of ``query``, infinite where the index is -1.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that do not fit each other, different devices, or k out of range.
        InputError: offsets that are no partition, or coordinates that are not finite; tensors on the CPU only.
    """
    return torch.ops.geo3d.knn.default(query, points, query_offsets, point_offsets, k, float32_order)


def knn_reference(
    query: Tensor,
    points: Tensor,
    query_offsets: Tensor,
    point_offsets: Tensor,
    k: int,
    float32_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ``geo3d::knn`` computes, in plain PyTorch: all distances of a scene, a block of queries at a time."""
    index = query_offsets.new_full((query.shape[0], k), -1)
    distance = query.new_full((query.shape[0], k), torch.inf)
    precision = torch.float32 if float32_order else torch.float64
    queries_of, points_of = query_offsets.tolist(), point_offsets.tolist()
    for first, last, start, stop in zip(queries_of, queries_of[1:], points_of, points_of[1:]):
        count = min(k, stop - start)
        if count == 0:
            continue
        block = max(1, _ELEMENTS_AT_ONCE // (stop - start))
        for row in range(first, last, block):
            rows = slice(row, min(row + block, last))
            nearest, squared = _nearest(query[rows].to(precision), points[start:stop].to(precision), count)
            index[rows, :count] = nearest + start
            distance[rows, :count] = squared.to(query.dtype)
    return index, distance


def _nearest(query: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and squared distances (Q, count), ascending, the smaller index first among equals."""
    dx, dy, dz = ((query[:, None, axis] - points[None, :, axis]).square() for axis in range(3))
    squared = dx + dy + dz
    last = squared.topk(count, largest=False).values.amax(1, keepdim=True)
    nearer, tied = squared < last, squared == last
    taken = nearer | (tied & (tied.cumsum(1) <= count - nearer.sum(1, keepdim=True)))
    index = taken.nonzero()[:, 1].view(-1, count)
    squared, order = squared.gather(1, index).sort(dim=1, stable=True)
    return index.gather(1, order), squared


def _check(
    query: Tensor, points: Tensor, query_offsets: Tensor, point_offsets: Tensor, k: int, float32_order: bool = False
) -> None:
    if query.dtype not in (torch.float32, torch.float64) or points.dtype != query.dtype:
        raise TypeError(
            f"knn: query and points must both be float32 or both float64, got {query.dtype} and {points.dtype}"
        )
    for name, xyz, offsets in (("query", query, query_offsets), ("point", points, point_offsets)):
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f"knn: {name} coordinates must be (N, 3), got {tuple(xyz.shape)}")
        if offsets.dtype != torch.int64:
            raise TypeError(f"knn: {name}_offsets must be int64, got {offsets.dtype}")
        if offsets.ndim != 1 or offsets.shape[0] < 1:
            raise ValueError(f"knn: {name}_offsets must be (B + 1,), got {tuple(offsets.shape)}")
        for tensor in (xyz, offsets):
            if tensor.device != query.device:
                raise ValueError(f"knn: query is on {query.device} but another tensor on {tensor.device}")
    if query_offsets.shape[0] != point_offsets.shape[0]:
        scenes = query_offsets.shape[0] - 1, point_offsets.shape[0] - 1
        raise ValueError(f"knn: query_offsets has {scenes[0]} scenes but point_offsets {scenes[1]}")
    if not 1 <= k <= MAX_NEIGHBOURS:
        raise ValueError(f"knn: k must be from 1 to {MAX_NEIGHBOURS}, got {k}")


def _check_values(query: Tensor, points: Tensor, query_offsets: Tensor, point_offsets: Tensor, *_: int) -> None:
    for name, xyz, offsets in (("query", query, query_offsets), ("point", points, point_offsets)):
        if offsets[0] != 0 or offsets[-1] != len(xyz) or (offsets.diff() < 0).any():
            raise InputError(f"knn: {name}_offsets must rise from 0 to {len(xyz)}, got {offsets.tolist()[:8]}")
        # A sum is finite only if all that it is of is; the sum of large numbers may be infinite too.
        if not math.isfinite(xyz.sum().item()) and not xyz.isfinite().all():
            row = int((~xyz.isfinite()).any(1).nonzero()[0, 0])
            raise InputError(f"knn: {name} {row} is {xyz[row].tolist()}; remove points that are not finite")


def _fake(
    query: Tensor, points: Tensor, query_offsets: Tensor, point_offsets: Tensor, k: int, float32_order: bool = False
) -> tuple[Tensor, Tensor]:
    return query_offsets.new_empty((query.shape[0], k)), query.new_empty((query.shape[0], k))


define_operator(
    SCHEMA,
    reference=knn_reference,
    check=_check,
    fake=_fake,
    kernels=(Kernel("cpu", (torch.float32,)), Kernel("cuda", (torch.float32,))),
    check_values=_check_values,
)
