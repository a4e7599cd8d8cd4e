"""The rays of a scene's photos: where each pixel looks from and to, its colour, and its depth where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.datasets.image_files import decode
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene
from geo3d.datasets.view_subset import ViewSubset
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.spread import evenly_spread

#: With fewer photos than this nothing is seen from two sides.
FEWEST_PHOTOS = 2


class Rays(NamedTuple):
    """Rays of some pixels.

    Args:
        origins: (R, 3) float32 places of the cameras, metres in the world.
        directions: (R, 3) float32 unit vectors in the world.
        colours: (R, 3) float32 in [0, 1].
        distances: (R,) float32 metres along the ray to what it hits, 0 where unknown; None without depth.
        inside: (R,) bool, whether the pixel lies on the object; None without masks.
        photo: (R,) int64 which photo.
    """

    origins: Tensor
    directions: Tensor
    colours: Tensor
    distances: Tensor | None
    inside: Tensor | None
    photo: Tensor


def camera_directions(camera: Camera) -> Tensor:
    """(H * W, 3) float64 unit vectors of the pixels' rays in the camera frame, row by row; lens distortion undone."""
    pixels = camera.pixel_grid().reshape(-1, 2)
    towards = camera.unproject(pixels, torch.ones(len(pixels), dtype=torch.float64))
    return F.normalize(towards, dim=1)


class SceneRays:
    """Photos with poses, ready to draw rays from.

    Args:
        names: of the photos.
        cameras: of each photo, at the size of its colours.
        poses: (V, 4, 4) float64 ``world_from_camera``, metres.
        colours: of each photo (H, W, 3) uint8.
        depths: of each photo (H, W) float32 metres along z, 0 where unknown; None: there is none.
        masks: of each photo (H, W) bool, True on the object; None: all of it counts.
    """

    def __init__(
        self,
        names: Sequence[str],
        cameras: Sequence[Camera],
        poses: np.ndarray,
        colours: Sequence[Tensor],
        depths: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> None:
        self.names, self.cameras, self.poses = list(names), list(cameras), np.asarray(poses, dtype=np.float64)
        sizes = [camera.width * camera.height for camera in cameras]
        self.first = torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int64)
        self.colours = torch.cat([colour.reshape(-1, 3) for colour in colours])  # (P, 3) uint8
        tables: dict[Camera, int] = {}
        found, start = [], 0
        rows = []
        for camera in cameras:
            if camera not in tables:
                tables[camera] = start
                found.append(camera_directions(camera).float())
                start += len(found[-1])
            rows.append(tables[camera])
        self._directions = torch.cat(found)  # of each camera that differs, in its own frame
        self._row = torch.tensor(rows, dtype=torch.int64)
        self._rotation = torch.from_numpy(self.poses[:, :3, :3]).float()
        self._position = torch.from_numpy(self.poses[:, :3, 3]).float()
        self.inside = None if masks is None else torch.cat([mask.reshape(-1) for mask in masks])
        self.distances: Tensor | None = None
        if depths is not None:
            along = torch.cat([depth.reshape(-1) for depth in depths])
            # z is the third coordinate of the unit vector times the distance.
            slope = torch.cat([self._directions[row : row + size, 2] for row, size in zip(rows, sizes, strict=True)])
            self.distances = torch.where(slope > 1e-6, along / slope.clamp_min(1e-6), 0.0)

    @property
    def photos(self) -> int:
        """How many photos there are."""
        return len(self.names)

    @property
    def pixels(self) -> int:
        """How many pixels there are in all photos."""
        return len(self.colours)

    def at(self, pixels: Tensor) -> Rays:
        """The rays of some pixels.

        Args:
            pixels: (R,) int64 numbers, counted through all photos, row by row.
        """
        photo = torch.searchsorted(self.first, pixels, right=True) - 1
        towards = self._directions[self._row[photo] + pixels - self.first[photo]]
        rotation = self._rotation[photo]
        # Sums written out: how a library orders them may depend on the number of threads.
        world = rotation[:, :, 0] * towards[:, :1] + rotation[:, :, 1] * towards[:, 1:2]
        world = world + rotation[:, :, 2] * towards[:, 2:]
        distances = None if self.distances is None else self.distances[pixels]
        inside = None if self.inside is None else self.inside[pixels]
        return Rays(self._position[photo], world, self.colours[pixels].float() / 255, distances, inside, photo)

    def of_photo(self, photo: int) -> Rays:
        """The rays of a whole photo, row by row."""
        return self.at(torch.arange(int(self.first[photo]), int(self.first[photo + 1])))

    def image(self, photo: int) -> Tensor:
        """(H, W, 3) float32 colours of a photo."""
        camera = self.cameras[photo]
        first, end = int(self.first[photo]), int(self.first[photo + 1])
        return self.colours[first:end].reshape(camera.height, camera.width, 3).float() / 255

    def some(self, photos: Sequence[int]) -> SceneRays:
        """Those of some photos alone."""
        pixels = [slice(int(self.first[i]), int(self.first[i + 1])) for i in photos]
        names, cameras = [self.names[i] for i in photos], [self.cameras[i] for i in photos]
        taken = SceneRays(names, cameras, self.poses[list(photos)], [self.colours[part] for part in pixels])
        if self.distances is not None:
            taken.distances = torch.cat([self.distances[part] for part in pixels])
        if self.inside is not None:
            taken.inside = torch.cat([self.inside[part] for part in pixels])
        return taken


