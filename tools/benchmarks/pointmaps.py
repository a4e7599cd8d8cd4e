"""What CroCo's pre-training buys the geometry of two views, at equal steps: pointmaps of rooms never seen.

A network of DUSt3R's is trained from a pre-training run of CroCo and from random weights, by the preset `tiny` of the
recipe, for the same number of steps on the same pairs. What is measured is in rooms that neither training saw. Beside
them stands what no image is looked at for: the mean pointmap of the training pairs. Times are CPU seconds of one
thread.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.timed_training import no_log, pretrained_croco, side_by_side

from geo3d.checkpoints.loading import read_weight_file
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.methods.pointmap_loss import mean_distance
from geo3d.recipes import pretrain
from geo3d.recipes.pointmaps import PointmapsRecipe, PointmapsRun, pair_figures

PRETRAINED, RANDOM, LONGER, MEAN = "CroCo weights", "random weights", "random weights, longer", "mean pointmap"
#: Figure -> its unit and how many decimals are told.
FIGURES = {
    "error": ("", 3),
    "error_second": ("", 3),
    "within_10": ("%", 1),
    "within_25": ("%", 1),
    "rotation": ("°", 1),
    "turn": ("°", 1),
}
_RESULT = "figures.json"
#: Seeds of the rooms that are trained on, and of those that are measured.
_ROOMS_SEED, _MEASURED_SEED = 0, 1000
#: Share of the rooms to train on that a run itself measures: one of them, since measuring takes time.
_WATCHED = 0.05
#: Pairs whose pointmaps are averaged.
_MEAN_OF = 200


@dataclass
class PointmapsBenchmark:
    """Pointmaps learnt from CroCo's weights and from random ones, at equal steps."""

    steps: int = 150
    """Optimizer steps of each training."""
    longer: int = 0
    """Steps of another training from random weights, such as take as long as pre-training and training. 0: none."""
    batch_size: int = 16
    """Pairs a step, each of them in both orders."""
    seeds: int = 3
    """Runs of each variant."""
    rooms: int = 24
    """Synthetic rooms to train on."""
    measured_rooms: int = 8
    """Synthetic rooms to measure in."""
    data: Path | None = None
    """Scenes to train on. None: synthetic rooms are made."""
    measured_data: Path | None = None
    """Scenes to measure in, others than those. None: synthetic rooms are made."""
    init: tuple[Path, ...] = ()
    """Pre-training runs of croco_tiny, one a seed. None: they are made first, by the preset tiny of croco."""
    out: Path = Path("runs/benchmark-pointmaps")
    """Folder of the runs; those that are there already are not made again."""
    processes: int = 1
    """Runs at the same time."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "batch_size", "seeds", "rooms", "measured_rooms", "processes")
        check_at_least(self, 0, "longer")
        if self.init and len(self.init) != self.seeds:
            raise InputError(f"init: give one run for each of the {self.seeds} seeds, got {len(self.init)}")


class Job(NamedTuple):
    """One training.

    Args:
        variant: what it starts from.
        seed: of weights, order and augmentation; the rooms are the same.
        steps: optimizer steps.
        init: weights to start from; None: random ones.
    """

    variant: str
    seed: int
    steps: int
    init: Path | None

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.variant.replace(' ', '-').replace(',', '')}-{self.seed}"


def _settings(config: PointmapsBenchmark, measured: bool = False) -> PointmapsRun:
    """A run on the scenes to train on, or on those to measure in."""
    rooms, seed, given = config.rooms, _ROOMS_SEED, config.data
    if measured:
        rooms, seed, given = config.measured_rooms, _MEASURED_SEED, config.measured_data
    run = PointmapsRecipe.preset("tiny")
    train = replace(
        run.train, batch_size=config.batch_size, workers=0, save_every_minutes=None, log_every=50, accelerator="cpu",
        seed=seed,
    )  # fmt: skip
    run = replace(run, rooms=rooms, train=train, held_out=_WATCHED)
    return replace(run, data=(given or PointmapsRecipe.made_data(run),))


def _measuring(config: PointmapsBenchmark) -> PointmapsRecipe:
    """The recipe on the rooms that are measured."""
    run = replace(_settings(config, measured=True), held_out=0.0)
    folder = config.out / "measured"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.tsv").is_file():
        PointmapsRecipe.prepare(run, folder, no_log, fresh=True)
    return PointmapsRecipe(run, folder, no_log)


def trained(config: PointmapsBenchmark, job: Job) -> dict[str, float]:
    """Figures of one training in the measured rooms; ``seconds`` of the CPU that it took."""
    torch.set_num_threads(1)
    out = config.out / job.folder
    if (out / _RESULT).is_file():
        return json.loads((out / _RESULT).read_text())
    run = _settings(config)
    train = replace(run.train, steps=job.steps, seed=job.seed)
    start = time.process_time()
    result, report = pretrain("pointmaps", replace(run, train=train, init=job.init, out=out), no_log)
    if report is None:
        raise RuntimeError(f"{out} was interrupted")
    seconds = time.process_time() - start
    recipe = _measuring(config)
    recipe.method.load_state_dict(read_weight_file(result.checkpoint).content)
    figures = recipe.measure() | {"seconds": seconds}
    (out / _RESULT).write_text(json.dumps(figures))
    return figures


def mean_pointmap(config: PointmapsBenchmark) -> dict[str, float]:
    """Figures of the mean of the training pairs' pointmaps, each at its own scale, in place of any prediction."""
    start = time.process_time()
    run = replace(_settings(config), held_out=0.0)
    folder = config.out / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    PointmapsRecipe.prepare(run, folder, no_log, fresh=not (folder / "pairs.tsv").is_file())
    samples = PointmapsRecipe(run, folder, no_log).measured
    size = run.method.image_size
    total, count = torch.zeros(2, *size, 3), torch.zeros(2, *size, 1)
    for number in np.random.default_rng(0).permutation(len(samples))[:_MEAN_OF].tolist():
        pair = samples.draw(number, np.random.default_rng(0))
        points, valid = ([pair[f"{name}{n}"] for n in (1, 2)] for name in ("points", "valid"))
        scale = mean_distance([p.unsqueeze(0) for p in points], [v.unsqueeze(0) for v in valid])
        total += torch.stack(points) / scale
        count += torch.stack(valid).unsqueeze(-1)
    mean = total / count.clamp(min=1)
    recipe = _measuring(config)

    def figures(batch: dict[str, Any]) -> list[dict[str, float]]:
        found = tuple(view.expand(len(batch["first"]), -1, -1, -1) for view in mean)
        return pair_figures(found, batch)

    return recipe.means(figures) | {"seconds": time.process_time() - start}


