"""Probes: how much a representation tells, measured by simple read-outs of frozen features, by name."""

from geo3d.probe.linear_probe import LinearProbe
from geo3d.probe.probe import Probe, ProbeConfig, Score
from geo3d.probe.registry import get_probe, list_probes, register_probe, run_probe

register_probe("linear", LinearProbe)

__all__ = ["Probe", "ProbeConfig", "Score", "get_probe", "list_probes", "register_probe", "run_probe"]
