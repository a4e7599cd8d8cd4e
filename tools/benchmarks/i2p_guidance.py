"""What guidance by an image network buys a point encoder, at equal time: I2P-MAE with and without, judged by an SVM.

Each variant pre-trains `i2p_mae_tiny` on synthetic objects for the same time on one thread, from the same weights and
on the same draws for equal seeds: as many steps as fit, by the time of its own steps, measured first one after the
other. What the teacher says is made beforehand, once, and does not count. The learning rate falls to its end in all of
them. Afterwards a linear SVM reads the classes of labelled objects, which were never trained on, off the encoder.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.timed_training import no_log, one_thread, side_by_side

from geo3d import create_model
from geo3d.datasets.synthetic.objects import make_objects, objects_folder
from geo3d.errors import InputError
from geo3d.linear_svm import object_splits, svm_accuracy
from geo3d.progress import progress_line
from geo3d.recipes import get_recipe, pretrain
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.posed_objects import POSES, PosedObjects, mean_features, pooled_features

_LITE, _RANDOM = ("efficientnet_lite0", ()), ("efficientnet_lite0", ("weights=random",))
_HOG = ("hog", ())
#: Variant -> teacher and its options, whether it guides the mask, whether its features are targets, weight of shape.
VARIANTS: dict[str, tuple[tuple[str, tuple[str, ...]], bool, bool, float]] = {
    "no guidance": (_HOG, False, False, 0.0),
    "HOG: mask": (_HOG, True, False, 0.0),
    "HOG: targets": (_HOG, False, True, 0.0),
    "EfficientNet-Lite0: mask": (_LITE, True, False, 0.0),
    "EfficientNet-Lite0: targets": (_LITE, False, True, 0.0),
    "EfficientNet-Lite0: both": (_LITE, True, True, 0.0),
    "the same with random weights: mask": (_RANDOM, True, False, 0.0),
    "the same with random weights: targets": (_RANDOM, False, True, 0.0),
    "no guidance, local shape": (_HOG, False, False, 1.0),
    "EfficientNet-Lite0: both, local shape": (_LITE, True, True, 1.0),
}
_TIMED_STEPS = 30
_UNTRAINED = "random weights"


@dataclass
class GuidanceBenchmark:
    """Pre-training with and without an image network as guide, at equal time, judged by a linear SVM."""

    data: tuple[Path, ...] = ()
    """Labelled objects to judge by, ten a class to learn from and ten to measure on."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which of them to run."""
    minutes: float = 2.0
    """Time of each run's steps, on one thread."""
    seeds: int = 3
    """Runs of each variant."""
    processes: int = 2
    """Runs at the same time."""
    objects: int = 5000
    """Synthetic objects to train on."""
    pooling: str = "max+mean"
    """How tokens become the features of an object."""

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data: name a folder or file of labelled objects to judge by")
        if unknown := sorted(set(self.variants) - set(VARIANTS)):
            raise InputError(f"variants: there is no {unknown[0]!r}; known: {', '.join(VARIANTS)}")


def settings(config: GuidanceBenchmark, variant: str, seed: int) -> Any:
    """The run of a variant."""
    (teacher, options), mask, targets, shape = VARIANTS[variant]
    run = get_recipe("i2p_mae").preset("tiny")
    method = replace(
        run.method,
        teacher=teacher,
        teacher_options=options,
        guided_masking=mask,
        guided_targets=targets,
        shape_weight=shape,
    )
    train = replace(run.train, seed=seed, workers=0, save_every_minutes=None, log_every=1000, devices="1")
    data = (objects_folder(config.objects, 0),)
    return replace(run, data=data, held_out=0.0, method=method, train=train)


