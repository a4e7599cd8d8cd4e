"""`geo3d pretrain`: pre-train an encoder by a recipe, from one of its presets or from the config of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro

from geo3d.cli import command_line
from geo3d.errors import InputError

#: The recipe of a command line that names none.
DEFAULT = "croco"


def main(args: list[str], program: str) -> None:
    """Read the command line and pre-train."""
    from geo3d.config import load_config
    from geo3d.recipes import get_recipe, list_recipes, pretrain

    summaries = command_line.summaries(list_recipes(), get_recipe)
    name, rest = command_line.choose(args, summaries, program, DEFAULT, "recipe")
    recipe, program = get_recipe(name), f"{program} {name}"
    start = _start(recipe.presets)
    given = command_line.parse_part(start, rest, program)
    if given.preset is not None and given.config is not None:
        raise InputError(f"{program}: give --preset or --config, not both")
    if given.config is not None:
        default = load_config(recipe.run, given.config)
    else:
        default = recipe.preset(given.preset or next(iter(recipe.presets)))
    _, run = command_line.parse_two(start, recipe.run, rest, program, (given, default))
    pretrain(name, run)


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
