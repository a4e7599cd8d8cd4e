"""Reconstruction: what the network of a run makes of a sample of which it sees a part; each method's own picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from geo3d.config import load_config
from geo3d.errors import InputError
from geo3d.methods.method import DrawsPictures
from geo3d.methods.spark3d import SparK3D
from geo3d.progress import Log
from geo3d.random import Stream, stream_seed
from geo3d.recipes import get_recipe, list_recipes
from geo3d.recipes.pretrain import CONFIG
from geo3d.recipes.recipe import Recipe
from geo3d.train.checkpoint import load_checkpoint
from geo3d.train.sharding import load_model_state
from geo3d.visualize.options import DrawingOptions
from geo3d.visualize.places import shown_points
from geo3d.viz.picture import ImagePanel, Picture3D, Space

_STEPS = "step_*[0-9]"
_SAMPLES = 4  # that are shown at a time, where the method shows several


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(DrawingOptions):
    """Show what the network of a run fills in: its method's own picture, of samples that were held out."""

    run: Path
    """Folder of a run of `geo3d pretrain`, or one of its checkpoints."""
    data: tuple[Path, ...] = ()
    """Folders of scenes. None: the run's own."""
    sample: int = 0
    """Number of the first sample that is shown, of those that are measured (count from 0)."""


def draw(config: ReconstructionOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: no run, its data are no longer there, or its method draws no pictures.
    """
    folder, checkpoint = find_checkpoint(config.run)
    recipe, step = open_run(folder, checkpoint, config.data)
    method = recipe.method
    if not isinstance(method, DrawsPictures):
        raise InputError(f"{config.run}: the method {method.name} draws no pictures")
    generator = torch.Generator().manual_seed(stream_seed(recipe.seed, Stream.MEASURED_PASSES))
    with method.measuring():
        batch = recipe.pictured(config.sample, _SAMPLES)
        output = method(batch, generator)
    losses = ", ".join(f"{name} {float(value):.3g}" for name, value in output.losses.items())
    samples = f"samples of {', '.join(map(str, config.data))}" if config.data else f"{recipe.measured_on} samples"
    note = f"{config.run}, step {step}; {samples}; losses of this batch: {losses}"
    title = f"reconstruction by {method.name}"
    if isinstance(method, SparK3D):
        clouds = method.clouds(batch, output)
        spaces = []
        for name, cloud in clouds.items():
            cloud.xyz = cloud.xyz.cpu() * method.config.voxel_size
            cloud = cloud.scene(0) if cloud.batch_size == 1 else replace(cloud, offsets=None)
            spaces.append(Space(name, (shown_points(cloud, len(cloud)),)))
        return Picture3D(title, tuple(spaces), notes=(note,))
    panel = ImagePanel("", np.asarray(method.picture(batch, output)))
    return Picture3D(title, images=(panel,), notes=(note,), columns=1)


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """The folder of a run, and one of its checkpoints: the one named, or the newest.

    Raises:
        InputError: it is no run, or has no checkpoint.
    """
    if not run.is_dir():
        raise InputError(f"{run}: is no folder of a run; geo3d pretrain makes one")
    if (run / "model.safetensors").is_file():
        return run.absolute().parent.parent, run
    steps = sorted((run / "checkpoints").glob(_STEPS))
    if not (run / CONFIG).is_file() or not steps:
        raise InputError(f"{run}: is no run of geo3d pretrain: it lacks {CONFIG} or checkpoints")
    return run, steps[-1]


def open_run(
    folder: Path, checkpoint: Path, data: tuple[Path, ...] = (), log: Log = lambda line: None
) -> tuple[Recipe, int]:
    """The recipe of a run with the weights of a checkpoint, the averaged ones where there are any, and its step.

    Raises:
        InputError: its files cannot be read, or its data are no longer there.
    """
    try:
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            head = file.metadata() or {}
        name, step = head["method"], int(head["step"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{checkpoint}: is no checkpoint of a run ({error})") from error
    if name not in list_recipes():
        raise InputError(
            f"{folder}: is a run of {name!r}, which no recipe here is called; known: {', '.join(list_recipes())}"
        )
    kind = get_recipe(name)
    config = load_config(kind.run, folder / CONFIG)
    if data:
        config = replace(config, data=data)
    config = config.resolved()
    if not config.data and not kind.made_data(config).is_dir():
        raise InputError(
            f"{folder}: its synthetic rooms, {kind.made_data(config)}, are not here; start from where it was trained, "
            "or name --data"
        )
    recipe = kind(config, folder, log)
    _, weights, averaged = load_checkpoint(checkpoint)
    try:
        load_model_state(recipe.method, weights if averaged is None else averaged)
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: does not fit its run: {' '.join(str(error).split())[:300]}") from error
    return recipe, step


__all__ = ["ReconstructionOptions", "draw", "find_checkpoint", "open_run"]
