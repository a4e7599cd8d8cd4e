"""Views of a stage by ray casting: colour, depth, normals and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.datasets.synthetic.stage import Stage
from geo3d.geometry import Camera

_PIECE = 16384  # rays cast at a time, which bounds the memory


@dataclass(frozen=True)
class Rendering:
    """One rendered view; arrays are (H, W) of the camera.

    Args:
        color: (H, W, 3) uint8.
        depth: float32 metres along z, 0 where nothing is seen.
        normal: (H, W, 3) float32 world-frame unit normals towards the camera, 0 where nothing is seen.
        semantic: int32 nyu40 id, 0 where nothing is seen.
        instance: int32 number of the thing, -1 where nothing is seen.
    """

    color: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


def pixel_rays(camera: Camera) -> np.ndarray:
    """Camera-frame directions (H * W, 3) float64 through the pixel centres, of unit z."""
    grid = camera.pixel_grid().reshape(-1, 2)
    return camera.unproject(grid, grid.new_ones(len(grid))).numpy()


def render(stage: Stage, camera: Camera, world_from_camera: np.ndarray) -> Rendering:
    """Render one view.

    Args:
        stage: the scene.
        camera: intrinsics; any model that :class:`Camera` knows.
        world_from_camera: (4, 4) pose, metres.
    """
    directions = (pixel_rays(camera) @ world_from_camera[:3, :3].T).astype(np.float32)
    origin = world_from_camera[:3, 3].astype(np.float32)
    count = len(directions)
    color, depth = np.empty((count, 3), np.uint8), np.empty(count, np.float32)
    normal, instance = np.empty((count, 3), np.float32), np.empty(count, np.int32)
    for start in range(0, count, _PIECE):
        part = slice(start, start + _PIECE)
        color[part], depth[part], normal[part], instance[part] = _trace(stage, origin, directions[part], camera.fx)
    shape = (camera.height, camera.width)
    semantic = np.where(instance >= 0, stage.semantic[instance], 0)
    return Rendering(
        color.reshape(*shape, 3),
        depth.reshape(shape),
        normal.reshape(*shape, 3),
        semantic.reshape(shape),
        instance.reshape(shape),
    )


def _trace(
    stage: Stage, origin: np.ndarray, directions: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colour, depth, normal and instance of the first hits of rays (N, 3) from one origin."""
    hit = stage.tracer.cast(np.broadcast_to(origin, directions.shape), directions)
    seen = hit["primID"] >= 0
    triangle = np.where(seen, hit["primID"], 0)
    depth = np.where(seen, hit["tfar"], np.float32(0))
    normal = stage.tracer.normal.take(triangle, 0)
    facing = np.einsum("ij,ij->i", normal, directions)
    normal *= np.where(seen, -np.sign(facing), 0)[:, None]
    slant = np.abs(facing) / np.sqrt(np.einsum("ij,ij->i", directions, directions))
    footprint = depth / np.sqrt(np.maximum(slant, np.float32(0.1))) / np.float32(focal)
    patch = stage.triangle_patch.take(triangle)
    uv, light = stage.surface_at(triangle, hit["u"], hit["v"])
    color = stage.shade(patch, uv, light, footprint)
    color[~seen] = 0
    return color, depth, normal, np.where(seen, stage.instance[patch], -1)
