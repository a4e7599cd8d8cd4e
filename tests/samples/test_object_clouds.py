"""ObjectClouds: which objects there are in scenes of all kinds, and the clouds of them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import (
    BALL,
    BUILDERS,
    COLOR,
    CUBE,
    CUBE_FACES,
    POINTS,
    build_object_folders,
    off_text,
    orbit,
    project,
)
from memory_scenes import MemoryDataset, MemoryScene

from geo3d import InputError
from geo3d.datasets import Mesh
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.geometry import PointCloud
from geo3d.samples.objects import SURFACE_POINTS, ObjectClouds, resample, to_unit_sphere

REAL = pytest.mark.skipif("GEO3D_TEST_DATA" not in os.environ, reason="GEO3D_TEST_DATA is not set: it names real data")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def find(kind: str, tmp_path: Path, **options) -> ObjectClouds:
    BUILDERS[kind](tmp_path / kind)
    return ObjectClouds.find([tmp_path / kind], **options)


# Drawing and normalising.


@pytest.mark.parametrize("count", [1, 7, 60])
def test_points_are_drawn_once_where_there_are_enough(count):
    drawn = resample(BALL, count, rng())
    assert drawn.shape == (count, 3)
    rows = [int(np.flatnonzero((point == BALL).all(1)).item()) for point in drawn]
    assert len(set(rows)) == count
    assert rows != sorted(rows) or count == 1


def test_points_repeat_evenly_where_there_are_too_few():
    drawn = resample(np.arange(30).reshape(10, 3), 25, rng())
    counts = np.bincount(drawn[:, 0] // 3, minlength=10)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert np.array_equal(drawn, resample(np.arange(30).reshape(10, 3), 25, rng()))
    assert not np.array_equal(drawn, resample(np.arange(30).reshape(10, 3), 25, rng(1)))
    for xyz, count in ((BALL[:0], 3), (BALL, 0)):
        with pytest.raises(InputError, match="cannot be drawn"):
            resample(xyz, count, rng())


def test_the_unit_sphere():
    moved = to_unit_sphere(BALL * [3, 1, 1] + [100, -5, 2])
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved.mean(0), 0, atol=1e-6)  # float32
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(1, abs=1e-6)
    spread = (BALL * [3, 1, 1]) - (BALL * [3, 1, 1]).mean(0)
    np.testing.assert_allclose(moved, spread / np.linalg.norm(spread, axis=1).max(), atol=1e-6)


@pytest.mark.parametrize("point", [(0, 0, 0), (0.1, 0.2, 0.3), (1e6, 1e-6, 0.1)])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_equal_points_stay_finite(point, count):
    assert not to_unit_sphere(np.tile(point, (count, 1))).any()


def test_small_and_far_clouds_are_no_points():
    tiny = to_unit_sphere(BALL * 1e-6 + 1.0)
    assert np.linalg.norm(tiny, axis=1).max() == pytest.approx(1, abs=1e-6)


# Objects of object datasets.


def test_objects_categories_and_subsets(tmp_path):
    source = find("modelnet_resampled", tmp_path)
    assert source.categories == ("airplane", "night_stand")
    assert [source.category(i) for i in range(3)] == [0, 1, 1]
    assert [source.subset(i) for i in range(3)] == ["train", "train", "test"]
    assert source.group_count == 3
    assert source.describe(2) == f"{tmp_path / 'modelnet_resampled'}: scene night_stand_0201"
    assert len(ObjectClouds.find([tmp_path / "modelnet_resampled"], subset="test")) == 1
    with pytest.raises(InputError, match=r"no object is of subset 'tset', only of \['test', 'train'\]"):
        ObjectClouds.find([tmp_path / "modelnet_resampled"], subset="tset")
    stored = source.cloud(0)
    np.testing.assert_allclose(stored.xyz, BALL, atol=1e-6)
    assert stored.normals is not None
    part = source.cloud(0, rng(), 20)
    assert part.xyz.shape == part.normals.shape == (20, 3)
    assert torch.equal(part.xyz, source.cloud(0, rng(), 20).xyz)
    assert not torch.equal(part.xyz, source.cloud(0, rng(1), 20).xyz)
    assert torch.equal(source.cloud(0, count=20).xyz, source.cloud(0, count=20).xyz)
    assert len(source.cloud(0, rng(), 100)) == 100


def test_categories_of_the_same_name_are_one(tmp_path):
    BUILDERS["shapenet55"](tmp_path / "shapenet")
    BUILDERS["modelnet_hdf5"](tmp_path / "modelnet")
    source = ObjectClouds.find([tmp_path / "shapenet", tmp_path / "modelnet"])
    named = [source.categories[source.category(i)] for i in range(len(source))]
    assert named == ["airplane", "table", "chair", "airplane", "xbox", "car", "car", "table"]
    assert len(set(source.categories)) == len(source.categories)
    train = source.of_groups([0, 3])
    assert [train.categories[train.category(i)] for i in range(2)] == ["airplane", "airplane"]


def test_meshes_are_sampled_evenly_once_and_drawn_from(tmp_path):
    build_object_folders(tmp_path / "data")
    stretched = CUBE * [1, 2, 3]
    (tmp_path / "data" / "box" / "test" / "box_0101.off").write_text(off_text(stretched, CUBE_FACES))
    source = ObjectClouds.find([tmp_path / "data"])
    pool = source.cloud(2)
    assert len(pool) == SURFACE_POINTS
    xyz = pool.xyz.numpy()
    sides = np.array([(xyz[:, axis] == value).sum() for axis in range(3) for value in (0, axis + 1)])
    area = np.array([6, 6, 3, 3, 2, 2]) / 22
    # One point from each share of equal area: each of a side's two triangles is out by less than one.
    np.testing.assert_allclose(sides, area * SURFACE_POINTS, atol=3)
    drawn = source.cloud(2, rng(), 500).xyz.numpy()
    assert {tuple(point) for point in drawn} <= {tuple(point) for point in xyz}
    assert len({tuple(point) for point in drawn}) == 500
    more = source.cloud(2, rng(), 20_000).xyz
    assert len(more.unique(dim=0)) == 20_000
    assert torch.equal(more, source.cloud(2, rng(), 20_000).xyz)
    assert source._pool(2, (2, 0)) is source._pool(2, (2, 0))


def test_what_is_always_the_same_does_not_depend_on_what_else_there_is(tmp_path):
    build_object_folders(tmp_path / "data")
    source = ObjectClouds.find([tmp_path / "data"])
    part = pickle.loads(pickle.dumps(source.of_groups([3])))
    assert torch.equal(part.cloud(0).xyz, source.cloud(3).xyz)
    assert not torch.equal(source.cloud(4).xyz, source.cloud(3).xyz), "the same mesh of another name"


def test_clouds_leave_the_memory(tmp_path, monkeypatch):
    source = find("object_folders", tmp_path)
    monkeypatch.setattr(ObjectClouds, "memory", 200_000)  # of 98 kB each
    clouds = [source.cloud(i).xyz for i in (2, 3, 4, 2)]
    assert torch.equal(clouds[0], clouds[3])
    assert len(source._clouds) == 2
    assert source._bytes == sum(cloud.xyz.nbytes + cloud.offsets.nbytes for cloud in source._clouds.values())
    assert not pickle.loads(pickle.dumps(source))._clouds


def test_meshes_without_surface_or_faces(tmp_path):
    for name, (vertices, faces) in {
        "flat": (CUBE * 0, CUBE_FACES),
        "bare": (CUBE, CUBE_FACES[:0]),
        "whole": (CUBE, CUBE_FACES),
    }.items():
        for category in "ab":
            (tmp_path / category).mkdir(exist_ok=True)
            (tmp_path / category / f"{name}.off").write_text(off_text(vertices, faces))
    source = ObjectClouds.find([tmp_path])
    assert len(source) == 6
    assert len(source.cloud(0)) == 8, "vertices"
    with pytest.raises(InputError, match="scene a/flat: the faces have no area"):
        source.cloud(1)


# Objects cut out of scenes.


def test_instances_of_scans(tmp_path):
    """Two of the cube's corners are a wall, the other instance has corners of floor and two more classes."""
    with pytest.raises(InputError, match="no scene holds objects: scenes that are one, or instance labels"):
        find("scannet", tmp_path)
    source = ObjectClouds.find([tmp_path / "scannet"], fewest=2, leave_out=())
    assert (len(source), source.group_count) == (6, 3)
    assert [source.describe(i).rpartition("scene ")[2] for i in (0, 3)] == [
        "scene0000_00: instance 0",
        "scene0000_01: instance 1",
    ]
    assert source.categories == ("table", "wall")
    assert [source.category(i) for i in range(4)] == [0, 1, 0, 1]
    assert len(ObjectClouds.find([tmp_path / "scannet"], fewest=2)) == 3, "walls are no objects"
    assert len(ObjectClouds.find([tmp_path / "scannet"], fewest=3, leave_out=())) == 3
    assert len(source.cloud(0)) == 2, "no face lies within it"
    assert source.subset(0) == ""


