"""`geo3d predict`: what a trained network says of files."""

from __future__ import annotations

from geo3d.cli import command_line
from geo3d.predict.tasks import TASKS


def main(args: list[str], program: str) -> None:
    """Read the command line, run the network, say what was found and where it is."""
    name, rest = command_line.choose(args, TASKS, program, noun="task")
    from geo3d.predict.tasks import get_task

    task = get_task(name)
    print(task.predict(command_line.parse(task.options, rest, f"{program} {name}")))
