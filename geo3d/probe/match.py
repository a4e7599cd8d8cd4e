"""The match probe: correspondences between two views by frozen features alone, against pose and depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from geo3d.datasets.rooms import make_rooms
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_between, check_positive
from geo3d.models import Encoder
from geo3d.nn.mutual_nearest import most_alike
from geo3d.probe.matching import MatchCounts, comparable, match_counts
from geo3d.probe.probe import Probe, Representation, Score, load_encoder, table
from geo3d.probe.scenes import SceneProbeConfig, find_measured
from geo3d.probe.view_pairs import CloudPairs, ImagePairs, PairInputs, pairs_by_angle
from geo3d.progress import Log, progress_line
from geo3d.random import Stream, stream_generator
from geo3d.samples.readable import Readable
from geo3d.samples.views import DepthViews
from geo3d.viz.curve import Panel, draw_panels


@dataclass(frozen=True, kw_only=True)
class MatchConfig(SceneProbeConfig):
    """Match the points of two views by frozen features, nothing learnt, and compare with pose and depth."""

    layers: tuple[str, ...] = ()
    """Stages whose features are read, by name or number; none: all, or four evenly spaced ones of more."""
    by_layer: bool = False
    """Measure each of these stages alone, too, of the checkpoint."""
    decoder: bool = False
    """Read the decoder, such as CroCo's, which sees both views, instead of the encoder."""
    side: int | None = None
    """Shorter side of images, pixels; None: as the network was trained, or 224 where its config does not say."""
    step: int | None = None
    """Pitch of the points in images, pixels; None: half the finest stage's stride, 4 at least."""
    voxel_size: float | None = None
    """Edge of a voxel, metres, of networks over voxels; None: as the network was trained with."""
    points: int = 3000
    """Voxels of a view that are looked at, at most."""
    pairs: int = 40
    """Pairs of views of each bin of change of viewpoint, at most."""
    angles: tuple[float, ...] = (2, 15, 30, 60, 120)
    """Bounds of these bins, degrees between the rays to what both views see, ascending."""
    min_overlap: float = 0.2
    """Least share of a view's pixels that the other sees."""
    thresholds: tuple[float, ...] = ()
    """Largest distances from the truth that count as right, ascending: pixels of images, metres of voxels; none: 4, 8
    and 16 pixels, or 0.1, 0.2 and 0.4 metres."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "points", "pairs", "step")
        check_at_least(self, 16, "side")
        check_positive(self, "voxel_size")
        check_between(self, 0, 1, "min_overlap")
        for name, fewest in (("angles", 2), ("thresholds", 0)):
            values = getattr(self, name)
            if len(values) < fewest or any(b <= a for a, b in zip((0, *values), values)) or math.inf in values:
                least = f", {fewest} or more," if fewest else ""
                raise InputError(f"{name} must be positive and ascending{least} got {values}")


@dataclass(frozen=True)
class MatchScore(Score):
    """How many points of a view are matched with the right ones of another.

    Args:
        thresholds: largest distances from the truth, in ``unit``.
        unit: pixels, or metres.
        recall: at each threshold, of the points that both views see, the share whose nearest neighbour is right.
        precision: of the points whose nearest neighbour has them for its own nearest, the share that is right; what the
            other view does not see is wrong.
        mutual_recall: of the points that both views see, the share that is so matched and right.
        by_angle: change of viewpoint -> ``recall``, ``precision`` and ``mutual_recall`` of its pairs, and ``pairs``.
        pairs: of views.
        visible: points that both views see, of all pairs.
        columns: features a point.
        left_out: pairs that could not be read.
    """

    thresholds: tuple[float, ...]
    unit: str
    recall: list[float]
    precision: list[float]
    mutual_recall: list[float]
    by_angle: dict[str, dict[str, Any]]
    pairs: int
    visible: int
    columns: int
    left_out: int

    @property
    def middle(self) -> int:
        """Number of the threshold that short tables show."""
        return len(self.thresholds) // 2

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        unit = "px" if self.unit == "pixels" else "m"
        right = {f"recall {t:g} {unit}": f"{100 * r:.1f} %" for t, r in zip(self.thresholds, self.recall)}
        at = f"{self.thresholds[self.middle]:g} {unit}"
        return right | {
            f"mutual: precision {at}": f"{100 * self.precision[self.middle]:.1f} %",
            f"recall {at} ": f"{100 * self.mutual_recall[self.middle]:.1f} %",
            "features": f"{self.columns}",
        }


class MatchProbe(Probe):
    """Pairs of views whose points are matched."""

    summary = "correspondences between two views by frozen features alone, against pose and depth"
    settings = MatchConfig

    config: MatchConfig

    def __init__(self, config: MatchConfig, log: Log) -> None:
        super().__init__(config, log)
        wanted = "an encoder of images or voxels, such as a croco or a sparse_resnet"
        self.network = load_encoder(config.checkpoint, config.model, ("image", "voxels"), wanted)
        if self.network.kind == "image":
            if config.voxel_size is not None:
                raise InputError("voxel_size is of networks over voxels; images have none")
            self.shown = ImagePairs(self.network, config.side, config.step, config.layers, config.decoder)
        else:
            if config.decoder or config.side or config.step:
                raise InputError("decoder, side and step are of networks over images")
            self.shown = CloudPairs(self.network, config.voxel_size, config.points, config.layers)
        self.thresholds = config.thresholds or self.shown.thresholds
        views = find_measured(config, DepthViews, make_rooms, log)
        found = pairs_by_angle(views, config.angles, config.pairs, config.min_overlap, config.seed)
        self.source, self.chosen = found
        self.bins = [f"{low:g} to {high:g} degrees" for low, high in zip(config.angles, config.angles[1:])]
        counts = ", ".join(f"{len(rows)} of {name}" for name, rows in zip(self.bins, self.chosen))
        log(f"pairs of views of {views.group_count} scenes: {counts}; {self.shown.describe()}")
        self._readable = Readable(config.strict, log, "left out")
        #: Representation -> columns of each block of its features.
        self._widths: dict[str, list[int]] = {}

    def representations(self) -> dict[str, Representation]:
        """What every probe compares; and single stages of the checkpoint, where the config says so."""
        found = super().representations()
        blocks = self.shown.widths(self.network, self.shown.stages)
        self._widths = dict.fromkeys(found, blocks)
        inputs, self._widths["input features"] = self.shown.input_features()
        if self.config.by_layer and not self.config.decoder:
            for stage in self.shown.stages:
                name = f"checkpoint, {self.network.feature_info[stage].name}"
                found[name] = self.shown.network_features(self.network, [stage], self.config.device)
                self._widths[name] = self.shown.widths(self.network, [stage])
        return found | {"input features": inputs}

    def network_features(self, network: Encoder) -> Representation:
        """Features of a network at the points of both views."""
        return self.shown.network_features(network, self.shown.stages, self.config.device)

    def input_features(self) -> Representation:
        """Colours around pixels, or the shape and colour around points."""
        return self.shown.input_features()[0]

    def measure(self, representations: dict[str, Representation]) -> dict[str, MatchScore]:
        """How many points are matched right by each representation.

        Raises:
            InputError: no pair can be read, or no point is seen by both views.
        """
        counts = {name: [MatchCounts.none(len(self.thresholds)) for _ in self.bins] for name in representations}
        columns = dict.fromkeys(representations, 0)
        show, done, total = progress_line("pair"), 0, sum(map(len, self.chosen))
        for number, rows in enumerate(self.chosen):
            for row in rows:
                rng = stream_generator(self.config.seed, Stream.PROBE_QUERIES, row)
                read, describe = partial(self._inputs, row, rng), partial(self.source.describe, row)
                pair, done = self._readable.read(row, read, describe), done + 1
                show(done, total, self.source.describe(row))
                if pair is None:
                    continue
                for name, features in representations.items():
                    first, second = features(pair)
                    columns[name] = first.shape[1]
                    widths = self._widths.get(name, [first.shape[1]])
                    found = most_alike(*comparable(first, second, widths))
                    counts[name][number] += match_counts(*found, pair.known, self.thresholds)
        if not any(count.visible for count in next(iter(counts.values()))):
            raise InputError("no point is seen by both views of a pair; nothing can be measured")
        return {name: self._score(by_bin, columns[name]) for name, by_bin in counts.items()}

    def _inputs(self, row: int, rng: Any) -> PairInputs:
        return self.shown.inputs(self.source.pair(row), rng)

    def _score(self, by_bin: list[MatchCounts], columns: int) -> MatchScore:
        whole = sum(by_bin[1:], by_bin[0])
        by_angle = {name: c.figures() | {"pairs": c.pairs} for name, c in zip(self.bins, by_bin) if c.pairs}
        return MatchScore(
            thresholds=tuple(self.thresholds),
            unit=self.shown.unit,
            **whole.figures(),
            by_angle=by_angle,
            pairs=whole.pairs,
            visible=whole.visible,
            columns=columns,
            left_out=len(self._readable.left_out),
        )

    def note(self, scores: dict[str, MatchScore]) -> str:
        """Recall by change of viewpoint, and what was measured on."""
        first = next(iter(scores.values()))
        at = f"{first.thresholds[first.middle]:g} {first.unit}"
        rows = {
            name: {angle: f"{100 * found['recall'][score.middle]:.1f} %" for angle, found in score.by_angle.items()}
            for name, score in scores.items()
        }
        lost = f"; {first.left_out} pairs cannot be read and are left out" if first.left_out else ""
        return (
            f"\nrecall within {at} by change of viewpoint\n{table(rows)}\n"
            f"{first.visible} points that both views see, of {first.pairs} pairs{lost}"
        )

    def draw(self, scores: dict[str, MatchScore], picture: Path) -> None:
        """Recall at each threshold over the change of viewpoint, and the precision of mutual neighbours."""
        first = next(iter(scores.values()))
        places, labels = range(len(first.by_angle)), [name.removesuffix(" degrees") for name in first.by_angle]

        def panel(title: str, figure: str, number: int) -> Panel:
            lines = {
                name: ([100 * found[figure][number] for found in score.by_angle.values()], [0.0] * len(places))
                for name, score in scores.items()
            }
            return Panel(f"change of viewpoint, degrees\n{title}", places, labels, lines)

        panels = [
            panel(f"recall within {t:g} {first.unit}", "recall", number) for number, t in enumerate(first.thresholds)
        ]
        at = first.thresholds[first.middle]
        panels.append(panel(f"precision of mutual neighbours, {at:g} {first.unit}", "precision", first.middle))
        draw_panels(panels, picture, self.summary, "points, %")


__all__ = ["MatchConfig", "MatchProbe", "MatchScore"]
