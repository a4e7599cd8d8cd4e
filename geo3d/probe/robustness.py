"""The robustness probe: what is left of the SVM probe's accuracy where clouds are as robots meet them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from geo3d.errors import InputError
from geo3d.linear_svm import LinearSvm
from geo3d.probe.corruptions import half_cut, hidden_side_cut, with_noise, with_outliers
from geo3d.probe.objects import ObjectProbe, ObjectProbeConfig, Protocol, mean_and_spread, percent
from geo3d.probe.probe import Representation, Score, table
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator
from geo3d.samples.posed_objects import PosedObjects
from geo3d.viz.curve import Panel, draw_panels

CLEAN = "clean"
#: Sorts of corruptions: what the axes of their panels say.
_COUNTS, _NOISE, _OUTLIERS, _SIDES = (
    "points a cloud",
    "noise, % of the radius",
    "outliers, % of the points",
    "one side gone",
)
_SORTS = (_COUNTS, _NOISE, _OUTLIERS, _SIDES)


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(ObjectProbeConfig):
    """Learn from clean clouds, measure on corrupted ones: the linear SVM of the probe svm, on the same splits."""

    counts: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    """Points of the clouds to measure on; they repeat where an object has fewer."""
    noise: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    """Deviations, along each axis, of noise on every point, of the cloud's radius."""
    outliers: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Shares of the points that are put elsewhere, evenly in the bounding sphere."""
    picture: Path | None = None
    """PNG of the curves. None: beside `out`, or `robustness.png` in the folder where the command is called."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.counts, default=1) < 1:
            raise InputError(f"counts must be at least 1, got {min(self.counts)}")
        for name in ("noise", "outliers"):
            if not all(0 < share < 1 for share in getattr(self, name)):
                raise InputError(f"{name} must lie between 0 and 1, got {', '.join(map(str, getattr(self, name)))}")


@dataclass(frozen=True)
class RobustnessScore(Score):
    """How well the classes of corrupted clouds are read off a representation.

    Args:
        accuracy: corruption -> mean over the splits.
        spread: corruption -> sample deviation over the splits; None of a single one.
        columns: features a cloud.
        repeated: objects measured on that have fewer points than the largest clouds, in which theirs are repeated.
        in_table: corruptions that the short table shows: clean, and the strongest of each sort.
        protocol: how it was measured, the same for all.
    """

    accuracy: dict[str, float]
    spread: dict[str, float | None]
    columns: int
    repeated: int
    in_table: tuple[str, ...]
    protocol: Protocol

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        return {name: self.cell(name) for name in self.in_table}

    def cell(self, corruption: str) -> str:
        """Accuracy and spread under a corruption."""
        return percent(self.accuracy[corruption], self.spread[corruption])


@dataclass(frozen=True)
class Corruption:
    """What is done to clouds.

    Args:
        name: unique.
        sort: of the panel that it is drawn in.
        place: along that panel, clean clouds at 0 but in the panel of numbers of points.
        label: below that place.
        strongest: whether it is the strongest of its sort, or one of its own.
        cloud: makes a corrupted cloud of the objects, of an object's row and what is drawn from.
    """

    name: str
    sort: str
    place: float
    label: str
    strongest: bool
    cloud: Callable[[PosedObjects, int, np.random.Generator], Tensor]


