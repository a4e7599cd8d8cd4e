"""The segment probe: the linear read-out of classes from few labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_positive
from geo3d.probe.linear_probe import VoxelReadoutProbe
from geo3d.probe.probe import Representation, Score
from geo3d.probe.scenes import SceneProbeConfig
from geo3d.probe.voxels import ProbeScore
from geo3d.viz.curve import Panel, draw_panels


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SceneProbeConfig):
    """Read the class of every voxel off frozen features by a linear map that learns from few labels, and compare."""

    labels: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Shares of the labelled voxels (patches of images) of every training scene that are learnt from, drawn at random;
    those of a smaller share are among those of a larger one."""
    most: int = 100_000
    """Voxels that are learnt from, at most, in equal parts of all training scenes; larger shares are cut to it."""
    voxel_size: float | None = None
    """Edge of a voxel, metres, of networks over sparse voxels; None: as the network was trained with."""
    side: int | None = None
    """Shorter side of images, pixels, of networks over them; None: as the network was trained, or 224 where its config
    does not say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "most")
        check_at_least(self, 16, "side")
        check_positive(self, "voxel_size")
        values = self.labels
        if not values or any(not 0 < share <= 1 for share in values) or list(values) != sorted(set(values)):
            raise InputError(f"labels must be shares above 0 and up to 1, ascending, got {values}")


@dataclass(frozen=True)
class SegmentScore(Score):
    """How well the classes of held-out voxels are read off a representation from few labels.

    Args:
        labels: shares of the labelled voxels.
        learnt_from: voxels, for each share.
        cut: for each share whether these are fewer than it says, for the largest number allowed.
        miou, accuracy: for each share.
        penalty: of the squared weights, for each share, as the validation scenes chose it from as few labels.
        majority: accuracy of always naming the most frequent class.
        voxels: measured on.
        scenes: held-out ones.
        columns: features a voxel.
        left_out: scenes that could not be read.
    """

    labels: tuple[float, ...]
    learnt_from: list[int]
    cut: list[bool]
    miou: list[float]
    accuracy: list[float]
    penalty: list[float]
    majority: float
    voxels: int
    scenes: int
    columns: int
    left_out: int

    @classmethod
    def of_shares(cls, labels: tuple[float, ...], scores: list[ProbeScore]) -> SegmentScore:
        """Of the score of each share."""
        first = scores[0]
        return cls(
            labels=labels,
            cut=[s.learnt_from < math.floor(0.99 * share * s.labelled) for share, s in zip(labels, scores)],
            **{part: [getattr(s, part) for s in scores] for part in ("learnt_from", "miou", "accuracy", "penalty")},
            **{part: getattr(first, part) for part in ("majority", "voxels", "scenes", "columns", "left_out")},
        )

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        figures = {f"mIoU, {100 * share:g} %": f"{100 * miou:.1f} %" for share, miou in zip(self.labels, self.miou)}
        return figures | {"features": f"{self.columns}"}


class SegmentProbe(VoxelReadoutProbe):
    """A checkpoint's features of voxels, and scenes of which few voxels are labelled."""

    summary = "the class of every voxel, read off by a linear map from 1 %, 10 % and all of the labels"
    settings = SegmentConfig

    config: SegmentConfig

    def voxels_per_scene(self, scenes: int) -> int:
        """An equal part of what is learnt from at most."""
        return max(1, self.config.most // scenes)

    def measure(self, representations: dict[str, Representation]) -> dict[str, SegmentScore]:
        """How well the classes of held-out scenes are read off each representation, from each share of the labels.

        Raises:
            InputError: no labelled voxel, or features that are not finite.
        """
        labels = self.config.labels
        found = self._probe.measure_shares(representations, labels)
        return {name: SegmentScore.of_shares(labels, scores) for name, scores in found.items()}

    def note(self, scores: dict[str, SegmentScore]) -> str:
        """How many labels each share is, and what was measured on."""
        first = next(iter(scores.values()))
        shares = ", ".join(
            f"{100 * share:g} % are {count}{f' (cut by --most {self.config.most})' if cut else ''}"
            for share, count, cut in zip(first.labels, first.learnt_from, first.cut)
        )
        lost = f"\n{first.left_out} scenes cannot be read and are left out, as named above" if first.left_out else ""
        return (
            f"learnt from shares of the labelled voxels of every training scene: {shares}\n"
            f"over {first.voxels} held-out {'patches' if self.network.kind == 'image' else 'voxels'} of "
            f"{first.scenes} scenes; "
            f"accuracy of always the most frequent class: {100 * first.majority:.1f} %{lost}"
        )

    def draw(self, scores: dict[str, SegmentScore], picture: Path) -> None:
        """Mean IoU and accuracy over the share of labels."""
        shares = self.config.labels
        places, labels = [math.log10(share) for share in shares], [f"{100 * share:g} %" for share in shares]
        panels = []
        for title, part in (("mean IoU", "miou"), ("accuracy", "accuracy")):
            lines = {
                name: ([100 * value for value in getattr(score, part)], [0.0] * len(shares))
                for name, score in scores.items()
            }
            panels.append(Panel(f"{title}, by labels that are learnt from", places, labels, lines))
        draw_panels(panels, picture, "linear read-out of classes from few labels", "%")


__all__ = ["SegmentConfig", "SegmentProbe", "SegmentScore"]