class LabelledScene(MemoryScene):
    """Three cubes in a row, of which the last is of no class, and one that is no instance."""

    def mesh(self) -> Mesh:
        cubes = np.concatenate([CUBE + np.array([2 * i, 0, 0]) for i in range(4)]).astype(np.float32)
        faces = np.concatenate([CUBE_FACES + 8 * i for i in range(4)])
        semantic, instance = np.repeat([4, 2, -1, 6], 8), np.repeat([5, 0, 9, -1], 8)
        semantic[[0, 8]] = 19
        return Mesh(cubes, faces, semantic=semantic, instance=instance)


def test_instances_of_meshes_are_sampled_evenly():
    dataset = MemoryDataset([LabelledScene("row"), "cut"])
    source = ObjectClouds.of_datasets([dataset], fewest=8)
    assert [source.items.number[i] for i in range(3)] == [0, 5, 9]
    assert source.categories == (SCANNET20_CLASSES[2], SCANNET20_CLASSES[4])
    assert [source.category(i) for i in range(3)] == [0, 1, -1]
    assert "cut" in dataset.quarantine.report()
    for index, start in enumerate((2, 0, 4)):
        xyz = source.cloud(index, rng(), 600).xyz
        assert xyz.shape == (600, 3)
        np.testing.assert_allclose(xyz.min(0).values, [start, 0, 0], atol=0.01)
        np.testing.assert_allclose(xyz.max(0).values, [start + 1, 1, 1], atol=0.01)


