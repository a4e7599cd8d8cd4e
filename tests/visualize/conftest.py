"""A small room with views, and networks with fresh weights, that pictures are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import geo3d
from geo3d.checkpoints import save_model
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.viz.picture import Lines, Marker, Picture3D, Points, Space, Surface


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """One synthetic room with four small views, as ScanNet writes them."""
    root = tmp_path_factory.mktemp("rooms")
    small = {"views": 4, "width": 96, "height": 72, "mesh_edge": 0.25}
    write_synthetic(SyntheticConfig(out=root, scenes=1, objects=0, **small))
    return root / "scannet"


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, Path]:
    """Name of a model -> file of fresh weights."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    names = ("sparse_resnet_tiny", "swin3d_tiny", "croco_tiny", "i2p_mae_tiny", "resnet_tiny", "nerf_mae_tiny")
    for name in (*names, "multiview_tiny"):
        found[name] = folder / f"{name}.safetensors"
        save_model(geo3d.create_model(name, generator=torch.Generator().manual_seed(0)), found[name])
    return found


@pytest.fixture(scope="session")
def grid_file(tmp_path_factory) -> Path:
    """A radiance grid: a floor and a wall of a room of 24 x 20 x 12 voxels."""
    path = tmp_path_factory.mktemp("grid") / "room.npz"
    rgb, opacity = np.full((24, 20, 12, 3), 0.5, np.float32), np.zeros((24, 20, 12), np.float32)
    opacity[:, :, :2] = opacity[:2] = 0.9
    rgb[:, :, :2] = (0.8, 0.4, 0.1)
    values = np.concatenate([rgb, opacity[..., None]], -1)
    corners = {"bbox_min": np.zeros(3), "bbox_max": np.array([4.8, 4.0, 2.4])}
    np.savez(path, rgbsigma=values, **corners)
    return path


@pytest.fixture
def picture() -> Picture3D:
    """A brown floor and a blue wall of points, a red box, a mark and an image; every part that there is."""
    u, v = (part.reshape(-1) for part in np.meshgrid(np.linspace(0, 4, 80), np.linspace(0, 3, 60)))
    floor = np.c_[u, v, np.zeros(len(u))]
    wall = np.c_[np.zeros(len(v)), v, u / 2]
    colors = np.repeat([[150, 90, 40], [40, 80, 200]], len(u), 0).astype(np.uint8)
    normals = np.repeat([[0, 0, 1.0], [1.0, 0, 0]], len(u), 0)
    points = Points(np.concatenate([floor, wall]), colors, normals, features=colors.astype(np.float32))
    corners = np.array([[1, 1, 0], [2, 1, 0], [2, 2, 0], [1, 2, 0.0]])
    top = corners + np.array([0, 0, 1])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    box = Surface(top, faces, np.full((4, 3), (220, 30, 30), np.uint8))
    edges = Lines(np.stack([corners, top], 1), np.full((4, 3), 60, np.uint8))
    space = Space("a room", (points,), (edges,), (box,), markers=(Marker(np.array([3.0, 2, 0]), "here"),))
    return Picture3D("a picture", (space,), notes=("a note",), legend=(("floor", (150, 90, 40)),))
