"""What dense prediction learns from: rectified pairs with disparity, and pairs with optical flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.geometry.flow import is_visible, moved_points
from geo3d.samples.source import SampleSource


class DenseItem(NamedTuple):
    """Images, and what is known at places of the first.

    Args:
        images: one or two, not yet decoded where the scene's reader is lazy.
        at: (h, w, 2) float64 pixels (x, y) of the first image -> (h, w, C) float32, NaN where unknown.
    """

    images: tuple[Image.Image, ...]
    at: Callable[[np.ndarray], np.ndarray]


def nearest_values(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Entries (h, w, C) of a map (H, W, C) at the nearest pixels to places (h, w, 2); NaN beyond the map."""
    height, width = values.shape[:2]
    column, row = np.rint(np.moveaxis(places, -1, 0)).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = values[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside[..., None], found, np.float32(np.nan))


class _DensePairs(SampleSource[Scene], ABC):
    """Pairs of views: those of a place are a group, or each pair where places have nothing to do with each other."""

    @classmethod
    @abstractmethod
    def pairs_of(cls, scene: Scene) -> np.ndarray:
        """(P, 2) int64 view indices of the pairs of a scene; asked for with every sample."""

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        numbers = np.arange(len(cls.pairs_of(scene)))
        return numbers if scene.of_many_places else np.zeros_like(numbers)

    def views(self, index: int) -> tuple[int, int]:
        """First and second view of a pair, counted as its scene does."""
        first, second = self.pairs_of(self.opened(index))[self.number(index)].tolist()
        return first, second

    def name_in_scene(self, index: int) -> str:
        names = self.opened(index).view_names
        return " | ".join(names[view] for view in self.views(index))

    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Both images of a pair.

        Raises:
            BrokenScene: a file of the scene cannot be read.
            InputError: they differ in size.
        """
        first, second = (self.opened(index).image(view) for view in self.views(index))
        if first.size != second.size:
            raise InputError(f"{self.describe(index)}: images of {first.size} and {second.size} pixels are no pair")
        return first, second


class StereoPairs(_DensePairs):
    """Rectified pairs with the disparity of the left image."""

    kind = "stereo pairs"
    holds = "rectified pairs with disparity"
    needs = ("views", "disparity")

    @classmethod
    def pairs_of(cls, scene: Scene) -> np.ndarray:
        return scene.stereo_pairs()

    def dense(self, index: int) -> DenseItem:
        """Left and right image, and disparity at places of the left one: (h, w, 1) pixels.

        Raises:
            InputError: a file of the scene cannot be read.
        """
        disparity = self.opened(index).disparity(self.number(index))[..., None]
        return DenseItem(self.images(index), lambda places: nearest_values(disparity, places))


class FlowPairs(_DensePairs):
    """Pairs with optical flow: those that scenes have flow of, or else each posed view with depth and the one after it.

    Of posed views, flow is that of what does not move, and only of what the second view sees too, as its depth tells.
    """

    kind = "flow pairs"
    holds = "pairs with optical flow, or posed views with depth to compute it of"
    needs = ("views",)

    @classmethod
    def reads(cls, scene: Scene) -> bool:
        return super().reads(scene) and ("flow" in scene.parts or scene.parts.issuperset({"poses", "depth"}))

    @classmethod
    def pairs_of(cls, scene: Scene) -> np.ndarray:
        if "flow" in scene.parts:
            return scene.flow_pairs()
        first = np.arange(len(scene.view_names) - 1)
        return np.stack([first, first + 1], 1)

    def dense(self, index: int) -> DenseItem:
        """First and second image, and flow at places of the first: (h, w, 2) pixels to the right and down.

        Raises:
            InputError: a file of the scene cannot be read.
        """
        scene = self.opened(index)
        if "flow" not in scene.parts:
            return DenseItem(self.images(index), posed_flow(scene, *self.views(index)))
        flow = scene.flow(self.number(index))
        return DenseItem(self.images(index), lambda places: nearest_values(flow, places))


def posed_flow(scene: Scene, first: int, second: int) -> Callable[[np.ndarray], np.ndarray]:
    """Flow from a posed view with depth to another, as :class:`DenseItem` has it; NaN where the second sees it not."""
    depth, second_depth = (torch.from_numpy(scene.depth(view)) for view in (first, second))
    camera, second_camera = scene.camera(first), scene.camera(second)
    depth_camera, second_depth_camera = scene.depth_camera(first), scene.depth_camera(second)
    second_from_first = torch.from_numpy(np.linalg.inv(scene.pose(second)) @ scene.pose(first))

    def at(places: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(places)
        rays = camera.unproject(pixels, torch.ones(pixels.shape[:-1], dtype=torch.float64))
        known = nearest_values(depth.numpy()[..., None], depth_camera.project(rays).numpy())[..., 0]
        here = torch.from_numpy(np.nan_to_num(known))
        place, z = moved_points(here, pixels, camera, second_camera, second_from_first)
        in_depth, _ = moved_points(here, pixels, camera, second_depth_camera, second_from_first)
        seen = is_visible(in_depth, z, second_depth)
        return (place - pixels).masked_fill(~seen.unsqueeze(-1), torch.nan).float().numpy()

    return at


__all__ = ["DenseItem", "FlowPairs", "StereoPairs", "nearest_values", "posed_flow"]
