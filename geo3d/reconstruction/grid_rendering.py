"""Views of a radiance grid, by volume rendering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
# Where :func:`overview` stands and looks: shares of the box, and places around it, as far from its centre as it is
# long; its field of view, radians, and size of a look; and light that is left where it sees no farther.
_CORNERS, _EYES, _LOOKED_AT, _AROUND = (0.15, 0.85), 0.6, (0.5, 0.5, 0.25), 8
_FIELD_OF_VIEW, _LOOK, _FIRST_STOPPED = 1.3, (40, 30), 0.9


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
    along, colour, left = _Rendering(grid).see(camera, world_from_camera)
    stopped = 1 - left
    forward = camera_directions(camera)[:, 2].float()
    depth = torch.where(stopped >= _SOLID, along / stopped.clamp_min(_SOLID), 0.0) * forward
    colour = (colour + left[:, None] * torch.tensor(background)).clamp(0, 1)
    size = (camera.height, camera.width)
    return colour.reshape(*size, 3), depth.reshape(size)


class _Rendering:
    """A grid made ready to be seen from many places.

    Raises:
        InputError: a grid without corners or of a single voxel along a side.
    """

    def __init__(self, grid: VolumeGrid) -> None:
        if grid.low is None or grid.high is None or min(grid.sides) < 2:
            raise InputError(f"rendering: needs corners and at least 2 voxels along each side, got {grid.sides}")
        self.low, self.high = grid.low.double(), grid.high.double()
        side = float(grid.voxel.mean())
        self.step, self.scale = side / 2, 1 / side
        self.raw = raw_grid(grid)
        self.occupancy = ops.grid_occupancy(self.raw, _PASSED_OVER * self.scale, 0.0, self.scale)

    def see(self, camera: Camera, world_from_camera: Tensor, stop: float = _STOP) -> tuple[Tensor, Tensor, Tensor]:
        """Rays of all pixels, until less than ``stop`` of their light is left.

        Returns:
            (R,) how far along its ray light is stopped, metres, weighted by how much; (R, 3) colour over black; (R,)
            light that is left.
        """
        pose, parts = world_from_camera.double(), []
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        directions = ((camera_directions(camera) @ pose[:3, :3].T) / half).float()
        origin = ((pose[:3, 3] - centre) / half).float()
        for some in directions.split(_RAYS):
            colour, left, depth, _, _ = ops.render_rays(
                self.raw,
                origin.expand_as(some).contiguous(),
                some,
                step=self.step,
                density_scale=self.scale,
                stop=stop,
                occupancy=self.occupancy,
            )
            parts.append((depth, colour, left))
        depth, colour, left = (torch.cat(column) for column in zip(*parts, strict=True))
        return depth, colour, left

    def reach(self, camera: Camera, world_from_camera: Tensor) -> float:
        """How far into the grid a camera sees, metres, until a tenth of the light is stopped.

        So fog before the camera counts against it. The mean is over the pixels that look at the grid's box; where light
        passes they count as 0, and the way to the box of a camera outside does not count.
        """
        along, _, left = self.see(camera, world_from_camera, _FIRST_STOPPED)
        pose = world_from_camera.double()
        directions = camera_directions(camera) @ pose[:3, :3].T
        ends = (torch.stack([self.low, self.high])[:, None] - pose[:3, 3]) / directions
        entry, end = ends.amin(0).amax(1).clamp_min(0), ends.amax(0).amin(1)
        stopped = 1 - left
        far = along / stopped.clamp_min(1 - _FIRST_STOPPED) - entry.float()
        far = torch.where(stopped >= 1 - _FIRST_STOPPED, far, 0.0).clamp_min(0)
        return float(far.sum() / (end > entry).sum().clamp_min(1))


def overview(grid: VolumeGrid, width: int = 160, height: int = 120) -> tuple[Camera, Tensor]:
    """A camera that sees much of a grid, at the place from where one sees farthest into it.

    It stands in one of the upper corners and looks across, as rooms are best seen, or outside and looks in, as objects
    are, and captures whose photos were taken from outside the box: their corners lie in fog or behind a wall. Outside
    one has all of it in view, so that a corner must see twice as far.

    Args:
        grid: as :func:`render_grid` takes it.
        width, height: of the picture, pixels.

    Returns:
        The camera, and its ``world_from_camera`` (4, 4) float64.

    Raises:
        InputError: as :func:`render_grid`.
    """
    rendering = _Rendering(grid)
    small = Camera.from_fov(*_LOOK, _FIELD_OF_VIEW)
    poses = _overlooking(rendering.low, rendering.high)
    reaches = np.array([rendering.reach(small, pose) for pose in poses])
    reaches[-_AROUND:] *= 2
    return Camera.from_fov(width, height, _FIELD_OF_VIEW), poses[int(reaches.argmax())]


def _overlooking(low: Tensor, high: Tensor) -> list[Tensor]:
    """Poses in the upper corners of a box, then around it."""
    low, span = low.numpy(), (high - low).numpy()
    places = [(low + span * (x, y, _EYES), low + span * _LOOKED_AT) for x in _CORNERS for y in _CORNERS]
    centre = low + span / 2
    for angle in 2 * np.pi * np.arange(_AROUND) / _AROUND:
        away = span[:2].max() * np.array([np.cos(angle), np.sin(angle)])
        places.append((centre + np.append(away, 0.0), centre))
    return [torch.from_numpy(look_from(eye, target)) for eye, target in places]


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


__all__ = ["WHITE", "overview", "raw_grid", "render_grid"]
