"""What a representation is worth: `python tools/probe.py linear --checkpoint runs/spark3d-001`."""

from __future__ import annotations

from geo3d.cli import command_line

PROGRAM = "probe.py"
COMMANDS = {"linear": "the class of every voxel, read off frozen features by a linear map"}


def main(args: list[str]) -> None:
    """Read the command line, probe, print what was found."""
    from geo3d.probe.linear_probe import LinearProbe, linear_probe

    name, rest = command_line.choose(args, COMMANDS, PROGRAM)
    print(linear_probe(command_line.parse(LinearProbe, rest, f"{PROGRAM} {name}")))


if __name__ == "__main__":
    command_line.run(main)
