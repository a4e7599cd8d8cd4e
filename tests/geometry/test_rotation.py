"""Turns by an axis and an angle, against scipy's."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from geo3d.geometry.rotation import turn_matrix


def test_turns_are_scipys() -> None:
    turns = np.random.default_rng(0).normal(size=(2, 5, 3)) * np.array([1e-9, 1e-3, 1, 3, 0])[:, None]
    found = turn_matrix(torch.from_numpy(turns)).numpy()
    wanted = Rotation.from_rotvec(turns.reshape(-1, 3)).as_matrix().reshape(found.shape)
    np.testing.assert_allclose(found, wanted, atol=1e-14)  # off by 2e-15


def test_turns_have_gradients_where_there_is_none() -> None:
    assert torch.autograd.gradcheck(turn_matrix, torch.zeros(2, 3, dtype=torch.float64, requires_grad=True))
