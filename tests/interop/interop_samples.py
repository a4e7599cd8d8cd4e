"""What converters are tried with: clouds, meshes, views and grids that hold everything they can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset_builders import CUBE, CUBE_FACES, orbit

from geo3d.datasets.scene import Mesh
from geo3d.geometry import Camera, PointCloud, SparseVoxels, View, VolumeGrid

#: Intrinsics whose half pixels are exact in binary, so that shifting them there and back is too.
CAMERA = Camera(32, 24, 30.25, 29.5, 15.125, 12.75)
LENSES = {
    "pinhole": CAMERA,
    "opencv": Camera(32, 24, 30.25, 29.5, 15.125, 12.75, "OPENCV", (0.05, -0.02, 0.003, -0.004)),
    "fisheye": Camera(32, 24, 20.5, 20.25, 15.125, 12.75, "OPENCV_FISHEYE", (0.02, -0.01, 0.003, 0.001)),
}
FAR = torch.tensor([[4_433_000.0, 5_401_000.0, 120.0]], dtype=torch.float64)


def make_cloud(count: int = 50, far: bool = False) -> PointCloud:
    """Places on a lattice of 2^-16 m, which float64 keeps beside the coordinates of a UTM zone; colours of 8 bits."""
    rng = np.random.default_rng(1)
    xyz = rng.integers(-(2**17), 2**17, (count, 3)) / 2**16
    if far:  # the median must round to the origin, or another one is chosen for the same places
        xyz[: count // 2], xyz[count // 2 :] = -np.abs(xyz[: count // 2]), np.abs(xyz[count // 2 :])
        xyz[[0, -1]] = [[-0.001, -0.001, -0.001], [0.001, 0.001, 0.001]]
        xyz = np.round(xyz * 2**16) / 2**16
    normals = rng.normal(size=(count, 3))
    return PointCloud(
        torch.from_numpy(xyz.astype(np.float32)),
        torch.from_numpy(rng.integers(0, 256, (count, 3)).astype(np.float32) / np.float32(255)),
        torch.from_numpy((normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)),
        torch.from_numpy(rng.integers(-1, 20, count)),
        torch.from_numpy(rng.integers(-1, 5, count)),
        origin=FAR.clone() if far else None,
    )


def make_mesh() -> Mesh:
    rng = np.random.default_rng(2)
    normals = (CUBE - 0.5) / np.sqrt(np.float32(0.75))
    colors = rng.integers(0, 256, (8, 3)).astype(np.float32) / np.float32(255)
    return Mesh(CUBE, CUBE_FACES.astype(np.int64), colors, normals, np.arange(8) % 3 - 1, np.arange(8) % 2)


def make_views(camera: Camera = CAMERA, count: int = 3) -> list[View]:
    rng = np.random.default_rng(3)
    views = []
    for number, pose in enumerate(orbit(count)):
        image = rng.integers(0, 256, (camera.height, camera.width, 3)).astype(np.float32) / np.float32(255)
        depth = rng.uniform(0.5, 4, (camera.height, camera.width)).astype(np.float32)
        depth[2, 3] = 0
        mask = rng.random((camera.height, camera.width)) > 0.5
        views.append(
            View(
                f"{number:03d}.png", camera, torch.from_numpy(pose), *(torch.from_numpy(v) for v in (image, depth)),
                camera, torch.from_numpy(mask),
            )
        )  # fmt: skip
    return views


def make_voxels() -> SparseVoxels:
    rng = np.random.default_rng(4)
    cells = np.unique(rng.integers(-8, 8, (40, 3)), axis=0)
    coords = np.concatenate([np.zeros((len(cells), 1)), cells], 1).astype(np.int32)
    colors = rng.integers(0, 256, (len(cells), 3)).astype(np.float32) / np.float32(255)
    return SparseVoxels(torch.from_numpy(coords), torch.from_numpy(colors), batch_size=1)


def make_grid(cubic: bool = True) -> VolumeGrid:
    rng = torch.Generator().manual_seed(5)
    sides = torch.tensor([4, 6, 5], dtype=torch.float64)
    low = torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64)
    step = 0.25 if cubic else torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    rgb, opacity = torch.rand(4, 6, 5, 3, generator=rng), torch.rand(4, 6, 5, generator=rng)
    return VolumeGrid(rgb, opacity, low, low + step * sides)


def same_cloud(found: PointCloud, wanted: PointCloud, fields: tuple[str, ...]) -> None:
    """Every field named is there and equal, the others are absent."""
    torch.testing.assert_close(found.world(), wanted.world(), rtol=0, atol=0)
    for name in ("colors", "normals", "semantic", "instance"):
        if name in fields:
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0)
        else:
            assert getattr(found, name) is None, name


def same_mesh(found: Mesh, wanted: Mesh, fields: tuple[str, ...]) -> None:
    np.testing.assert_array_equal(found.vertices, wanted.vertices)
    np.testing.assert_array_equal(found.faces, wanted.faces)
    for name in ("colors", "normals", "semantic", "instance"):
        if name in fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        else:
            assert getattr(found, name) is None, name


def same_views(found: list[View], wanted: list[View], atol: float = 0.0) -> None:
    """Cameras and poses."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert one.camera.model == other.camera.model
        assert (one.camera.width, one.camera.height) == (other.camera.width, other.camera.height)
        assert one.camera.distortion == pytest.approx(other.camera.distortion, abs=atol)
        np.testing.assert_allclose(one.camera.matrix, other.camera.matrix, rtol=0, atol=30 * atol)
        # Translations are turned into the camera and back: some roundings of a number of 3.
        np.testing.assert_allclose(one.world_from_camera, other.world_from_camera, rtol=0, atol=max(atol, 2e-15))


def seen_points(view: View, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """World points (N, 3) float64 in front of a view, and the pixels (N, 2) where geo3d sees them."""
    rng = torch.Generator().manual_seed(7)
    uv = torch.rand(count, 2, generator=rng, dtype=torch.float64) * torch.tensor(
        [view.camera.width, view.camera.height]
    )
    local = view.camera.unproject(uv, 1 + torch.rand(count, generator=rng, dtype=torch.float64))
    pose = view.world_from_camera
    return local @ pose[:3, :3].T + pose[:3, 3], view.camera.project(local)
