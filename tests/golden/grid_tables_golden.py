"""The parts of NeRF-MAE's tables that belong to grids: density to opacity, the loader's axes, turns and flips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_cases import GoldenCase

from geo3d.datasets import read_grid
from geo3d.datasets.radiance_grids import opacity_of_density
from geo3d.geometry import VolumeGrid

# Opacity is 1 less a number near 1: its last place is 1.2e-7, in which machines that round exp otherwise differ.
CLOSE = {"rtol": 1e-6, "atol": 5e-7}


def check_opacity(case: GoldenCase, _folder: Path) -> None:
    """Opacity of densities in both published variants, and of densities that are opacity already."""
    density = case.tensors["in.density"]
    for convention, published in (("exp", "out.alpha_exp"), ("relu", "out.alpha_relu")):
        torch.testing.assert_close(opacity_of_density(density, convention), case.tensors[published], **CLOSE)


def check_loading(case: GoldenCase, folder: Path) -> None:
    """A scene file as the published loader hands it on, with its density made opacity and without."""
    stored = case.tensors["in.npz_rgbsigma"].clone()
    stored[..., :3] = _colours(stored[..., :3])
    file = folder / "scene.npz"
    np.savez(file, rgbsigma=stored.numpy(), resolution=np.array(stored.shape[:3]))
    normalised = read_grid(file)
    published = case.tensors["out.loaded_normalized"].clone()
    published[:3] = _colours(published[:3])
    torch.testing.assert_close(normalised.values, published, **CLOSE)
    # The published loader hands on densities where it is told not to normalise; here opacity is in [0, 1].
    raw = read_grid(file, "opacity")
    assert torch.equal(raw.rgb, _colours(case.tensors["out.loaded_raw"][:3]).permute(1, 2, 3, 0))
    torch.testing.assert_close(raw.opacity, case.tensors["out.loaded_raw"][3].clamp(0, 1), **CLOSE)


def _colours(values: torch.Tensor) -> torch.Tensor:
    """The case's colours, which reach from -10 to 9 and are handed on as they are, within [0, 1]."""
    return (values + 10) / 20


def check_augmentation(case: GoldenCase, _folder: Path) -> None:
    """The quarter turn about z and the flips along x and y, of grids and their boxes."""
    values, boxes = case.tensors["in.aug_grid"], case.tensors["in.aug_boxes"]
    grid = VolumeGrid.of_values(values)
    grid.boxes = boxes
    turned, flipped = grid.turned(), grid.flipped(0, 1)
    assert torch.equal(turned.values, case.tensors["out.aug_rot_grid"])
    assert torch.equal(turned.boxes, case.tensors["out.aug_rot_boxes"])
    assert torch.equal(flipped.values, case.tensors["out.aug_flip_grid"])
    assert torch.equal(flipped.boxes, case.tensors["out.aug_flip_boxes"])
