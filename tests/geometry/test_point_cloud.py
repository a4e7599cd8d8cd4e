"""PointCloud: packing, scenes as slices, round trips, and fields that do not fit."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from geo3d.geometry import PointCloud


def cloud(count: int, seed: int = 0) -> PointCloud:
    rng = torch.Generator().manual_seed(seed)
    normals = torch.randn(count, 3, generator=rng)
    return PointCloud(
        torch.randn(count, 3, generator=rng),
        torch.rand(count, 3, generator=rng),
        normals / normals.norm(dim=1, keepdim=True),
        torch.randint(-1, 20, (count,), generator=rng),
        torch.randint(-1, 5, (count,), generator=rng),
    )


FIELDS = ("xyz", "colors", "normals", "semantic", "instance", "offsets")
FAR = torch.tensor([[500000.0, 5400000.0, 301.0]], dtype=torch.float64)


def test_a_single_scene_has_two_offsets():
    points = cloud(5)
    assert (len(points), points.batch_size, points.offsets.tolist()) == (5, 1, [0, 5])


def test_pack_and_take_apart():
    parts = [cloud(3, 1), cloud(0, 2), cloud(4, 3)]
    packed = PointCloud.pack(parts)
    assert (len(packed), packed.batch_size, packed.offsets.tolist()) == (7, 3, [0, 3, 3, 7])
    for index, part in enumerate(parts):
        for field in FIELDS:
            assert torch.equal(getattr(packed.scene(index), field), getattr(part, field)), field


def test_packing_packed_clouds_keeps_their_scenes():
    pair = PointCloud.pack([cloud(2, 1), cloud(3, 2)])
    assert PointCloud.pack([pair, cloud(1, 3)]).offsets.tolist() == [0, 2, 5, 6]


def test_pack_keeps_what_all_have():
    bare = PointCloud(torch.zeros(2, 3), semantic=torch.zeros(2, dtype=torch.int64))
    packed = PointCloud.pack([cloud(3), bare])
    assert packed.colors is None
    assert packed.instance is None
    assert packed.semantic.shape == (5,)


def test_a_scene_is_a_view_of_the_packed_rows():
    packed = PointCloud.pack([cloud(2, 1), cloud(3, 2)])
    packed.scene(1).xyz.zero_()
    assert packed.xyz[2:].abs().sum() == 0
    assert packed.xyz[:2].abs().sum() > 0


def test_numpy_round_trip_through_a_file():
    packed = PointCloud.pack([cloud(2, 1), cloud(3, 2)])
    file = io.BytesIO()
    np.savez(file, **packed.to_numpy())
    file.seek(0)
    back = PointCloud.from_numpy(dict(np.load(file)))
    for field in FIELDS:
        assert torch.equal(getattr(back, field), getattr(packed, field)), field
        assert getattr(back, field).dtype == getattr(packed, field).dtype


def test_numpy_round_trip_leaves_out_what_is_unknown():
    arrays = PointCloud(torch.zeros(2, 3)).to_numpy()
    assert sorted(arrays) == ["offsets", "xyz"]
    assert PointCloud.from_numpy(arrays).colors is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"xyz": torch.zeros(4, 2)}, r"xyz must be \(N, 3\), got \(4, 2\)"),
        ({"colors": torch.zeros(3, 3)}, r"colors must be \(4, 3\), got \(3, 3\)"),
        ({"normals": torch.zeros(4)}, r"normals must be \(4, 3\)"),
        ({"semantic": torch.zeros(4, 1)}, r"semantic must be \(4,\), got \(4, 1\)"),
        ({"instance": torch.zeros(5)}, r"instance must be \(4,\)"),
        ({"offsets": torch.tensor([0, 3])}, "offsets must rise from 0 to 4"),
        ({"offsets": torch.tensor([1, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": torch.tensor([0, 3, 2, 4])}, "offsets must rise from 0 to 4"),
        ({"offsets": torch.tensor([0])}, "offsets must rise"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        PointCloud(**{"xyz": torch.zeros(4, 3), **fields})


def test_origins_are_packed_taken_apart_and_put_back():
    far, near = replace(cloud(3, 1), origin=FAR), cloud(2, 2)
    packed = PointCloud.pack([near, far, PointCloud.pack([far, near])])
    assert packed.origin.tolist() == [[0, 0, 0], FAR[0].tolist(), FAR[0].tolist(), [0, 0, 0]]
    assert packed.scene(1).origin.tolist() == FAR.tolist()
    expected = torch.cat([near.xyz.double(), far.xyz.double() + FAR, far.xyz.double() + FAR, near.xyz.double()])
    assert torch.equal(packed.world(), expected)
    back = PointCloud.from_numpy(packed.to_numpy())
    assert torch.equal(back.world(), expected)
    assert PointCloud.pack([near, near]).origin is None
    assert near.scene(0).origin is None
    assert near.world().dtype == torch.float64


@pytest.mark.parametrize("origin", [FAR.float(), FAR[0], FAR.repeat(2, 1)], ids=["float32", "one row", "two rows"])
def test_origins_that_do_not_fit(origin):
    with pytest.raises(ValueError, match=r"origin must be \(1, 3\) torch.float64"):
        PointCloud(torch.zeros(4, 3), origin=origin)


def test_an_empty_list_cannot_be_packed():
    with pytest.raises(ValueError, match="the list is empty"):
        PointCloud.pack([])
