"""CroCo's recipe: view pairs of any scenes, and what the second view turned out to be worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo3d.datasets.pair_mining import PairsConfig, mine_pairs
from geo3d.datasets.rooms import make_rooms, split_scenes
from geo3d.methods.croco import CrossViewCompletion, CrossViewCompletionConfig
from geo3d.progress import progress_line
from geo3d.random import Stream, stream_generator
from geo3d.recipes.recipe import Log, Recipe, Run, draw_readable, log_broken
from geo3d.samples.pairs import ViewPairs
from geo3d.train.config import TrainConfig

_PAIRS = "pairs.tsv"
#: What is measured before and after: this many pairs, this many at a time.
_MEASURED, _MEASURED_BATCH = 256, 64


@dataclass(kw_only=True)
class CroCoRun(Run):
    """Pre-train CroCo: complete a masked view from another view of the same scene."""

    pairs: Path | None = None
    """Index of view pairs, as `tools/prepare.py pairs` writes it. None: pairs are mined from the data at the start."""

    method: CrossViewCompletionConfig = field(default_factory=CrossViewCompletionConfig)
    """The task and the network."""


def _tiny() -> CroCoRun:
    """Minutes on a CPU: small images, small network, a brisk schedule."""
    train = TrainConfig(steps=110, batch_size=32, lr=2e-3, warmup_steps=15, clip_norm=1.0, workers=1)
    return CroCoRun(rooms=16, train=train)


def _paper() -> CroCoRun:
    """CroCo v2 with the large encoder: 8 GPUs x 64 pairs, stopped half-way down the cosine."""
    method = CrossViewCompletionConfig("croco_v2_large_base", (224, 224), resized=256)
    train = TrainConfig(epochs=125, schedule_epochs=250, warmup_epochs=12, batch_size=64, base_lr=1.5e-4, workers=8)
    return CroCoRun(method=method, train=train)


def _paper_v1() -> CroCoRun:
    """CroCo v1: 4 GPUs x 64 pairs in half precision, 400 epochs of a cosine over 800."""
    method = CrossViewCompletionConfig("croco_v1_base", (224, 224), resized=256)
    train = TrainConfig(
        epochs=400, schedule_epochs=800, warmup_epochs=40, batch_size=64, base_lr=1.5e-4, workers=8, precision="fp16"
    )
    return CroCoRun(method=method, train=train)


def _prepare(run: CroCoRun, folder: Path, log: Log, fresh: bool) -> None:
    """Make synthetic rooms where no data is given, and mine pairs where no index is."""
    with torch.device("meta"):
        CrossViewCompletion(run.method)  # settings that do not fit each other are told before the work below
    if run.pairs is not None:
        return
    roots = run.data or (make_rooms(run.rooms, run.train.seed, log),)
    if fresh:
        config = PairsConfig(data=roots, output=folder / _PAIRS, strict=run.strict)
        log(str(mine_pairs(config, progress_line("scene"))))


class CroCoTask:
    """CroCo's method with training pairs, and held-out pairs to measure it on."""

    def __init__(self, run: CroCoRun, folder: Path, log: Log) -> None:
        self.method = CrossViewCompletion(run.method, torch.Generator().manual_seed(run.train.seed))
        self.seed = run.train.seed
        pairs = ViewPairs.from_index(run.pairs or folder / _PAIRS)
        log_broken(pairs.datasets, log)
        train, held = _split(pairs, run.held_out, self.seed)
        self.measured_scenes = "held-out" if held is not None else "training"
        self.samples = self.method.samples(train)
        self._all = self.method.samples(pairs)
        self._measured = self.method.samples(held if held is not None else train)
        self.measured_pairs = min(_MEASURED, len(self._measured))
        self._several_scenes = pairs.group_count > 1
        log(
            f"{len(train)} pairs of {train.group_count} scenes to train on; the report is on pairs of "
            f"{self.measured_scenes} scenes"
        )

    def _batches(self):
        """Batches of measured pairs; ``other`` is the second view of a pair of another scene, where there is one."""
        rng = stream_generator(self.seed, Stream.MEASURE_CROCO)
        count = max(_MEASURED_BATCH, self.measured_pairs)
        items = np.resize(rng.permutation(len(self._measured))[: self.measured_pairs], count)
        for start in range(0, count, _MEASURED_BATCH):
            numbers = range(start, min(start + _MEASURED_BATCH, count))
            yield self.method.collate([self._measured_item(int(items[n]), n) for n in numbers])

    def _measured_item(self, item: int, number: int) -> dict[str, Any]:
        rng = stream_generator(self.seed, Stream.MEASURE_CROCO, number)
        sample = draw_readable(self._measured, item, rng)
        if not self._several_scenes:
            return sample
        elsewhere = np.flatnonzero(self._all.source.items.group != sample["scene"])
        return sample | {"other": draw_readable(self._all, int(rng.choice(elsewhere)), rng)["second"]}

    def measure(self) -> dict[str, float]:
        """Masked loss with the true second view, and with a view of another scene in its place."""
        method = self.method
        device = next(method.parameters()).device
        losses: dict[str, list[float]] = {}
        with method.measuring():
            for batch in self._batches():
                batch = {key: value.to(device) for key, value in batch.items()}
                losses.setdefault("loss", []).append(method(batch).loss.item())
                if "other" in batch:
                    wrong = batch | {"second": batch["other"]}
                    losses.setdefault("loss_other_scene", []).append(method(wrong).loss.item())
        return {name: float(np.mean(values)) for name, values in losses.items()} | {"pairs": self.measured_pairs}

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """Loss before and after, and what the second view is worth."""
        change = 100 * (after["loss"] / before["loss"] - 1)
        lines = [
            f"masked loss on {after['pairs']} pairs of {self.measured_scenes} scenes: {before['loss']:.4f} untrained, "
            f"{after['loss']:.4f} trained ({change:+.1f} %)",
            f"second view: {after['loss']:.4f} with the true one, {after['loss_other_scene']:.4f} with a view of "
            "another scene in its place"
            if "loss_other_scene" in after
            else "what the second view is worth was not measured: that takes pairs of two scenes",
        ]
        figures = {"scenes": self.measured_scenes, "before": before, "after": after, "change_percent": change}
        return figures, "\n".join(lines)


def _split(pairs: ViewPairs, share: float, seed: int) -> tuple[ViewPairs, ViewPairs | None]:
    """Pairs to train on, and those of held-out scenes; None where there are too few scenes to spare any."""
    train, held = split_scenes(pairs.group_count, share, seed)
    return (pairs.of_groups(train), pairs.of_groups(held)) if len(held) else (pairs, None)


RECIPE = Recipe(
    summary="CroCo: complete a masked view from another view of the same scene",
    run=CroCoRun,
    presets={"tiny": _tiny, "paper": _paper, "paper-v1": _paper_v1},
    prepare=_prepare,
    task=CroCoTask,
)
