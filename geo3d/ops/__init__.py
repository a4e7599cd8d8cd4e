"""Operators: one file each, ``geo3d::name`` in torch's dispatcher, with a plain-PyTorch reference of the same name."""

from geo3d.ops.chamfer import chamfer_distance, chamfer_loss
from geo3d.ops.farthest_point_sample import farthest_point_sample
from geo3d.ops.interpolate import interpolate, inverse_distance_weights
from geo3d.ops.kernel_map import KernelMap, build_kernel_map, kernel_map, kernel_offsets, transpose_kernel_map
from geo3d.ops.kernel_support import kernel_support
from geo3d.ops.knn import knn
from geo3d.ops.radiance_step import radiance_step
from geo3d.ops.registry import explain, list_operators, prefer_backend
from geo3d.ops.render_rays import grid_occupancy, padded_grid, radiance_gradient, render_rays
from geo3d.ops.rope_2d import rope_2d
from geo3d.ops.sparse_conv import sparse_conv
from geo3d.ops.voxel_attention import voxel_attention
from geo3d.ops.voxelize import voxel_mean, voxelize
from geo3d.ops.window_partition import window_partition

__all__ = [
    "KernelMap",
    "build_kernel_map",
    "chamfer_distance",
    "chamfer_loss",
    "explain",
    "farthest_point_sample",
    "grid_occupancy",
    "interpolate",
    "inverse_distance_weights",
    "kernel_map",
    "kernel_offsets",
    "kernel_support",
    "knn",
    "list_operators",
    "padded_grid",
    "prefer_backend",
    "radiance_gradient",
    "radiance_step",
    "render_rays",
    "rope_2d",
    "sparse_conv",
    "transpose_kernel_map",
    "voxel_attention",
    "voxel_mean",
    "voxelize",
    "window_partition",
]
