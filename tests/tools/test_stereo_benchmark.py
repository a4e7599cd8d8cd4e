"""What the benchmark of stereo holds networks against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.stereo import StereoBenchmark, block_matched
from PIL import Image

from geo3d import InputError


def test_block_matching_finds_a_shift() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
    wide = torch.from_numpy(np.array(coarse.resize((96, 64), Image.Resampling.BICUBIC)))
    found = block_matched(wide[:, 7:71], wide[:, 12:76])  # what is at x on the left is at x - 5 on the right
    assert found.shape == (64, 64)
    assert (found[4:-4, 12:-4] == 5).all()
    assert found.max() <= 16


def test_a_seed_takes_a_run_of_its_own() -> None:
    with pytest.raises(InputError, match="init: give one run for each of the 2 seeds, got 1"):
        StereoBenchmark(init=("runs/croco-001",), seeds=2)
