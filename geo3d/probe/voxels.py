"""How much frozen features of voxels tell: a linear read-out of the class, from few voxels of each training scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.rooms import make_rooms
from geo3d.errors import InputError
from geo3d.metrics import IGNORED, confusion_matrix, segmentation_scores
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels
from geo3d.probe.linear import LinearReadout, fit_path, fit_readout
from geo3d.probe.probe import Representation, Score
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator
from geo3d.samples.labels import label_count
from geo3d.samples.points import LabelledScenes
from geo3d.samples.readable import Readable

#: Penalties of the squared weights, of which the validation scenes choose one.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
#: Share of the training scenes that choose it; all of them are then learnt from.
_VALIDATION = 0.2
#: Penalties in a row that are worse than the best one, after which no smaller one is looked at.
_WORSE = 2


@dataclass(frozen=True)
class ProbeScore(Score):
    """How well the classes of held-out voxels are read off a representation.

    Args:
        miou: mean intersection over union of the classes that are there.
        accuracy: share of the voxels.
        majority: share of the baseline that always names the most frequent class.
        voxels: labelled ones that were looked at.
        columns: features a voxel.
        penalty: of the squared weights, as the validation scenes chose it.
        scenes: held-out ones that were looked at.
        left_out: scenes to learn from and held-out ones that could not be read.
        learnt_from: labelled voxels of the training scenes that were learnt from.
        labelled: labelled voxels of the training scenes, all together.
    """

    miou: float
    accuracy: float
    majority: float
    voxels: int
    columns: int
    penalty: float
    scenes: int
    left_out: int
    learnt_from: int
    labelled: int

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        return {
            "mean IoU": f"{100 * self.miou:.1f} %",
            "accuracy": f"{100 * self.accuracy:.1f} %",
            "features": f"{self.columns}",
            "penalty": f"{self.penalty:.0e}",
        }

    def bars(self) -> dict[str, tuple[float, float]]:
        """Mean IoU and accuracy, %."""
        return {"mean IoU, %": (100 * self.miou, 0.0), "accuracy, %": (100 * self.accuracy, 0.0)}


def network_features(network: VoxelEncoder, device: torch.device | str = "cpu") -> Representation:
    """A network's features of all stages, side by side; the network is moved to the device and stays as it is."""
    network = network.to(device).eval()

    @torch.no_grad()
    def features(points: VoxelPoints) -> Tensor:
        return network.voxel_features(network.voxel_inputs(points).to(device)).float().cpu()

    return features


def input_features(reads: tuple[str, ...], voxel_size: float) -> Representation:
    """What a network is handed: the place in the voxel, colour and normal where it reads them; and the height, metres.

    Args:
        reads: fields of the points beside their place.
        voxel_size: edge of a voxel, metres; heights are above the lowest point of the scene.
    """

    def features(points: VoxelPoints) -> Tensor:
        place, height = points.xyz - points.xyz.floor(), voxel_size * points.xyz[:, 2:]
        return torch.cat([place, height, *(getattr(points, name) for name in reads)], 1)

    return features


class LabelledVoxels(Protocol):
    """Scenes whose voxels have a class each."""

    #: Names of the classes, in the order of the labels.
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """A name by which a person finds a scene again."""
        ...

    def voxels(self, index: int) -> tuple[Any, Tensor]:
        """What representations take of a scene, and the label (N,) int64 of each of its voxels, -1 where there is none.

        Raises:
            InputError: the scene cannot be read.
        """
        ...


class CloudVoxels:
    """Voxels of scenes of labelled points; the first point in one stands for it, and its label is that point's.

    Args:
        scenes: where points come from.
        voxel_size: edge of a voxel, metres.
    """

    def __init__(self, scenes: LabelledScenes, voxel_size: float) -> None:
        self.scenes, self.voxel_size = scenes, voxel_size
        self.classes, self.describe = scenes.classes, scenes.describe

    def __len__(self) -> int:
        return len(self.scenes)

    def voxels(self, index: int) -> tuple[VoxelPoints, Tensor]:
        """As :meth:`LabelledVoxels.voxels`: the points that stand for them."""
        cloud = self.scenes.cloud(index)
        points = points_in_voxels(cloud, self.voxel_size)
        return points, cloud.semantic[points.index]


