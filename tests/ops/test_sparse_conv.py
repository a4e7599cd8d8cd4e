"""Kernel maps and sparse convolution against dense convolution, and what holds of both by their nature."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d

from geo3d.ops import _spconv, build_kernel_map, kernel_map, kernel_offsets, sparse_conv, transpose_kernel_map
from geo3d.ops.registry import get_operator
from geo3d.ops.sparse_conv import sparse_conv_reference

_EDGE = 12  # of the dense grids
# float32 against float64: sums of up to some 50 x 24 products of unit variance, 2.7e-5 measured where they come to 150.
_TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-5}, torch.float64: {"rtol": 0, "atol": 1e-11}}
_DTYPES = [torch.float32, torch.float64]  # the kernel, where it is built, and the reference


def _scattered(count: int, stride: int = 1, batch: int = 2) -> Tensor:
    """(N, 4) distinct voxels in random order inside the grid of _EDGE cells of ``stride`` around the origin."""
    generator = torch.Generator().manual_seed(count + stride)
    cells = torch.randperm(batch * _EDGE**3, generator=generator)[:count]
    columns = [cells // _EDGE**axis % _EDGE - _EDGE // 2 for axis in range(3)]
    return torch.stack([cells // _EDGE**3, *(stride * column for column in columns)], 1).int()


def _dense(coords: Tensor, feats: Tensor, stride: int, batch: int = 2) -> Tensor:
    """(B, C, z, y, x) grid with the features at their voxels and zeros elsewhere."""
    grid = feats.new_zeros(batch, _EDGE, _EDGE, _EDGE, feats.shape[1])
    b, x, y, z = _places(coords, stride)
    return grid.index_put((b, z, y, x), feats).permute(0, 4, 1, 2, 3)


def _places(coords: Tensor, stride: int) -> tuple[Tensor, ...]:
    xyz = coords[:, 1:].div(stride, rounding_mode="floor") + _EDGE // 2
    return coords[:, 0].long(), *xyz.long().unbind(1)


def _as_dense_weight(weight: Tensor, size: int) -> Tensor:
    """(K, Cin, Cout) with x fastest as conv3d takes it: (Cout, Cin, z, y, x)."""
    return weight.unflatten(0, (size, size, size)).permute(4, 3, 0, 1, 2)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _coarse(coords: Tensor, stride: int) -> Tensor:
    xyz = coords[:, 1:].div(stride, rounding_mode="floor") * stride
    return torch.cat([coords[:, :1], xyz], 1).unique(dim=0)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(("stride", "size"), [(1, 1), (1, 3), (4, 3), (1, 5)])
def test_submanifold_against_dense_convolution(stride: int, size: int, dtype: torch.dtype) -> None:
    coords = _scattered(700, stride)
    feats, weight = _random(700, 24), _random(size**3, 24, 17)
    leaves = [feats.clone().requires_grad_(), weight.clone().requires_grad_()]
    dense = conv3d(_dense(coords, leaves[0], stride), _as_dense_weight(leaves[1], size), padding=size // 2)
    b, x, y, z = _places(coords, stride)
    expected = dense.permute(0, 2, 3, 4, 1)[b, z, y, x]

    voxel_map = build_kernel_map(coords, coords, stride, size)
    sparse = [feats.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    result = sparse_conv(*sparse, voxel_map.neighbours, voxel_map.transposed)
    assert result.dtype == dtype
    _compare(result, expected, sparse, leaves, dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(("stride", "factor", "size"), [(1, 2, 2), (1, 2, 3), (2, 2, 3), (1, 3, 3)])
def test_strided_against_dense_convolution(stride: int, factor: int, size: int, dtype: torch.dtype) -> None:
    coords = _scattered(700, stride)
    coarse = _coarse(coords, stride * factor)
    feats, weight = _random(700, 10), _random(size**3, 10, 21)
    leaves = [feats.clone().requires_grad_(), weight.clone().requires_grad_()]
    # An even kernel reaches from the cell itself, an odd one is centred on the first cell of each coarse one.
    padding = size // 2 if size % 2 else 0
    dense = conv3d(_dense(coords, leaves[0], stride), _as_dense_weight(leaves[1], size), padding=padding, stride=factor)
    b, x, y, z = _places(coarse, stride)
    assert all((place % factor == 0).all() for place in (x, y, z))
    expected = dense.permute(0, 2, 3, 4, 1)[b, z // factor, y // factor, x // factor]

    voxel_map = build_kernel_map(coords, coarse, stride, size)
    sparse = [feats.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    result = sparse_conv(*sparse, voxel_map.neighbours)
    _compare(result, expected, sparse, leaves, dtype)


def _compare(result: Tensor, expected: Tensor, sparse: list[Tensor], leaves: list[Tensor], dtype: torch.dtype) -> None:
    assert expected.detach().abs().max() > 1
    torch.testing.assert_close(result.double(), expected, **_TOLERANCE[dtype])
    gradient = _random(*expected.shape)
    for a, b in zip(
        torch.autograd.grad(result, sparse, gradient.to(dtype)), torch.autograd.grad(expected, leaves, gradient)
    ):
        # Sums of up to 700 products, 5e-5 measured in float32.
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_transposed_convolution_is_the_adjoint(dtype: torch.dtype) -> None:
    coords = _scattered(400)
    coarse = _coarse(coords, 2)
    voxel_map = build_kernel_map(coords, coarse, 1, 2)
    feats, weight, other = _random(400, 6), _random(8, 6, 5), _random(len(coarse), 5)
    there = sparse_conv(feats.to(dtype), weight.to(dtype), voxel_map.neighbours)
    back = sparse_conv(other.to(dtype), weight.mT.to(dtype), voxel_map.transposed)
    torch.testing.assert_close((there.double() * other).sum(), (back.double() * feats).sum(), rtol=1e-5, atol=0)


def test_a_kernel_of_two_gathers_each_voxel_once() -> None:
    coords = _scattered(500)
    coarse = _coarse(coords, 2)
    ones = torch.ones(8, 1, 1)
    counts = sparse_conv(torch.ones(500, 1), ones, kernel_map(coords, coarse, 1, 2))
    assert counts.sum() == 500
    parents = torch.cat([coords[:, :1], coords[:, 1:].div(2, rounding_mode="floor") * 2], 1)
    expected = (parents[None] == coarse[:, None]).all(2).sum(1)
    assert torch.equal(counts[:, 0].long(), expected)


def test_offsets_run_along_x_first() -> None:
    offsets = kernel_offsets(3)
    assert offsets[0].tolist() == [-1, -1, -1]
    for k, (dx, dy, dz) in enumerate(offsets.tolist()):
        assert k == (dx + 1) + 3 * (dy + 1) + 9 * (dz + 1)
    assert kernel_offsets(2).tolist() == [[k & 1, k >> 1 & 1, k >> 2] for k in range(8)]
    assert kernel_offsets(1).tolist() == [[0, 0, 0]]


def test_a_kernel_map_names_the_voxels_at_its_offsets() -> None:
    coords = _scattered(600, 3)
    rows = kernel_map(coords, coords, 3, 3)
    found = 0
    for k, offset in enumerate(kernel_offsets(3)):
        (m,) = (rows[k] >= 0).nonzero(as_tuple=True)
        assert torch.equal(coords[rows[k, m]][:, 1:], coords[m][:, 1:] + 3 * offset)
        assert torch.equal(coords[rows[k, m]][:, 0], coords[m][:, 0])
        found += len(m)
    # As many as pairs of voxels of a scene lie within one cell of each other.
    apart = (coords[:, None, 1:] - coords[None, :, 1:]).abs().amax(2)
    assert found == ((apart <= 3) & (coords[:, None, 0] == coords[None, :, 0])).sum()


def test_a_submanifold_map_is_its_own_transpose_in_reverse() -> None:
    coords = _scattered(600)
    voxel_map = build_kernel_map(coords, coords, 1, 3)
    assert torch.equal(voxel_map.transposed, transpose_kernel_map(voxel_map.neighbours, 600))
    assert torch.equal(voxel_map.transposed, voxel_map.neighbours.flip(0))


def test_the_order_of_voxels_does_not_matter() -> None:
    coords, feats, weight = _scattered(600), _random(600, 8).float(), _random(27, 8, 8).float()
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    plain = sparse_conv(feats, weight, kernel_map(coords, coords, 1, 3))
    mixed = sparse_conv(feats[shuffled], weight, kernel_map(coords[shuffled], coords[shuffled], 1, 3))
    assert torch.equal(plain[shuffled], mixed)


def test_one_voxel_meets_the_centre_alone() -> None:
    coords = torch.tensor([[7, -3, 5, 2**20]], dtype=torch.int32)
    feats, weight = _random(1, 4).float(), _random(27, 4, 4).float()
    result = sparse_conv(feats, weight, kernel_map(coords, coords, 1, 3))
    torch.testing.assert_close(result, feats @ weight[13])


@pytest.mark.parametrize("channels", [32, 48])
def test_threads_do_not_change_a_bit(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coords = torch.cat([torch.zeros(30000, 1), torch.randint(-20, 20, (30000, 3), generator=generator)], 1)
    coords = coords.int().unique(dim=0)
    assert len(coords) > 20000  # several partial sums of the weight's gradient
    feats, weight = _random(len(coords), channels).float(), _random(27, channels, 33).float()
    gradient = _random(len(coords), 33).float()
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        voxel_map = build_kernel_map(coords, coords, 1, 3)
        transposed = transpose_kernel_map(voxel_map.neighbours, len(coords))
        leaves = feats.clone().requires_grad_(), weight.clone().requires_grad_()
        result = sparse_conv(*leaves, voxel_map.neighbours)
        results.append([voxel_map.neighbours, transposed, result, *torch.autograd.grad(result, leaves, gradient)])
    torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def test_duplicate_voxels_are_named() -> None:
    coords = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 3], [0, 1, 2, 4], [1, 1, 2, 3]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^kernel_map: in_coords has voxel \(batch 1: 1, 2, 3\) more than once"):
        kernel_map(coords, coords, 1, 3)


def _features_and_map() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coords = torch.randint(0, 9, (400, 4), generator=generator).int().clamp(max=8)
    coords[:, 0] %= 2
    coords = coords.unique(dim=0)
    coarse = torch.cat([coords[:, :1], coords[:, 1:] // 2 * 2], 1).unique(dim=0)
    neighbours = kernel_map(coords, coarse, 1, 3)
    feats = torch.randn(len(coords), 6, generator=generator)
    return feats, torch.randn(27, 6, 5, generator=generator), neighbours, transpose_kernel_map(neighbours, len(coords))


def test_pairs_of_spconv_are_those_of_the_map() -> None:
    feats, _, neighbours, _ = _features_and_map()
    wild = neighbours.clone()
    wild[3, 5], wild[4, 6] = len(feats), -7
    for given in (neighbours, wild, wild[:, :0]):
        pairs, lengths = _spconv.pairs_of(given, len(feats))
        for k, rows in enumerate(given.tolist()):
            expected = [(i, o) for o, i in enumerate(rows) if 0 <= i < len(feats)]
            assert pairs[:, k, : lengths[k]].T.tolist() == [list(pair) for pair in expected]


def test_spconv_says_why_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = next(k for k in get_operator("sparse_conv").kernels if k.name == "spconv")
    assert kernel.why_not(torch.zeros(1, 1)) == "the tensor is on cpu"
    on_device = replace(kernel, device_type="cpu")
    assert on_device.why_not(torch.zeros(1, 1).half()) == "no kernel for torch.float16"
    torch.use_deterministic_algorithms(True)
    try:
        assert on_device.why_not(torch.zeros(1, 1)).startswith("not deterministic")
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setitem(sys.modules, "spconv", None)
    _spconv.why_unavailable.cache_clear()
    try:
        assert "pip install spconv-cu126" in on_device.why_not(torch.zeros(1, 1))
    finally:
        _spconv.why_unavailable.cache_clear()


def test_spconv_computes_the_same() -> None:
    """Its path on the CPU, of the same function; its CUDA path is tested with the other kernels, on a device."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed; its CPU wheel serves here")
    feats, weight, neighbours, transposed = _features_and_map()
    exact = sparse_conv_reference(feats.double(), weight.double(), neighbours)
    assert torch.allclose(_spconv.sparse_conv(feats, weight, neighbours).double(), exact, rtol=3e-6, atol=2e-4)
    back = sparse_conv_reference(exact, weight.double().mT, transposed)
    assert torch.allclose(
        _spconv.sparse_conv(exact.float(), weight.mT, transposed).double(), back, rtol=3e-6, atol=1e-3
    )
    nothing = torch.full_like(neighbours, -1)
    assert _spconv.sparse_conv(feats, weight, nothing).eq(0).all()
