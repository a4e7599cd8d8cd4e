"""What networks over sparse voxels read, points of which each stands for a voxel, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.nn.topology import Topology
from geo3d.ops.voxelize import voxelize


@dataclass
class VoxelPoints:
    """Points of which each has a voxel to itself.

    Args:
        xyz: (N, 3) float32 in voxel units; the voxel of a point is its floor.
        colors: (N, 3) in [0, 1], where known.
        normals: (N, 3) unit vectors, where known.
        offsets: (B + 1,) int64; scene b owns rows ``offsets[b]`` to ``offsets[b + 1]``, of which there may be none.
        index: (N,) int64 row of the cloud that each one was, where it was made of one.
        inverse: (P,) int64 voxel of every point of that cloud.
    """

    xyz: Tensor
    colors: Tensor | None
    normals: Tensor | None
    offsets: Tensor
    index: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of scenes B."""
        return self.offsets.shape[0] - 1

    @property
    def coords(self) -> Tensor:
        """(N, 4) int32 voxels [batch, x, y, z]."""
        return voxels_of(self.xyz, self.offsets)

    def subset(self, rows: Tensor) -> VoxelPoints:
        """Some of the points (K,) int64 ascending rows, in as many scenes."""
        scene = scene_of_rows(self.offsets)[rows]
        colors, normals, index = (None if t is None else t[rows] for t in (self.colors, self.normals, self.index))
        return VoxelPoints(self.xyz[rows], colors, normals, offsets_of(scene, self.batch_size), index)


def points_in_voxels(
    cloud: PointCloud, voxel_size: float, mode: str = "first", generator: torch.Generator | None = None
) -> VoxelPoints:
    """Move each scene to begin at 0, cut it into voxels, and let one point stand for each.

    Args:
        cloud: points of one or more scenes; or anything else with their ``xyz``, ``colors``, ``normals`` and
            ``offsets``.
        voxel_size: edge of a voxel, in the unit of the points.
        mode: the ``first`` point of a voxel, or a ``random`` one, which ``generator`` draws.

    Raises:
        InputError: a size that is not positive, or points that are not finite.
    """
    if not voxel_size > 0:
        raise InputError(f"voxel_size must be positive, got {voxel_size}")
    scene = scene_of_rows(cloud.offsets, cloud.xyz.shape[0])
    scaled = (_from_zero(cloud, scene) / voxel_size).float()
    _, inverse, index = voxelize(scaled, cloud.offsets, 1.0, None, mode, generator)
    colors, normals = (None if t is None else t[index] for t in (cloud.colors, cloud.normals))
    offsets = offsets_of(scene[index], cloud.offsets.shape[0] - 1)
    return VoxelPoints(scaled[index], colors, normals, offsets, index, inverse)


def features_at_voxels(
    stages: list[SparseVoxels], finest: Topology | None = None, rows: Tensor | None = None
) -> Tensor:
    """(N, sum of channels): features of the voxels of all stages that a finest voxel lies in, side by side.

    Args:
        stages: of an encoder's ``features``: each the coarser voxels of the one before.
        finest: voxels that are asked for; those of the first stage when not given.
        rows: (N,) int64 of these voxels, in any order and number; all of them when not given.
    """
    topology, row, taken = finest or stages[0].topology, rows, []
    for stage in stages:
        if stage.stride > topology.stride:
            topology, parent = topology.coarsen(stage.stride // topology.stride)
            row = parent if row is None else parent[row]
        taken.append(row)
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return torch.cat([s.feats if row is None else s.feats[row] for s, row in zip(stages, taken)], 1)
    # Each stage straight to its columns: what lies between would take as much memory again.
    count = len(rows) if rows is not None else (finest or stages[0].topology).size
    made = stages[0].feats.new_empty(count, sum(stage.feats.shape[1] for stage in stages))
    for stage, row, columns in zip(stages, taken, made.split([s.feats.shape[1] for s in stages], 1)):
        if row is None:
            columns.copy_(stage.feats)
        else:
            torch.index_select(stage.feats, 0, row, out=columns)
    return made


def _from_zero(cloud: PointCloud, scene: Tensor) -> Tensor:
    """Positions with every scene's least coordinates at 0."""
    scene = scene.unsqueeze(1).expand(-1, 3)
    least = cloud.xyz.new_full((cloud.offsets.shape[0] - 1, 3), torch.inf)
    return cloud.xyz - least.scatter_reduce(0, scene, cloud.xyz, "amin").gather(0, scene)


def voxels_of(xyz: Tensor, offsets: Tensor) -> Tensor:
    """(N, 4) int32 voxels [batch, x, y, z] of points (N, 3) in voxel units, packed."""
    return torch.cat([scene_of_rows(offsets, xyz.shape[0]).unsqueeze(1), xyz.floor()], 1).int()


def scene_of_rows(offsets: Tensor, rows: int | None = None) -> Tensor:
    """(N,) int64 scene of every row; ``rows`` is N, which need not be looked up where it is given."""
    scenes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(scenes, offsets.diff(), output_size=rows)


def offsets_of(scene: Tensor, scenes: int) -> Tensor:
    """(B + 1,) int64 offsets of ascending scene numbers."""
    return torch.searchsorted(scene, torch.arange(scenes + 1, device=scene.device))
