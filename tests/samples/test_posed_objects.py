"""Objects in poses: rotations spread evenly, clouds that stay the same, features averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geo3d.geometry.rotation import random_rotation
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.posed_objects import PosedObjects, mean_features


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ObjectClouds:
    folder: Path = tmp_path_factory.mktemp("objects")
    points = np.random.default_rng(0).normal(size=(3, 50, 3)) * 4 + 100
    np.savez(
        folder / "objects.npz", points=points.astype(np.float32), label=np.arange(3), classes=np.array(list("abc"))
    )
    return ObjectClouds.find(folder)


def test_rotations_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    found = np.stack([random_rotation(rng) for _ in range(4000)])
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.tile(np.eye(3), (4000, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(found), 1)
    # Of even rotations every entry is spread evenly over -1 to 1, and the trace has mean 0 and mean square 1.
    assert np.abs(found.mean(0)).max() < 4 * np.sqrt(1 / 3 / 4000)
    assert np.abs((found**2).mean(0) - 1 / 3).max() < 4 * np.sqrt(4 / 45 / 4000)
    trace = np.trace(found, axis1=1, axis2=2)
    assert abs((trace**2).mean() - 1) < 4 * np.sqrt(2 / 4000)  # of the fourth power the mean is 3


def test_poses_are_of_one_object_in_the_unit_sphere(source: ObjectClouds) -> None:
    posed = PosedObjects(source, points=20, resamplings=3, rotations=5, seed=4)
    stored, rotated, averaged = (posed.clouds(1, pose) for pose in ("stored", "rotated", "averaged"))
    assert [len(clouds) for clouds in (stored, rotated, averaged)] == [3, 3, 5]
    for cloud in (*stored, *rotated, *averaged):
        assert cloud.shape == (20, 3)
        assert cloud.dtype == torch.float32
        assert cloud.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
        assert cloud.mean(0).abs().max() < 1e-6
    for before, after in zip(stored, rotated):
        torch.testing.assert_close(after, before @ posed.rotation(1, 0).T)
    assert not torch.allclose(posed.rotation(1, 0), posed.rotation(2, 0))
    for number, after in enumerate(averaged[:3]):
        torch.testing.assert_close(after, stored[number] @ posed.rotation(1, 1 + number).T)


def test_what_is_drawn_depends_on_seed_object_and_number_alone(source: ObjectClouds) -> None:
    first, again, other = (PosedObjects(source, 20, seed=seed) for seed in (0, 0, 1))
    again.clouds(0, "averaged")
    assert torch.equal(first.drawn(2, 3), again.drawn(2, 3))
    assert not torch.equal(first.drawn(2, 3), other.drawn(2, 3))
    assert not torch.equal(first.drawn(2, 3), first.drawn(2, 4))
    assert len(first.drawn(0, 0, 120)) == 120  # of 50
    assert len(first.drawn(0, 0, 120).unique(dim=0)) == 50


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_features_of_the_clouds_of_a_thing_are_averaged(batch: int) -> None:
    clouds = {key: [torch.full((2, 3), 10.0 * key + n) for n in range(key)] for key in (3, 1, 4)}
    shown: list[int] = []

    def first_place(several: list[Tensor]) -> Tensor:
        shown.append(len(several))
        return torch.stack([cloud[0, :2] for cloud in several])

    found = mean_features(iter(clouds.items()), {"first": first_place, "twice": lambda c: 2 * first_place(c)}, batch)
    assert list(found) == ["first", "twice"]
    assert list(found["first"]) == [3, 1, 4]
    assert {key: row.tolist() for key, row in found["first"].items()} == {3: [31, 31], 1: [10, 10], 4: [41.5, 41.5]}
    assert {key: row.tolist() for key, row in found["twice"].items()} == {3: [62, 62], 1: [20, 20], 4: [83, 83]}
    assert sum(shown) == 16
    assert max(shown) == min(batch, 8)
