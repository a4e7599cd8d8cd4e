"""The probes by name, and running one."""

from __future__ import annotations

import json

from geo3d.datasets.files import make_folder
from geo3d.probe.probe import Probe, ProbeConfig, Score, table
from geo3d.progress import Log
from geo3d.registry import Registry

_REGISTRY = Registry("probe", Probe)


def register_probe(name: str, probe: type[Probe]) -> type[Probe]:
    """Make a probe known under ``name``; a name is registered once."""
    return _REGISTRY.register(name, probe)


def list_probes() -> list[str]:
    """Names of all probes, sorted; those of other packages are not imported for it."""
    return _REGISTRY.names()


def get_probe(name: str) -> type[Probe]:
    """The probe of ``name``; that of another package is imported when it is first asked for.

    Raises:
        InputError: there is none, or the package that names it does not hold one.
    """
    return _REGISTRY.get(name)


def run_probe(name: str, config: ProbeConfig, log: Log = print) -> dict[str, Score]:
    """Compare a checkpoint with fresh weights and inputs; log a table, and write the figures to ``config.out``.

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
        make_folder(config.out.parent)
    probe = kind(config, log)
    scores = probe.measure(probe.representations())
    if config.out is not None:
        figures = {representation: score.as_dict() for representation, score in scores.items()}
        config.out.write_text(json.dumps(figures, indent=2) + "\n")
    log(f"{table({representation: score.cells() for representation, score in scores.items()})}\n{probe.note(scores)}")
    return scores
