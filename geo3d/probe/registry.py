"""The probes by name."""

from __future__ import annotations

from geo3d.errors import InputError, did_you_mean
from geo3d.probe.probe import Probe

_REGISTRY: dict[str, Probe] = {}


def register_probe(name: str, probe: Probe) -> Probe:
    """Make a probe known under ``name``; a name is registered once."""
    if name in _REGISTRY:
        raise ValueError(f"probe {name!r} is registered twice")
    _REGISTRY[name] = probe
    return probe


def list_probes() -> list[str]:
    """Names of all probes, sorted."""
    return sorted(_REGISTRY)


def get_probe(name: str) -> Probe:
    """The probe of ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in _REGISTRY:
        known = list_probes()
        raise InputError(f"unknown probe {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    return _REGISTRY[name]
