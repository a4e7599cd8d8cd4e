"""Views of a radiance grid, by volume rendering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d import ops
from geo3d.errors import InputError
from geo3d.geometry import Camera, VolumeGrid
from geo3d.reconstruction.scene_rays import camera_directions
from geo3d.reconstruction.turn_table import look_from

WHITE = (1.0, 1.0, 1.0)
#: Optical depth of a voxel within these, so that its logarithm is a number.
_CLEAR, _DENSE = 1e-6, 12.0
_COLOUR = 1e-3  # colours within this and 1 less this, for the same reason
#: Optical depth of a voxel below which a cell is passed over, and light that is left where a ray ends.
_PASSED_OVER, _STOP = 1e-3, 1e-3
#: A pixel has a depth where at least this share of its light was stopped.
_SOLID = 0.5
_RAYS = 1 << 14  # at a time
# Where :func:`inside_view` stands and looks: shares of the box; and its field of view, radians, and size of a look.
_INSET, _EYES, _LOOKED_AT = 0.15, 0.6, (0.5, 0.5, 0.25)
_FIELD_OF_VIEW, _LOOK = 1.3, (40, 30)


def render_grid(
    grid: VolumeGrid,
    camera: Camera,
    world_from_camera: Tensor,
    background: Sequence[float] = WHITE,
) -> tuple[Tensor, Tensor]:
    """What a camera sees of a radiance grid.

    Between the centres of voxels the logarithm of the density is interpolated, and colours; empty voxels beside
    occupied ones take on the colour of these, so that surfaces have no dark rims. Density is even within a voxel:
    its opacity is that of its side.

    Args:
        grid: with corners and at least 2 voxels along each side.
        camera: where pixels look to.
        world_from_camera: (4, 4) pose.
        background: colour where light passes.

    Returns:
        colour (H, W, 3) float32 in [0, 1], and depth (H, W) float32 metres along z, 0 where less than half of the light
        is stopped.

    Raises:
        InputError: a grid without corners or of a single voxel along a side.
    """
    if grid.low is None or grid.high is None or min(grid.sides) < 2:
        raise InputError(f"render_grid: needs corners and at least 2 voxels along each side, got {grid.sides}")
    side = float(grid.voxel.mean())
    raw = raw_grid(grid)
    centre, half = (grid.high + grid.low).double() / 2, (grid.high - grid.low).double() / 2
    pose = world_from_camera.double()
    local = camera_directions(camera)
    scale = 1 / side
    occupancy = ops.grid_occupancy(raw, _PASSED_OVER * scale, 0.0, scale)
    directions = ((local @ pose[:3, :3].T) / half).float()
    origin = ((pose[:3, 3] - centre) / half).float()
    parts = []
    for some in directions.split(_RAYS):
        colour, left, depth, _, _ = ops.render_rays(
            raw,
            origin.expand_as(some).contiguous(),
            some,
            step=side / 2,
            density_scale=scale,
            stop=_STOP,
            occupancy=occupancy,
        )
        parts.append(torch.cat([colour, left[:, None], depth[:, None]], 1))
    colour, left, along = torch.cat(parts).split([3, 1, 1], 1)
    stopped = 1 - left
    depth = torch.where(stopped >= _SOLID, along / stopped.clamp_min(_SOLID), 0.0) * local[:, 2:].float()
    size = (camera.height, camera.width)
    colour = (colour + left * torch.tensor(background)).clamp(0, 1)
    return colour.reshape(*size, 3), depth.reshape(size)


def inside_view(grid: VolumeGrid, width: int = 160, height: int = 120) -> tuple[Camera, Tensor]:
    """A camera in one of the upper corners of a grid that looks across it, the one that sees farthest.

    Args:
        grid: as :func:`render_grid` takes it.
        width, height: of the picture, pixels.

    Returns:
        The camera, and its ``world_from_camera`` (4, 4) float64.

    Raises:
        InputError: as :func:`render_grid`.
    """
    if grid.low is None or grid.high is None:
        raise InputError("inside_view: the grid's corners are not known")
    low, span = grid.low.double(), (grid.high - grid.low).double()
    target = low + span * torch.tensor(_LOOKED_AT, dtype=torch.float64)
    small, best = Camera.from_fov(*_LOOK, _FIELD_OF_VIEW), (-1.0, torch.eye(4, dtype=torch.float64))
    for x in (_INSET, 1 - _INSET):
        for y in (_INSET, 1 - _INSET):
            eye = low + span * torch.tensor([x, y, _EYES], dtype=torch.float64)
            pose = torch.from_numpy(look_from(eye.numpy(), target.numpy()))
            depth = render_grid(grid, small, pose)[1]
            best = max(best, (float(depth.mean()), pose), key=lambda found: found[0])
    return Camera.from_fov(width, height, _FIELD_OF_VIEW), best[1]


def raw_grid(grid: VolumeGrid) -> Tensor:
    """(X, Y, Z, 4) float32 as :func:`geo3d.ops.render_rays` takes it: density per side of a voxel, and colours.

    Its ``density_scale`` is then 1 over the side of a voxel.
    """
    depth = (-torch.log1p(-grid.opacity.float().clamp(0, 1 - 1e-6))).clamp(_CLEAR, _DENSE)
    density = depth + torch.log(-torch.expm1(-depth))  # inverse of softplus
    colours = _spread(grid).clamp(_COLOUR, 1 - _COLOUR)
    raw = ops.padded_grid(*grid.sides, 4)
    raw[..., 0] = density
    raw[..., 1:] = torch.logit(colours)
    return raw


def _spread(grid: VolumeGrid) -> Tensor:
    """(X, Y, Z, 3) colours, those of voxels that are nearly clear replaced by a mean of their opaque neighbours'."""
    weighted = torch.cat([grid.rgb * grid.opacity[..., None], grid.opacity[..., None]], -1).permute(3, 0, 1, 2)
    near = F.avg_pool3d(weighted[None].float(), 3, stride=1, padding=1)[0].permute(1, 2, 3, 0)
    mean = near[..., :3] / near[..., 3:].clamp_min(1e-8)
    clear = grid.opacity[..., None] < 0.05
    return torch.where(clear & (near[..., 3:] > 1e-6), mean, grid.rgb.float())


__all__ = ["WHITE", "inside_view", "raw_grid", "render_grid"]
