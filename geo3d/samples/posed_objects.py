"""Objects as they are shown to a network that is judged by them: resampled, turned, and their features averaged."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geo3d.geometry.rotation import random_rotation
from geo3d.random import Stream, stream_generator
from geo3d.samples.objects import ObjectClouds, to_unit_sphere

#: How an object stands: as its data has it; turned once at random; turned often, and its features averaged.
Pose = Literal["stored", "rotated", "averaged"]
POSES: tuple[Pose, ...] = ("stored", "rotated", "averaged")

#: Takes clouds, each (N, 3) float32 on the CPU; gives features (B, C) of them, on the CPU.
CloudFeatures = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class PosedObjects:
    """Objects in any pose, the same ones whenever they are asked for.

    Args:
        source: of the objects.
        points: of a cloud; objects that hold fewer are drawn with repetition.
        resamplings: clouds whose features are averaged, as stored and turned once.
        rotations: clouds whose features are averaged, each turned in its own way.
        seed: of all draws; one of an object depends on nothing else than it, the object's number and the draw's.
    """

    source: ObjectClouds
    points: int = 1024
    resamplings: int = 4
    rotations: int = 12
    seed: int = 0

    def drawn(self, index: int, number: int, points: int | None = None) -> Tensor:
        """Resampling ``number`` of an object: (points, 3) float32, centred and scaled to the unit sphere.

        Raises:
            InputError: the object cannot be read.
        """
        count = points or self.points
        rng = stream_generator(self.seed, Stream.PROBE_RESAMPLING, index, number)
        return torch.from_numpy(to_unit_sphere(self.source.cloud(index, rng, count).xyz.numpy()))

    def rotation(self, index: int, number: int) -> Tensor:
        """(3, 3) float32 rotation ``number`` of an object; 0 is that of the pose ``rotated``."""
        matrix = random_rotation(stream_generator(self.seed, Stream.PROBE_ROTATIONS, index, number))
        return torch.from_numpy(matrix).float()

    def clouds(self, index: int, pose: Pose) -> list[Tensor]:
        """The clouds of an object whose features are averaged.

        Raises:
            InputError: the object cannot be read.
        """
        if pose == "averaged":
            return [self.drawn(index, n) @ self.rotation(index, 1 + n).T for n in range(self.rotations)]
        clouds = [self.drawn(index, n) for n in range(self.resamplings)]
        return clouds if pose == "stored" else [cloud @ self.rotation(index, 0).T for cloud in clouds]


def pooled_features(network: Any, pooling: str = "max", device: torch.device | str = "cpu") -> CloudFeatures:
    """A point encoder's features of whole clouds; the network is moved to the device and set to evaluation.

    Args:
        network: a :class:`~geo3d.models.point_encoder.PointEncoder`.
        pooling: of the tokens of the last stage, one of its ``POOLINGS``.
        device: where it runs.
    """
    network = network.to(device).eval()

    @torch.no_grad()
    def features(clouds: list[Tensor]) -> Tensor:
        return network.pooled(network.prepare(clouds), pooling).float().cpu()

    return features


def mean_features(
    clouds: Iterable[tuple[Hashable, list[Tensor]]], representations: Mapping[str, CloudFeatures], batch: int = 32
) -> dict[str, dict[Any, np.ndarray]]:
    """Features of many things of which each is shown by one cloud or several; those of a thing are averaged.

    Every cloud is drawn once, and shown to all representations.

    Args:
        clouds: of each thing, by a key of its own.
        representations: name -> features.
        batch: clouds shown at once.

    Returns:
        Name -> key -> (C,) float64, keys in the order of the things.
    """
    found: dict[str, dict[Any, np.ndarray]] = {name: {} for name in representations}
    for part in _batches(clouds, batch):
        shown = [cloud for _, cloud, _ in part]
        for name, features in representations.items():
            sums = found[name]
            for (key, _, count), row in zip(part, features(shown).double().numpy()):
                sums[key] = sums.get(key, 0.0) + row / count
    return found


def _batches(
    clouds: Iterable[tuple[Hashable, list[Tensor]]], size: int
) -> Iterator[list[tuple[Hashable, Tensor, int]]]:
    """Lists of ``size`` of: key, a cloud of it, and how many it has."""
    part: list[tuple[Hashable, Tensor, int]] = []
    for key, several in clouds:
        for cloud in several:
            part.append((key, cloud, len(several)))
            if len(part) == size:
                yield part
                part = []
    if part:
        yield part


__all__ = [
    "POSES",
    "CloudFeatures",
    "Pose",
    "PosedObjects",
    "mean_features",
    "pooled_features",
]
