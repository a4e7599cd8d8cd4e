"""The probes by name, and running one."""

from __future__ import annotations

import json

from geo3d.probe.probe import Probe, ProbeConfig, Score, table
from geo3d.progress import Log
from geo3d.registry import Registry
from geo3d.writing import prepare_place, write_text

PROBES = Registry("probe", Probe)
register_probe, list_probes, get_probe = PROBES.register, PROBES.names, PROBES.get


def run_probe(name: str, config: ProbeConfig, log: Log = print) -> dict[str, Score]:
    """Compare a checkpoint with fresh weights and inputs; log a table, write the figures to ``config.out``, and
    draw them.

    Args:
        name: one of :func:`list_probes`.
        config: the probe's.
        log: takes lines for people.

    Returns:
        The name of each representation, and its figures.

    Raises:
        InputError: checkpoint or data cannot be used; says what to do.
    """
    kind = get_probe(name)
    if config.out is not None:
        prepare_place(config.out)
    probe = kind(config, log)
    scores = probe.measure(probe.representations())
    if config.out is not None:
        figures = {representation: score.as_dict() for representation, score in scores.items()}
        write_text(config.out, json.dumps(figures, indent=2) + "\n")
    log(f"{table({representation: score.cells() for representation, score in scores.items()})}\n{probe.note(scores)}")
    if probe.picture is not None:
        probe.draw(scores, probe.picture)
        log(f"picture: {probe.picture}")
    return scores
