"""Encoders of points: what they read is made of clouds of any size, centred and scaled to the unit sphere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from geo3d.errors import InputError, did_you_mean
from geo3d.geometry import PointCloud
from geo3d.geometry.unit_sphere import to_unit_sphere
from geo3d.models.clouds import checked_cloud
from geo3d.models.encoder import Encoder, as_list, require_prepared

#: How the tokens of a cloud become one vector: their maximum, their mean, or both side by side.
POOLINGS = ("max", "mean", "max+mean")
_THINNING_SEED = 0


@dataclass
class PointInput:
    """Clouds as an encoder of points reads them.

    Args:
        xyz: (P, 3) float32, packed, less ``centre`` and over ``scale``.
        offsets: (B + 1,) int64, cloud b owns rows ``offsets[b]`` to ``offsets[b + 1]``.
        centre: (B, 3) float64 and
        scale: (B,) float64, by which positions come back to what was handed in.
    """

    xyz: Tensor
    offsets: Tensor
    centre: Tensor | None = None
    scale: Tensor | None = None

    def to(self, device: torch.device | str) -> PointInput:
        """Copy to a device."""
        return PointInput(*(None if t is None else t.to(device) for t in vars(self).values()))


@dataclass
class PointTokens:
    """Tokens of some clouds, packed.

    Args:
        xyz: (T, 3) where they are, as the encoder reads positions.
        feats: (T, C).
        offsets: (B + 1,) int64.
    """

    xyz: Tensor
    feats: Tensor
    offsets: Tensor


class PointEncoder(Encoder):
    """An encoder of clouds of points, most often objects. Features are :class:`PointTokens`."""

    kind: ClassVar = "points"

    @property
    @abstractmethod
    def points_read(self) -> int:
        """Points of a cloud that the network was trained on; :meth:`prepare` thins larger ones out to as many."""

    @abstractmethod
    def features(self, inputs: PointInput, layers: Sequence[int | str] | None = None) -> list[PointTokens]:
        """Tokens of the stages, finest first."""

    def prepare(self, inputs: Any, normalise: bool = True, points: int | None = None) -> PointInput:
        """What the network reads, of one cloud or several.

        Args:
            inputs: a cloud or a list of clouds, each a ``PointCloud``, an array or tensor (N, 3) of positions, or a
                ``View`` with depth, camera and pose; any number of points, of any unit. Other fields are not read.
            normalise: move each cloud's mean to 0 and scale it so that its farthest point lies at distance 1, as in
                training; else positions are read as they are.
            points: to thin larger clouds out to, drawn at random but the same at every call; as many as in training
                when not given, 0 for none. A network sees groups of nearest points, whose size depends on how many
                there are.

        Returns:
            The network's input, on its device.

        Raises:
            InputError: something else; no point; or numbers that are not finite.
        """
        most = self.points_read if points is None else points
        if most < 0:
            raise InputError(f"prepare: points must be 0 or more, got {points}")
        clouds = [self._rows(part, most) for scene in as_list(inputs) for part in _single(checked_cloud(self, scene))]
        packed = PointCloud.pack([PointCloud(xyz) for xyz in clouds])
        xyz, centre, scale = packed.xyz.double(), None, None
        if normalise:
            xyz, centre, scale = to_unit_sphere(xyz, packed.offsets)
        return PointInput(xyz.float(), packed.offsets, centre, scale).to(self.device)

    @staticmethod
    def _rows(xyz: Tensor, most: int) -> Tensor:
        if not most or len(xyz) <= most:
            return xyz
        generator = torch.Generator().manual_seed(_THINNING_SEED)
        return xyz[torch.randperm(len(xyz), generator=generator)[:most].to(xyz.device)]

    def require_points(self, inputs: Any) -> None:
        """Look whether the network is handed points as :meth:`prepare` makes them.

        Raises:
            InputError: it is not.
        """
        require_prepared(self, inputs, PointInput)

    def pooled(self, inputs: PointInput, pooling: str = "max") -> Tensor:
        """One vector a cloud, of the last stage's tokens.

        Args:
            inputs: of :meth:`prepare`.
            pooling: one of ``POOLINGS``.

        Returns:
            (B, C), or (B, 2 C) for both.

        Raises:
            InputError: another pooling.
        """
        if pooling not in POOLINGS:
            near = did_you_mean(pooling, POOLINGS)
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}{near}")
        return pool(self.features(inputs, [-1])[0], pooling)


def pool(tokens: PointTokens, pooling: str) -> Tensor:
    """(B, C or 2 C) of the tokens of clouds; see :meth:`PointEncoder.pooled`."""
    reduced = [
        torch.segment_reduce(tokens.feats.contiguous(), how, lengths=tokens.offsets.diff(), axis=0)
        for how in pooling.split("+")
    ]
    return torch.cat(reduced, 1)


def _single(cloud: PointCloud) -> list[Tensor]:
    """Positions of each of some packed clouds."""
    return list(cloud.xyz.split(cloud.offsets.diff().tolist()))


__all__ = ["POOLINGS", "PointEncoder", "PointInput", "PointTokens", "pool"]
