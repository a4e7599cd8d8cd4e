"""Figures of local shape against what they must be of lines, planes and balls, and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo3d.geometry.rotation import random_rotation
from geo3d.nn.local_shape import local_shape, shape_channels

RADII = (0.4, 0.8)


def test_lines_planes_and_balls_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator, dtype=torch.float64), dim=1)
    ball = directions * torch.rand(4000, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    disc, line = ball * torch.tensor([1, 1, 0.0]), ball * torch.tensor([1, 0.0, 0])
    found = local_shape(torch.stack([line, disc, ball]), torch.zeros(3, 1, 3, dtype=torch.float64), (0.5,))[:, 0]
    assert found.shape == (3, shape_channels((0.5,)))
    # Line, plane and body; of random points, whose deviations along equal axes differ by some hundredths.
    torch.testing.assert_close(found[:, :3], torch.eye(3, dtype=torch.float64), rtol=0, atol=0.15)
    inside = torch.stack([(cloud.norm(dim=1) < 0.5).double().mean() for cloud in (line, disc, ball)])
    torch.testing.assert_close(found[:, 3], inside.sqrt(), rtol=0, atol=1e-12)
    assert (found[:, 4] < 0.1).all()  # the mean is near the centre
    assert (found[:, 5] == 0).all()


def test_figures_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(10, 70, 3, generator=generator, dtype=torch.float64) - 0.5
    centres = points[:, :9]
    found = local_shape(points, centres, RADII).numpy()
    for cloud, centre in ((0, 0), (4, 8), (9, 3)):
        expected, place = [], centres[cloud, centre].numpy()
        for radius in RADII:
            near = points[cloud].numpy()
            near = near[np.linalg.norm(near - place, axis=1) < radius]
            first, second, third = (
                np.linalg.svd(near - near.mean(0), compute_uv=False)[:3] if len(near) > 2 else [0] * 3
            )
            expected += [(first - second) / first, (second - third) / first, third / first] if first else [0, 0, 0]
            expected += [np.sqrt(len(near) / 70), np.linalg.norm(near.mean(0) - place) / radius]
        # Deviations are roots of small differences of float64.
        np.testing.assert_allclose(found[cloud, centre], [*expected, np.linalg.norm(place)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_the_same_in_any_pose(dtype: torch.dtype) -> None:
    points = torch.rand(3, 60, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5
    rotation = torch.from_numpy(random_rotation(np.random.default_rng(0)))
    turned = (points @ rotation.T).to(dtype)
    points = points.to(dtype)
    one, other = (local_shape(cloud, cloud[:, :20], (0.4, 0.9)) for cloud in (points, turned))
    # float32 loses half of its digits to the root of a difference.
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if dtype == torch.float64 else 5e-3)


def test_of_a_single_place_they_are_finite() -> None:
    found = local_shape(torch.zeros(1, 5, 3), torch.zeros(1, 2, 3), RADII)
    assert found.isfinite().all()
    assert (found[..., [3, 8]] == 1).all()
