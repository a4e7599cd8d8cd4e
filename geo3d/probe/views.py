"""Views as probes show them to networks over images, and what networks say at pixels of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.geometry import Camera, PointCloud, View
from geo3d.models.encoder import Encoder, layers_said
from geo3d.models.image_encoder import ImageEncoder
from geo3d.samples.source import SampleSource

#: Stages that are read where none are named: all, or so many where there are more.
_STAGES = 4
#: Shorter side of images, pixels, where a network does not say on which it was trained.
_USUAL_SIDE = 224
#: Side of the square around a pixel whose colours stand for an image without a network, over the pitch of the pixels.
_PATCH = 2
#: Cells along the side of such a square.
_PATCH_CELLS = 8


class DepthViews(SampleSource[Scene]):
    """Posed views with depth, a group a scene."""

    kind = "views with depth"
    holds = "posed views with depth"
    needs = ("views", "poses", "depth")

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        return np.zeros(len(scene.view_names), dtype=np.int64)

    def name_in_scene(self, index: int) -> str:
        return self.opened(index).view_names[self.number(index)]

    def view(self, index: int) -> View:
        """A view with image, camera, pose and depth.

        Raises:
            InputError: it cannot be read.
        """
        return self.opened(index).view(self.number(index))


@dataclass
class ShownView:
    """A view at the size at which a network sees it.

    Args:
        image: (H, W, 3) float32.
        camera: of that image.
        view: what it was made of, with depth and pose.
    """

    image: Tensor
    camera: Camera
    view: View

    @property
    def depth_camera(self) -> Camera:
        """Intrinsics of the depth map."""
        return self.view.depth_camera or self.view.camera

    def depth_at(self, pixels: Tensor) -> Tensor:
        """Depth (M,) float64 of the nearest pixel of the depth map, metres; 0 where unknown or outside.

        Args:
            pixels: (M, 2) of the image.
        """
        rays = self.camera.unproject(pixels, torch.ones(len(pixels), dtype=pixels.dtype))
        place = self.depth_camera.project(rays).round().long()
        height, width = self.view.depth.shape
        inside = ((place >= 0) & (place < torch.tensor([width, height]))).all(1)
        column, row = place[:, 0].clamp(0, width - 1), place[:, 1].clamp(0, height - 1)
        return torch.where(inside, self.view.depth[row, column].double(), 0.0)

    def lifted(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """(M, 3) float64 places in the world of pixels (M, 2) at depths (M,)."""
        pose = self.view.world_from_camera.double()
        return self.camera.unproject(pixels, depth) @ pose[:3, :3].T + pose[:3, 3]

    def seen(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Where points of the world appear.

        Args:
            xyz: (M, 3) float64.

        Returns:
            (M, 2) pixels of the image, and (M,) depth, metres; beyond the image and behind the camera as well.
        """
        pose = self.view.world_from_camera.double()
        inside = (xyz - pose[:3, 3]) @ pose[:3, :3]
        return self.camera.project(inside), inside[:, 2]

    def cloud(self) -> PointCloud:
        """What the depth map shows: (N, 3) float64 points of the world, with colours and normals towards the camera."""
        xyz, pixel = self.view.world_points()
        camera = self.depth_camera
        uv = torch.stack([pixel % camera.width, pixel // camera.width], 1).double()
        rays = camera.unproject(uv, torch.ones(len(uv), dtype=torch.float64))
        colors = at_pixels(self.image.permute(2, 0, 1).unsqueeze(0), self.camera.project(rays), 1)
        turned = self.view.world_normals().float()
        known = (turned != 0).any(1)
        return PointCloud(xyz[known], colors[known].clamp(0, 1), turned[known])


def shown_view(view: View, side: int) -> ShownView:
    """A view whose image's shorter side is resampled to ``side`` pixels."""
    height, width = view.image.shape[:2]
    scale = side / min(height, width)
    size = round(scale * height), round(scale * width)
    image = F.interpolate(
        view.image.permute(2, 0, 1).unsqueeze(0), size, mode="bilinear", antialias=True, align_corners=False
    )
    return ShownView(image[0].permute(1, 2, 0).clamp(0, 1), view.camera.resized(size[1], size[0]), view)


def pixel_lattice(camera: Camera, step: int) -> Tensor:
    """(M, 2) float64 middles of the whole squares of ``step`` pixels of an image, row by row."""
    across, down = (
        step * torch.arange(side // step, dtype=torch.float64) + (step - 1) / 2
        for side in (camera.width, camera.height)
    )
    return torch.stack([across.repeat(len(down)), down.repeat_interleave(len(across))], 1)


def at_pixels(values: Tensor, pixels: Tensor, stride: int) -> Tensor:
    """Values of a map at pixels, bilinear; beyond the outermost cells those of the nearest.

    Args:
        values: (1, C, h, w) map, whose upper left cell is in the middle of the first ``stride`` x ``stride`` pixels.
        pixels: (M, 2) as (u, v); the middle of the upper left pixel is (0, 0).
        stride: pixels along a side of a cell.

    Returns:
        (M, C) float32 on the CPU.
    """
    sides = torch.tensor(values.shape[:1:-1])
    place = (2 * (pixels + 0.5) / (stride * sides) - 1).to(values)
    found = F.grid_sample(values, place.view(1, 1, -1, 2), padding_mode="border", align_corners=False)
    return found[0, :, 0].T.float().cpu()


class PixelsOfView(NamedTuple):
    """A view, and the pixels of it that are looked at.

    Args:
        shown: the view.
        pixels: (M, 2) float64.
        step: pitch of the pixels.
    """

    shown: ShownView
    pixels: Tensor
    step: int


def training_side(network: ImageEncoder) -> int:
    """Shorter side, pixels, of the images that a network was trained on, where its config says so; else the usual."""
    size = getattr(network.config, "image_size", None)
    return _USUAL_SIDE if size is None else min(size)


def chosen_stages(network: Encoder, layers: Sequence[str]) -> list[int]:
    """Numbers of the stages that are read: those that are named, or all, or four evenly spaced ones of more.

    Raises:
        InputError: there is no such stage.
    """
    count = len(network.feature_info)
    if layers:
        return network.stage_numbers(layers_said(layers))
    if count <= _STAGES:
        return list(range(count))
    return [round((n + 1) * count / _STAGES) - 1 for n in range(_STAGES)]


def pixel_features(
    network: ImageEncoder, stages: Sequence[int], device: torch.device | str = "cpu"
) -> Callable[[PixelsOfView], Tensor]:
    """A network's maps of some stages at pixels, bilinear, side by side; the network is moved to the device."""
    network = network.to(device).eval()

    @torch.no_grad()
    def features(looked_at: PixelsOfView) -> Tensor:
        maps = network.features(network.prepare(looked_at.shown.image), stages)
        strides = [network.feature_info[n].stride for n in stages]
        columns = [at_pixels(values, looked_at.pixels, stride) for values, stride in zip(maps, strides)]
        return torch.cat(columns, 1)

    return features


def colour_patches(looked_at: PixelsOfView) -> Tensor:
    """(M, 192): the colours around each pixel, 8 x 8 cells of a square two pitches wide."""
    side = _PATCH * looked_at.step
    offsets = side * ((torch.arange(_PATCH_CELLS, dtype=torch.float64) + 0.5) / _PATCH_CELLS - 0.5)
    around = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), -1).view(-1, 2)
    image = looked_at.shown.image.permute(2, 0, 1).unsqueeze(0)
    colours = at_pixels(image, (looked_at.pixels.unsqueeze(1) + around).view(-1, 2), 1)
    return colours.reshape(len(looked_at.pixels), -1)


def colour_and_place(looked_at: PixelsOfView) -> Tensor:
    """(M, 11): mean and deviation of the colours around each pixel, and its place in the image with its squares."""
    colours = colour_patches(looked_at).unflatten(1, (-1, 3))
    camera = looked_at.shown.camera
    x, y = (looked_at.pixels / torch.tensor([camera.width, camera.height]) - 0.5).float().T
    return torch.cat([colours.mean(1), colours.std(1), torch.stack([x, y, x * x, y * y, x * y], 1)], 1)


__all__ = [
    "DepthViews",
    "PixelsOfView",
    "ShownView",
    "at_pixels",
    "chosen_stages",
    "colour_and_place",
    "colour_patches",
    "pixel_features",
    "pixel_lattice",
    "shown_view",
    "training_side",
]
