"""Points gathered into the cells of a regular lattice: from a packed point cloud to sparse voxels."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator
from geo3d.ops.window_partition import sort_cells

SCHEMA = (
    "voxelize(Tensor xyz, Tensor offsets, Tensor origin, Tensor? priority, float voxel_size) "
    "-> (Tensor coords, Tensor inverse, Tensor index)"
)

Mode = Literal["first", "random", "mean"]

#: A voxel's coordinates are at most this far from the origin, on each axis and to both sides.
MAX_COORDINATE = 2**20
#: Scenes of one batch.
MAX_SCENES = 2**16

_KERNEL_DTYPES = (torch.float32, torch.float64)
_DTYPES = (*_KERNEL_DTYPES, torch.bfloat16, torch.float16)


def voxelize(
    xyz: Tensor,
    offsets: Tensor,
    voxel_size: float,
    origin: Tensor | tuple[float, float, float] | None = None,
    mode: Mode = "first",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the occupied cells of a lattice, which point lies in which, and one point for each.

    A point's cell is ``floor((xyz - origin) / voxel_size)``, computed in float64 as it stands here: one subtraction,
    one division, floor. Cells ascend by (batch, x, y, z), so they do not depend on the order of the points.

    Args:
        xyz: (N, 3) points of all scenes, one after the other; float32, float64, bfloat16 or float16, any strides.
        offsets: (B + 1,) int64; scene b owns points ``offsets[b]`` to ``offsets[b + 1]``. Up to 2**16 scenes, some of
            which may be empty.
        voxel_size: side of a cell, in the unit of ``xyz``.
        origin: a corner of cell (0, 0, 0): (3,) for all scenes or (B, 3); None: zero.
        mode: which point stands for a cell: the first one in it, or a random one, all with equal chance. With ``mean``
            it is the first as well, and what belongs to the points is to be averaged by :func:`voxel_mean`.
        generator: draws for ``random``, and is needed there.

    Returns:
        coords: (M, 4) int32 [batch, x, y, z] of the occupied cells.
        inverse: (N,) int64 row of ``coords`` for every point.
        index: (M,) int64 the point that stands for each cell.

    Raises:
        TypeError: dtypes other than those above.
        ValueError: shapes that do not fit each other, or a voxel size that is not positive.
        InputError: points that are not finite or lie over 2**20 cells from the origin, offsets that do not rise from 0
            to N, an unknown mode, or no generator for ``random``.
    """
    if mode not in get_args(Mode):
        raise InputError(f"voxelize: mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    priority = None
    if mode == "random":
        if generator is None:
            raise InputError("voxelize: mode 'random' needs a generator; hand in torch.Generator().manual_seed(...)")
        drawn = torch.randint(2**63 - 1, (len(xyz),), generator=generator, device=generator.device)
        priority = drawn.to(xyz.device)
    if origin is None:
        origin = xyz.new_zeros(3, dtype=torch.float64)
    origin = torch.as_tensor(origin, dtype=torch.float64, device=xyz.device)
    if origin.ndim == 1:
        origin = origin.expand(max(offsets.shape[0] - 1, 0), -1)
    return torch.ops.geo3d.voxelize.default(xyz, offsets, origin, priority, voxel_size)


def voxel_mean(values: Tensor, inverse: Tensor, count: int) -> Tensor:
    """Mean over the points of each voxel; differentiable, accumulated in float32 or better.

    Args:
        values: (N, C) floating, what belongs to the points.
        inverse: (N,) int64 voxel of every point, from :func:`voxelize`.
        count: number of voxels M, each with a point at least.

    Returns:
        (M, C) in the dtype of ``values``.
    """
    rows = values.to(torch.promote_types(values.dtype, torch.float32))
    total = rows.new_zeros(count, values.shape[1]).index_add(0, inverse, rows)
    return (total / torch.bincount(inverse, minlength=count).unsqueeze(1)).to(values.dtype)


def voxelize_reference(
    xyz: Tensor, offsets: Tensor, origin: Tensor, priority: Tensor | None, voxel_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``geo3d::voxelize`` computes, in plain PyTorch.

    ``priority`` (N,) int64: the point of lowest priority stands for its cell, the first of equal ones; None: the first.
    """
    _check_values(xyz, offsets, origin, priority, voxel_size)
    scene = torch.repeat_interleave(offsets.diff(), output_size=len(xyz))  # (N,)
    cells = ((xyz.double() - origin.double()[scene]) / voxel_size).floor()
    _check_cells(xyz, cells)
    rows = torch.cat([scene.unsqueeze(1), cells.long()], 1)
    order, starts = sort_cells(rows)
    count = len(starts) - 1
    inverse = torch.empty_like(order)
    inverse[order] = torch.repeat_interleave(starts.diff(), output_size=len(order))
    first = order[starts[:-1]]
    if priority is None:
        return rows[first].int(), inverse, first
    by_priority = priority.argsort(stable=True)
    by_voxel = by_priority[inverse[by_priority].argsort(stable=True)]
    return rows[first].int(), inverse, by_voxel[starts[:-1]].reshape(count)


def _check_cells(xyz: Tensor, cells: Tensor) -> None:
    """Every cell is a number within reach."""
    bad = (cells.abs() <= MAX_COORDINATE).all(1).logical_not()
    if not bad.any():
        return
    not_finite = xyz.isfinite().all(1).logical_not()
    if not_finite.any():
        count, first = int(not_finite.sum()), int(not_finite.nonzero()[0])
        raise InputError(
            f"voxelize: {count} of {len(xyz)} points are not finite, the first in row {first}; remove them first"
        )
    count, first = int(bad.sum()), int(bad.nonzero()[0])
    raise InputError(
        f"voxelize: {count} of {len(xyz)} points lie over {MAX_COORDINATE} voxels from the origin, the first in row "
        f"{first}; choose a larger voxel_size or an origin nearer to the points"
    )


def _check(xyz: Tensor, offsets: Tensor, origin: Tensor, priority: Tensor | None, voxel_size: float) -> None:
    if xyz.dtype not in _DTYPES:
        raise TypeError(f"voxelize: xyz must be float32, float64, bfloat16 or float16, got {xyz.dtype}")
    if origin.dtype not in _KERNEL_DTYPES:
        raise TypeError(f"voxelize: origin must be float64 or float32, got {origin.dtype}")
    if offsets.dtype != torch.int64 or (priority is not None and priority.dtype != torch.int64):
        raise TypeError("voxelize: offsets and priority must be int64")
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"voxelize: xyz must be (N, 3), got {tuple(xyz.shape)}")
    if offsets.ndim != 1 or not 1 <= offsets.shape[0] <= MAX_SCENES + 1:
        raise ValueError(
            f"voxelize: offsets must be (B + 1,) for up to {MAX_SCENES} scenes, got {tuple(offsets.shape)}"
        )
    if tuple(origin.shape) != (offsets.shape[0] - 1, 3):
        raise ValueError(f"voxelize: origin must be (3,) or ({offsets.shape[0] - 1}, 3), got {tuple(origin.shape)}")
    if priority is not None and tuple(priority.shape) != (xyz.shape[0],):
        raise ValueError(f"voxelize: priority must be ({xyz.shape[0]},), got {tuple(priority.shape)}")
    for name, tensor in (("offsets", offsets), ("origin", origin), ("priority", priority)):
        if tensor is not None and tensor.device != xyz.device:
            raise ValueError(f"voxelize: xyz is on {xyz.device} but {name} on {tensor.device}")
    if not (voxel_size > 0 and math.isfinite(voxel_size)):
        raise ValueError(f"voxelize: voxel_size must be positive and finite, got {voxel_size}")


def _check_values(xyz: Tensor, offsets: Tensor, origin: Tensor, priority: Tensor | None, voxel_size: float) -> None:
    if offsets[0] != 0 or offsets[-1] != len(xyz) or (offsets.diff() < 0).any():
        raise InputError(f"voxelize: offsets must rise from 0 to {len(xyz)}, got {offsets[:8].tolist()}")
    if not origin.isfinite().all():
        raise InputError("voxelize: origin must be finite")


def _fake(
    xyz: Tensor, offsets: Tensor, origin: Tensor, priority: Tensor | None, voxel_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    coords = xyz.new_empty(count, 4, dtype=torch.int32)
    return coords, xyz.new_empty(xyz.shape[0], dtype=torch.int64), xyz.new_empty(count, dtype=torch.int64)


define_operator(
    SCHEMA,
    reference=voxelize_reference,
    check=_check,
    check_values=_check_values,
    fake=_fake,
    kernels=tuple(Kernel(device, _KERNEL_DTYPES) for device in ("cpu", "cuda")),
)
