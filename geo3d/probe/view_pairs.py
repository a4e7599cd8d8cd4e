"""Pairs of views as the match probe shows them to networks over images, and to networks over voxels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.covisibility import DepthTolerance
from geo3d.datasets.pair_mining import PairOptions
from geo3d.errors import InputError
from geo3d.geometry import PointCloud, ViewPair
from geo3d.geometry.flow import same_surface
from geo3d.models.encoder import Encoder
from geo3d.models.image_encoder import ImageEncoder, SeesTwoViews
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels
from geo3d.nn.local_shape import FIGURES, local_shape
from geo3d.ops import knn
from geo3d.probe.matching import Correspondences
from geo3d.probe.probe import Representation
from geo3d.probe.views import (
    PixelsOfView,
    ShownView,
    at_pixels,
    chosen_stages,
    colour_patches,
    pixel_features,
    pixel_lattice,
    shown_view,
    training_side,
)
from geo3d.random import Stream, stream_generator
from geo3d.samples.pairs import ViewPairs
from geo3d.samples.views import DepthViews

_TOLERANCE = DepthTolerance(0.05, 0.03)
#: Radii, in voxels, of the neighbourhoods whose shape stands for a cloud without a network.
_RADII = (2.0, 4.0, 8.0)


@dataclass(frozen=True)
class PairInputs:
    """What representations take of a pair, and the truth.

    Args:
        first, second: of each view, :class:`PixelsOfView` or :class:`VoxelsOfView`.
        known: the truth.
    """

    first: Any
    second: Any
    known: Correspondences


@dataclass(frozen=True)
class VoxelsOfView:
    """Voxels of what a view shows, and those of them that are looked at.

    Args:
        points: of the view alone, its camera at the origin, gravity as in the world and its heading along x.
        rows: (M,) int64 rows that are looked at.
    """

    points: VoxelPoints
    rows: Tensor


def pairs_by_angle(
    views: DepthViews, bins: Sequence[float], most: int, min_overlap: float, seed: int
) -> tuple[ViewPairs, list[list[int]]]:
    """Pairs of views of some scenes, by change of viewpoint.

    Args:
        views: of the scenes.
        bins: ascending bounds of the bins, degrees, from the least change to the largest.
        most: pairs of a bin; drawn by ``seed`` where there are more.
        min_overlap: least share of a view that the other sees, 0 to 1.
        seed: of the draw.

    Returns:
        The pairs, and the numbers of those of each bin.

    Raises:
        InputError: no pair.
    """
    used = {views.scenes[row] for row in np.unique(views.items.scene).tolist()}
    datasets = []
    for number, dataset in enumerate(views.datasets):
        part = copy.copy(dataset)
        part.scene_names = [name for name in dataset.scene_names if (number, name) in used]
        datasets += [part] if part.scene_names else []
    options = PairOptions(
        min_overlap=min_overlap, min_angle=bins[0], max_angle=bins[-1], max_pairs_per_view=10_000, max_views=100
    )
    pairs = ViewPairs.of_datasets(datasets, options)
    place = np.searchsorted(bins, np.degrees(pairs.items.angle), side="right") - 1
    chosen = []
    for number in range(len(bins) - 1):
        found = np.flatnonzero(place == number)
        order = stream_generator(seed, Stream.PROBE_PAIRS, number).permutation(found)
        chosen.append(np.sort(order[:most]).tolist())
    return pairs, chosen


class ImagePairs:
    """Pairs for networks over images: a lattice of pixels in each, of which the nearest by features is looked for.

    Args:
        network: of the checkpoint.
        side: shorter side of the images, pixels; as in training when not given.
        step: pitch of the lattice, pixels; half the finest stage's stride, 4 at least, when not given.
        layers: stages that are read.
        decoder: whether the decoder is read, which sees both views, and not the encoder.

    Raises:
        InputError: a stage that there is not; a decoder of a network without.
    """

    unit, thresholds = "pixels", (4.0, 8.0, 16.0)

    def __init__(
        self, network: ImageEncoder, side: int | None, step: int | None, layers: tuple[str, ...], decoder: bool
    ) -> None:
        if decoder and not isinstance(network, SeesTwoViews):
            raise InputError(f"decoder: {network.family} has none that sees two views; give a network such as CroCo's")
        self.decoder = decoder
        self.side = side or training_side(network)
        self.stages = chosen_stages(network, layers)
        self.step = step or max(4, network.feature_info[0].stride // 2)

    def describe(self) -> str:
        """What is shown."""
        return f"images of {self.side} pixels along the shorter side, points every {self.step} pixels"

    def inputs(self, pair: ViewPair, rng: np.random.Generator) -> PairInputs:
        """A pair as it is shown."""
        first, second = shown_view(pair.first, self.side), shown_view(pair.second, self.side)
        pixels, others = (pixel_lattice(view.camera, self.step) for view in (first, second))
        depth = first.depth_at(pixels)
        uv, z = second.seen(first.lifted(pixels, depth))
        inside = (uv >= -0.5).all(1) & (uv < torch.tensor([second.camera.width, second.camera.height]) - 0.5).all(1)
        inside &= (z > 0) & (depth > 0)
        found = torch.where(inside, second.depth_at(torch.where(inside.unsqueeze(1), uv, 0.0)), 0.0)
        visible = inside & same_surface(z, found, _TOLERANCE.relative, _TOLERANCE.absolute)
        judged = (depth > 0) & (~inside | (found > 0))
        known = Correspondences(torch.where(visible.unsqueeze(1), uv, torch.nan), others, judged)
        return PairInputs(PixelsOfView(first, pixels, self.step), PixelsOfView(second, others, self.step), known)

    def widths(self, network: Encoder, stages: Sequence[int]) -> list[int]:
        """Columns of each block of features."""
        return [network.decoded_channels] if self.decoder else [network.feature_info[n].channels for n in stages]

    def network_features(self, network: ImageEncoder, stages: Sequence[int], device: str) -> Representation:
        """Of a pair: a network's features of both views, (N, C) and (M, C)."""
        if self.decoder:
            return decoder_features(network, device)
        features = pixel_features(network, stages, device)
        return lambda pair: (features(pair.first), features(pair.second))

    def input_features(self) -> tuple[Representation, list[int]]:
        """Colours around each pixel."""
        return lambda pair: (colour_patches(pair.first), colour_patches(pair.second)), [192]