def shrunk_size(width: int, height: int, longest_side: int | None) -> tuple[int, int]:
    """Size of a photo whose longest side is to be at most ``longest_side`` pixels; photos are never enlarged."""
    if longest_side is None or max(width, height) <= longest_side:
        return width, height
    scale = longest_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def area_average(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shrink (H, W, 3) uint8 by averaging the area of each pixel.

    Args:
        image: the photo.
        width, height: no larger than the image's.

    Returns:
        (height, width, 3) uint8, rounded.
    """
    if (height, width) == image.shape[:2]:
        return image
    mean = _averaged(_averaged(image.astype(np.float64), height, 0), width, 1)
    return np.rint(mean).clip(0, 255).astype(np.uint8)


def _averaged(values: np.ndarray, smaller: int, axis: int) -> np.ndarray:
    """Means over equal shares of one dimension; what lies on an edge counts to both sides by its area."""
    values = np.moveaxis(values, axis, 0)
    size = len(values)
    if size % smaller == 0:
        return np.moveaxis(values.reshape(smaller, size // smaller, *values.shape[1:]).mean(1), 0, axis)
    until = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    edges = np.arange(smaller + 1) * (size / smaller)
    whole = edges.astype(np.int64).clip(0, size - 1)
    at_edges = until[whole] + (edges - whole).reshape(-1, *[1] * (values.ndim - 1)) * values[whole]
    return np.moveaxis((at_edges[1:] - at_edges[:-1]) * (smaller / size), 0, axis)


def gather_rays(
    scene: Scene, longest_side: int | None = None, most: int | None = None, depth: bool = False, masks: bool = False
) -> SceneRays:
    """Read the photos of a scene.

    Args:
        scene: with views and poses.
        longest_side: pixels; larger photos are averaged down, smaller ones stay. None: as they are.
        most: photos; of more, so many evenly spread ones. None: all.
        depth: read the depth too; it is looked up at the centre of each pixel, never averaged.
        masks: read the masks of the object too, likewise.

    Raises:
        InputError: the scene lacks views, poses or depth, or has fewer than 2 photos.
        BrokenScene: a file is damaged, a photo is not of its camera's size, a pose is not a rotation and a place.
    """
    scene.require("views", "poses", *(["depth"] if depth else []), *(["masks"] if masks else []))
    taken = evenly_spread(len(scene.view_names), most)
    if len(taken) < FEWEST_PHOTOS:
        raise InputError(
            f"scene {scene.name} ({scene.root}): has {len(taken)} usable photos, at least {FEWEST_PHOTOS} are needed"
        )
    names, cameras, poses, colours, depths, inside = [], [], [], [], [], []
    for index in taken:
        name = scene.view_names[index]
        where = f"{scene.root}: view {name}"
        with scene.image(index) as picture:
            pixels = decode(picture, where, scene.name)
        camera = scene.camera(index)
        if pixels.shape[:2] != (camera.height, camera.width):
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            reason = f"is {size}, its camera says {camera.width} x {camera.height}; scale one to the other"
            raise BrokenScene(scene.name, where, reason)
        pose = scene.pose(index)
        _check_pose(pose, where, scene.name)
        width, height = shrunk_size(camera.width, camera.height, longest_side)
        small = camera.resized(width, height)
        names.append(name)
        cameras.append(small)
        poses.append(pose)
        colours.append(torch.from_numpy(np.ascontiguousarray(area_average(pixels, width, height))))
        if depth:
            depths.append(depth_of_pixels(scene.depth(index), scene.depth_camera(index), small))
        if masks:
            inside.append(_looked_up(scene.mask(index), width, height))
    known = {"depths": depths if depth else None, "masks": inside if masks else None}
    return SceneRays(names, cameras, np.stack(poses), colours, **known)


def without_broken_views(scene: Scene) -> tuple[Scene, list[BrokenScene]]:
    """A scene without those of its views of which a file is damaged, or whose pose is none; all views are read.

    Args:
        scene: with views.

    Returns:
        The scene itself where all its views can be read, and what is wrong with each that was left out.
    """
    kept, broken = [], []
    for index in range(len(scene.view_names)):
        try:
            view = scene.view(index)
            if view.world_from_camera is not None:
                _check_pose(view.world_from_camera.numpy(), f"{scene.root}: view {view.name}", scene.name)
        except BrokenScene as found:
            broken.append(found)
        else:
            kept.append(index)
    return (ViewSubset(scene, kept), broken) if broken else (scene, [])


def _check_pose(pose: np.ndarray, where: str, scene: str) -> None:
    rotation = pose[:3, :3]
    if not np.isfinite(pose).all() or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
        reason = "its pose is not a rotation and a place in finite numbers; mend or remove the view"
        raise BrokenScene(scene, where, reason)


def depth_of_pixels(depth: np.ndarray, depth_camera: Camera, camera: Camera) -> Tensor:
    """Depth at the centres of the pixels of another camera at the same place; never averaged.

    Args:
        depth: (H', W') metres along z of the pixels of ``depth_camera``, 0 where unknown.
        depth_camera, camera: intrinsics.

    Returns:
        (H, W) float32, 0 where unknown or beyond the depth map.
    """
    at = camera.unproject(camera.pixel_grid(), torch.ones(camera.height, camera.width, dtype=torch.float64))
    columns, rows = (depth_camera.project(at) + 0.5).floor().unbind(-1)
    inside = (rows >= 0) & (rows < depth.shape[0]) & (columns >= 0) & (columns < depth.shape[1])
    rows, columns = (torch.where(inside, place, 0).long() for place in (rows, columns))
    found = torch.from_numpy(np.ascontiguousarray(depth)).float()[rows, columns]
    return torch.where(inside, found, 0)


def _looked_up(values: np.ndarray, width: int, height: int) -> Tensor:
    """Mask at the centres of the pixels of an image of another size."""
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(values[rows[:, None], columns]))


__all__ = [
    "Rays",
    "SceneRays",
    "area_average",
    "camera_directions",
    "gather_rays",
    "shrunk_size",
    "without_broken_views",
]