class ProbedClouds:
    """What the linear probe does for networks over sparse voxels.

    Args:
        network: of the checkpoint.
        voxel_size: edge of a voxel, metres; as the network was trained with when not given.
        side: None; it is of images.

    Raises:
        InputError: a side of images.
    """

    source = LabelledScenes

    def __init__(self, network: VoxelEncoder, voxel_size: float | None, side: int | None = None) -> None:
        if side is not None:
            raise InputError("side is of networks over images; voxels have none")
        self._reads, self._voxel_size = network.reads, voxel_size or network.config.voxel_size

    def describe(self) -> str:
        """What is looked at, for the log."""
        return f"voxels of {100 * self._voxel_size:g} cm"

    def make_rooms(self, rooms: int, seed: int, log: Log) -> Path:
        """Make synthetic rooms, or find those made before; returns their folder."""
        return make_rooms(rooms, seed, log)

    def voxels(self, scenes: LabelledScenes) -> CloudVoxels:
        """The voxels of scenes."""
        return CloudVoxels(scenes, self._voxel_size)

    def network_features(self, network: VoxelEncoder, device: str) -> Representation:
        """Features of all stages that a finest voxel lies in."""
        return network_features(network, device)

    def input_features(self) -> Representation:
        """Place in the voxel, height, and what the network reads beside them."""
        return input_features(self._reads, self._voxel_size)


