"""Views of a stage by ray casting: colour, depth, normals and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.datasets.synthetic.stage import Stage
from geo3d.geometry import Camera


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
    """Camera-frame directions (H * W, 3) float32 through the pixel centres, of unit z."""
    return camera.unproject(
        camera.pixel_grid().reshape(-1, 2), camera.pixel_grid().new_ones(camera.height * camera.width)
    ).numpy()


def render(stage: Stage, camera: Camera, world_from_camera: np.ndarray) -> Rendering:
    """Render one view.

    Args:
        stage: the scene.
        camera: intrinsics; any model that :class:`Camera` knows.
        world_from_camera: (4, 4) pose, metres.
    """
    directions = (pixel_rays(camera) @ world_from_camera[:3, :3].T).astype(np.float32)
    origins = np.broadcast_to(world_from_camera[:3, 3].astype(np.float32), directions.shape)
    hit = stage.cast(origins, directions)
    shape = (camera.height, camera.width)
    triangle, seen = hit["primID"], hit["primID"] >= 0
    triangle = np.where(seen, triangle, 0)
    depth = np.where(seen, hit["tfar"], 0).astype(np.float32)
    normal = stage.triangle_normal.take(triangle, 0)
    facing = (normal * directions).sum(1)
    normal = np.where(seen[:, None], -np.sign(facing)[:, None] * normal, 0).astype(np.float32)
    slant = np.abs(facing) / np.linalg.norm(directions, axis=1)
    footprint = depth / camera.fx / np.sqrt(np.maximum(slant, 0.1))
    patch = stage.triangle_patch[triangle]
    uv, light = stage.surface_at(triangle, hit["u"], hit["v"])
    color = stage.shade(patch, uv, light, footprint)
    color[~seen] = 0
    instance = np.where(seen, stage.instance[patch], -1)
    return Rendering(
        color.reshape(*shape, 3),
        depth.reshape(shape),
        normal.reshape(*shape, 3),
        np.where(seen, stage.semantic[instance], 0).reshape(shape),
        instance.reshape(shape),
    )
