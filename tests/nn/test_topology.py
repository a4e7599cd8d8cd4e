"""Topology: each part against its definition, made once, shared, and coordinates that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.nn import Topology
from geo3d.ops import kernel_offsets


def _coords(count: int = 300, reach: int = 6, scenes: int = 3, stride: int = 1, seed: int = 0) -> Tensor:
    """(N, 4) distinct voxels in random order, negative ones too."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-reach, reach, (count, 3), generator=generator) * stride
    batch = torch.randint(0, scenes, (count, 1), generator=generator)
    coords = torch.cat([batch, xyz], 1).unique(dim=0)
    return coords[torch.randperm(len(coords), generator=generator)].int()


def test_order_key_and_offsets():
    coords = _coords()
    topology = Topology(coords, batch_size=5)
    rows = coords.tolist()
    assert topology.order.tolist() == sorted(range(len(rows)), key=rows.__getitem__)
    assert torch.equal(topology.key[topology.order], torch.arange(len(rows)))
    offsets = topology.batch_offsets.tolist()
    assert len(offsets) == 6
    for scene in range(5):
        inside = topology.order[offsets[scene] : offsets[scene + 1]]
        assert (coords[inside, 0] == scene).all()
    assert offsets[-1] == len(rows)


def test_keys_compare_as_far_coordinates_do():
    corners = torch.cartesian_prod(*[torch.tensor([-(2**20), 0, 2**20])] * 3)
    coords = torch.cat([torch.tensor([[65535]]).expand(27, 1), corners], 1)
    coords = torch.cat([coords - torch.tensor([65535, 0, 0, 0]), coords]).flip(0).int()
    topology = Topology(coords)
    assert torch.equal(topology.key, torch.arange(53, -1, -1))
    assert topology.batch_size == 65536


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_coarse_voxels(factor):
    coords = _coords(stride=2)
    fine = Topology(coords, stride=2, batch_size=4)
    coarse, parent = fine.coarsen(factor)
    stride = 2 * factor
    expected = [[batch, *(c // stride * stride for c in xyz)] for batch, *xyz in coords.tolist()]
    assert coarse.coords[parent].tolist() == expected
    assert coarse.coords.tolist() == [list(cell) for cell in sorted({tuple(cell) for cell in expected})]
    assert (coarse.stride, coarse.batch_size, coarse.coords.dtype) == (stride, 4, torch.int32)
    assert torch.equal(coarse.order, torch.arange(coarse.size))


def test_coarsening_in_two_steps_is_coarsening_in_one():
    fine = Topology(_coords(reach=20))
    middle, first = fine.coarsen(3)
    coarse, second = middle.coarsen(2)
    at_once, parent = fine.coarsen(6)
    assert torch.equal(coarse.coords, at_once.coords)
    assert torch.equal(second[first], parent)


def _neighbours_by_dictionary(topology: Topology, outputs: Topology, kernel_size: int) -> list[list[int]]:
    rows = {tuple(coord): row for row, coord in enumerate(topology.coords.tolist())}
    steps = (topology.stride * kernel_offsets(kernel_size)).tolist()
    return [
        [rows.get((batch, *(c + d for c, d in zip(xyz, step))), -1) for batch, *xyz in outputs.coords.tolist()]
        for step in steps
    ]


@pytest.mark.parametrize("stride", [1, 3])
def test_kernel_maps(stride):
    topology = Topology(_coords(stride=stride), stride)
    kernel_map = topology.kernel_map(3)
    assert kernel_map.neighbours.tolist() == _neighbours_by_dictionary(topology, topology, 3)
    assert torch.equal(kernel_map.neighbours[13], torch.arange(topology.size).int())  # the centre is the voxel itself
    coarse, _ = topology.coarsen(2)
    strided = topology.strided_kernel_map(2, 2)
    assert strided.neighbours.tolist() == _neighbours_by_dictionary(topology, coarse, 2)
    assert int((strided.neighbours >= 0).sum()) == topology.size  # each voxel lies in one coarse voxel


def test_everything_is_made_once():
    topology = Topology(_coords())
    assert topology.order is topology.order
    assert topology.key is topology.key
    assert topology.batch_offsets is topology.batch_offsets
    for shifted in (False, True):
        assert topology.windows(5, shifted) is topology.windows(5, shifted)
    assert topology.windows(5, False) is not topology.windows(5, True)
    assert topology.windows(5, False) is not topology.windows(7, False)
    assert topology.coarsen(2)[0] is topology.coarsen(2)[0]
    assert topology.coarsen(2)[1] is topology.coarsen(2)[1]
    assert topology.kernel_map(3) is topology.kernel_map(3)
    assert topology.strided_kernel_map(2, 3) is topology.strided_kernel_map(2, 3)


def test_voxels_on_a_topology_share_it():
    topology = Topology(_coords(stride=2), 2, 9)
    voxels = topology.voxels(torch.zeros(topology.size, 3))
    assert voxels.topology is topology
    assert (voxels.coords is topology.coords, voxels.stride, voxels.batch_size) == (True, 2, 9)


@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_one_voxel_scenes(count):
    topology = Topology(_coords(1)[:count], batch_size=3)
    windows = topology.windows(7, True)
    coarse, parent = topology.coarsen(2)
    assert windows.order.tolist() == list(range(count))
    assert windows.offsets.tolist() == list(range(count + 1))
    assert windows.cell.shape == (count, 3)
    assert (coarse.size, parent.tolist()) == (count, [0] * count)
    assert topology.kernel_map(3).neighbours.shape == (27, count)
    assert topology.strided_kernel_map(2, 3).neighbours.shape == (27, count)
    assert topology.batch_offsets[-1] == count


@pytest.mark.parametrize(
    ("rows", "stride", "batch_size", "message"),
    [
        ([[0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 2, 3]], 1, None, r"row 2 of coords is \[0, 1, 2, 3\].* already \(1 of 3"),
        ([[0, 0, 0, 0], [-1, 0, 0, 0]], 1, None, r"row 1 of coords is \[-1, 0, 0, 0\].*: batch must be from 0 to 0"),
        ([[2, 0, 0, 0]], 1, 2, r"row 0 of coords is \[2, 0, 0, 0\] .*: batch must be from 0 to 1"),
        ([[70000, 0, 0, 0]], 1, None, "a batch holds up to 65536 scenes, got 70001"),
        ([[0, 0, 0, 0], [0, 2**20 + 1, 0, 0]], 1, None, "row 1 .*: coordinates must be from -1048576 to 1048576"),
        ([[0, 0, 0, 0], [0, 0, 0, -(2**20) - 1]], 1, None, "row 1 .*: coordinates must be from -1048576 to 1048576"),
        ([[0, 0, 2, 4], [0, 0, 3, 0]], 2, None, "row 1 .*: coordinates must be multiples of the stride 2"),
    ],
)
def test_coordinates_that_are_refused(rows, stride, batch_size, message):
    with pytest.raises(InputError, match=f"^SparseVoxels: {message}"):
        Topology(torch.tensor(rows, dtype=torch.int32), stride, batch_size)


def test_arguments_that_are_refused():
    with pytest.raises(InputError, match=r"^Topology: coords must be \(N, 4\) int32"):
        Topology(_coords().long())
    with pytest.raises(InputError, match=r"^Topology: stride must be 1 or more, got 0"):
        Topology(_coords(), 0)
    with pytest.raises(InputError, match=r"^Topology.coarsen: factor must be 1 or more, got 0"):
        Topology(_coords()).coarsen(0)
