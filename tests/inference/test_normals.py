"""Estimated normals against planes, spheres and numpy's decomposition."""

from __future__ import annotations

import numpy as np
import torch
from clouds import corner

from geo3d.inference.normals import NEIGHBOURS, estimate_normals


def test_of_a_noisy_plane_and_towards_a_viewpoint() -> None:
    rng = np.random.default_rng(0)
    normal = np.array([0.6, 0.0, 0.8])
    along = np.array([[0.8, 0, -0.6], [0, 1, 0]])
    xyz = rng.random((500, 2)) @ along + 1e-4 * rng.standard_normal((500, 1)) * normal + [50, -70, 3]
    points = torch.from_numpy(xyz).float()
    for sign in (1, -1):
        viewpoint = torch.from_numpy(xyz.mean(0) + sign * normal).float()
        found = estimate_normals(points, viewpoint=viewpoint)
        # Noise of 0.1 mm over neighbourhoods of some 5 cm tilts planes by about a degree; the worst measured is 3.
        assert (found @ torch.from_numpy(sign * normal).float() > np.cos(np.radians(5))).all()


def test_agrees_with_an_eigenvalue_decomposition_in_float64() -> None:
    xyz = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 3))).float()
    found = estimate_normals(xyz).double().numpy()
    points = xyz.double().numpy()
    distance = ((points[:, None] - points[None]) ** 2).sum(2)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    for row, members in enumerate(points[nearest]):
        values, vectors = np.linalg.eigh(np.cov(members.T))
        expected = vectors[:, 0]
        # In clouds of a body two eigenvalues may be close, and directions are then badly determined.
        if values[1] > 1.2 * values[0]:
            assert abs(found[row] @ expected) > 1 - 1e-6


def test_of_a_room_turn_inwards_and_of_level_ground_upwards() -> None:
    cloud = corner(3000)
    inside = (cloud["xyz"] > 0.1).sum(1) == 2  # away from the edges, where planes mix
    found = estimate_normals(torch.from_numpy(cloud["xyz"])).numpy()
    cosine = (found * cloud["normals"]).sum(1)[inside]
    assert (cosine > 0.99).mean() > 0.99
    ground = torch.cat([5 * torch.rand(400, 2), 0.001 * torch.randn(400, 1)], 1)
    assert (estimate_normals(ground)[:, 2] > 0.9).all()


def test_points_that_tell_no_plane_have_a_normal_all_the_same() -> None:
    same, line = torch.ones(5, 3), torch.linspace(0, 1, 20).unsqueeze(1) * torch.tensor([[1.0, 0, 0]])
    assert torch.equal(estimate_normals(same), torch.tensor([[0.0, 0, 1]]).expand(5, 3))
    of_line = estimate_normals(line)
    torch.testing.assert_close(of_line.norm(dim=1), torch.ones(20))
    assert of_line[:, 0].abs().max() < 1e-3
    torch.testing.assert_close(estimate_normals(torch.zeros(1, 3)), torch.tensor([[0.0, 0, 1]]))
