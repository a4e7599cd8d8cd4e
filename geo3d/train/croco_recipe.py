"""CroCo's recipe: view pairs of any scenes, and what the second view turned out to be worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo3d.datasets.pair_mining import PairsConfig, mine_pairs
from geo3d.datasets.view_pairs import ViewPairs
from geo3d.errors import InputError
from geo3d.methods.croco import CompletionSamples, CrossViewCompletion, CrossViewCompletionConfig
from geo3d.train.config import TrainConfig
from geo3d.train.recipe import Recipe, Run, Say
from geo3d.train.rooms import make_rooms, split_scenes

_PAIRS = "pairs.tsv"
#: What is measured before and after: this many pairs, this many at a time.
_MEASURED, _MEASURED_BATCH = 256, 64
_MEASURE = 102  # so that these draws are none of the training's


@dataclass(kw_only=True)
class CroCoRun(Run):
    """Pre-train CroCo: complete a masked view from another view of the same scene."""

    pairs: Path | None = None
    """Index of view pairs, as `tools/prepare.py pairs` writes it. None: pairs are mined from the data at the start."""

    method: CrossViewCompletionConfig = field(default_factory=CrossViewCompletionConfig)
    """The task and the network."""


def _tiny() -> CroCoRun:
    """Minutes on a CPU: small images, small network, a brisk schedule."""
    train = TrainConfig(steps=200, batch_size=32, lr=2e-3, warmup_steps=20, clip_norm=1.0, workers=1)
    return CroCoRun(rooms=24, train=train)


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


def _prepare(run: CroCoRun, folder: Path, say: Say) -> None:
    """Make synthetic rooms where no data is given, and mine pairs where no index is."""
    roots = run.data
    if not roots and run.pairs is None:
        roots = (make_rooms(run.rooms, run.train.seed, say),)
    if run.pairs is None and not (folder / _PAIRS).exists():
        say(str(mine_pairs(PairsConfig(data=roots, output=folder / _PAIRS, strict=run.strict))))


class CroCoTask:
    """CroCo's method with training pairs, and held-out pairs to measure it on."""

    def __init__(self, run: CroCoRun, folder: Path, say: Say) -> None:
        self.method = CrossViewCompletion(run.method, torch.Generator().manual_seed(run.train.seed))
        self.seed = run.train.seed
        pairs = ViewPairs.from_index(run.pairs or folder / _PAIRS)
        for dataset in pairs.datasets:
            if dataset.quarantine.entries:
                say(f"{len(dataset.quarantine)} broken scenes left out:\n{dataset.quarantine.report()}")
        train, held = _split(pairs, run.held_out, self.seed)
        self.measured_scenes = "held-out" if held is not None else "training"
        self.samples = self.method.samples(train)
        self._all = self.method.samples(pairs)
        self._measured = self.method.samples(held if held is not None else train)
        say(
            f"{len(train)} pairs of {train.scene_count} scenes to train on; the report is on pairs of "
            f"{self.measured_scenes} scenes"
        )

    def _batches(self):
        """Batches of measured pairs, each with ``other``: views of another scene than the pair's."""
        count = min(_MEASURED, max(len(self._measured), _MEASURED_BATCH))
        items = np.random.default_rng([self.seed, _MEASURE]).permutation(count) % len(self._measured)
        for start in range(0, count, _MEASURED_BATCH):
            rngs = [np.random.default_rng([self.seed, _MEASURE, start + i]) for i in range(_MEASURED_BATCH)]
            drawn = []
            for item, rng in zip(items[start : start + _MEASURED_BATCH], rngs):
                sample = self._measured.draw(int(item), rng)
                drawn.append(sample | {"other": _view_elsewhere(self._all, sample["scene"], rng)})
            yield self.method.collate(drawn)

    def measure(self) -> dict[str, float]:
        """Masked loss with the true second view, and with a view of another scene in its place."""
        method = self.method
        device = next(method.parameters()).device
        training = method.training
        method.eval()
        sums, count = {"loss": 0.0, "loss_other_scene": 0.0}, 0
        with torch.no_grad():
            for batch in self._batches():
                batch = {key: value.to(device) for key, value in batch.items()}
                size = len(batch["first"])
                sums["loss"] += size * method(batch).loss.item()
                sums["loss_other_scene"] += size * method(batch | {"second": batch["other"]}).loss.item()
                count += size
        method.train(training)
        return {name: value / count for name, value in sums.items()} | {"pairs": count}

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """Loss before and after, and what the second view is worth."""
        change = 100 * (after["loss"] / before["loss"] - 1)
        text = (
            f"masked loss on {after['pairs']} pairs of {self.measured_scenes} scenes: {before['loss']:.4f} untrained, "
            f"{after['loss']:.4f} trained ({change:+.1f} %)\n"
            f"second view: {after['loss']:.4f} with the true one, {after['loss_other_scene']:.4f} with a view of "
            "another scene in its place"
        )
        return {"scenes": self.measured_scenes, "before": before, "after": after, "change_percent": change}, text


def _split(pairs: ViewPairs, share: float, seed: int) -> tuple[ViewPairs, ViewPairs | None]:
    """Pairs to train on, and those of held-out scenes; None where there are too few scenes to spare any."""
    train, held = split_scenes(pairs.scene_count, share, seed)
    return (pairs.of_scenes(train), pairs.of_scenes(held)) if len(held) else (pairs, None)


def _view_elsewhere(samples: CompletionSamples, scene: int, rng: np.random.Generator) -> torch.Tensor:
    """The second view of a random pair of another scene, cropped as any."""
    for _ in range(1000):
        item = int(rng.integers(len(samples)))
        if samples.pairs.scene_id(item) != scene:
            return samples.draw(item, rng)["second"]
    raise InputError("the report compares with views of another scene, but (nearly) all pairs are of one; add a scene")


RECIPE = Recipe(
    summary="CroCo: complete a masked view from another view of the same scene",
    run=CroCoRun,
    presets={"tiny": _tiny, "paper": _paper, "paper-v1": _paper_v1},
    prepare=_prepare,
    task=CroCoTask,
)