@dataclass(frozen=True)
class VoxelProbe:
    """The same scenes, voxels and budget for every representation that is compared.

    Args:
        train: scenes to learn from, 2 or more.
        held: scenes to measure on, with the same classes.
        voxels_per_scene: labelled ones of a training scene that are learnt from; all where there are no more.
        seed: draws these, and the validation scenes.
        log: told of scenes that cannot be read and are left out.
        strict: whether such a scene is an error.

    Raises:
        InputError: too few scenes, or classes that differ.
    """

    train: LabelledVoxels
    held: LabelledVoxels
    voxels_per_scene: int
    seed: int
    log: Log
    strict: bool = False

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            raise InputError("the linear read-out needs at least 2 training scenes: one chooses the penalty")
        if self.train.classes != self.held.classes:
            raise InputError("scenes to learn from and scenes to measure on are labelled with different classes")

    def measure(self, representations: dict[str, Representation]) -> dict[str, ProbeScore]:
        """How well the classes of held-out scenes are read off each representation.

        Raises:
            InputError: no labelled voxel, points that lack what a network reads, or features that are not finite.
        """
        return {name: scores[0] for name, scores in self.measure_shares(representations, (None,)).items()}

    def measure_shares(
        self, representations: dict[str, Representation], shares: Sequence[float | None]
    ) -> dict[str, list[ProbeScore]]:
        """The same for several budgets of labels: for each representation a score for each.

        Args:
            representations: what is compared.
            shares: of the labelled voxels of each training scene that are learnt from, at least one of each, in (0, 1];
                at most ``voxels_per_scene`` all the same; those of a smaller share are among those of a larger one.
                None: ``voxels_per_scene``.
        """
        readable = Readable(self.strict, self.log, "left out")
        budgets, learnt = self._fit(representations, readable, shares)
        scenes, count = 0, len(self.train.classes)
        empty = torch.zeros(count, count, dtype=torch.int64)
        confusion = {name: [empty.clone() for _ in shares] for name in representations}
        for _, voxels, labels in self._scenes(self.held, readable):
            scenes += 1
            for name, features in representations.items():
                columns = features(voxels)
                for matrix, (readout, _) in zip(confusion[name], learnt[name]):
                    matrix += confusion_matrix(labels, readout.predict(columns), count)
        scores: dict[str, list[ProbeScore]] = {name: [] for name in representations}
        for name, matrices in confusion.items():
            for matrix, budget, (readout, penalty) in zip(matrices, budgets, learnt[name]):
                voxels = int(matrix.sum())
                if voxels == 0:
                    raise InputError("the held-out scenes hold no labelled voxel")
                counts = budget | {"voxels": voxels, "scenes": scenes, "left_out": len(readable.left_out)}
                figures = segmentation_scores(matrix)
                scores[name].append(ProbeScore(**figures, **counts, columns=len(readout.mean), penalty=penalty))
        return scores

    def _fit(
        self, representations: dict[str, Representation], readable: Readable, shares: Sequence[float | None]
    ) -> tuple[list[dict[str, int]], dict[str, list[tuple[LinearReadout, float]]]]:
        """For each share how many voxels are learnt from, and of how many; and the read-outs of each representation,
        with the penalties that the validation scenes chose.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in representations}
        classes, scene, enough, labelled = [], [], [], 0
        for index, voxels, labels in self._scenes(self.train, readable):
            rows, order, there = self._drawn(labels, index)
            labelled += there
            classes.append(labels[rows])
            scene.append(torch.full_like(rows, index))
            counts = [len(rows) if share is None else label_count(share, there) for share in shares]
            enough.append(order.unsqueeze(1) < torch.tensor(counts))
            for name, features in representations.items():
                found[name].append(features(voxels)[rows])
        labels, used = torch.cat(classes), torch.cat(enough)
        validation = self._validation(torch.cat(scene))
        learnt: dict[str, list[tuple[LinearReadout, float]]] = {name: [] for name in representations}
        for name in representations:
            features = torch.cat(found.pop(name))
            for rows in used.T:
                columns, wanted, chooses = features[rows], labels[rows], validation[rows]
                try:
                    penalty = self._penalty(columns, wanted, chooses)
                    learnt[name].append((fit_readout(columns, wanted, penalty), penalty))
                except InputError as error:
                    raise InputError(f"{name}: {error}") from error
        return [{"learnt_from": count, "labelled": labelled} for count in used.sum(0).tolist()], learnt

    def _penalty(self, features: Tensor, labels: Tensor, validation: Tensor) -> float:
        """The penalty with the best mean IoU on the validation scenes, the largest of equals.

        Smaller ones are not looked at any more where two in a row were worse than the best.
        """
        best, scores = PENALTIES[0], []
        for penalty, readout in fit_path(features[~validation], labels[~validation], PENALTIES):
            scores.append(self._miou(readout, features[validation], labels[validation]))
            best = penalty if scores[-1] > max(scores[:-1], default=-1) else best
            if max(scores[-_WORSE:]) < max(scores):
                break
        return best

    def _drawn(self, labels: Tensor, index: int) -> tuple[Tensor, Tensor, int]:
        """Ascending rows of the labelled voxels of a training scene that may be learnt from, the place of each in the
        order in which they are used up, and how many labelled ones there are.
        """
        rows = (labels != IGNORED).nonzero()[:, 0].numpy()
        labelled = len(rows)
        if labelled > self.voxels_per_scene:
            rng = stream_generator(self.seed, Stream.PROBE_VOXELS, index)
            rows = np.sort(rng.choice(rows, self.voxels_per_scene, replace=False))
        order = stream_generator(self.seed, Stream.PROBE_LABELS, index).permutation(len(rows))
        return torch.from_numpy(rows), torch.from_numpy(order), labelled

    def _validation(self, scene: Tensor) -> Tensor:
        """(N,) bool: rows, by their scenes, that choose the penalty.

        Raises:
            InputError: fewer than two scenes hold a labelled voxel.
        """
        scenes = scene.unique().numpy()
        if len(scenes) < 2:
            raise InputError("fewer than 2 training scenes hold a labelled voxel; nothing can be read out")
        order = stream_generator(self.seed, Stream.PROBE_VALIDATION).permutation(scenes)
        return torch.isin(scene, torch.from_numpy(order[: max(1, round(_VALIDATION * len(order)))]))

    def _miou(self, readout: LinearReadout, features: Tensor, labels: Tensor) -> float:
        confusion = confusion_matrix(labels, readout.predict(features), len(self.train.classes))
        return segmentation_scores(confusion)["miou"]

    def _scenes(self, scenes: LabelledVoxels, readable: Readable) -> Iterator[tuple[int, Any, Tensor]]:
        """Number, voxels and their labels (N,) of each scene that can be read.

        Raises:
            InputError: none can, or one cannot and :attr:`strict`.
        """
        read = 0
        for index in range(len(scenes)):
            where = scenes.describe(index)
            found = readable.read(where, partial(scenes.voxels, index), lambda where=where: where)
            if found is not None:
                read += 1
                yield index, *found
        if read == 0:
            raise InputError("none of the scenes can be read; the reasons are named above")


__all__ = [
    "PENALTIES",
    "CloudVoxels",
    "LabelledVoxels",
    "ProbeScore",
    "ProbedClouds",
    "VoxelProbe",
    "input_features",
    "network_features",
]
