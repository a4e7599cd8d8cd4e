"""Hand-made features: shapes whose neighbourhoods are known, and what must not change them."""

from __future__ import annotations

import numpy as np
import torch

from geo3d.geometry.rotation import random_rotation
from geo3d.probe.shape_histograms import _eigenvalues, local_histograms, whole_shape_histograms

#: Columns of the histograms of a size of neighbourhoods: line, plane, body, radius, and place off the mean.
_SIZE = 3 * 16 + 32 + 16


def _cloud(count: int = 400, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, 3)) * [3, 2, 1]).float()


def test_eigenvalues_are_those_of_lapack() -> None:
    factors = torch.randn(500, 3, 4, generator=torch.Generator().manual_seed(0))
    matrices = factors @ factors.mT
    expected = torch.linalg.eigvalsh(matrices.double()).flip(1)
    # Measured 1.1e-6 of the largest, and no more where two or all three are equal.
    assert ((_eigenvalues(matrices) - expected).abs() / expected[:, :1]).max() < 1e-5
    equal = torch.stack([torch.eye(3), torch.diag(torch.tensor([2.0, 2.0, 0.0])), torch.zeros(3, 3)])
    torch.testing.assert_close(
        _eigenvalues(equal), torch.tensor([[1.0, 1, 1], [2, 2, 0], [0, 0, 0]]), atol=1e-3, rtol=0
    )


def test_histograms_are_shares() -> None:
    (row,) = local_histograms([_cloud()]).square()
    first = 64 + 32
    assert row.shape == (first + 4 * _SIZE,)
    torch.testing.assert_close(row[:64].sum(), torch.tensor(1.0))
    torch.testing.assert_close(row[64:first].sum(), torch.tensor(1.0))
    torch.testing.assert_close(row[first:].sum(), torch.tensor(20.0))
    (row,) = whole_shape_histograms([_cloud()]).square()
    assert row.shape == (422,)
    torch.testing.assert_close(row[:-6].sum(), torch.tensor(10.0))


def test_neighbourhoods_of_lines_planes_and_bodies_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, size=(1024, 3))
    shapes = [torch.from_numpy(places * scale).float() for scale in ([1, 0, 0], [1, 1, 0], [1, 1, 1])]
    rows = local_histograms(shapes).square()[:, 64 + 32 :].reshape(3, 4, _SIZE)
    line, plane, body = (rows[:, 2:, 16 * n : 16 * n + 16] for n in range(3))  # of the larger neighbourhoods
    assert (line[0, :, -1] == 1).all()
    assert (body[:2, :, 0] == 1).all()  # no thickness
    middle = torch.arange(16) / 16 + 1 / 32
    assert ((plane[1] @ middle) > 0.6).all()
    assert ((body[2] @ middle) > 0.6).all()


def test_scale_and_place_do_not_matter_nor_the_pose_to_local_ones() -> None:
    cloud = _cloud()
    moved = 5 * cloud + torch.tensor([3.0, -2, 1])
    turned = cloud @ torch.from_numpy(random_rotation(np.random.default_rng(1))).float().T
    for features, others in ((whole_shape_histograms, [moved]), (local_histograms, [moved, turned])):
        expected, *found = features([cloud, *others]).square()
        for row in found:  # but that a value on the edge between two bins falls into the other by rounding
            assert (row - expected).abs().sum() < 0.05
    expected, row = whole_shape_histograms([cloud, turned]).square()
    assert (row - expected).abs().sum() > 1


def test_few_points_are_enough() -> None:
    for count in (1, 2, 3, 9):
        for features in (whole_shape_histograms, local_histograms):
            assert features([_cloud(count)]).isfinite().all()
    assert local_histograms([torch.zeros(30, 3)]).isfinite().all()
