"""Crops of posed views with depth: an image, the camera that it now has, and the point of every pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.geometry.flow import depth_there, moved_points, same_surface

#: A principal point is taken to lie in this middle part of its image, from and to; crops are centred on it.
_MIDDLE = 0.25, 0.75
#: Two depths of one ray that differ by no more than this share are of one surface.
_SAME_SURFACE = 0.02


@dataclass(frozen=True)
class PosedCrop:
    """A crop and its surface.

    Args:
        image: RGB.
        camera: its intrinsics, the principal point in its middle.
        world_from_camera: (4, 4) float64.
        depth: (H, W) float64 along z, 0 where unknown, in the scene's unit.
    """

    image: Image.Image
    camera: Camera
    world_from_camera: Tensor
    depth: Tensor

    def points(self) -> Tensor:
        """(H, W, 3) float64 of every pixel in the camera's frame; anything where the depth is 0."""
        return self.camera.unproject(self.camera.pixel_grid(), self.depth)


def centred_crop(view: View, size: tuple[int, int], zoom: float) -> PosedCrop:
    """Cut the largest window around the principal point, or a smaller one, and resample it.

    Networks that guess focal lengths take the principal point to be the middle, so that windows are not cut anywhere.

    Args:
        view: with image, camera, pose and depth.
        size: height and width of the crop, pixels.
        zoom: 1 for the largest window, 2 for one of half its sides.

    Raises:
        InputError: something is not known of the view.
    """
    if view.image is None or view.camera is None or view.world_from_camera is None or view.depth is None:
        raise InputError(f"view {view.name}: pointmaps are made of an image with camera, pose and depth")
    (height, width), camera = size, view.camera
    middle = [
        min(max(centre + 0.5, _MIDDLE[0] * side), _MIDDLE[1] * side)
        for centre, side in ((camera.cx, camera.width), (camera.cy, camera.height))
    ]
    reach = [2 * min(at, side - at) for at, side in zip(middle, (camera.width, camera.height), strict=True)]
    scale = zoom * max(width / reach[0], height / reach[1])  # pixels of the crop for one of the image
    left, top = middle[0] - width / scale / 2, middle[1] - height / scale / 2
    box = (left, top, min(left + width / scale, camera.width), min(top + height / scale, camera.height))
    image = Image.fromarray(byte_color_tensor(view.image).numpy())
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=tuple(max(v, 0.0) for v in box))
    cropped = replace(
        camera,
        width=width,
        height=height,
        fx=camera.fx * scale,
        fy=camera.fy * scale,
        cx=(camera.cx + 0.5 - left) * scale - 0.5,
        cy=(camera.cy + 0.5 - top) * scale - 0.5,
    )
    return PosedCrop(image, cropped, view.world_from_camera.double(), _depth_in(cropped, view))


def _depth_in(camera: Camera, view: View) -> Tensor:
    """Depth of a view at the pixels of a camera in its place: of the nearest pixel, so that edges stay sharp."""
    rays = camera.unproject(camera.pixel_grid(), torch.ones(camera.height, camera.width, dtype=torch.float64))
    rows, columns = view.depth.shape
    u, v = (view.depth_camera or view.camera).project(rays).round().long().unbind(-1)
    inside = (u >= 0) & (v >= 0) & (u < columns) & (v < rows)
    depth = view.depth[v.clamp(0, rows - 1), u.clamp(0, columns - 1)].double()
    return torch.where(inside & depth.isfinite(), depth, 0).clamp(min=0)


def matched_pixels(first: PosedCrop, second: PosedCrop, count: int, rng: np.random.Generator) -> Tensor:
    """Pixels of two crops that show one point: seen in both, by their depths.

    Args:
        first, second: the crops.
        count: rows of the result.
        rng: draws which, where there are more.

    Returns:
        (count, 2) int64, row-major pixels of the first and second crop; -1 in rows that are left over.
    """
    pose = torch.linalg.inv(second.world_from_camera) @ first.world_from_camera
    place, z = moved_points(first.depth, first.camera.pixel_grid(), first.camera, second.camera, pose)
    matched = same_surface(z, depth_there(place, second.depth), _SAME_SURFACE, metres=0.0)  # lengths may be no metres
    pixels = matched.flatten().nonzero().squeeze(1)
    pixels = pixels[torch.from_numpy(rng.permutation(len(pixels))[:count])]
    u, v = place.view(-1, 2)[pixels].round().long().unbind(1)
    matches = torch.full((count, 2), -1)
    matches[: len(pixels)] = torch.stack([pixels, v * second.camera.width + u], 1)
    return matches


__all__ = ["PosedCrop", "centred_crop", "matched_pixels"]
