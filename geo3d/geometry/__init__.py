"""The nouns every other room speaks in: cameras, views, points, sparse voxels, dense grids: plain dataclasses.

Lengths are metres; colours are float in [0, 1]; cameras follow OpenCV (x right, y down, z forward);
poses are ``world_from_camera``; the world's z is up.
"""

from geo3d.geometry.camera import Camera
from geo3d.geometry.point_cloud import PointCloud
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.geometry.view import View, ViewPair
from geo3d.geometry.volume_grid import VolumeGrid

__all__ = ["Camera", "PointCloud", "SparseVoxels", "View", "ViewPair", "VolumeGrid"]
