"""The voxels that a kernel reaches, and the generative transposed convolution over them against a dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose3d

from geo3d.ops import build_kernel_map, kernel_offsets, kernel_support, sparse_conv
from geo3d.ops.kernel_support import kernel_support_reference

_EDGE = 8  # coarse cells of the dense grids
_IMPLEMENTATIONS = [
    pytest.param(kernel_support, id="operator"),  # the kernel, where it is built
    pytest.param(kernel_support_reference, id="reference"),
]
# float32 against float64: sums of some 20 products of unit variance, 3e-6 measured; of 160 in the gradients, 3.5e-5.
_TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-5}, torch.float64: {"rtol": 0, "atol": 1e-12}}


def _scattered(count: int, stride: int, scenes: int = 2, seed: int = 0) -> Tensor:
    """(N, 4) distinct voxels of a stride in random order, from 0 to _EDGE of them along each axis."""
    generator = torch.Generator().manual_seed(count + seed)
    cells = torch.randperm(scenes * _EDGE**3, generator=generator)[:count]
    columns = [cells // _EDGE**axis % _EDGE * stride for axis in range(3)]
    return torch.stack([cells // _EDGE**3, *columns], 1).int()


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
@pytest.mark.parametrize(("stride", "step", "size"), [(2, 1, 2), (3, 1, 3), (4, 2, 2), (1, 1, 3), (2, 2, 5), (2, 1, 4)])
def test_against_a_set_of_tuples(function, stride: int, step: int, size: int) -> None:
    for seed in range(3):
        coords = _scattered(60, stride, seed=seed) - torch.tensor([0, 9, 0, 4], dtype=torch.int32)
        reach = [[step * o for o in offset] for offset in kernel_offsets(size).tolist()]
        expected = {(b, x + dx, y + dy, z + dz) for b, x, y, z in coords.tolist() for dx, dy, dz in reach}
        found = function(coords, step, size)
        assert found.dtype == torch.int32
        assert [tuple(row) for row in found.tolist()] == sorted(expected)


@pytest.mark.parametrize("function", _IMPLEMENTATIONS)
def test_children_come_home(function) -> None:
    coarse = _scattered(200, 4)
    children = function(coarse, 2, 2)
    assert len(children) == 8 * len(coarse)
    parents = torch.cat([children[:, :1], children[:, 1:].div(4, rounding_mode="floor") * 4], 1)
    assert torch.equal(parents.unique(dim=0), coarse.unique(dim=0))


@pytest.mark.parametrize("dtype", list(_TOLERANCE))
@pytest.mark.parametrize(("factor", "size"), [(2, 2), (3, 3), (2, 3), (2, 4), (1, 3)])
def test_generative_convolution_against_dense_transposed_convolution(
    factor: int, size: int, dtype: torch.dtype
) -> None:
    """conv_transpose3d of a grid that is zero where there is no voxel: equal at all voxels made, zero elsewhere."""
    coarse = _scattered(90, factor)
    fine = kernel_support(coarse, 1, size)
    feats, weight = _random(90, 6), _random(size**3, 6, 5)
    leaves = [feats.clone().requires_grad_(), weight.clone().requires_grad_()]

    b, x, y, z = (coarse // torch.tensor([1, factor, factor, factor])).long().unbind(1)
    grid = torch.zeros(2, _EDGE, _EDGE, _EDGE, 6, dtype=torch.float64).index_put((b, z, y, x), leaves[0])
    # (K, Cin, Cout) with x fastest as conv_transpose3d takes it: (Cin, Cout, z, y, x).
    dense_weight = leaves[1].unflatten(0, (size,) * 3).permute(3, 4, 0, 1, 2)
    dense = conv_transpose3d(grid.permute(0, 4, 1, 2, 3), dense_weight, stride=factor).permute(0, 2, 3, 4, 1)
    low = size // 2 if size % 2 else 0  # an odd kernel is centred, and begins below the coarse voxel's corner
    b, x, y, z = (fine + torch.tensor([0, low, low, low])).long().unbind(1)
    expected = dense[b, z, y, x]
    assert expected.square().sum().item() == pytest.approx(
        dense.square().sum().item()
    )  # nothing outside of the support

    voxel_map = build_kernel_map(fine, coarse, 1, size)
    sparse = [feats.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    result = sparse_conv(*sparse, voxel_map.transposed, voxel_map.neighbours)
    torch.testing.assert_close(result.double(), expected, **_TOLERANCE[dtype])
    gradient = _random(*expected.shape)
    for a, e in zip(
        torch.autograd.grad(result, sparse, gradient.to(dtype)), torch.autograd.grad(expected, leaves, gradient)
    ):
        torch.testing.assert_close(a.double(), e, **_TOLERANCE[dtype])


def test_threads_do_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    coords = torch.cat([torch.zeros(30000, 1), 2 * torch.randint(-20, 20, (30000, 3), generator=generator)], 1).int()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([kernel_support(coords, 1, 2), kernel_support(coords, 2, 3)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
