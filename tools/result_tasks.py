"""Fine-tuning of every family from pre-trained and from fresh weights, for `tools/results.py`: rows, runs, table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from result_figures import Figure, verdict

#: How a run begins.
STARTS = {"fresh weights": "fresh", "pre-trained": "pretrained"}
#: Side of the pictures of objects, pixels; and how many objects of a class are learnt from.
_SIDE, _LEARNT = 64, 0.5


@dataclass(frozen=True)
class Task:
    """A task that a family is fine-tuned for. Others are added as rows of :data:`TASKS`.

    Args:
        family: whose pre-trained run is started from, one of ``FAMILIES``.
        recipe: of `geo3d finetune`, at its first preset.
        data: what it reads: ``rooms``, ``objects`` or ``grids`` that probes see too, of which half are learnt from;
            ``images`` made of these objects; or nothing, for what the recipe makes itself.
        steps: of the training.
        figures: of its report; the first is the one that is compared.
        changes: to the preset: names with dots, such as ``method.labels``.
    """

    family: str
    recipe: str
    data: str
    steps: int
    figures: tuple[Figure, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its files."""
        few = self.changes.get("method.labels")
        return f"{self.recipe}{'' if few is None else f'-{few:g}'}"


_SEGMENT = (Figure("mean IoU", ("after", "miou")), Figure("accuracy", ("after", "accuracy")))
_CLASSIFY = (Figure("accuracy", ("after", "accuracy")), Figure("mean over classes", ("after", "class_accuracy")))
_DETECT = (Figure("AP25", ("after", "ap25")), Figure("AP50", ("after", "ap50")))
_DEPTH = (
    Figure("within a factor of 1.25", ("after", "delta1")),
    Figure("absolute relative error", ("after", "abs_rel"), percent=False, higher=False),
)
TASKS = (
    Task("croco", "depth", "rooms", 400, _DEPTH),
    Task("spark3d", "segment", "rooms", 300, _SEGMENT),
    Task("spark3d", "segment", "rooms", 300, _SEGMENT, {"method.labels": 2}),
    Task("swin3d", "segment", "rooms", 200, _SEGMENT),
    Task("i2p_mae", "classify", "objects", 200, _CLASSIFY),
    Task("spark", "classify", "images", 600, _CLASSIFY),
    Task("nerf_mae", "segment_grids", "grids", 40, _SEGMENT),
)


def tasks_of(family: str) -> list[Task]:
    """The tasks of a family."""
    return [task for task in TASKS if task.family == family]


def train(task: Task, start: str, folder: Path, data: Path | None, seed: int, quick: bool) -> dict[str, Any]:
    """Fine-tune from one of :data:`STARTS`; returns the report.

    Args:
        task: what for.
        start: ``fresh`` or ``pretrained``.
        folder: of the family and seed, in which ``run`` is the pre-training.
        data: that is learnt from and measured.
        seed: of weights and order.
        quick: two steps.
    """
    from geo3d.recipes import get_recipe, pretrain

    recipe = get_recipe(task.recipe)
    run = recipe.preset(next(iter(recipe.presets)))
    run.out, run.init = folder / f"{task.name}-{start}", folder / "run"
    if data is not None:
        run.data = (data,)
        run.held_out = 0.5 if task.data != "images" else run.held_out
    for name, value in task.changes.items():
        *parents, last = name.split(".")
        run = _changed(run, parents, last, value)
    if hasattr(run, "settled"):  # the network of the pre-training, also where its weights are not taken
        run.method = run.settled()
    if start == "fresh":
        run.init = None
    train = run.train
    train.steps, train.seed, train.workers, train.accelerator = 2 if quick else task.steps, seed, 0, "cpu"
    if run.out.is_dir():
        shutil.rmtree(run.out)
    report = pretrain(task.recipe, run, log=lambda line: None)[1]
    shutil.rmtree(run.out / "checkpoints")  # which nobody needs again
    return report


