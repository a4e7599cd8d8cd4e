"""What is done to the clouds of objects in training."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_builders import BALL

from geo3d import InputError
from geo3d.geometry.rotation import random_rotation
from geo3d.methods.objects import ObjectAugmentation


def many(augmentation: ObjectAugmentation, count: int = 2000) -> np.ndarray:
    """What becomes of the origin and the three axes' unit points, (count, 4, 3)."""
    rng, corners = np.random.default_rng(0), np.concatenate([np.zeros((1, 3)), np.eye(3)])
    return np.stack([augmentation.apply(corners, rng) for _ in range(count)])


def test_the_published_augmentation():
    changed = many(ObjectAugmentation()).astype(np.float64)
    shift, scaled = changed[:, 0], changed[:, 1:] - changed[:, :1]
    factor = np.einsum("nii->ni", scaled)
    assert (np.abs(scaled - factor[:, :, None] * np.eye(3)) < 1e-6).all(), "axes stay apart"
    for values, low, high in ((factor, 2 / 3, 3 / 2), (shift, -0.2, 0.2)):
        assert low - 1e-6 <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-6
        # The mean of 6,000 uniform numbers: its standard deviation is 0.0037 of their range.
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.015 * (high - low))
    assert np.abs(np.corrcoef(np.concatenate([factor, shift], 1).T) - np.eye(6)).max() < 0.1, "drawn apart"


def test_it_changes_a_copy_and_comes_from_the_generator():
    xyz = BALL.astype(np.float32)
    before = xyz.copy()
    one, again, other = (ObjectAugmentation("any", jitter=0.01).apply(xyz, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(xyz, before)
    assert one.dtype == np.float32
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_turns_about_an_axis(axis):
    still = ObjectAugmentation(axis, scale=(1, 1), shift=0)
    row = "xyz".index(axis)
    turned = many(still)[:, 1:]
    np.testing.assert_allclose(turned[:, row], np.tile(np.eye(3)[row], (2000, 1)), atol=1e-7)
    first, second = (i for i in range(3) if i != row)
    angle = np.arctan2(turned[:, first, second], turned[:, first, first])
    assert np.histogram(angle, 8, (-np.pi, np.pi))[0].min() > 180  # 250 each, standard deviation 15
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-6)


def test_any_rotation_is_as_likely_as_any_other():
    rng = np.random.default_rng(0)
    turned = np.stack([random_rotation(rng) for _ in range(4000)])
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (4000, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-12)
    # Of uniform rotations each entry is uniform in [-1, 1], and the angle's density is (1 - cos) / pi.
    entries = turned.reshape(-1, 9)
    assert np.abs(entries.mean(0)).max() < 0.04
    assert np.abs((entries**2).mean(0) - 1 / 3).max() < 0.025
    angle = np.arccos(((np.trace(turned, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.04)


def test_jitter():
    plain = ObjectAugmentation(scale=(1, 1), shift=0)
    assert np.array_equal(plain.apply(BALL, np.random.default_rng(0)), BALL.astype(np.float32))
    noisy = ObjectAugmentation(scale=(1, 1), shift=0, jitter=0.02)
    moved = np.stack([noisy.apply(BALL, np.random.default_rng(s)) - BALL for s in range(50)])
    assert moved.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("wrong", [{"scale": (1.5, 0.5)}, {"scale": (0, 1)}, {"shift": -0.1}, {"jitter": -1}])
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ObjectAugmentation(**wrong)
