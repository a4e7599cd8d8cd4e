"""Chamfer distance of packed clouds: nearest neighbours by :func:`geo3d.ops.knn`, distances by plain autograd.

A composition, and no operator of its own: on large clouds the search is nearly all of the time, and on thousands of
sets of a few points it takes less than all distances at once do (see docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.knn import knn

Norm = Literal["l2", "l1"]
Sides = Literal["both", "a"]


class ChamferDistance(NamedTuple):
    """What :func:`chamfer_distance` returns; the fields of b are None where one side was asked for."""

    distance_a: Tensor
    distance_b: Tensor | None
    index_a: Tensor
    index_b: Tensor | None


def chamfer_distance(
    a: Tensor, b: Tensor, a_offsets: Tensor, b_offsets: Tensor, norm: Norm = "l2", sides: Sides = "both"
) -> ChamferDistance:
    """Distance of each point of cloud ``a`` to the nearest of ``b``, and the other way round, cloud by cloud.

    Neighbours are constants to autograd; through the distances, gradients of any order flow to both clouds. The nearest
    is found in float64, and of equally near ones it is that of the lowest row.

    Args:
        a: (A, 3) float32 or float64, finite; cloud i owns rows ``a_offsets[i]`` to ``a_offsets[i + 1]``.
        b: (B, 3) in the dtype of ``a``; likewise with ``b_offsets``.
        a_offsets, b_offsets: (clouds + 1,) int64, rising from 0 to A and to B.
        norm: ``l2``: the squared Euclidean distance; ``l1``: the Euclidean distance, whose gradient at zero is zero.
        sides: ``both``, or ``a`` for the distances of ``a`` to ``b`` alone.

    Returns:
        distance_a: (A,), in the unit of the coordinates, squared for ``l2``; distance_b: (B,).
        index_a: (A,) int64 the row of ``b`` nearest to each point of ``a``; index_b: (B,) the other way round.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that do not fit each other, different devices, or an unknown norm or side.
        InputError: offsets that are no partition, coordinates that are not finite, or a cloud without points where its
            partner has some; tensors on the CPU only.
    """
    for label, value, choices in (("norm", norm, get_args(Norm)), ("sides", sides, get_args(Sides))):
        if value not in choices:
            raise ValueError(f"chamfer_distance: {label} must be one of {', '.join(choices)}, got {value!r}")
    distance_a, index_a = _nearest(a, b, a_offsets, b_offsets, norm)
    distance_b, index_b = _nearest(b, a, b_offsets, a_offsets, norm) if sides == "both" else (None, None)
    return ChamferDistance(distance_a, distance_b, index_a, index_b)


def chamfer_loss(
    a: Tensor, b: Tensor, a_offsets: Tensor, b_offsets: Tensor, norm: Norm = "l2", sides: Sides = "both"
) -> Tensor:
    """The mean of :func:`chamfer_distance` over all points of ``a``, and that over all points of ``b``, as one number.

    Two sides add up for ``l2``, and are averaged for ``l1``: as the two are usually given in the literature (CD-T and
    CD-P of Yuan et al., PCN: Point Completion Network, 2018). Arguments and errors are those of the distance.
    """
    distance_a, distance_b, _, _ = chamfer_distance(a, b, a_offsets, b_offsets, norm, sides)
    if distance_b is None:
        return distance_a.mean()
    both = distance_a.mean() + distance_b.mean()
    return both / 2 if norm == "l1" else both


def _nearest(
    query: Tensor, points: Tensor, query_offsets: Tensor, point_offsets: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    index = knn(query, points, query_offsets, point_offsets, 1)[0][:, 0]
    if index.device.type == "cpu" and (index < 0).any():
        row = int((index < 0).nonzero()[0, 0])
        cloud = int(torch.searchsorted(query_offsets, row, right=True)) - 1
        raise InputError(f"chamfer_distance: cloud {cloud} has points in one of a and b only; leave out such clouds")
    difference = query - points.index_select(0, index)
    if norm == "l1":
        return torch.linalg.vector_norm(difference, dim=1), index
    return difference.square().sum(1), index