def _changed(config: Any, parents: list[str], name: str, value: Any) -> Any:
    if not parents:
        return replace(config, **{name: value})
    inner = _changed(getattr(config, parents[0]), parents[1:], name, value)
    return replace(config, **{parents[0]: inner})


def make_images(objects: Path, folder: Path) -> None:
    """Depth pictures of objects, a folder for each class, in parts to learn from and to measure.

    Each object is seen from three sides, turned at random about the vertical; all of its pictures are of one part.
    """
    import torch
    from PIL import Image

    from geo3d.random import Stream, stream_generator
    from geo3d.samples.labelled_objects import LabelledObjects
    from geo3d.samples.objects import to_unit_sphere

    source = LabelledObjects.find([objects])
    order = stream_generator(0, Stream.HOLD_OUT).permutation(len(source))
    seen: dict[int, int] = {}
    total = np.bincount(source.item_classes)
    for index in order.tolist():
        category = source.category(index)
        seen[category] = seen.get(category, 0) + 1
        part = "train" if seen[category] <= _LEARNT * total[category] else "test"
        rng = stream_generator(1, Stream.HOLD_OUT, index)
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        xyz = to_unit_sphere(source.cloud(index, rng, 4096).xyz.numpy() @ turn.T)
        pictures = _depth_pictures(torch.from_numpy(xyz))
        place = folder / part / source.classes[category].replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pictures):
            Image.fromarray(image).convert("RGB").save(place / f"{index}_{number}.png")


def _depth_pictures(xyz: Any) -> np.ndarray:
    """(3, S, S) uint8 of a cloud (N, 3) in the unit sphere along three axes: the nearer the brighter, nothing black."""
    import torch
    import torch.nn.functional as F

    from geo3d.nn.depth_views import VIEW_AXES, depth_grid

    offsets = torch.tensor([0, len(xyz)])
    pixels = depth_grid(xyz, offsets, _SIDE).pixels(xyz, offsets)
    canvas = torch.zeros(3, _SIDE * _SIDE)
    for view, (_, _, axis) in enumerate(VIEW_AXES):
        place = pixels[view, :, 0] * _SIDE + pixels[view, :, 1]
        canvas[view].scatter_reduce_(0, place, 0.6 + 0.4 * xyz[:, axis], "amax")
    closed = F.max_pool2d(canvas.view(3, 1, _SIDE, _SIDE), 3, 1, 1)[:, 0]
    return (255 * closed).clamp(0, 255).byte().numpy()


def table(found: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """What fine-tuning came to, in markdown; nothing where none was done.

    Args:
        found: family -> seed -> ``tasks`` -> task -> start -> ``result``, a report.
        titles: of the families.
    """
    lines = []
    for task in TASKS:
        done = [seed.get("tasks", {}) for seed in found.get(task.family, {}).values()]
        seeds = [tasks[task.name] for tasks in done if task.name in tasks]
        if not seeds:
            continue
        for number, figure in enumerate(task.figures):
            rows = {row: [figure.value(seed[row]["result"]) for seed in seeds] for row in STARTS}
            wins, gain = verdict(rows, figure)
            few = {"method.labels": "labelled items"}
            said = ", ".join(f"{value:g} {few.get(name, name)}" for name, value in task.changes.items())
            what = f"{task.recipe}{f' ({said})' if said else ''}, {task.steps} steps"
            names = (titles[task.family], what) if number == 0 else ("", "")
            cells = [*names, figure.title, *(figure.text(values) for values in rows.values()), gain, wins]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "",
        "## Does it help where all of the network is trained on labels?",
        "",
        "`geo3d finetune TASK --init RUN` against the same network from random weights: equal data, steps and order,",
        "at each task's preset `tiny`. Half of the rooms, objects or grids that probes see are learnt from, half are",
        "measured on; images are depth pictures of the objects. The last column says of how many seeds figures are.",
        "",
        "| family | task | figure | fresh weights | pre-trained | gain | better in |",
        "|---" * 7 + "|",
        *lines,
    ]
