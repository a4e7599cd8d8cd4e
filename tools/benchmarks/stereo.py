"""What CroCo's pre-training buys stereo, optical flow and depth, at equal steps: errors in held-out synthetic rooms.

A network is fine-tuned from a pre-training run and from random weights, by the preset `tiny` of the recipe, for the
same number of steps on the same samples. Beside them stand what needs no training: a constant (the median of the
training rooms; of flow, none at all) and, of stereo, block matching. Networks of stereo are also shown the real pair
`stereo_cones` of the folder in GEO3D_TEST_DATA, where there is one. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.recipes import get_recipe, pretrain

PRETRAINED, RANDOM = "pre-trained", "random weights"
CONSTANT, BLOCKS = "constant", "block matching"
#: Task -> figures that are told, their units and what they are multiplied by.
FIGURES = {
    "stereo": (("epe", "px", 1), ("bad1", "%", 1), ("bad2", "%", 1)),
    "flow": (("epe", "px", 1), ("bad1", "%", 1), ("f1", "%", 1)),
    "depth": (("abs_rel", "", 1), ("delta1", "%", 100), ("rmse", "m", 1)),
}
_RESULT = "figures.json"
#: Block matching: side of the blocks, pixels, and the largest disparity over the image's width.
_BLOCK, _LARGEST = 7, 0.25


@dataclass
class StereoBenchmark:
    """Fine-tuning of stereo, flow or depth from pre-trained and from random weights, at equal steps."""

    task: Literal["stereo", "flow", "depth"] = "stereo"
    """What is predicted."""
    steps: int = 300
    """Optimizer steps of each fine-tuning."""
    seeds: int = 2
    """Runs of each variant."""
    rooms: int = 32
    """Synthetic rooms; a fifth of them is measured."""
    init: tuple[Path, ...] = ()
    """Pre-training runs of croco_tiny, one a seed. None: they are made first, by the preset tiny of croco."""
    out: Path = Path("runs/benchmark")
    """Folder of the runs; those that are there already are not made again."""
    processes: int = 1
    """Runs at the same time."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "seeds", "rooms", "processes")
        if self.init and len(self.init) != self.seeds:
            raise InputError(f"init: give one run for each of the {self.seeds} seeds, got {len(self.init)}")


class Job(NamedTuple):
    """One fine-tuning.

    Args:
        variant: what it starts from.
        seed: of weights, order and augmentation; the data are of one seed.
        init: weights to start from; None: random ones.
    """

    variant: str
    seed: int
    init: Path | None

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.variant.replace(' ', '-')}-{self.seed}"


def _ignore(_: str) -> None:
    """No line."""


def settings(config: StereoBenchmark, seed: int) -> Any:
    """The run of the task."""
    recipe = get_recipe(config.task)
    run = recipe.preset("tiny")
    data = recipe.made_data(replace(run, rooms=config.rooms))
    train = replace(
        run.train, seed=seed, steps=config.steps, workers=0, save_every_minutes=None, log_every=50, accelerator="cpu"
    )
    return replace(run, data=(data,), rooms=config.rooms, train=train)


def trained(config: StereoBenchmark, job: Job) -> dict[str, float]:
    """Figures of one run on held-out rooms; ``seconds`` of the CPU that it took."""
    torch.set_num_threads(1)
    out = config.out / config.task / job.folder
    if (out / _RESULT).is_file():
        return json.loads((out / _RESULT).read_text())
    start = time.process_time()
    _, report = pretrain(config.task, replace(settings(config, job.seed), init=job.init, out=out), _ignore)
    if report is None:
        raise RuntimeError(f"{out} was interrupted")
    figures = report["after"] | {"seconds": time.process_time() - start}
    (out / _RESULT).write_text(json.dumps(figures))
    return figures


def _pretrained(config: StereoBenchmark, seed: int) -> Path:
    """A pre-training run of a seed, made where none is given."""
    if config.init:
        return config.init[seed]
    torch.set_num_threads(1)
    run = get_recipe("croco").preset("tiny")
    train = replace(run.train, seed=seed, workers=0, accelerator="cpu")
    out = config.out / f"croco-{seed}"
    pretrain("croco", replace(run, rooms=config.rooms, train=train, out=out), _ignore)
    return out


def _all(config: StereoBenchmark, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
    """Run jobs, some at the same time, and tell of each."""
    with ProcessPoolExecutor(config.processes, get_context("forkserver")) as pool:
        for job, found in zip(jobs, pool.map(partial(trained, config), jobs)):
            told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"{config.task}, {job.folder}: {told}", flush=True)
            yield job, found


def run(config: StereoBenchmark) -> list[dict[str, Any]]:
    """Rows of the table, a variant each."""
    torch.set_num_threads(1)
    kind = get_recipe(config.task)
    kind.make_data(replace(kind.preset("tiny"), rooms=config.rooms), print)
    jobs = []
    for seed in range(config.seeds):
        jobs += [Job(RANDOM, seed, None), Job(PRETRAINED, seed, _pretrained(config, seed))]
    found = dict(_all(config, jobs))
    rows = []
    for variant in (RANDOM, PRETRAINED):
        rows.append(_row(config, variant, [found[job] for job in jobs if job.variant == variant]))
    return rows


def _row(config: StereoBenchmark, variant: str, figures: list[dict[str, float]]) -> dict[str, Any]:
    """A row of the table: means over seeds, and how far they scatter."""
    columns = {}
    for name, unit, factor in FIGURES[config.task]:
        values = [factor * one[name] for one in figures]
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        columns[name] = f"{statistics.mean(values):.3g}{spread} {unit}".strip()
    seconds = statistics.median(one["seconds"] for one in figures)
    case = f"{config.task}: {config.steps} steps, {config.rooms} rooms, {config.seeds} seeds"
    row = {"case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
    return row | {"columns": columns}