class LabelledPoints(MemoryScene):
    def points(self) -> PointCloud:
        instance = torch.arange(60) % 3 - 1
        colors = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
        return PointCloud(torch.from_numpy(BALL).float(), colors, semantic=instance + 3, instance=instance)


def test_instances_of_points():
    source = ObjectClouds.of_datasets([MemoryDataset([LabelledPoints("a", parts=("points", "labels"))])], fewest=20)
    assert len(source) == 2
    cloud = source.cloud(1)
    assert torch.equal(cloud.xyz, torch.from_numpy(BALL).float()[2::3])
    assert torch.equal(cloud.colors, LabelledPoints("a").points().colors[2::3])


def test_captures_keep_what_lies_in_their_masks(tmp_path):
    """The left half of each image is the object, and every view observes every point."""
    source = find("mvimgnet", tmp_path)
    assert (len(source), source.categories) == (3, ("7", "12"))
    left = np.stack([project(COLOR, pose, POINTS)[:, 0] for pose in orbit()]) < COLOR.width / 2 - 0.5
    expected = left.sum(0) > 2
    assert 0 < expected.sum() < len(POINTS)
    scene = source.datasets[0][0]
    xyz = scene.points().xyz[torch.from_numpy(expected)]
    assert torch.equal(source.cloud(0).xyz, xyz)
    assert source.cloud(0).colors is not None


def test_captures_without_masks_keep_all_points(tmp_path):
    BUILDERS["mvimgnet"](tmp_path)
    for mask in tmp_path.rglob("masks/*.png"):
        mask.unlink()
    assert len(ObjectClouds.find([tmp_path]).cloud(0)) == len(POINTS)


def test_scenes_that_are_no_objects(tmp_path):
    for kind in ("transforms", "image_pairs", "scannet_frames"):
        with pytest.raises(InputError, match="no scene holds objects"):
            find(kind, tmp_path)


# Real data.


@REAL
def test_real_objects():
    root = Path(os.environ["GEO3D_TEST_DATA"])
    source = ObjectClouds.find([root / "objects19", root / "scannet", root / "mvimgnet"])
    whole = source.items.whole
    assert whole.sum() == 381
    assert np.bincount(source.items.category[whole])[:19].tolist() == [20] * 19
    named = [source.categories[c] for c in source.items.category[~whole] if c >= 0]
    assert {"bed", "sofa", "table", "toilet", "refrigerator"} <= set(named)
    assert not {"wall", "floor"} & set(named)
    for index in [0, 200, *np.flatnonzero(~whole)[:8], len(source) - 1]:
        cloud = source.cloud(int(index), rng(), 1024)
        assert len(cloud) == 1024
        assert np.isfinite(to_unit_sphere(cloud.xyz.numpy())).all()
    bed = int(np.flatnonzero(~whole & (source.items.category == source.categories.index("bed")))[0])
    assert 0.5 < np.ptp(source.cloud(bed).xyz.numpy(), axis=0).max() < 3.5, "metres"
