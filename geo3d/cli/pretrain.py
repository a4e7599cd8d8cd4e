"""`geo3d pretrain`: pre-train an encoder by a recipe, from one of its presets or from the config of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from geo3d.cli import command_line
from geo3d.errors import InputError

#: The recipe of a command line that names none.
DEFAULT = "croco"


def main(args: list[str], program: str) -> None:
    """Read the command line and pre-train."""
    train(args, program, "pretrain", DEFAULT)


def train(args: list[str], program: str, purpose: str, default: str | None = None, noun: str = "recipe") -> None:
    """Read the command line and train by a recipe of a purpose.

    Args:
        args, program: as of a command.
        purpose: of the recipes, as :attr:`geo3d.recipes.Recipe.purpose` says it.
        default: the recipe of a command line that names none.
        noun: what the recipes are called in messages.
    """
    from geo3d.recipes import get_recipe, list_recipes, pretrain

    summaries = command_line.summaries(list_recipes(purpose), get_recipe)
    name, rest = command_line.choose(args, summaries, program, default, noun)
    recipe, program = get_recipe(name), f"{program} {name}"
    start = _start(recipe.presets)
    given = command_line.parse_part(start, rest, program)
    if given.preset is not None and given.config is not None:
        raise InputError(f"{program}: give --preset or --config, not both")
    if given.config is not None:
        default = _load(name, recipe.run, given.config, program)
    else:
        default = recipe.preset(given.preset or next(iter(recipe.presets)))
    _, run = command_line.parse_two(start, recipe.run, rest, program, (given, default))
    chosen = {arg.partition("=")[0].replace("_", "-") for arg in rest if arg.startswith("--train.warmup")}
    if chosen:
        run.train.usual_warmup = None
    if chosen == {"--train.warmup-epochs"}:  # in place of a preset's warm-up in steps
        run.train.warmup_steps = None
    pretrain(name, run)


def _load(name: str, kind: type, path: Path, program: str) -> Any:
    """The config of a run of a recipe.

    Raises:
        InputError: it cannot be read, or is of another recipe's run.
    """
    from geo3d.config import load_config
    from geo3d.recipes import get_recipe, list_recipes
    from geo3d.recipes.pretrain import CONFIG

    file = path / CONFIG if path.is_dir() else path
    try:
        return load_config(kind, file)
    except InputError as error:
        if "unknown field" not in str(error):
            raise
        others = []
        for other in list_recipes():
            with contextlib.suppress(InputError):
                load_config(get_recipe(other).run, file)
                others.append(other)
        if not others:
            raise
        command = program.removesuffix(name)
        told = " or ".join(f"`{command}{other} --config {path}`" for other in others)
        raise InputError(f"{path}: is of a run of {' or '.join(others)}, not of {name}; give it to {told}") from error


def _start(presets: Iterable[str]) -> type:
    """Config class of what the other options start from."""
    presets = list(presets)
    choice = f"Start from a preset: {', '.join(presets)}. None: {presets[0]}, where no config is given."
    file = "Start from the config.yaml of a run; options on the command line override it, as they do a preset."
    fields = [
        ("preset", Annotated[str | None, tyro.conf.arg(help=choice)], field(default=None)),
        ("config", Annotated[Path | None, tyro.conf.arg(help=file)], field(default=None)),
    ]
    return make_dataclass("Start", fields, frozen=True)
