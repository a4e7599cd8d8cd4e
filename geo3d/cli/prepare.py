"""`geo3d prepare`: make synthetic scenes, find view pairs."""

from __future__ import annotations

from geo3d.cli import command_line
from geo3d.progress import progress_line

COMMANDS = {
    "synthetic": "make furnished rooms and objects, written as ScanNet and MVImgNet write theirs",
    "pairs": "find view pairs in folders of scenes and write their index",
}


def main(args: list[str], program: str) -> None:
    """Read the command line and do what it names."""
    command, rest = command_line.choose(args, COMMANDS, program)
    program = f"{program} {command}"
    if command == "synthetic":
        from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

        config = command_line.parse(SyntheticConfig, rest, program)
        print(write_synthetic(config, progress_line("scene")).report())
    else:
        from geo3d.datasets.pair_mining import PairsConfig, mine_pairs

        config = command_line.parse(PairsConfig, rest, program)
        print(mine_pairs(config, progress_line("scene")))
