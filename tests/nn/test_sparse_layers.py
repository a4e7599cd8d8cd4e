"""Layers over sparse voxels: strided and transposed convolution against dense ones, norms of few voxels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, conv_transpose3d

from geo3d.errors import InputError
from geo3d.nn.sparse_layers import StridedConv, TransposedConv, VoxelBatchNorm
from geo3d.nn.topology import Topology

_EDGE = 12


def _topology(stride: int = 1, count: int = 250) -> Topology:
    cells = torch.randperm(2 * _EDGE**3, generator=torch.Generator().manual_seed(count))[:count]
    columns = [cells // _EDGE**axis % _EDGE * stride for axis in range(3)]
    return Topology(torch.stack([cells // _EDGE**3, *columns], 1).int(), stride, 2)


def _grid(topology: Topology, feats: Tensor) -> Tensor:
    batch, x, y, z = topology.coords.long().unbind(1)
    s = topology.stride
    grid = feats.new_zeros(2, _EDGE, _EDGE, _EDGE, feats.shape[1])
    return grid.index_put((batch, z // s, y // s, x // s), feats).permute(0, 4, 1, 2, 3)


def _at(grid: Tensor, topology: Topology) -> Tensor:
    batch, x, y, z = topology.coords.long().unbind(1)
    s = topology.stride
    return grid.permute(0, 2, 3, 4, 1)[batch, z // s, y // s, x // s]


def _compare(result: Tensor, expected: Tensor, feats: Tensor, layer: torch.nn.Module) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grads = [torch.autograd.grad(y, (feats, layer.kernel), gradient, retain_graph=True) for y in (result, expected)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_strided_convolution_against_dense() -> None:
    fine = _topology()
    layer = StridedConv(5, 7).double()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    feats = torch.randn(fine.size, 5, dtype=torch.float64).requires_grad_()
    coarse, _ = fine.coarsen(2)
    weight = layer.kernel.unflatten(0, (2, 2, 2)).permute(4, 3, 0, 1, 2)
    expected = _at(conv3d(_grid(fine, feats), weight, stride=2), coarse)
    _compare(layer(feats, fine), expected, feats, layer)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("generative", [True, False])
def test_transposed_convolution_against_dense(factor: int, generative: bool) -> None:
    """Up to all voxels that there can be, or to a given set of which some lie inside of no coarse voxel."""
    coarse = _topology(factor)
    fine = coarse.refine(factor) if generative else _topology(1, 900)
    layer = TransposedConv(5, 4, factor).double()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    feats = torch.randn(coarse.size, 5, dtype=torch.float64).requires_grad_()
    weight = layer.kernel.unflatten(0, (factor,) * 3).permute(3, 4, 0, 1, 2)
    expected = _at(conv_transpose3d(_grid(coarse, feats), weight, stride=factor), fine)
    if not generative:
        assert (expected == 0).all(1).any()
    _compare(layer(feats, coarse, fine), expected, feats, layer)


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_refined_voxels_come_home(factor: int) -> None:
    coords = torch.tensor([[0, -12, 6, 0], [2, 0, 0, -6], [0, 6, 6, 6]], dtype=torch.int32)
    coarse = Topology(coords, 6, 4)
    fine = coarse.refine(factor)
    assert (fine.size, fine.stride, fine.batch_size) == (3 * factor**3, 6 // factor, 4)
    again, parent = fine.coarsen(factor)
    assert torch.equal(again.coords, coords[coarse.order])
    assert (torch.bincount(parent) == factor**3).all()
    rows = coarse.children_map(fine)
    assert (rows.neighbours >= 0).all()
    places = fine.coords[rows.neighbours.long()][..., 1:] - coords[:, 1:]
    expected = fine.stride * torch.cartesian_prod(*[torch.arange(factor)] * 3).view(-1, 3).flip(1)
    assert torch.equal(places, expected.unsqueeze(1).expand(-1, 3, -1).int())


def test_factors_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="factor must divide the stride 4, got 3"):
        _topology(4).refine(3)
    with pytest.raises(InputError, match="stride 3 does not divide 4"):
        _topology(4).children_map(_topology(3))


def test_norm_of_many_few_and_no_voxels() -> None:
    norm = VoxelBatchNorm(3).train()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    torch.testing.assert_close(norm(x), (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    before = {name: value.clone() for name, value in norm.named_buffers()}
    expected = (x[:1] - norm.bn.running_mean) / (norm.bn.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(x[:1]), expected)
    assert norm(x[:0]).shape == (0, 3)
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
