"""Pretext tasks: one file a method."""

from geo3d.methods.method import DrawsPictures, Method, MethodOutput, SampleSet, SourceSamples

__all__ = ["DrawsPictures", "Method", "MethodOutput", "SampleSet", "SourceSamples"]
