"""Pre-training from a config to a report: run folder, data, loop, and what was learnt."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from geo3d.config import load_config, save_config, to_plain
from geo3d.datasets.files import make_folder
from geo3d.errors import InputError
from geo3d.progress import Log
from geo3d.recipes.recipe import Run
from geo3d.recipes.registry import get_recipe
from geo3d.train.checkpoint import write_text
from geo3d.train.launch import first_process, launch
from geo3d.train.result import RunResult
from geo3d.train.trainer import Trainer

RUNS = Path("runs")
_CONFIG = "config.yaml"


def pretrain(name: str, run: Run, log: Log = print) -> tuple[RunResult, dict[str, Any] | None]:
    """Pre-train a method as a config says and write everything into its run folder.

    The folder holds ``config.yaml`` (replays the run), ``checkpoints``, ``metrics.jsonl``, ``loss.png``, ``pictures``
    and, at the end, ``report.json``; methods add what they made of the data.

    Args:
        name: one of :func:`geo3d.recipes.list_recipes`.
        run: the recipe's config.
        log: takes lines for people, in the first process.

    Returns:
        What the trainer did, and the figures of the report; None for a run that a signal interrupted.

    Raises:
        InputError: data, config or checkpoints are not usable; says what to do.
    """
    run.check()
    run, recipe = run.resolved(), get_recipe(name)
    fabric = launch(run.train)
    if not fabric.is_global_zero:
        log = _silent

    def start() -> Path:
        folder = make_folder(run.out or numbered_folder(RUNS, name))
        fresh = not any((folder / "checkpoints").glob("step_*"))
        if not fresh:
            _check_same_data(run, folder)
        recipe.prepare(run, folder, log, fresh)
        if fresh:
            save_config(replace(run, out=None), folder / _CONFIG)
        return folder

    folder = first_process(fabric, start)
    task = recipe.task(run, folder, log)
    task.method.to(fabric.device)
    before = task.measure()
    train = replace(run.train, strict=True) if run.strict else run.train
    trainer = Trainer(task.method, task.samples, train, folder, to_plain(run), fabric)
    result = trainer.fit()
    if fabric.is_global_zero:
        save_config(replace(run, out=None), folder / _CONFIG)  # a run that is continued may be given other bounds
    if result.stopped_by == "signal":
        return result, None
    figures, text = task.report(before, task.measure())
    if fabric.is_global_zero:
        write_text(folder / "report.json", json.dumps(figures, indent=2) + "\n")
        pictures = sorted((folder / "pictures").glob("step_*.png"))
        log(f"{text}\ncheckpoint: {result.checkpoint}\nloss curve: {folder / 'loss.png'}\npicture: {pictures[-1]}")
    return result, figures


def numbered_folder(parent: Path, stem: str) -> Path:
    """``parent/stem-001``, or the number after the highest that exists."""
    taken = [re.fullmatch(rf"{re.escape(stem)}-(\d+)", path.name) for path in parent.glob(f"{stem}-*")]
    return parent / f"{stem}-{max((int(m[1]) for m in taken if m), default=0) + 1:03d}"


def _check_same_data(run: Run, folder: Path) -> None:
    """Raise :class:`InputError` naming what differs from the run whose checkpoints the folder holds.

    The trainer compares what concerns itself and the method.
    """
    if not (folder / _CONFIG).is_file():
        return
    stored = to_plain(load_config(type(run), folder / _CONFIG))
    names = [name for name in stored if name not in ("out", "train", "strict", "method")]
    now = to_plain(run)
    changes = [f"{name} ({stored[name]} -> {now[name]})" for name in names if stored[name] != now[name]]
    if changes:
        raise InputError(
            f"{folder} holds a run on other data: {', '.join(changes)}; set them back to continue it, "
            "or choose another run folder"
        )


def _silent(line: str) -> None:
    """Log nothing: only the first process talks."""
