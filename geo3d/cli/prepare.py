"""`geo3d prepare`: make synthetic scenes and pairs, find view pairs, make radiance grids."""

from __future__ import annotations

from dataclasses import dataclass

from geo3d.cli import command_line
from geo3d.progress import progress_line

COMMANDS = {
    "synthetic": "make furnished rooms and objects, written as ScanNet and MVImgNet write theirs",
    "stereo": "make rectified pairs with disparity, or pairs with optical flow, in furnished rooms",
    "pairs": "find view pairs in folders of scenes and write their index",
    "grids": "make radiance grids of scenes with posed photos",
}


@dataclass
class _Route:
    route: str = "radiance_field"


def main(args: list[str], program: str) -> None:
    """Read the command line and do what it names."""
    command, rest = command_line.choose(args, COMMANDS, program)
    program = f"{program} {command}"
    if command == "synthetic":
        from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

        config = command_line.parse(SyntheticConfig, rest, program)
        print(write_synthetic(config, progress_line("scene")).report())
    elif command == "stereo":
        from geo3d.datasets.synthetic.stereo_flow import StereoFlowConfig, write_stereo_flow

        config = command_line.parse(StereoFlowConfig, rest, program)
        print(write_stereo_flow(config, progress_line("room")).report())
    elif command == "grids":
        _make_grids(rest, program)
    else:
        from geo3d.datasets.pair_mining import PairsConfig, mine_pairs

        config = command_line.parse(PairsConfig, rest, program)
        print(mine_pairs(config, progress_line("scene")))


def _make_grids(args: list[str], program: str) -> None:
    """`geo3d prepare grids`, whose options are those of the route beside its own."""
    from geo3d.reconstruction.make_grids import GridsConfig, prepare_grids
    from geo3d.reconstruction.routes import get_route

    route = get_route(command_line.parse_part(_Route, args, program).route)
    options, config = command_line.parse_two(route.config_type(), GridsConfig, args, program)
    print(prepare_grids(config, options, print, progress_line("scene")).report())
