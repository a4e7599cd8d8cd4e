"""`geo3d models`: the names of all models, or what is known of one."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

import geo3d
from geo3d.cli import command_line


@dataclass(frozen=True)
class Models:
    """List the models, or describe one."""

    name: tyro.conf.Positional[str | None] = None
    """Model to describe, or a shell wildcard of names to list, such as 'sparse_*'. None: all are listed."""


def main(args: list[str], program: str) -> None:
    """Read the command line and print."""
    name = command_line.parse(Models, args, program).name
    if name is None or set("*?[") & set(name):
        print("\n".join(geo3d.list_models(name or "*")))
    else:
        print(geo3d.model_info(name))
