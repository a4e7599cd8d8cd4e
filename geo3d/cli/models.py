"""`geo3d models`: the names of all models, or what is known of one."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import tyro

import geo3d
from geo3d.checkpoints import shipped_info, shipped_names
from geo3d.cli import command_line


@dataclass(frozen=True)
class Models:
    """List the models, or describe one."""

    name: tyro.conf.Positional[str | None] = None
    """Model to describe, or a shell wildcard of names to list, such as 'sparse_*'. None: all are listed."""

    shipped: bool = False
    """List those whose weights come with geo3d alone, and what these are."""


def main(args: list[str], program: str) -> None:
    """Read the command line and print."""
    config = command_line.parse(Models, args, program)
    name = config.name
    if config.shipped:
        names = fnmatch.filter(shipped_names(), name or "*")
        print("\n".join(f"{shipped}: {shipped_info(shipped)}" for shipped in names))
    elif name is None or set("*?[") & set(name):
        print("\n".join(geo3d.list_models(name or "*")))
    else:
        print(geo3d.model_info(name))
