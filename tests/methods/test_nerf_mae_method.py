"""NeRF-MAE's task: masks, batches, figures and baseline by hand, and that nothing of a masked block leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from memory_grids import MemoryGrids

from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.methods.nerf_mae import MaskedGrids, MaskedGridsConfig, colour_psnr, copied_blocks, draw_mask
from geo3d.models.nerf_mae import BLOCK_VOXELS

_B = BLOCK_VOXELS


def make_grid(*sides: int, seed: int = 0) -> VolumeGrid:
    """Colours and opacity drawn at random, a third of the voxels empty."""
    generator = torch.Generator().manual_seed(seed)
    rgb, opacity = torch.rand(*sides, 3, generator=generator), torch.rand(*sides, generator=generator)
    return VolumeGrid(rgb, torch.where(opacity < 1 / 3, 0, opacity))


def make_method(**changes) -> MaskedGrids:
    return MaskedGrids(MaskedGridsConfig(**changes), torch.Generator().manual_seed(0)).eval()


def make_batch(method: MaskedGrids, *grids: VolumeGrid) -> dict:
    samples = method.samples(MemoryGrids(*grids))
    return method.collate([samples.draw(i, np.random.default_rng(i)) for i in range(len(grids))])


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_exact_masks_hold_their_share_and_published_ones_on_average(ratio: float) -> None:
    rng = np.random.default_rng(0)
    assert all(int(draw_mask((4, 4, 2), ratio, True, rng).sum()) == round(32 * ratio) for _ in range(5))
    shares = [draw_mask((10, 10, 10), ratio, False, rng).double().mean() for _ in range(10)]
    assert abs(np.mean(shares) - ratio) < 0.02  # 4.6 standard deviations of 10,000 blocks
    assert len(set(shares)) > 1
    assert draw_mask((1, 1, 2), 0.99, True, rng).sum() == 1  # never all of several
    assert draw_mask((1, 1, 1), 0.75, True, rng).sum() == 0


def test_masks_lie_in_the_grids_and_published_ones_are_shared() -> None:
    grids = make_grid(64, 40, 20), make_grid(33, 64, 16, seed=1)
    batch = make_batch(make_method(), *grids)
    assert batch["values"].shape == (2, 4, 64, 64, 32)
    assert batch["mask"].shape == (2, 4, 4, 2)
    for size, mask in zip(batch["sizes"].tolist(), batch["mask"]):
        blocks = [math.ceil(side / _B) for side in size]
        assert int(mask.sum()) == round(0.75 * math.prod(blocks))
        assert int(mask[: blocks[0], : blocks[1], : blocks[2]].sum()) == int(mask.sum())
    published = make_batch(make_method(masking="published"), *grids)
    assert published["mask"].shape == (4, 4, 2)
    assert make_method().hidden(published).any()


@pytest.mark.parametrize("masking", ["skip", "exact", "published"])
def test_nothing_of_a_masked_block_is_seen(masking: str) -> None:
    method = make_method(masking=masking)
    batch = make_batch(method, make_grid(64, 64, 32))
    hidden = method.hidden(batch).unsqueeze(1)
    other = batch | {"values": torch.where(hidden, 1 - batch["values"], batch["values"])}
    with torch.no_grad():
        one, two = (method(each).extras["reconstruction"] for each in (batch, other))
    assert torch.equal(one, two)
    seen = batch | {"values": torch.where(hidden, batch["values"], 1 - batch["values"])}
    with torch.no_grad():
        assert not torch.allclose(one, method(seen).extras["reconstruction"])


def test_blocks_that_grids_were_filled_up_with_are_not_looked_at() -> None:
    method = make_method(masking="skip")
    batch = make_batch(method, make_grid(64, 64, 30), make_grid(20, 64, 30, seed=1))
    other = batch | {"values": batch["values"].clone()}
    other["values"][1, :, 32:] = 0.5
    with torch.no_grad():
        one, two = (method(each).extras["reconstruction"] for each in (batch, other))
    assert torch.equal(one, two)


def test_masks_of_other_sides_are_filled_up() -> None:
    """As samples of grids of other sides hold them, such as those that a report draws."""
    method = make_method()
    parts = [make_batch(method, make_grid(*sides)) for sides in ((64, 48, 30), (30, 60, 64))]
    samples = [{name: part[name][0] for name in ("values", "mask", "decoded")} for part in parts]
    batch = method.collate(samples)
    assert batch["mask"].shape == (2, 4, 4, 4)
    for mask, part in zip(batch["mask"], parts, strict=True):
        x, y, z = part["mask"].shape[1:]
        assert torch.equal(mask[:x, :y, :z], part["mask"][0])
        assert mask.sum() == part["mask"].sum()


def test_the_losses_are_weighted_and_what_is_seen_stays() -> None:
    batch = make_batch(make_method(), make_grid(32, 32, 32))
    with torch.no_grad():
        plain, weighted = make_method()(batch), make_method(rgb_weight=3, opacity_weight=0.5)(batch)
    torch.testing.assert_close(weighted.losses["rgb"], 3 * plain.losses["rgb"])
    torch.testing.assert_close(weighted.losses["opacity"], 0.5 * plain.losses["opacity"])
    method = make_method()
    filled, hidden = method.filled(batch, plain), method.hidden(batch).unsqueeze(1).expand(-1, 4, -1, -1, -1)
    assert torch.equal(filled[~hidden], batch["values"][~hidden])
    assert torch.equal(filled[hidden], plain.extras["reconstruction"].clamp(0, 1)[hidden])
    picture = method.picture(batch, plain)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_psnr_counts_what_is_not_empty() -> None:
    values = torch.zeros(1, 4, 2, 1, 1)
    values[0, :, 0] = torch.tensor([0.5, 0.5, 0.5, 1]).view(4, 1, 1)
    other = values.clone()
    other[0, 0, 0] += 0.3
    other[0, :3, 1] = 9  # empty
    assert colour_psnr(other, values).item() == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-5)
    assert colour_psnr(other, values, torch.zeros(1, 2, 1, 1, dtype=torch.bool)).isinf()


def test_a_copied_block_is_the_nearest_visible_one_of_its_grid() -> None:
    values = torch.zeros(1, 4, 4 * _B, 2 * _B, 2 * _B)
    for block in range(3):
        values[:, :, block * _B : (block + 1) * _B, :_B, :_B] = (block + 1) / 10
    mask = torch.ones(1, 4, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = False  # visible, worth 0.1
    mask[0, 3] = False  # beyond the grid, though it is visible
    batch = {"values": values, "sizes": torch.tensor([[3 * _B, _B, _B]]), "mask": mask}
    filled = copied_blocks(batch)
    assert filled[0, :, : 3 * _B, :_B, :_B].eq(0.1).all()
    assert torch.equal(filled[0, :, 3 * _B :], values[0, :, 3 * _B :])
    mask[0, 0, 0, 0] = True
    assert copied_blocks(batch)[0, :, : 3 * _B, :_B, :_B].eq(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"side": 48}, "multiple of 32"),
        ({"rgb_weight": -1.0}, "rgb_weight"),
        ({"model": "resnet_tiny"}, "NeRF-MAE"),
    ],
)
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskedGrids(MaskedGridsConfig(**options))
