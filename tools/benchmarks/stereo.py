"""What CroCo's pre-training buys stereo, optical flow and depth, at equal steps: errors in held-out synthetic rooms.

A network is fine-tuned from a pre-training run and from random weights, by the preset `tiny` of the recipe, for the
same number of steps on the same samples, in rooms that are not those of pre-training. Beside them stand what needs no
training: a constant (the median of the training rooms; of flow, none at all) and, of stereo, block matching. Networks
of stereo are also shown the real pair `stereo_cones` of the folder in GEO3D_TEST_DATA, where there is one. Times are
CPU seconds of one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from benchmarks.timed_training import no_log, pretrained_croco, side_by_side
from PIL import Image
from torch import Tensor

from geo3d.datasets.disparity_files import read_disparity
from geo3d.errors import InputError
from geo3d.inference.stereo import match_stereo
from geo3d.methods.checks import check_at_least
from geo3d.models import create_model
from geo3d.nn.colors import normalise
from geo3d.recipes import Recipe, get_recipe, pretrain

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
#: Rooms of another seed than pre-training's, which is 0, where they are the same kind of rooms.
_DATA_SEED = {"stereo": 0, "flow": 0, "depth": 1000}
#: The real pair: its shorter side, pixels, in which networks see it, the first as in training.
_SIDES = (96, 192)


@dataclass
class StereoBenchmark:
    """Fine-tuning of stereo, flow or depth from pre-trained and from random weights, at equal steps."""

    task: Literal["stereo", "flow", "depth"] = "stereo"
    """What is predicted."""
    steps: int = 1500
    """Optimizer steps of each fine-tuning."""
    seeds: int = 2
    """Runs of each variant."""
    rooms: int = 120
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
        seed: of weights, order, augmentation, and which rooms are held out; the rooms themselves are of one seed.
        init: weights to start from; None: random ones.
    """

    variant: str
    seed: int
    init: Path | None

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.variant.replace(' ', '-')}-{self.seed}"


def _of_rooms(config: StereoBenchmark) -> Any:
    """A run by which rooms are made and found."""
    run = get_recipe(config.task).preset("tiny")
    return replace(run, rooms=config.rooms, train=replace(run.train, seed=_DATA_SEED[config.task]))


def settings(config: StereoBenchmark, seed: int) -> Any:
    """The run of the task."""
    recipe = get_recipe(config.task)
    run = recipe.preset("tiny")
    data = recipe.made_data(_of_rooms(config))
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
    _, report = pretrain(config.task, replace(settings(config, job.seed), init=job.init, out=out), no_log)
    if report is None:
        raise RuntimeError(f"{out} was interrupted")
    figures = report["after"] | {"seconds": time.process_time() - start}
    (out / _RESULT).write_text(json.dumps(figures))
    return figures


def _pretrained(config: StereoBenchmark, seed: int) -> Path:
    """A pre-training run of a seed, made where none is given."""
    if config.init:
        return config.init[seed]
    return pretrained_croco(config.out / f"croco-{seed}", seed, rooms=config.rooms)


