"""Pre-train an encoder: `python tools/pretrain.py` runs CroCo on synthetic rooms; `--help` lists the methods."""

from __future__ import annotations

from pathlib import Path

from geo3d.cli import command_line

PROGRAM = "pretrain.py"


def main(args: list[str]) -> None:
    """Read the command line and pre-train."""
    from geo3d.config import load_config
    from geo3d.recipes import get_recipe, list_recipes, pretrain

    name, rest = command_line.choose(args, {k: get_recipe(k).summary for k in list_recipes()}, PROGRAM, default="croco")
    recipe = get_recipe(name)
    program = f"{PROGRAM} {name}"
    presets = ", ".join(recipe.presets)
    preset, rest = command_line.take_option(rest, "--preset", program)
    config, rest = command_line.take_option(rest, "--config", program)
    if preset is not None and config is not None:
        command_line.fail(f"{program}: give --preset or --config, not both")
    if {"-h", "--help"} & set(rest):
        print(
            f"--preset NAME   start from a preset: {presets} (default: {next(iter(recipe.presets))})\n"
            "--config FILE   start from the config.yaml of a run; options below override either\n"
        )
    if config is not None:
        default = load_config(recipe.run, Path(config))
    else:
        default = recipe.preset(preset or next(iter(recipe.presets)))
    pretrain(name, command_line.parse(recipe.run, rest, program, default))


if __name__ == "__main__":
    command_line.run(main)
