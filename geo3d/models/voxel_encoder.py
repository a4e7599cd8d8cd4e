"""Encoders of sparse voxels: what they read is made of points, voxels or views with depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud, SparseVoxels
from geo3d.models.clouds import check_part, checked_cloud
from geo3d.models.encoder import Encoder, StageInfo, as_list
from geo3d.models.voxel_points import VoxelPoints, features_at_voxels, offsets_of


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
        clouds = [checked_cloud(self, scene, self.reads, "or SparseVoxels") for scene in scenes]
        return self.inputs(PointCloud.pack(clouds), voxel_size).to(self.device)

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
            check_part(part, columns)
        offsets = offsets_of(joined[order, 0].long(), batches)
        points = VoxelPoints(
            joined[order, 1:].float() + 0.5, parts.get("colors"), parts.get("normals"), offsets, order, order.argsort()
        )
        made = self.voxel_inputs(points)
        made.index, made.inverse = points.index, points.inverse
        return made