class RobustnessProbe(ObjectProbe):
    """Clean clouds to learn from, corrupted ones to measure on."""

    summary = "the same, measured on clouds of fewer points, with noise, outliers or one side cut away"
    settings = RobustnessConfig
    unasked_picture = Path("robustness.png")

    config: RobustnessConfig

    def __init__(self, config: RobustnessConfig, log: Log) -> None:
        super().__init__(config, log)
        self.corruptions = corruptions(config)
        self._measured = {int(row) for split in self.splits for row in split.test}
        self._repeated = 0

    def measure(self, representations: dict[str, Representation]) -> dict[str, RobustnessScore]:
        """How well the classes of corrupted clouds are read off each representation.

        Raises:
            InputError: no object can be read, or features are not finite.
        """
        found = self.features(representations, self.rows, self._clouds)
        rows = self.readable_rows()
        labels, splits = self.labels[rows], [split.among(rows) for split in self.splits]
        protocol = self.protocol(splits, labels)
        in_table = CLEAN, *(corruption.name for corruption in self.corruptions if corruption.strongest)
        scores = {}
        for name, features in found.items():
            clean = np.stack([features[row, CLEAN] for row in rows])
            accuracies = {CLEAN: []} | {corruption.name: [] for corruption in self.corruptions}
            try:
                for split in splits:
                    machine = LinearSvm(clean[split.train], labels[split.train], self.config.C, self.config.standardise)
                    for corruption, of_splits in accuracies.items():
                        columns = np.stack([features[row, corruption] for row in rows[split.test]])
                        of_splits.append(machine.accuracy(columns, labels[split.test]))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            figures = {corruption: mean_and_spread(np.array(found)) for corruption, found in accuracies.items()}
            scores[name] = RobustnessScore(
                {corruption: mean for corruption, (mean, _) in figures.items()},
                {corruption: spread for corruption, (_, spread) in figures.items()},
                clean.shape[1],
                self._repeated,
                in_table,
                protocol,
            )
        return scores

    def note(self, scores: dict[str, RobustnessScore]) -> str:
        """All figures, what one must know to measure the same, and where the picture is."""
        first = next(iter(scores.values()))
        rows = {c: {name: score.cell(c) for name, score in scores.items()} for c in first.accuracy}
        repeated = ""
        if self.config.counts and first.repeated:
            most = max(self.config.counts)
            repeated = (
                f"\n{first.repeated} of the objects measured on have fewer than {most} points: "
                "larger clouds repeat theirs"
            )
        return (
            f"\n{table(rows)}\n{first.protocol}\nlearnt from clean clouds, one an object; measured on one an object, "
            f"corrupted as named{repeated}"
        )

    def _clouds(self, row: int) -> dict[str, list[Tensor]]:
        """One clean cloud of an object and, where it is measured on, one of each corruption."""
        posed = self.posed(1, 1)
        clouds = {CLEAN: [posed.drawn(row, 0)]}
        if row not in self._measured:
            return clouds
        for corruption in self.corruptions:
            rng = stream_generator(self.config.seed, Stream.PROBE_CORRUPTION, row, _SORTS.index(corruption.sort))
            clouds[corruption.name] = [corruption.cloud(posed, row, rng)]
        if self.config.counts:
            most = max(self.config.counts)
            self._repeated += len(posed.drawn(row, 0, most).unique(dim=0)) < most
        return clouds

    def draw(self, scores: dict[str, RobustnessScore], picture: Path) -> None:
        """The picture: a panel for each sort of corruption, a line for each representation."""
        panels = []
        for sort in _SORTS:
            of_sort = [corruption for corruption in self.corruptions if corruption.sort == sort]
            if not of_sort:
                continue
            names, places, labels = ([getattr(c, part) for c in of_sort] for part in ("name", "place", "label"))
            if sort != _COUNTS:
                names, places, labels = [CLEAN, *names], [0, *places], ["clean" if sort == _SIDES else "0", *labels]
            lines = {
                title: (
                    [100 * score.accuracy[name] for name in names],
                    [100 * (score.spread[name] or 0) for name in names],
                )
                for title, score in scores.items()
            }
            panels.append(Panel(sort, places, labels, lines, joined=sort != _SIDES))
        draw_panels(panels, picture, "accuracy of a linear SVM learnt from clean clouds", "accuracy, %")


def corruptions(config: RobustnessConfig) -> list[Corruption]:
    """What a config asks for."""

    def drawn(count: int, posed: PosedObjects, row: int, rng: np.random.Generator) -> Tensor:
        return posed.drawn(row, 0, count)

    def changed(change: Callable[..., Tensor], posed: PosedObjects, row: int, rng: np.random.Generator) -> Tensor:
        return change(posed.drawn(row, 0), rng=rng)

    found = [
        Corruption(f"{n} points", _COUNTS, math.log2(n), f"{n}", n == min(config.counts), partial(drawn, n))
        for n in sorted(set(config.counts))
    ]
    for title, sort, shares, change in (
        ("noise", _NOISE, config.noise, with_noise),
        ("outliers", _OUTLIERS, config.outliers, with_outliers),
    ):
        for share in sorted(set(shares)):
            label = f"{100 * share:g}"
            cloud = partial(changed, partial(change, share=share))
            found.append(Corruption(f"{title} {label} %", sort, 100 * share, label, share == max(shares), cloud))
    for place, (title, change) in enumerate(
        {"half cut away": half_cut, "hidden side cut away": hidden_side_cut}.items()
    ):
        label = title.replace(" cut", "\ncut")
        found.append(Corruption(title, _SIDES, place + 1, label, True, partial(changed, change)))
    return found


__all__ = ["CLEAN", "Corruption", "RobustnessConfig", "RobustnessProbe", "RobustnessScore", "corruptions"]
