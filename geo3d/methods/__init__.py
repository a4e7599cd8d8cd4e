"""Pretext tasks: one file a method."""

from geo3d.methods.method import Method, MethodOutput, SampleSet

__all__ = ["Method", "MethodOutput", "SampleSet"]
