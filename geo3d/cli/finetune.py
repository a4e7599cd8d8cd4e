"""`geo3d finetune`: train a network for a task, from pre-trained weights, by a recipe."""

from __future__ import annotations

from geo3d.cli.pretrain import train


def main(args: list[str], program: str) -> None:
    """Read the command line and train."""
    train(args, program, "finetune", noun="task")
