"""Multi-view completion beside CroCo at equal time: what frozen features tell of which points of two views match.

Both have the same encoder and begin with the same weights, on the same view pairs of the same rooms, each with its own
recipe at its preset `tiny`. Times are those of a step on one thread of the CPU, measured first; each run takes as many
steps as fit, and its learning rate falls to its end. Then both are probed on rooms that neither saw, beside their
weights from before training and beside the colours around the points.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timed_training import mean_and_spread, one_thread, side_by_side, step_seconds

from geo3d.config import to_plain
from geo3d.datasets.pair_mining import PairsConfig, mine_pairs
from geo3d.datasets.rooms import make_rooms
from geo3d.methods.checks import check_at_least, check_between, check_positive
from geo3d.probe import get_probe, run_probe
from geo3d.recipes import get_recipe
from geo3d.samples.view_groups import ViewGroups
from geo3d.train import Trainer
from geo3d.train.launch import launch

CROCO, MULTIVIEW = "croco", "multiview"
TITLES = {CROCO: "CroCo", MULTIVIEW: "multi-view"}
#: Rows that both methods share: their networks begin with the same weights, and see the same colours.
_FRESH, _INPUT = "random weights", "colours around the points"
#: Seeds of the rooms to pre-train on, and of those that are probed.
_TRAINED, _PROBED = 0, 1000


@dataclass
class MultiViewBenchmark:
    """Multi-view completion and CroCo, pre-trained for equal time: points of two views matched by frozen features."""

    minutes: float = 2.0
    """Time of each pre-training, on one thread of the CPU."""
    seeds: int = 3
    """Runs of each method."""
    views: int = 4
    """Most views of a group (count)."""
    mask_ratio: float = 0.75
    """Share of the patches of a masked view that is hidden, in multi-view completion."""
    masked_views: int = 0
    """Views of a group that are masked, the others are whole; 0: all."""
    batch: int = 32
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
    decoder: bool = False
    """Match by the decoders, which see both views, instead of the encoders."""
    processes: int = 1
    """Runs at the same time."""

    def __post_init__(self) -> None:
        check_positive(self, "minutes")
        check_between(self, 0, 1, "mask_ratio")
        check_at_least(self, 2, "views")
        check_at_least(self, 0, "masked_views")
        check_at_least(self, 1, "seeds", "batch", "rooms", "measured", "pairs", "processes")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        recipe: its name.
        seed: of weights and draws.
        steps: how many.
        out: its folder.
        index: of the view pairs.
        test_data: folders of what is probed.
    """

    recipe: str
    seed: int
    steps: int
    out: Path
    index: Path
    test_data: tuple[Path, ...] = field(default=())


def settings(config: MultiViewBenchmark, recipe: str, index: Path, seed: int = 0) -> Any:
    """The run of a recipe, but for its length."""
    run = get_recipe(recipe).preset("tiny")
    train = replace(run.train, seed=seed, workers=0, save_every_minutes=None, log_every=1000, devices="1")
    train = replace(train, batch_size=config.batch, accelerator="cpu")
    method = run.method
    if recipe == MULTIVIEW:
        own = {name: getattr(config, name) for name in ("views", "mask_ratio", "masked_views")}
        method = replace(method, **own)
    return replace(run, pairs=index, held_out=0.0, method=method, train=train)


def trained(config: MultiViewBenchmark, job: Job) -> dict[str, Any]:
    """Train and probe; CPU seconds of the training alone, figures of its report and scores by representation."""
    run = settings(config, job.recipe, job.index, job.seed)
    train = replace(run.train, steps=job.steps, warmup_steps=max(1, job.steps // 8), usual_warmup=None)
    run = replace(run, train=train)
    task = get_recipe(job.recipe)(run, job.out, _ignore)
    trainer = Trainer(task.method, task.samples, train, job.out, to_plain(run), launch(train))
    start = time.process_time()
    result = trainer.fit()
    seconds = time.process_time() - start
    asked = {"checkpoint": result.checkpoint, "test_data": job.test_data, "pairs": config.pairs, "seed": job.seed}
    probe = get_probe("match").settings(**asked, decoder=config.decoder)
    scores = run_probe("match", probe, _ignore)
    return {"seconds": seconds, "figures": task.measure(), "scores": list(scores.values())}


def _ignore(_: str) -> None:
    """No line."""


def _all(config: MultiViewBenchmark, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Run jobs, some at the same time, and tell of each."""
    for job, found in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        told = ", ".join(f"{name} {value:.4g}" for name, value in found["figures"].items())
        score = found["scores"][0]
        right = " ".join(f"{100 * value:.1f}" for value in (*score.recall, *score.precision))
        print(f"{job.out.name}, {job.steps} steps, {found['seconds']:.0f} s: {told}; match {right}", flush=True)
        yield found


def run(config: MultiViewBenchmark) -> list[dict[str, Any]]:
    """Rows of the table: each method, and what both are beside."""
    one_thread()
    data = config.data or (make_rooms(config.rooms, _TRAINED, print),)
    test_data = config.test_data or (make_rooms(config.measured, _PROBED, print),)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "pairs.tsv")
        print(mine_pairs(PairsConfig(data=data, output=index)))
        source = ViewGroups.from_index(index)
        cost = {recipe: step_seconds(recipe, settings(config, recipe, index), source) for recipe in TITLES}
        print(", ".join(f"{TITLES[recipe]}: {seconds:.2f} s a step" for recipe, seconds in cost.items()), flush=True)
        steps = {recipe: max(2, round(60 * config.minutes / seconds)) for recipe, seconds in cost.items()}
        jobs = [
            Job(recipe, seed, steps[recipe], Path(folder, f"{TITLES[recipe]}, seed {seed}"), index, tuple(test_data))
            for seed in range(config.seeds)
            for recipe in TITLES
        ]
        found = dict(zip(((job.recipe, job.seed) for job in jobs), _all(config, jobs)))
    rows = []
    for recipe, title in TITLES.items():
        own = [found[recipe, seed] for seed in range(config.seeds)]
        rows.append(_row(config, title, [one["scores"][0] for one in own], steps[recipe], own))
    # Fresh weights are those that both began with where the encoder is read; decoders work differently.
    for recipe, title in TITLES.items() if config.decoder else [(MULTIVIEW, "")]:
        scores = [found[recipe, seed]["scores"] for seed in range(config.seeds)]
        rows.append(_row(config, f"{_FRESH}{title and f', {title}'}", [each[1] for each in scores], 0, []))
    rows.append(_row(config, _INPUT, [found[CROCO, seed]["scores"][2] for seed in range(config.seeds)], 0, []))
    return rows


def _row(config: MultiViewBenchmark, title: str, scores: list[Any], steps: int, runs: list[Any]) -> dict[str, Any]:
    """A row of the table: means over seeds, and how far they scatter."""
    columns = {"steps": str(steps) if runs else ""}
    for number, threshold in enumerate(scores[0].thresholds):
        columns[f"recall {threshold:g} px"] = mean_and_spread([score.recall[number] for score in scores])
    middle = scores[0].middle
    columns["mutual: precision"] = mean_and_spread([score.precision[middle] for score in scores])
    columns["mutual: recall"] = mean_and_spread([score.mutual_recall[middle] for score in scores])
    case = (
        f"match by the {'decoder' if config.decoder else 'encoder'}, {config.minutes:g} minutes, {config.seeds} seeds"
    )
    seconds = statistics.median(one["seconds"] for one in runs) if runs else 0.0
    row = {"case": case, "variant": title, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
    return row | {"columns": columns}
