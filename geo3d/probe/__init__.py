"""Probes: how much a representation tells, measured by simple read-outs of frozen features, by name."""

from geo3d.probe.depth import DepthProbe
from geo3d.probe.linear_probe import LinearProbe
from geo3d.probe.match import MatchProbe
from geo3d.probe.probe import Probe, ProbeConfig, Score
from geo3d.probe.registry import get_probe, list_probes, register_probe, run_probe
from geo3d.probe.retrieve import RetrieveProbe
from geo3d.probe.robustness import RobustnessProbe
from geo3d.probe.segment import SegmentProbe
from geo3d.probe.svm import SvmProbe

register_probe("linear", LinearProbe)
register_probe("segment", SegmentProbe)
register_probe("match", MatchProbe)
register_probe("depth", DepthProbe)
register_probe("retrieve", RetrieveProbe)
register_probe("svm", SvmProbe)
register_probe("robustness", RobustnessProbe)

__all__ = ["Probe", "ProbeConfig", "Score", "get_probe", "list_probes", "register_probe", "run_probe"]
