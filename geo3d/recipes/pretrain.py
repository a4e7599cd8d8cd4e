"""Pre-training from a config to a report: run folder, data, loop, and what was learnt."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geo3d.config import load_config, save_config, to_plain
from geo3d.datasets.files import make_folder
from geo3d.errors import InputError
from geo3d.progress import Log
from geo3d.recipes.init import find_initial_weights, tell_licence
from geo3d.recipes.recipe import Recipe, Run
from geo3d.recipes.registry import get_recipe
from geo3d.train.launch import first_process, launch
from geo3d.train.measuring import Measuring
from geo3d.train.order import StepPlan
from geo3d.train.result import RunResult
from geo3d.train.sharding import gathered
from geo3d.train.trainer import Trainer
from geo3d.writing import write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RUNS = Path("runs")
#: Name of the config in the folder of a run.
CONFIG = "config.yaml"
_BEGINNING = "beginning.json"


def pretrain(name: str, run: Run, log: Log = print) -> tuple[RunResult, dict[str, Any] | None]:
    """Pre-train a method as a config says and write everything into its run folder.

    The folder holds ``config.yaml`` (replays the run), ``beginning.json`` (figures before training, and what was taken
    of ``Run.init``), ``checkpoints``, ``metrics.jsonl``, ``loss.png``, ``pictures`` and, at the end, ``report.json``;
    methods add what they made of the data.

    Args:
        name: one of :func:`geo3d.recipes.list_recipes`.
        run: the recipe's config.
        log: takes lines for people, in the first process.

    Returns:
        What the trainer did, and the figures of the report; None for a run that a signal interrupted.

    Raises:
        InputError: data, config or checkpoints are not usable; says what to do.
    """
    recipe = get_recipe(name)
    planned = recipe.check(run)
    run = run.resolved()
    fabric = launch(run.train)
    if not fabric.is_global_zero:
        log = _silent

    made: list[Path] = []

    def start() -> tuple[Path, bool]:
        folder = run.out or numbered_folder(RUNS, name)
        made.extend([folder] if not folder.exists() else [])
        fresh = not any((folder / "checkpoints").glob("step_*"))
        if not fresh:
            _check_same_data(run, folder)
        elif run.init is not None:
            find_initial_weights(run.init, run.init_part, planned)  # a file that does not fit is told before the work
        make_folder(folder)
        recipe.prepare(run, folder, log, fresh)
        if fresh:
            save_config(replace(run, out=None), folder / CONFIG)
        return folder, fresh

    try:
        folder, fresh = first_process(fabric, start)
        task = recipe(run, folder, log)
        plan = StepPlan(len(task.samples), run.train.batch_size, run.train.accumulate, fabric.world_size)
        run.train.make_schedule(plan.steps_per_epoch, plan.effective_batch)  # tells of a warm-up that is too long
    except InputError:
        for folder in made:
            _remove_bare(folder)
        raise
    beginning = _begin(task, fresh, fabric)
    train = replace(run.train, strict=True) if run.strict else run.train
    measuring = None
    if run.measure_every is not None:
        measuring = Measuring(task.measure, run.measure_every, task.best, task.higher_is_better)
    trainer = Trainer(task.method, task.samples, train, folder, to_plain(run) | beginning.init, fabric, measuring)
    result = trainer.fit()
    if fabric.is_global_zero:
        save_config(replace(run, out=None), folder / CONFIG)  # a run that is continued may be given other bounds
    if result.stopped_by == "signal":
        return result, None
    after = result.measured or task.measure()
    with gathered(task.method):
        figures, text = task.report(beginning.before, after)
    figures |= beginning.init
    if fabric.is_global_zero:
        write_text(folder / "report.json", json.dumps(figures, indent=2) + "\n")
        pictures = sorted((folder / "pictures").glob("step_*.png"))
        picture = f"\npicture: {pictures[-1]}" if pictures else ""
        log(f"{text}\ncheckpoint: {result.checkpoint}\nloss curve: {folder / 'loss.png'}{picture}")
    return result, figures


class _Beginning(NamedTuple):
    """How a run began: figures before training, and ``{"initial_weights": ...}`` where it took weights of a file."""

    before: dict[str, float]
    init: dict[str, Any]


def _begin(task: Recipe, fresh: bool, fabric: Fabric) -> _Beginning:
    """Give the method of a new run its initial weights, and measure it; of a run that is continued, look it up.

    Every process must call it.
    """
    run, path = task.config, task.folder / _BEGINNING
    if not fresh:
        stored = first_process(fabric, lambda: _stored_beginning(path, task) if path.is_file() else None)
        if stored is not None:
            tell_licence(task.method, stored.init.get("initial_weights", {}).get("licence", ""))
            task.method.to(fabric.device)
            return stored
        if run.init is not None:
            raise InputError(f"{path} is missing, which says how the run began; put it back, or begin another run")
    init: dict[str, Any] = {}
    if run.init is not None:
        weights = find_initial_weights(run.init, run.init_part, task.method)
        weights.load_into(task.method)
        task.log(str(weights))
        init = {"initial_weights": weights.summary()}
    task.method.to(fabric.device)
    beginning = _Beginning(task.measure(), init)
    if fabric.is_global_zero:
        write_text(path, json.dumps(beginning._asdict(), indent=2) + "\n")
    return beginning


def _remove_bare(folder: Path) -> None:
    """Remove the folder of a run that did not begin, unless something was made in it that is of use."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {CONFIG}:
        shutil.rmtree(folder)


def _stored_beginning(path: Path, task: Recipe) -> _Beginning:
    """How a run began, from its folder.

    Raises:
        InputError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, init = stored["before"], stored["init"]
        if not all(isinstance(value, int | float) for value in before.values()) or task.best not in before:
            raise ValueError(f"figures, {task.best} among them, are expected before training")
        licence = init.get("initial_weights", {}).get("licence", "")
        if not isinstance(licence, str):
            raise ValueError("the licence should be text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: does not say how the run began ({error}); begin another run") from error
    return _Beginning(before, init)


def numbered_folder(parent: Path, stem: str) -> Path:
    """``parent/stem-001``, or the number after the highest that exists."""
    taken = [re.fullmatch(rf"{re.escape(stem)}-(\d+)", path.name) for path in parent.glob(f"{stem}-*")]
    return parent / f"{stem}-{max((int(m[1]) for m in taken if m), default=0) + 1:03d}"


def _check_same_data(run: Run, folder: Path) -> None:
    """Raise :class:`InputError` naming what differs from the run whose checkpoints the folder holds.

    The trainer compares what concerns itself and the method.
    """
    if not (folder / CONFIG).is_file():
        return
    stored = to_plain(load_config(type(run), folder / CONFIG))
    names = [name for name in stored if name not in ("out", "train", "strict", "method", "measure_every")]
    now = to_plain(run)
    changes = [f"{name} ({stored[name]} -> {now[name]})" for name in names if stored[name] != now[name]]
    if changes:
        raise InputError(
            f"{folder} holds a run on other data or with another beginning: {', '.join(changes)}; set them back to "
            "continue it, or choose another run folder"
        )


def _silent(line: str) -> None:
    """Log nothing: only the first process talks."""
