"""`geo3d visualize`: pictures of scenes, and of what networks make of them."""

from __future__ import annotations

from pathlib import Path

from geo3d.cli import command_line
from geo3d.visualize.kinds import KINDS


def main(args: list[str], program: str) -> None:
    """Read the command line, make the picture, say where it is and what drew it."""
    name, rest = command_line.choose(args, KINDS, program, noun="kind")
    from geo3d.visualize.kinds import get_kind
    from geo3d.viz.render import render

    kind = get_kind(name)
    config = command_line.parse(kind.options, rest, f"{program} {name}")
    if config.web or config.rerun is not None:
        from geo3d.visualize.viewers import show

        show(config, kind.draw, lambda line: print(line, flush=True))
        return
    picture = kind.draw(config)
    drawn = render(
        picture,
        config.out,
        config.renderer,
        azimuth=config.azimuth,
        elevation=config.elevation,
        close_after=config.close_after,
        default=Path(f"{name}.png"),
    )
    print("\n".join([*picture.notes, drawn.told()]))