def decoder_features(network: ImageEncoder, device: torch.device | str = "cpu") -> Representation:
    """Of a pair: what the decoder makes of each view beside the other, nothing masked, bilinear at the pixels.

    Args:
        network: one that :class:`SeesTwoViews`.
        device: where it runs.
    """
    network = network.to(device).eval()

    def one(images: Tensor, looked_at: PixelsOfView) -> Tensor:
        decoded = network.decoded(images[:1], images[1:])
        return at_pixels(decoded, looked_at.pixels, network.feature_info[-1].stride)

    @torch.no_grad()
    def features(pair: PairInputs) -> tuple[Tensor, Tensor]:
        images = network.prepare([pair.first.shown.image, pair.second.shown.image])
        return one(images, pair.first), one(images.flip(0), pair.second)

    return features


class CloudPairs:
    """Pairs for networks over voxels: each view's depth map alone, cut into voxels.

    Args:
        network: of the checkpoint.
        voxel_size: metres; as in training when not given.
        points: voxels of a view that are looked at, at most.
        layers: stages that are read.
    """

    unit, thresholds = "metres", (0.1, 0.2, 0.4)

    def __init__(self, network: VoxelEncoder, voxel_size: float | None, points: int, layers: tuple[str, ...]) -> None:
        self.voxel_size = voxel_size or network.config.voxel_size
        self.points, self.reads = points, network.reads
        self.stages = chosen_stages(network, layers)

    def describe(self) -> str:
        """What is shown."""
        return f"depth maps as voxels of {100 * self.voxel_size:g} cm, {self.points} of each looked at, at most"

    def inputs(self, pair: ViewPair, rng: np.random.Generator) -> PairInputs:
        """A pair as it is shown."""
        (first, places), (second, others) = (self._voxels(view, rng) for view in (pair.first, pair.second))
        nearest, squared = knn(places, others, *(torch.tensor([0, len(part)]) for part in (places, others)), 1)
        reach = self.voxel_size * math.sqrt(3)  # of two points in voxels that touch or are the same
        visible = squared <= reach**2
        truth = torch.where(visible, places, torch.nan)
        return PairInputs(first, second, Correspondences(truth, others, torch.ones(len(nearest), dtype=torch.bool)))

    def _voxels(self, view: Any, rng: np.random.Generator) -> tuple[VoxelsOfView, Tensor]:
        """A view's voxels, and the place (M, 3) in the world of those that are looked at."""
        shown = ShownView(view.image, view.camera, view)
        world = shown.cloud()
        if len(world) == 0:
            raise InputError(f"view {view.name}: its depth map shows no surface")
        points = points_in_voxels(_heading_along_x(world, view.world_from_camera.double()), self.voxel_size)
        rows = np.sort(rng.permutation(len(points.xyz))[: self.points])
        rows = torch.from_numpy(rows)
        return VoxelsOfView(points, rows), world.xyz[points.index[rows]].float()

    def widths(self, network: Encoder, stages: Sequence[int]) -> list[int]:
        """Columns of each block of features."""
        return [network.feature_info[n].channels for n in stages]

    def network_features(self, network: VoxelEncoder, stages: Sequence[int], device: str) -> Representation:
        """Of a pair: a network's features of both views, (N, C) and (M, C)."""
        network = network.to(device).eval()
        every = [stage.channels for stage in network.feature_info]

        @torch.no_grad()
        def one(voxels: VoxelsOfView) -> Tensor:
            found = network.voxel_features(network.voxel_inputs(voxels.points).to(device))[voxels.rows.to(device)]
            blocks = found.float().cpu().split(every, 1)
            return torch.cat([blocks[n] for n in stages], 1)

        return lambda pair: (one(pair.first), one(pair.second))

    def input_features(self) -> tuple[Representation, list[int]]:
        """The shape of the neighbourhood at three sizes, and the colour where the network reads it."""
        colour = "colors" in self.reads

        def one(voxels: VoxelsOfView) -> Tensor:
            xyz = voxels.points.xyz
            shape = local_shape(xyz.unsqueeze(0), xyz[voxels.rows].unsqueeze(0), _RADII)[0, :, : FIGURES * len(_RADII)]
            return torch.cat([shape, *([voxels.points.colors[voxels.rows]] if colour else [])], 1)

        return lambda pair: (one(pair.first), one(pair.second)), [FIGURES * len(_RADII), *([3] if colour else [])]


def _heading_along_x(cloud: PointCloud, world_from_camera: Tensor) -> PointCloud:
    """Points as a robot has them that knows where down is but not where it is: its heading along x."""
    forward = world_from_camera[:2, 2]
    cos, sin = forward / forward.norm().clamp_min(1e-9)
    turn = torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    xyz = (cloud.xyz - world_from_camera[:3, 3]) @ turn.T
    return replace(cloud, xyz=xyz, normals=(cloud.normals.double() @ turn.T).float())


__all__ = ["CloudPairs", "ImagePairs", "PairInputs", "VoxelsOfView", "decoder_features", "pairs_by_angle"]
