"""Encoders of sparse voxels: what they read is made of points, voxels or views with depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud, SparseVoxels, View
from geo3d.models.encoder import Encoder, StageInfo, as_list, require_range
from geo3d.models.voxel_points import VoxelPoints, features_at_voxels, offsets_of

#: Field of points -> least and greatest value, and what to do with others.
_RANGES = {
    "colors": (0.0, 1.0, "divide colours of 8 bits by 255"),
    "normals": (-1.01, 1.01, "make normals of unit length"),
}


class VoxelEncoder(Encoder):
    """An encoder of sparse voxels, by sparse convolution or attention. Features are :class:`SparseVoxels`."""

    kind: ClassVar = "voxels"

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Voxel edge of every stage, in input voxels, finest first; the first is 1."""

    @property
    @abstractmethod
    def channels(self) -> tuple[int, ...]:
        """Channels of every stage, finest first."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Fields of points that the network reads beside their place: ``colors``, ``normals``, both or none."""

    @abstractmethod
    def inputs(self, cloud: PointCloud, voxel_size: float | None = None) -> Any:
        """What the network reads of points, in voxels of its own size or another; the first point of each is read.

        Raises:
            InputError: the points lack colours or normals that the network reads.
        """

    @abstractmethod
    def voxel_inputs(self, points: VoxelPoints) -> Any:
        """What the network reads of points of which each has a voxel to itself.

        Raises:
            InputError: the points lack colours or normals that the network reads.
        """

    @abstractmethod
    def features(self, inputs: Any, layers: Sequence[int | str] | None = None) -> list[SparseVoxels]:
        """Voxels with features of the stages; nothing but the voxels of ``inputs`` is looked at."""

    @property
    def feature_info(self) -> list[StageInfo]:
        """The encoder's stages, finest first; strides are in voxels."""
        return [StageInfo(f"stage{n}", c, s) for n, (c, s) in enumerate(zip(self.channels, self.strides))]

    def voxel_features(self, inputs: Any) -> Tensor:
        """(N, sum of channels): for every finest voxel the features of all stages, in the order of the voxels."""
        return features_at_voxels(self.features(inputs))

    def prepare(self, inputs: Any, voxel_size: float | None = None) -> Any:
        """What the network reads, of one scene or several.

        Args:
            inputs: a scene or a list of scenes, each a ``PointCloud`` (metres, z up, colours in [0, 1], unit normals),
                an array or tensor (N, 3) of positions, or a ``View`` with depth, camera and pose, whose image gives the
                colours where it is aligned. Or ``SparseVoxels`` of stride 1, whose features are what the network
                :attr:`reads`, three columns each, and whose points lie in the middle of their voxels.
            voxel_size: edge of a voxel, metres; as in training when not given. Does not concern ``SparseVoxels``.

        Returns:
            The network's input on its device: ``voxels``, ``index`` (N,) row of the input that each voxel was made of,
            and ``inverse`` (P,) voxel of every row of the input; rows of several scenes count on from one to the next.

        Raises:
            InputError: something else; no point; numbers that are not finite, of the wrong type or out of range; or a
                scene that lacks colours or normals that the network reads.
        """
        scenes = as_list(inputs)
        voxels = [isinstance(scene, SparseVoxels) for scene in scenes]
        if any(voxels):
            if not all(voxels):
                raise InputError("prepare: hand in points or SparseVoxels, not both in one list")
            return self._of_voxels(scenes).to(self.device)
        return self.inputs(PointCloud.pack([self._cloud(scene) for scene in scenes]), voxel_size).to(self.device)

    def _cloud(self, scene: Any) -> PointCloud:
        """A scene's points, checked."""
        if isinstance(scene, View):
            scene = _points_of_view(scene)
        if isinstance(scene, np.ndarray):
            scene = torch.from_numpy(np.ascontiguousarray(scene))
        if isinstance(scene, Tensor):
            if scene.ndim != 2 or scene.shape[1] != 3:
                raise InputError(
                    f"prepare: an array of points is (N, 3), got {tuple(scene.shape)}; colours and normals come in a "
                    "PointCloud(xyz, colors, normals)"
                )
            scene = PointCloud(scene)
        if not isinstance(scene, PointCloud):
            raise InputError(
                f"prepare: {type(self).__name__} reads a PointCloud, an array (N, 3), a View with depth or "
                f"SparseVoxels, not a {type(scene).__name__}"
            )
        if len(scene) == 0 or (scene.offsets.diff() == 0).any():
            raise InputError("prepare: the cloud holds no point")
        if not scene.xyz.is_floating_point():
            raise InputError(f"prepare: positions must be floats, metres, got {scene.xyz.dtype}")
        require_range(scene.xyz, -np.inf, np.inf, "prepare: positions", "leave such points out")
        for part in self.reads:
            values = getattr(scene, part)
            if values is None:
                raise InputError(
                    f"prepare: {type(self).__name__} reads {part}, and the points have none; add them, or make one "
                    "without by the option signals"
                )
            _check_part(part, values)
        return scene

    def _of_voxels(self, scenes: list[SparseVoxels]) -> Any:
        """Voxels of some scenes as the network's input."""
        coords, feats, batches = [], [], 0
        for scene in scenes:
            if scene.stride != 1 or scene.feats.shape[1] != 3 * len(self.reads):
                raise InputError(
                    f"prepare: SparseVoxels must have stride 1 and {3 * len(self.reads)} features "
                    f"({', '.join(self.reads) or 'none'}), got stride {scene.stride} and {scene.feats.shape[1]}"
                )
            if len(scene) == 0:
                raise InputError("prepare: there is no voxel")
            coords.append(scene.coords + scene.coords.new_tensor([batches, 0, 0, 0]))
            feats.append(scene.feats)
            batches += scene.batch_size
        joined, values = torch.cat(coords), torch.cat(feats)
        order = joined[:, 0].argsort(stable=True)
        parts = {part: values[order, 3 * n : 3 * n + 3] for n, part in enumerate(self.reads)}
        for part, columns in parts.items():
            _check_part(part, columns)
        offsets = offsets_of(joined[order, 0].long(), batches)
        points = VoxelPoints(
            joined[order, 1:].float() + 0.5, parts.get("colors"), parts.get("normals"), offsets, order, order.argsort()
        )
        made = self.voxel_inputs(points)
        made.index, made.inverse = points.index, points.inverse
        return made


def _check_part(part: str, values: Tensor) -> None:
    low, high, hint = _RANGES[part]
    if not values.is_floating_point():
        raise InputError(f"prepare: {part} must be floats in [{low:.0f}, {high:.0f}], got {values.dtype}; {hint}")
    require_range(values, low, high, f"prepare: {part}", hint)


def _points_of_view(view: View) -> PointCloud:
    """The points that a view's depth map shows, with the colours of an image of the same size."""
    try:
        xyz, pixel = view.world_points()
    except ValueError as error:
        raise InputError(f"prepare: {error}") from error
    aligned = view.image is not None and view.image.shape[:2] == view.depth.shape
    return PointCloud(xyz, view.image.reshape(-1, 3)[pixel] if aligned else None)
