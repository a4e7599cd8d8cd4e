"""Sparse residual networks against dense convolution times mask: features, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch
from benchmarks.sparse_resnet_twin import DenseTwin, from_grid, to_grid

from geo3d import SparseVoxels, create_model
from geo3d.models.sparse_resnet import SparseResNetInput

_SIDES, _SCENES = (16, 8, 24), 2


def _voxels(channels: int, count: int = 700) -> SparseVoxels:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(_SCENES * 16 * 8 * 24, generator=generator)[:count]
    columns = [cells // (16 * 8 * 24), cells % 16, cells // 16 % 8, cells // 128 % 24]
    return SparseVoxels(torch.stack(columns, 1).int(), torch.randn(count, channels, generator=generator))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stage_and_gradient_agree(block: str, training: bool, dtype: torch.dtype) -> None:
    options = {"stem": 12, "depths": (1, 2, 1), "channels": (16, 20, 24), "block": block}
    network = create_model("sparse_resnet", generator=torch.Generator().manual_seed(1), **options).to(dtype)
    network.train(training)
    voxels = _voxels(network.config.in_channels)
    voxels = voxels.with_feats(voxels.feats.to(dtype))
    twin = DenseTwin(network)
    grid = to_grid(voxels.coords, voxels.feats, _SIDES, _SCENES)
    occupied = to_grid(voxels.coords, torch.ones(len(voxels), 1), _SIDES, _SCENES)

    stages = network.features(SparseResNetInput(voxels))
    dense = twin(grid, occupied)
    # float32, sums of up to 27 x 24 products through four stages: 8e-6 measured; gradients, relative to the largest of
    # their tensor, 5e-6.
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    losses = []
    for number, (stage, full) in enumerate(zip(stages, dense, strict=True)):
        expected = from_grid(full, stage.coords, stage.stride)
        torch.testing.assert_close(stage.feats, expected, rtol=0, atol=tolerance)
        assert full.square().sum().item() == pytest.approx(expected.square().sum().item(), rel=1e-5)  # zero elsewhere
        generator = torch.Generator().manual_seed(number)
        weight = torch.randn(stage.feats.shape, dtype=dtype, generator=generator)
        losses.append(((stage.feats * weight).mean(), (expected * weight).mean()))
    for side in range(2):
        sum(pair[side] for pair in losses).backward()
    pairs = dict(twin.network.named_parameters())
    for name, parameter in network.named_parameters():
        reference = pairs[name].grad
        assert reference.abs().max() > 0, name
        error = (parameter.grad - reference).abs().max() / reference.abs().max()
        assert error < (2e-5 if dtype == torch.float32 else 1e-12), name
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, dict(twin.network.named_buffers())[name], rtol=1e-5, atol=1e-6)
