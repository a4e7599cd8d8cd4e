"""`geo3d probe`: measure what a checkpoint's frozen features tell, by one of the probes."""

from __future__ import annotations

from geo3d.cli import command_line


def main(args: list[str], program: str) -> None:
    """Read the command line, probe, print what was found."""
    from geo3d.probe import get_probe, list_probes, run_probe

    summaries = command_line.summaries(list_probes(), get_probe)
    name, rest = command_line.choose(args, summaries, program, noun="probe")
    run_probe(name, command_line.parse(get_probe(name).settings, rest, f"{program} {name}"))
