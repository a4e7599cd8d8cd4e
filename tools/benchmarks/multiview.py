"""Multi-view completion beside CroCo at equal time: what frozen features tell of which points of two views match.

All have the same encoder and begin with the same weights, on the same view pairs of the same rooms, each with its own
recipe at its preset `tiny`. Times are those of a step on one thread of the CPU, measured first; each run takes as many
steps as fit, and its learning rate falls to its end. Then all are probed on rooms that none saw, beside their weights
from before training and beside the colours around the points.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timed_training import mean_and_spread, no_log, one_thread, side_by_side, step_seconds

from geo3d.config import to_plain
from geo3d.datasets.pair_mining import PairsConfig, mine_pairs
from geo3d.datasets.rooms import make_rooms
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_positive
from geo3d.probe import get_probe, run_probe
from geo3d.recipes import get_recipe
from geo3d.samples.view_groups import ViewGroups
from geo3d.train import Trainer
from geo3d.train.launch import launch

#: Variant -> its recipe and changes to its method; the first is what the others are beside.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CroCo": ("croco", {}),
    "multi-view": ("multiview", {}),
    "multi-view, 90 % masked": ("multiview", {"mask_ratio": 0.9}),
    "multi-view, one of 4 masked": ("multiview", {"mask_ratio": 0.9, "masked_views": 1}),
    "multi-view, two of 3 masked": ("multiview", {"mask_ratio": 0.9, "masked_views": 2, "views": 3}),
}
#: What the report of a recipe calls the loss with the true other views, and with those of another scene.
LOSSES = {"croco": ("loss", "loss_other_scene"), "multiview": ("loss_first", "loss_first_other_scene")}
#: Seeds of the rooms to pre-train on, and of those that are probed.
_TRAINED, _PROBED = 0, 1000


@dataclass
class MultiViewBenchmark:
    """Multi-view completion and CroCo, pre-trained for equal time: points of two views matched by frozen features."""

    variants: tuple[str, ...] = ("CroCo", "multi-view")
    """Which are compared; see VARIANTS in tools/benchmarks/multiview.py."""
    minutes: float = 1.5
    """Time of each pre-training, on one thread of the CPU."""
    seeds: int = 3
    """Runs of each variant."""
    batch: int = 16
    """Pairs, or groups, of a step."""
    data: tuple[Path, ...] = ()
    """Folders of scenes to pre-train on. None: synthetic rooms are made."""
    test_data: tuple[Path, ...] = ()
    """Folders of scenes that are probed. None: synthetic rooms are made."""
    rooms: int = 24
    """Rooms to pre-train on, where no data is given."""
    measured: int = 16
    """Rooms that are probed, where no test data is given."""
    pairs: int = 25
    """Pairs of views of each bin of change of viewpoint that are matched, at most."""
    processes: int = 1
    """Runs at the same time."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise InputError(f"variants: there is no {unknown[0]!r}; known: {', '.join(VARIANTS)}")
        check_positive(self, "minutes")
        check_at_least(self, 1, "seeds", "batch", "rooms", "measured", "pairs", "processes")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        variant: its name.
        seed: of weights and draws.
        steps: how many.
        out: its folder.
        index: of the view pairs.
        test_data: folders of what is probed.
    """

    variant: str
    seed: int
    steps: int
    out: Path
    index: Path
    test_data: tuple[Path, ...]


def settings(config: MultiViewBenchmark, variant: str, index: Path, seed: int = 0) -> Any:
    """The run of a variant, but for its length."""
    recipe, changes = VARIANTS[variant]
    run = get_recipe(recipe).preset("tiny")
    train = replace(run.train, seed=seed, workers=0, save_every_minutes=None, log_every=1000, devices="1")
    train = replace(train, batch_size=config.batch, accelerator="cpu")
    return replace(run, pairs=index, held_out=0.0, method=replace(run.method, **changes), train=train)


def trained(config: MultiViewBenchmark, job: Job) -> dict[str, Any]:
    """Train and probe: CPU seconds of the training alone, the report's figures, and of each part scores by weights."""
    run = settings(config, job.variant, job.index, job.seed)
    train = replace(run.train, steps=job.steps, warmup_steps=max(1, job.steps // 8), usual_warmup=None)
    run = replace(run, train=train)
    task = get_recipe(VARIANTS[job.variant][0])(run, job.out, no_log)
    trainer = Trainer(task.method, task.samples, train, job.out, to_plain(run), launch(train))
    start = time.process_time()
    result = trainer.fit()
    found: dict[str, Any] = {"seconds": time.process_time() - start, "figures": task.measure()}
    asked = {"checkpoint": result.checkpoint, "test_data": job.test_data, "pairs": config.pairs, "seed": job.seed}
    for part in ("encoder", "decoder"):
        probe = get_probe("match").settings(**asked, decoder=part == "decoder")
        found[part] = list(run_probe("match", probe, no_log).values())  # trained weights, fresh ones, the input
    return found


def _all(config: MultiViewBenchmark, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Run jobs, some at the same time, and tell of each."""
    for job, found in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        told = ", ".join(f"{name} {value:.4g}" for name, value in found["figures"].items())
        scores = [
            f"{part} {' '.join(f'{100 * value:.1f}' for value in (*score.recall, *score.precision))}"
            for part in ("encoder", "decoder")
            for score in found[part][:2]
        ]
        print(f"{job.out.name}, {job.steps} steps, {found['seconds']:.0f} s: {told}; {'; '.join(scores)}", flush=True)
        yield found


def run(config: MultiViewBenchmark) -> list[dict[str, Any]]:
    """Rows of two tables: the variants, random weights and the input, matched by encoder and by decoder."""
    one_thread()
    data = config.data or (make_rooms(config.rooms, _TRAINED, print),)
    test_data = config.test_data or (make_rooms(config.measured, _PROBED, print),)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "pairs.tsv")
        print(mine_pairs(PairsConfig(data=data, out=index)))
        source = ViewGroups.from_index(index)
        steps = {}
        for name in config.variants:
            seconds = step_seconds(VARIANTS[name][0], settings(config, name, index), source)
            steps[name] = max(2, round(60 * config.minutes / seconds))
            print(f"{name}: {seconds:.2f} s a step", flush=True)
        jobs = [
            Job(name, seed, steps[name], Path(folder, f"{name}, seed {seed}"), index, tuple(test_data))
            for seed in range(config.seeds)
            for name in config.variants
        ]
        found = dict(zip(((job.variant, job.seed) for job in jobs), _all(config, jobs)))
    rows = []
    for part in ("encoder", "decoder"):
        case = f"match by the {part}, {config.minutes:g} minutes, {config.seeds} seeds"
        for name in config.variants:
            own = [found[name, seed] for seed in range(config.seeds)]
            rows.append(_row(case, name, [one[part][0] for one in own], own, VARIANTS[name][0], steps[name]))
        # Encoders begin with the same weights; decoders do too, but work otherwise.
        recipes = {VARIANTS[name][0]: name for name in reversed(config.variants)}
        for name in reversed(recipes.values()) if part == "decoder" else config.variants[:1]:
            fresh = [found[name, seed][part][1] for seed in range(config.seeds)]
            rows.append(_row(case, "random weights" + f" of {name}" * (part == "decoder"), fresh))
        inputs = [found[config.variants[0], seed][part][2] for seed in range(config.seeds)]
        rows.append(_row(case, "colours around the points", inputs))
    return rows


def _row(
    case: str, variant: str, scores: Sequence[Any], runs: Sequence[Any] = (), recipe: str = "", steps: int = 0
) -> dict[str, Any]:
    """A row of the table: means over seeds, and how far they scatter."""
    columns = {"steps": str(steps or "")}
    losses = [statistics.mean(one["figures"][name] for one in runs) for name in LOSSES.get(recipe, ())]
    columns["loss, true views"], columns["another scene's"] = (f"{loss:.3f}" for loss in losses) if runs else ("", "")
    for number, threshold in enumerate(scores[0].thresholds):
        columns[f"recall {threshold:g} px"] = mean_and_spread([score.recall[number] for score in scores])
    middle = scores[0].middle
    columns["mutual: precision"] = mean_and_spread([score.precision[middle] for score in scores])
    columns["mutual: recall"] = mean_and_spread([score.mutual_recall[middle] for score in scores])
    seconds = statistics.median(one["seconds"] for one in runs) if runs else 0.0
    row = {"case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
    return row | {"columns": columns}
