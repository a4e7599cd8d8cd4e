"""What NeRF-MAE's pre-training buys its two tasks, at equal time: objects found in held-out rooms, and voxels named.

The encoder is pre-trained on grids of synthetic rooms without their labels; then it is fine-tuned on a few other rooms
with labels, and measured on rooms that neither saw. Beside it stand the same network from random weights, fine-tuned
for the same time, and once more for the time of both. Times are those of a step on one thread of the CPU, measured
first; each run takes as many steps as fit, and its learning rate falls to its end.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timed_training import mean_and_spread, no_log, one_thread, side_by_side, step_seconds

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_positive
from geo3d.recipes import get_recipe, pretrain
from geo3d.reconstruction.make_grids import make_room_grids, room_grids_folder

#: Task -> its recipe and the figures that are told.
TASKS = {
    "detection": ("detect", ("ap25", "ap50", "recall25", "recall50")),
    "segmentation": ("segment_grids", ("miou", "accuracy")),
}
_PRETRAINING = "nerf_mae"
PRETRAINED, RANDOM, LONGER = "pre-trained", "random weights", "random weights, for the time of both"
#: Seeds of the rooms to pre-train on, and of those with labels.
_UNLABELLED, _LABELLED = 0, 1


@dataclass
class DetectionBenchmark:
    """Fine-tuning from a pre-trained and from random weights, at equal time: objects found, voxels named."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which of them: detection, segmentation."""
    pretraining_minutes: float = 6.0
    """Time of pre-training, on one thread."""
    minutes: float = 3.0
    """Time of each fine-tuning, on one thread."""
    seeds: int = 3
    """Runs of each variant."""
    rooms: int = 64
    """Rooms to pre-train on."""
    labelled: int = 24
    """Rooms with labels to fine-tune on."""
    measured: int = 16
    """Rooms to measure on, 16 at most."""
    side: int = 64
    """Voxels along the longest side of a grid."""
    processes: int = 2
    """Runs at the same time."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise InputError(f"tasks: there is no {unknown[0]!r}; known: {', '.join(TASKS)}")
        check_positive(self, "pretraining_minutes", "minutes")
        check_at_least(self, 1, "seeds", "rooms", "labelled", "measured", "processes")
        check_at_least(self, 16, "side")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        recipe: its name.
        seed: of weights and draws.
        steps: how many.
        init: weights to start from; None: random ones.
        out: its folder.
    """

    recipe: str
    seed: int
    steps: int
    init: Path | None
    out: Path


def settings(config: DetectionBenchmark, recipe: str, seed: int) -> Any:
    """The run of a recipe, but for its length."""
    run = get_recipe(recipe).preset("tiny")
    train = replace(run.train, seed=seed, workers=0, save_every_minutes=None, log_every=1000, devices="1")
    method = replace(run.method, side=config.side)
    if recipe == _PRETRAINING:
        folder, held_out = room_grids_folder(config.rooms, _UNLABELLED, config.side), 0.0
    else:
        every = config.labelled + config.measured
        folder, held_out = room_grids_folder(every, _LABELLED, config.side), config.measured / every
    return replace(run, data=(folder,), held_out=held_out, method=method, train=train)


def _cost(config: DetectionBenchmark, recipe: str) -> float:
    """CPU seconds of a training step."""
    run = settings(config, recipe, 0)
    return step_seconds(recipe, run, get_recipe(recipe).method_class.source.find(run.data))


def trained(config: DetectionBenchmark, job: Job) -> dict[str, float]:
    """Figures of one run on held-out rooms; ``seconds`` of the CPU that it took."""
    run = settings(config, job.recipe, job.seed)
    train = replace(run.train, steps=job.steps, warmup_steps=max(1, job.steps // 10), usual_warmup=None)
    start = time.process_time()
    _, report = pretrain(job.recipe, replace(run, train=train, init=job.init, out=job.out), no_log)
    if report is None:
        raise RuntimeError(f"{job.recipe} was interrupted")
    return report["after"] | {"seconds": time.process_time() - start}


def _all(config: DetectionBenchmark, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
    """Run jobs, some at the same time, and tell of each."""
    for job, found in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{job.out.name}, {job.steps} steps: {told}", flush=True)
        yield job, found


def run(config: DetectionBenchmark) -> list[dict[str, Any]]:
    """Rows of the table, a variant of a task each."""
    one_thread()
    make_room_grids(config.rooms, _UNLABELLED, config.side, print)
    make_room_grids(config.labelled + config.measured, _LABELLED, config.side, print)
    recipes = [_PRETRAINING, *(TASKS[task][0] for task in config.tasks)]
    cost = {recipe: _cost(config, recipe) for recipe in recipes}
    print(", ".join(f"{recipe}: {seconds:.2f} s a step" for recipe, seconds in cost.items()), flush=True)

    def steps(recipe: str, minutes: float) -> int:
        return max(2, round(60 * minutes / cost[recipe]))

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"pre-training, seed {seed}" for seed in range(config.seeds)]
        count = steps(_PRETRAINING, config.pretraining_minutes)
        for _ in _all(config, [Job(_PRETRAINING, seed, count, None, out) for seed, out in enumerate(places)]):
            pass
        both = config.minutes + config.pretraining_minutes
        for task in config.tasks:
            recipe, figures = TASKS[task]
            jobs = {
                (variant, seed): Job(
                    recipe,
                    seed,
                    steps(recipe, both if variant == LONGER else config.minutes),
                    places[seed] if variant == PRETRAINED else None,
                    Path(folder) / f"{task}, {variant}, seed {seed}",
                )
                for seed in range(config.seeds)
                for variant in (RANDOM, PRETRAINED, LONGER)
            }
            found = dict(zip(jobs, (figures_ for _, figures_ in _all(config, list(jobs.values())))))
            rows += [
                _row(config, task, variant, jobs[variant, 0].steps, figures, found)
                for variant in (RANDOM, PRETRAINED, LONGER)
            ]
    return rows


def _row(
    config: DetectionBenchmark,
    task: str,
    variant: str,
    steps: int,
    figures: tuple[str, ...],
    found: dict[tuple[str, int], dict[str, float]],
) -> dict[str, Any]:
    """A row of the table: means over seeds, and how far they scatter."""
    own = [found[variant, seed] for seed in range(config.seeds)]
    columns = {"steps": str(steps)}
    for name in figures:
        columns[name] = mean_and_spread([one[name] for one in own])
    case = (
        f"{task}: {config.labelled} rooms to fine-tune on, {config.measured} to measure on, "
        f"{config.minutes:g} minutes each, {config.seeds} seeds"
    )
    seconds = statistics.median(one["seconds"] for one in own)
    row = {"case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
    return row | {"columns": columns}
