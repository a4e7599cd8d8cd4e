"""Probes: what a representation is worth, measured by simple read-outs of frozen features, by name."""

from geo3d.probe import linear_probe
from geo3d.probe.probe import Probe, ProbeConfig, ProbeTask, Score
from geo3d.probe.registry import get_probe, list_probes, register_probe

register_probe("linear", linear_probe.PROBE)

__all__ = ["Probe", "ProbeConfig", "ProbeTask", "Score", "get_probe", "list_probes", "register_probe"]