def _all(config: StereoBenchmark, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
    """Run jobs, some at the same time, and tell of each."""
    for job, found in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{config.task}, {job.folder}: {told}", flush=True)
        yield job, found


def run(config: StereoBenchmark) -> list[dict[str, Any]]:
    """Rows of the table, a variant each."""
    torch.set_num_threads(1)
    get_recipe(config.task).make_data(_of_rooms(config), print)
    jobs = []
    for seed in range(config.seeds):
        jobs += [Job(RANDOM, seed, None), Job(PRETRAINED, seed, _pretrained(config, seed))]
    found = dict(_all(config, jobs))
    case = f"{config.task}: held-out rooms; {config.steps} steps, {config.rooms} rooms, {config.seeds} seed(s)"
    rows = [_row(config, case, name, figures) for name, figures in untrained(config).items()]
    for variant in (RANDOM, PRETRAINED):
        rows.append(_row(config, case, variant, [found[job] for job in jobs if job.variant == variant]))
    if config.task == "stereo" and (pair := real_pair()) is not None:
        case = "stereo: the real pair of cones, 450 x 375"
        rows += [_row(config, case, name, [figures]) for name, figures in untrained_on_pair(config, pair).items()]
        for side in _SIDES:
            for variant in (RANDOM, PRETRAINED):
                own = [on_pair(config, job, pair, side) for job in jobs if job.variant == variant]
                rows.append(_row(config, case, f"{variant}, seen with {side} rows", own))
    return rows


def untrained(config: StereoBenchmark) -> dict[str, list[dict[str, float]]]:
    """Figures of what needs no training, on the held-out crops of each seed."""
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in range(config.seeds):
        recipe = measured(config, seed)
        # Of flow, no motion.
        constant = recipe.usual if len(recipe.usual) == 1 else torch.zeros(len(recipe.usual))
        predictors = {CONSTANT: lambda batch, value=constant: value.view(1, -1, 1, 1).expand_as(batch["target"])}
        if config.task == "stereo":
            predictors[BLOCKS] = lambda batch: torch.stack(
                [block_matched(first, second)[None] for first, second in zip(batch["first"], batch["second"])]
            )
        for name, predict in predictors.items():
            start = time.process_time()
            errors = recipe.method.errors
            found = recipe.means(lambda batch, guess=predict, of=errors: of(guess(batch), batch["target"]))
            figures.setdefault(name, []).append(found | {"seconds": time.process_time() - start})
    return figures


def measured(config: StereoBenchmark, seed: int) -> Recipe:
    """The recipe with its data, as a run of a seed begins."""
    run = settings(config, seed).resolved()
    return get_recipe(config.task)(run, config.out, no_log)


def block_matched(left: Tensor, right: Tensor) -> Tensor:
    """(H, W) float32 disparity by the least sum of absolute differences of blocks; whole pixels, the best of all.

    Args:
        left, right: (H, W, 3) uint8, rectified.
    """
    first, second = (image.float().permute(2, 0, 1)[None] for image in (left, right))
    width, pad = first.shape[3], _BLOCK // 2
    costs = []
    for shift in range(round(_LARGEST * width) + 1):
        moved = torch.nn.functional.pad(second, (shift, 0, 0, 0), mode="replicate")[..., :width]
        apart = (first - moved).abs().sum(1, keepdim=True)
        padded = torch.nn.functional.pad(apart, (pad,) * 4, mode="replicate")
        costs.append(torch.nn.functional.avg_pool2d(padded, _BLOCK, 1)[0, 0])
    return torch.stack(costs).argmin(0).float()


class RealPair(NamedTuple):
    """A rectified pair: (H, W, 3) uint8, and (1, 1, H, W) disparity of the left image, NaN where unknown."""

    left: Tensor
    right: Tensor
    disparity: Tensor


def real_pair() -> RealPair | None:
    """The pair of cones in the folder of real data, where there is one."""
    folder = Path(os.environ.get("GEO3D_TEST_DATA", "")) / "stereo_cones"
    if not folder.is_dir():
        return None
    left, right = (torch.from_numpy(np.array(Image.open(folder / f"cones_{side}.png"))) for side in ("left", "right"))
    truth = read_disparity(folder / "cones_gt.png", "cones")  # whole pixels
    return RealPair(left[..., :3], right[..., :3], torch.from_numpy(truth)[None, None])


def untrained_on_pair(config: StereoBenchmark, pair: RealPair) -> dict[str, dict[str, float]]:
    """Figures of a constant and of block matching on the real pair.

    The constant is the median of the pair itself, which nobody knows before.
    """
    start = time.process_time()
    blocks = block_matched(pair.left, pair.right)[None, None]
    seconds = time.process_time() - start
    constant = torch.full_like(pair.disparity, pair.disparity.nanmedian())
    errors = get_recipe(config.task).method_class.errors
    return {
        f"{CONSTANT} (its own median)": errors(constant, pair.disparity) | {"seconds": 0.0},
        BLOCKS: errors(blocks, pair.disparity) | {"seconds": seconds},
    }


def on_pair(config: StereoBenchmark, job: Job, pair: RealPair, side: int) -> dict[str, float]:
    """Figures of a trained network on the real pair, resized to ``side`` rows, by tiles."""
    network = create_model(checkpoint=config.out / config.task / job.folder).eval()
    height, width = pair.left.shape[:2]
    size = side, round(side * width / height)
    images = [
        torch.nn.functional.interpolate(normalise(image[None]), size, mode="bicubic", antialias=True)
        for image in (pair.left, pair.right)
    ]
    start = time.process_time()
    # The largest disparity is given, as it is to other programs; shifted tiles reach it.
    made = network.config
    reach = _LARGEST * size[1]
    found = match_stereo(network, *images, made.crop, made.tile_confidence.weight, overlap=0.5, reach=reach)
    seconds = time.process_time() - start
    disparity = torch.nn.functional.interpolate(found.disparity[None], (height, width), mode="bilinear")
    return get_recipe("stereo").method_class.errors(disparity * (width / size[1]), pair.disparity) | {
        "seconds": seconds
    }


def _row(config: StereoBenchmark, case: str, variant: str, figures: list[dict[str, float]]) -> dict[str, Any]:
    """A row of the table: means over seeds, and how far they scatter."""
    columns = {}
    for name, unit, factor in FIGURES[config.task]:
        values = [factor * one[name] for one in figures]
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        columns[name] = f"{statistics.mean(values):.3g}{spread} {unit}".strip()
    seconds = max(statistics.median(one["seconds"] for one in figures), 1e-6)
    row = {"case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
    return row | {"columns": columns}
