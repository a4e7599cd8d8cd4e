"""The SVM probe: the class of objects, read off frozen features by a linear SVM, as point encoders are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.errors import InputError
from geo3d.linear_svm import svm_accuracy
from geo3d.methods.checks import check_at_least
from geo3d.probe.objects import ObjectProbe, ObjectProbeConfig, Protocol, mean_and_spread, percent
from geo3d.probe.probe import Representation, Score
from geo3d.samples.posed_objects import POSES, Pose


@dataclass(frozen=True, kw_only=True)
class SvmConfig(ObjectProbeConfig):
    """Read the class of objects off frozen features of their clouds by a linear SVM, and compare."""

    poses: tuple[Pose, ...] = POSES
    """Stored: as the data has the object. Rotated: turned once at random. Averaged: mean over random rotations."""
    resamplings: int = 4
    """Clouds of an object whose features are averaged, stored and rotated."""
    rotations: int = 12
    """Clouds of an object, each turned at random, whose features are averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "resamplings", "rotations")
        if not self.poses:
            raise InputError(f"poses: name one or more of {', '.join(POSES)}")


@dataclass(frozen=True)
class SvmScore(Score):
    """How well the classes of objects are read off a representation.

    Args:
        accuracy: pose -> mean over the splits.
        spread: pose -> sample deviation over the splits; None of a single one.
        of_splits: pose -> accuracy on each split.
        columns: features a cloud.
        protocol: how it was measured, the same for all.
    """

    accuracy: dict[str, float]
    spread: dict[str, float | None]
    of_splits: dict[str, list[float]]
    columns: int
    protocol: Protocol

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        return {pose: percent(mean, self.spread[pose]) for pose, mean in self.accuracy.items()} | {
            "features": f"{self.columns}"
        }

    def bars(self) -> dict[str, tuple[float, float]]:
        """Accuracy in each pose, %."""
        return {
            f"{pose}: accuracy, %": (100 * mean, 100 * (self.spread[pose] or 0)) for pose, mean in self.accuracy.items()
        }


class SvmProbe(ObjectProbe):
    """Objects in several poses, and a linear SVM."""

    summary = "the class of objects, read off frozen features of point encoders by a linear SVM"
    settings = SvmConfig

    config: SvmConfig

    def measure(self, representations: dict[str, Representation]) -> dict[str, SvmScore]:
        """How well the classes of objects are read off each representation, in each pose.

        Raises:
            InputError: no object can be read, or features are not finite.
        """
        config = self.config
        posed = self.posed(config.resamplings, config.rotations)
        found = self.features(representations, self.rows, lambda row: {p: posed.clouds(row, p) for p in config.poses})
        rows = self.readable_rows()
        labels, splits = self.labels[rows], [split.among(rows) for split in self.splits]
        protocol = self.protocol(splits, labels)
        scores = {}
        for name, features in found.items():
            by_pose = {pose: np.stack([features[row, pose] for row in rows]) for pose in config.poses}
            try:
                accuracies = {
                    pose: svm_accuracy(columns, labels, splits, config.C, config.standardise)
                    for pose, columns in by_pose.items()
                }
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            figures = {pose: mean_and_spread(accuracy) for pose, accuracy in accuracies.items()}
            scores[name] = SvmScore(
                {pose: mean for pose, (mean, _) in figures.items()},
                {pose: spread for pose, (_, spread) in figures.items()},
                {pose: accuracy.tolist() for pose, accuracy in accuracies.items()},
                next(iter(by_pose.values())).shape[1],
                protocol,
            )
        return scores

    def note(self, scores: dict[str, SvmScore]) -> str:
        """What one must know to measure the same."""
        config = self.config
        said = {
            "stored": f"stored: mean of {config.resamplings} resamplings",
            "rotated": f"rotated: the mean of {config.resamplings} resamplings, each object in one random rotation",
            "averaged": f"averaged: mean of {config.rotations} random rotations of each object",
        }
        poses = "; ".join(said[pose] for pose in config.poses)
        return f"{next(iter(scores.values())).protocol}\n{poses}"


__all__ = ["SvmConfig", "SvmProbe", "SvmScore"]
