"""Operators: one file each, ``geo3d::name`` in torch's dispatcher, with a plain-PyTorch reference of the same name."""

from geo3d.ops.registry import explain, list_operators
from geo3d.ops.rope_2d import rope_2d
from geo3d.ops.voxel_attention import voxel_attention

__all__ = ["explain", "list_operators", "rope_2d", "voxel_attention"]
