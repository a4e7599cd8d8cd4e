"""SparseVoxels: what they hold, what they share, and fields that do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import geo3d.nn  # noqa: F401  (computes topology)
from geo3d.errors import InputError
from geo3d.geometry import SparseVoxels

COORDS = torch.tensor([[0, 1, -2, 3], [2, 0, 0, 0], [0, 1, -2, 4]], dtype=torch.int32)


def test_features_on_voxels():
    voxels = SparseVoxels(COORDS, torch.zeros(3, 5))
    assert (len(voxels), voxels.stride, voxels.batch_size) == (3, 1, 3)
    assert SparseVoxels(COORDS, torch.zeros(3, 5), batch_size=7).batch_size == 7


def test_other_features_share_the_topology():
    voxels = SparseVoxels(COORDS * torch.tensor([1, 2, 2, 2]).int(), torch.zeros(3, 5), stride=2, batch_size=4)
    before = voxels.with_feats(torch.ones(3, 2))  # topology is shared even when it is made later
    topology = voxels.topology
    after = before.with_feats(torch.ones(3, 1))
    assert voxels.topology is topology
    assert before.topology is topology
    assert after.topology is topology
    assert (topology.coords is voxels.coords, topology.stride, topology.batch_size) == (True, 2, 4)
    assert (after.coords is voxels.coords, after.stride, after.batch_size) == (True, 2, 4)
    assert SparseVoxels(voxels.coords, voxels.feats, 2).topology is not topology


def test_to_the_same_device_is_the_same():
    voxels = SparseVoxels(COORDS, torch.zeros(3, 5))
    assert voxels.to("cpu") is voxels
    moved = voxels.to("meta")
    assert (moved.coords.device.type, moved.feats.device.type, moved.batch_size) == ("meta", "meta", 3)


def test_no_voxels():
    voxels = SparseVoxels(COORDS[:0], torch.zeros(0, 5))
    assert (len(voxels), voxels.batch_size, voxels.topology.size) == (0, 0, 0)
    assert SparseVoxels(COORDS[:0], torch.zeros(0, 5), batch_size=2).topology.batch_offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((COORDS.long(), torch.zeros(3, 5)), r"coords must be \(N, 4\) int32 .*, got \(3, 4\) torch.int64"),
        ((COORDS[:, 1:], torch.zeros(3, 5)), r"coords must be \(N, 4\) int32 .*, got \(3, 3\)"),
        ((COORDS, torch.zeros(2, 5)), r"feats must be \(3, C\), a row a voxel, got \(2, 5\)"),
        ((COORDS, torch.zeros(3)), r"feats must be \(3, C\), a row a voxel, got \(3,\)"),
        ((COORDS, torch.zeros(3, 5, device="meta")), "coords are on cpu but feats on meta"),
        ((COORDS, torch.zeros(3, 5), 0), "stride must be 1 or more, got 0"),
    ],
)
def test_fields_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=f"^SparseVoxels: {message}"):
        SparseVoxels(*arguments)


def test_topology_alone_needs_the_layers():
    code = """
import torch
from geo3d.geometry import SparseVoxels
voxels = SparseVoxels(torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 1))
try:
    voxels.topology
except RuntimeError as error:
    print(error)
import geo3d.nn
print(voxels.topology.size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SparseVoxels.topology is computed by geo3d.nn: import geo3d.nn first\n1\n"
