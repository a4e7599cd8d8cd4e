"""The `geo3d` command: names its sub-commands without importing them, and hands over to the one that is named."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NoReturn

import geo3d
from geo3d.cli import command_line

#: name -> one line of help; each is a module of this package with a function ``main(args, program)``
COMMANDS = {
    "pretrain": "pre-train an encoder",
    "prepare": "make synthetic scenes, find view pairs, make radiance grids",
    "probe": "measure what a checkpoint's frozen features tell",
    "encode": "write features of scans, photos or grids to a file",
    "export": "write an encoder as a program: torch.export, AOTInductor, ONNX",
    "finetune": "train for a task from pre-trained weights",
    "predict": "what a trained network says of files: classes, disparity, flow, pointmaps, ...",
    "visualize": "pictures of scenes, features, attention, reconstructions, pairs, matches, grids",
    "models": "list the models, or describe one",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `geo3d` and end the program, as :func:`geo3d.cli.command_line.run` says.

    Args:
        args: what follows the command's name; those of the process where they are not given.
    """
    command_line.run(_run, "geo3d", args)


def _run(args: list[str], program: str) -> None:
    if args[:1] == ["--version"]:
        print(f"geo3d {geo3d.__version__}")
        return
    name, rest = command_line.choose(args, COMMANDS, program)
    importlib.import_module(f"geo3d.cli.{name}").main(rest, f"{program} {name}")
