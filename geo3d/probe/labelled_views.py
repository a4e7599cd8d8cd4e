"""Patches of the views of labelled scenes, as the linear probe reads them, for networks over images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from geo3d.datasets.rooms import make_rooms
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.metrics import IGNORED
from geo3d.models.image_encoder import ImageEncoder
from geo3d.ops import knn
from geo3d.probe.probe import Representation
from geo3d.probe.views import (
    PixelsOfView,
    chosen_stages,
    colour_and_place,
    pixel_features,
    pixel_lattice,
    shown_view,
    training_side,
)
from geo3d.progress import Log
from geo3d.samples.labels import common_classes, require_labels
from geo3d.samples.source import SampleSource

#: Distance, metres, up to which a point of a view is of the class of the nearest labelled one.
_REACH = 0.1
#: Patches along the shorter side of an image.
_PATCHES = 12


class LabelledViewScenes(SampleSource[Scene]):
    """Scenes of labelled points, with posed views and their depth."""

    kind = "labelled views"
    holds = "labelled points or a labelled mesh, with posed views and their depth"
    needs = ("labels", "views", "poses", "depth")
    one_of = ("points", "mesh")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return common_classes(self)


class ViewPatches:
    """Patches of all views of scenes; the class of each is that of the labelled point nearest to its middle.

    Args:
        scenes: where views come from.
        side: shorter side of images, pixels.
    """

    def __init__(self, scenes: LabelledViewScenes, side: int) -> None:
        self.scenes, self.side = scenes, side
        self.classes, self.describe = scenes.classes, scenes.describe

    def __len__(self) -> int:
        return len(self.scenes)

    def voxels(self, index: int) -> tuple[list[PixelsOfView], Tensor]:
        """As :meth:`LabelledVoxels.voxels`: the patches, one after the other."""
        scene = self.scenes.opened(index)
        cloud = scene.cloud()
        require_labels(cloud.semantic, self.classes, scene)
        looked_at, places, known = [], [], []
        for number in range(len(scene.view_names)):
            shown = shown_view(scene.view(number), self.side)
            step = max(1, self.side // _PATCHES)
            pixels = pixel_lattice(shown.camera, step)
            depth = shown.depth_at(pixels)
            looked_at.append(PixelsOfView(shown, pixels, step))
            places.append(shown.lifted(pixels, depth))
            known.append(depth > 0)
        xyz = torch.cat(places).to(cloud.xyz)
        index_of, squared = knn(xyz, cloud.xyz, torch.tensor([0, len(xyz)]), cloud.offsets, 1)
        near = torch.cat(known) & (squared[:, 0] <= _REACH**2)
        return looked_at, torch.where(near, cloud.semantic[index_of[:, 0]], IGNORED)


class ProbedViews:
    """What the linear probe does for networks over images.

    Args:
        network: of the checkpoint.
        voxel_size: None; images have no voxels.
        side: shorter side of images, pixels; as in training when not given.

    Raises:
        InputError: a size of voxels.
    """

    source = LabelledViewScenes

    def __init__(self, network: ImageEncoder, voxel_size: float | None, side: int | None = None) -> None:
        if voxel_size is not None:
            raise InputError("voxel_size is of networks over sparse voxels; images have none")
        self._side = side or training_side(network)

    def describe(self) -> str:
        """What is looked at, for the log."""
        return f"{_PATCHES} patches along the shorter side, {self._side} pixels, of their views"

    def make_rooms(self, rooms: int, seed: int, log: Log) -> Path:
        """Make synthetic rooms, or find those made before; returns their folder."""
        return make_rooms(rooms, seed, log)

    def voxels(self, scenes: LabelledViewScenes) -> ViewPatches:
        """The patches of scenes."""
        return ViewPatches(scenes, self._side)

    def network_features(self, network: ImageEncoder, device: str) -> Representation:
        """Maps of all stages, or of four evenly spaced ones, at the middles of patches."""
        features = pixel_features(network, chosen_stages(network, ()), device)
        return lambda views: torch.cat([features(view) for view in views])

    def input_features(self) -> Representation:
        """Colours around the middle, and its place in the image."""
        return lambda views: torch.cat([colour_and_place(view) for view in views])


__all__ = ["LabelledViewScenes", "ProbedViews", "ViewPatches"]