def warm(config: GuidanceBenchmark, variant: str) -> None:
    """Have the teacher look at all objects."""
    run, recipe = settings(config, variant, 0), get_recipe("i2p_mae")
    source = recipe.method_class.source.find(run.data)
    samples = recipe.build_method(run, source, None).samples(source)
    show = progress_line("object")
    if samples.teacher is not None:
        for index in range(len(samples)):
            samples.draw(index, np.random.default_rng(0))
            if (index + 1) % 500 == 0:
                show(index + 1, len(samples), variant)


def step_seconds(config: GuidanceBenchmark, variant: str) -> float:
    """Median seconds of a training step, with the draws."""
    run = settings(config, variant, 0)
    recipe = get_recipe("i2p_mae")
    source = recipe.method_class.source.find(run.data)
    method = recipe.build_method(run, source, torch.Generator().manual_seed(0))
    samples, times = method.samples(source), []
    optimizer = torch.optim.AdamW(method.network.parameters(), lr=1e-4)
    for step in range(_TIMED_STEPS):
        start = time.perf_counter()
        drawn = [samples.draw(step * 32 + n, np.random.default_rng([step, n])) for n in range(32)]
        method(method.collate(drawn)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def judge(network: Any, config: GuidanceBenchmark) -> dict[str, float]:
    """Pose -> accuracy of the SVM, the mean over five splits."""
    source = ObjectClouds.find(config.data)
    labels = np.array([source.category(index) for index in range(len(source))])
    splits = object_splits(labels, 5, 10, 0, source.categories)
    posed = PosedObjects(source, network.points_read)
    clouds = (((index, pose), posed.clouds(index, pose)) for index in range(len(source)) for pose in POSES)
    found = mean_features(clouds, {"network": pooled_features(network, config.pooling)})["network"]
    return {
        pose: float(svm_accuracy(np.stack([found[index, pose] for index in range(len(source))]), labels, splits).mean())
        for pose in POSES
    }


def trained(config: GuidanceBenchmark, job: tuple[str, int, int]) -> dict[str, float]:
    """Figures of one run; of no steps, those of the network as it was drawn."""
    variant, seed, steps = job
    torch.set_num_threads(1)
    if not steps:
        network = create_model("i2p_mae_tiny", generator=torch.Generator().manual_seed(seed)).eval()
        return judge(network, config)
    with tempfile.TemporaryDirectory() as folder:
        run = settings(config, variant, seed)
        train = replace(run.train, steps=steps, warmup_steps=max(1, steps // 20), usual_warmup=None)
        start = time.perf_counter()
        result, _ = pretrain("i2p_mae", replace(run, train=train, out=Path(folder) / "run"), no_log)
        seconds = time.perf_counter() - start
        return judge(create_model(checkpoint=result.checkpoint).eval(), config) | {"seconds": seconds}


def run(config: GuidanceBenchmark) -> list[dict[str, Any]]:
    """Rows of the table, a variant each."""
    one_thread()
    make_objects(config.objects, 0, print)
    steps = {_UNTRAINED: 0}
    for variant in config.variants:
        warm(config, variant)
    for variant in config.variants:
        steps[variant] = round(60 * config.minutes / step_seconds(config, variant))
    jobs = [(variant, seed, count) for seed in range(config.seeds) for variant, count in steps.items()]
    figures = []
    for job, found in zip(jobs, side_by_side(partial(trained, config), jobs, config.processes)):
        figures.append(found)
        told = ", ".join(f"{pose} {100 * found[pose]:.1f} %" for pose in POSES)
        print(f"{job[0]}, seed {job[1]}, {job[2]} steps: {told}", flush=True)
    rows = []
    for variant, count in steps.items():
        own = [found for job, found in zip(jobs, figures) if job[0] == variant]
        columns = {"steps": str(count)}
        for pose in POSES:
            values = [100 * found[pose] for found in own]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            columns[pose] = f"{statistics.mean(values):.1f}{spread} %"
        seconds = statistics.median(found.get("seconds", 1e-9) for found in own)
        case = f"{config.minutes:g} minutes each, {config.seeds} seeds"
        rows.append(
            {"case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None}
            | {"columns": columns}
        )
    return rows