def _pretrained(config: PointmapsBenchmark, seed: int) -> Path:
    """A pre-training run of a seed, made where none is given."""
    if config.init:
        return config.init[seed]
    data = _settings(config).data
    return pretrained_croco(config.out / f"croco-{seed}", seed, data=data, held_out=0.0)


def _row(variant: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    columns = {}
    for name, (unit, decimals) in FIGURES.items():
        values = [run[name] for run in runs if name in run]
        spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
        label = f"{name.replace('_', ' ')}{f' ({unit})' if unit else ''}"
        columns[label] = f"{statistics.mean(values):.{decimals}f}{spread}" if values else ""
    seconds = statistics.mean(run["seconds"] for run in runs)
    return {"case": "pointmaps", "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds} | {
        "peak_mb": None,
        "columns": columns,
    }


def run(config: PointmapsBenchmark) -> list[dict[str, Any]]:
    """Rows of the table, a variant each."""
    torch.set_num_threads(1)
    for measured, given in ((False, config.data), (True, config.measured_data)):
        if given is None:
            PointmapsRecipe.make_data(_settings(config, measured), print)
    _measuring(config)
    jobs = []
    for seed in range(config.seeds):
        jobs.append(Job(RANDOM, seed, config.steps, None))
        jobs.append(Job(PRETRAINED, seed, config.steps, _pretrained(config, seed)))
    if config.longer:
        jobs += [Job(LONGER, seed, config.longer, None) for seed in range(config.seeds)]
    found: dict[str, list[dict[str, float]]] = {}
    for job, figures in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{job.folder}: {told}", flush=True)
        found.setdefault(job.variant, []).append(figures)
    rows = [_row(variant, runs) for variant, runs in found.items()]
    return [*rows, _row(MEAN, [mean_pointmap(config)])]
