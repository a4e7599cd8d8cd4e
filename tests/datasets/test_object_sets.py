"""Datasets of objects: names, categories, subsets, and what each layout has of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import (
    BALL,
    BUILDERS,
    CUBE,
    CUBE_FACES,
    TALL,
    build_object_arrays,
    build_object_folders,
    build_rows,
    build_scanobjectnn,
    off_text,
)

from geo3d.datasets import BrokenScene, Quarantine, SceneDataset, object_arrays, open_dataset
from geo3d.datasets.modelnet import MODELNET40_CLASSES
from geo3d.datasets.scanobjectnn import SCANOBJECTNN_CLASSES
from geo3d.datasets.shapenet import TAXONOMY
from geo3d.errors import InputError, MissingExtra
from geo3d.viz.ply import write_ply


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def built(kind: str, root: Path) -> SceneDataset:
    BUILDERS[kind](root)
    return open_dataset(root)


def described(dataset: SceneDataset) -> dict[str, tuple[str, str]]:
    """Category and subset of each object by its name."""
    return {s.name: (dataset.categories[s.category] if s.category >= 0 else "", s.subset) for s in dataset}


def tall(dataset: SceneDataset) -> set[str]:
    """Names of the objects that are :data:`TALL`."""
    return {scene.name for scene in dataset if abs(float(scene.cloud().xyz[:, 2].max()) - TALL[:, 2].max()) < 1e-3}


def test_shapenet(root):
    dataset = built("shapenet55", root)
    assert described(dataset) == {
        "02691156-1a04": ("airplane", "train"),
        "04379243-00ff": ("table", "train"),
        "03001627-7b31": ("chair", "test"),
    }
    assert (len(TAXONOMY), dataset.categories) == (55, tuple(TAXONOMY.values()))
    assert tall(dataset) == {"03001627-7b31"}
    np.testing.assert_array_equal(dataset[0].points().xyz, BALL.astype(np.float32))


def test_shapenet_without_lists_and_with_other_taxonomies(root):
    BUILDERS["shapenet55"](root)
    np.save(root / "shapenet_pc" / "99999999-1.npy", BALL)
    for subset in ("train", "test"):
        (root / "ShapeNet-55" / f"{subset}.txt").unlink()
    dataset = open_dataset(root)
    assert len(dataset) == 4
    assert {scene.subset for scene in dataset} == {""}
    assert dataset.categories[dataset["99999999-1"].category] == "99999999"


def test_what_is_listed_and_missing_is_told_when_it_is_read(root):
    dataset = built("shapenet55", root)
    (root / "shapenet_pc" / "02691156-1a04.npy").unlink()
    with pytest.raises(BrokenScene, match=r"scene 02691156-1a04: .*1a04.npy: cannot be read: No such file"):
        open_dataset(root)[0].points()
    assert len(dataset) == 3


def test_modelnet_in_hdf5(root):
    dataset = built("modelnet_hdf5", root)
    assert described(dataset) == {
        "ply_data_train0/0": ("airplane", "train"),
        "ply_data_train0/1": ("xbox", "train"),
        "ply_data_train1/0": ("car", "train"),
        "ply_data_train1/1": ("car", "train"),
        "ply_data_test0/0": ("table", "test"),
    }
    assert tall(dataset) == {"ply_data_train0/1", "ply_data_train1/1", "ply_data_test0/0"}
    assert len(MODELNET40_CLASSES) == 40
    (root / "shape_names.txt").write_text("first\n" + "\n".join(MODELNET40_CLASSES[1:]))
    assert open_dataset(root).categories[:2] == ("first", "bathtub")


def test_what_is_wrong_in_hdf5(root, monkeypatch):
    BUILDERS["modelnet_hdf5"](root)
    (root / "ply_data_train0.h5").write_bytes(b"nothing")
    build_rows(root / "ply_data_train2.h5", [40, 3])
    dataset = open_dataset(root)
    assert len(dataset) == 5
    assert "ply_data_train0.h5: cannot be read as HDF5, it is missing, damaged or cut" in dataset.quarantine.report()
    with pytest.raises(BrokenScene, match="row 0 has label 40; there are 40 categories"):
        dataset["ply_data_train2/0"]
    with pytest.raises(BrokenScene, match="cannot be read as HDF5"):
        open_dataset(root, quarantine=Quarantine(strict=True))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"reading HDF5 files of clouds needs h5py: pip install 'geo3d\[h5\]'"):
        open_dataset(root)


def test_hdf5_of_another_shape(root):
    import h5py

    root.mkdir()
    for columns, line in (
        ({"data": np.zeros((2, 9)), "label": [0, 0]}, r"data \(N, P, 3\) of numbers is expected, it is \(2, 9\)"),
        ({"data": np.zeros((2, 9, 3)), "label": [0]}, "2 labels are expected, it has 1"),
        ({"data": np.zeros((2, 9, 3)), "label": [0.5, 0]}, "its labels are no whole numbers"),
        ({"data": np.zeros((2, 9, 3))}, "cannot be read as HDF5"),
    ):
        with h5py.File(root / "ply_data_test0.h5", "w") as opened:
            for column, values in columns.items():
                opened[column] = values
        with pytest.raises(BrokenScene, match=line):
            open_dataset(root)


def test_modelnet_in_text(root):
    dataset = built("modelnet_resampled", root)
    assert described(dataset) == {
        "airplane_0001": ("airplane", "train"),
        "night_stand_0001": ("night_stand", "train"),
        "night_stand_0201": ("night_stand", "test"),
    }
    assert tall(dataset) == {"night_stand_0201"}
    points = dataset[2].points()
    np.testing.assert_allclose(points.xyz, TALL, atol=1e-6)  # written with six places
    np.testing.assert_allclose(points.normals, BALL, atol=2e-6)  # and made unit vectors again
    (root / "modelnet40_test.txt").write_text("sofa_0001\n")
    with pytest.raises(BrokenScene, match=r"scene sofa_0001: .*'sofa' is none of the 2 categories"):
        open_dataset(root)["sofa_0001"]


def test_pickled_caches_are_not_read(root):
    BUILDERS["modelnet_resampled"](root)
    (root / "modelnet40_train_8192pts_fps.dat").write_bytes(b"\x80\x04]\x94.")
    (remark,) = open_dataset(root).quarantine.remarks
    assert "fps.dat: 1 pickled caches are not read, as unpickling runs what is in a file" in str(remark)
    for category in ("airplane", "night_stand"):
        (root / category).rename(root.parent / category)
    with pytest.raises(InputError, match=r"fps.dat: pickled caches are not read.*; the .txt files are needed$"):
        open_dataset(root)


def test_scanobjectnn_and_its_hardest_variant(root):
    dataset = built("scanobjectnn", root)
    assert dataset.categories == SCANOBJECTNN_CLASSES
    assert described(dataset) == {
        "training_objectdataset/0": ("bag", "train"),
        "training_objectdataset/1": ("toilet", "train"),
        "test_objectdataset/0": ("cabinet", "test"),
    }
    build_scanobjectnn(root, "_augmentedrot_scale75")
    assert list(open_dataset(root).scene_names) == list(dataset.scene_names)
    hardest = open_dataset(root, "scanobjectnn_hardest")
    assert hardest.scene_names[0] == "training_objectdataset_augmentedrot_scale75/0"
    assert [scene.subset for scene in hardest] == ["train", "train", "test"]


def test_arrays_are_mapped_and_named(root):
    dataset = built("object_arrays", root)
    assert described(dataset) == {"b0.off": ("ball", ""), "e0.off": ("egg", ""), "b1.off": ("ball", "")}
    assert tall(dataset) == {"e0.off"}
    assert isinstance(object_arrays._read(root / "shapes.npz", "x", "points"), np.memmap)
    np.testing.assert_array_equal(dataset[0].points().xyz, BALL.astype(np.float16).astype(np.float32))


def test_several_arrays_and_what_they_may_lack(root):
    root.mkdir()
    clouds = np.stack([BALL, TALL])
    np.savez_compressed(root / "some_train.npz", points=clouds, label=np.array([[1], [0]]))
    np.savez(root / "some_test2.npz", points=np.asfortranarray(clouds))
    np.savez(root / "other.npz", xyz=BALL)
    dataset = open_dataset(root)
    assert described(dataset) == {
        "some_test2/0": ("", "test"),
        "some_test2/1": ("", "test"),
        "some_train/0": ("1", "train"),
        "some_train/1": ("0", "train"),
    }
    assert tall(dataset) == {"some_test2/1", "some_train/1"}


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"label": [0, 1]}, r"label is \(2,\) of int64, 3 whole numbers are expected"),
        ({"label": [0.5, 1, 0]}, r"label is \(3,\) of float64, 3 whole numbers are expected"),
        ({"label": np.array([0, 1, "a"], object)}, r"not a whole file of NumPy: label holds Python objects"),
    ],
)
def test_arrays_that_do_not_fit(root, columns, line):
    root.mkdir()
    np.savez(root / "a.npz", points=np.zeros((3, 9, 3)), **columns)
    with pytest.raises(BrokenScene, match=r"scene a: .*a.npz: " + line):
        open_dataset(root)


def test_arrays_of_different_classes_and_cut_ones(root):
    build_object_arrays(root)
    np.savez(root / "b.npz", points=np.zeros((1, 9, 3)), label=[0], classes=["egg"])
    with pytest.raises(InputError, match=r"b.npz and shapes.npz name different classes; put them into folders"):
        open_dataset(root)
    (root / "b.npz").unlink()
    dataset = open_dataset(root)
    np.savez(root / "shapes.npz", points=np.stack([BALL]), label=[0])
    with pytest.raises(BrokenScene, match="has 1 objects by now, row 2 is gone"):
        dataset[2].points()
    np.savez(root / "shapes.npz", points=np.full((3, 9, 3), np.nan), label=[0, 0, 0])
    with pytest.raises(BrokenScene, match="9 points are damaged"):
        open_dataset(root)[0].points()


def test_folders_of_meshes_and_points(root):
    dataset = built("object_folders", root)
    assert described(dataset) == {
        "ball/b1": ("ball", ""),
        "ball/b2": ("ball", ""),
        "box/test/box_0101": ("box", "test"),
        "box/train/box_0001": ("box", "train"),
        "box/train/box_0002": ("box", "train"),
    }
    assert [sorted(scene.parts) for scene in dataset] == [["points"]] * 2 + [["mesh"]] * 3
    assert tall(dataset) == {"ball/b2"}
    for scene in list(dataset)[2:]:
        mesh = scene.mesh()  # one of them has its counts in the line of OFF
        np.testing.assert_array_equal(mesh.vertices, CUBE)
        np.testing.assert_array_equal(mesh.faces, CUBE_FACES)


def test_splits_above_the_categories_and_text(root):
    for subset, category, name in (("train", "a", "1"), ("train", "b", "2"), ("train", "b", "3"), ("Test", "a", "4")):
        (root / subset / category).mkdir(parents=True, exist_ok=True)
        np.savetxt(root / subset / category / f"{name}.txt", BALL, delimiter=",")
    assert described(open_dataset(root)) == {
        "Test/a/4": ("a", "test"),
        "train/a/1": ("a", "train"),
        "train/b/2": ("b", "train"),
        "train/b/3": ("b", "train"),
    }


def test_which_files_of_a_folder_are_objects(root):
    build_object_folders(root)
    (root / "ball" / "b1_labels.txt").write_text("1 2 3\n")  # labels of faces, beside what they are of
    (root / "ball" / "b1.off").write_text(off_text(CUBE, CUBE_FACES))
    (root / "notes").mkdir()
    (root / "notes" / "read.txt").write_text("read me\n")
    (root / "scan.ply").write_bytes(b"")
    dataset = open_dataset(root)
    assert dataset.categories == ("ball", "box")
    assert list(dataset.scene_names)[:3] == ["ball/b1.off", "ball/b1.xyz", "ball/b2"]
    (remark,) = dataset.quarantine.remarks
    assert "scan.ply: 1 files of points or meshes lie beside the folders of categories and are not read" in str(remark)


def test_names_of_numbered_categories(root):
    """As MVImgNet and MVPNet have them."""
    for number in ("7", "12"):
        (root / number).mkdir(parents=True)
        for name in ("a", "b"):
            write_ply(root / number / f"{name}.ply", {axis: BALL[:, i] for i, axis in enumerate("xyz")})
    (root / "mvimgnet_category.txt").write_text("7,table tennis bat\n12,bottle\n")
    dataset = open_dataset(root)
    assert dataset.categories == ("table tennis bat", "bottle")
    assert [scene.category for scene in dataset] == [0, 0, 1, 1]
    assert {tuple(scene.parts) for scene in dataset} == {("points",)}


def test_captures_have_categories(root):
    BUILDERS["mvimgnet"](root)
    (root / "mvimgnet_category.txt").write_text("7,stove\n")
    dataset = open_dataset(root)
    assert dataset.categories == ("stove", "12")
    assert {scene.name: scene.category for scene in dataset} == {"7/0f0002": 0, "7/1a0001": 0, "12/0c0003": 1}
    assert [scene.category for scene in open_dataset(root / "7")] == [-1, -1]


def test_what_is_no_folder_of_categories(root):
    """Scenes of which each array is a file are no objects; single files in folders have names of their own."""
    for scene in ("a", "b"):
        (root / "arrays" / scene).mkdir(parents=True)
        (root / "single" / scene).mkdir(parents=True)
        for name in ("coord", "color"):
            np.save(root / "arrays" / scene / f"{name}.npy", BALL)
        np.save(root / "single" / scene / "points.npy", BALL)
    with pytest.raises(InputError, match="point_files: a, b"):
        open_dataset(root / "arrays")
    assert open_dataset(root / "single").kind == "point_files"


def test_a_file_of_a_mesh_is_one_among_point_files(root):
    root.mkdir()
    (root / "cube.off").write_text(off_text(CUBE, CUBE_FACES))
    np.savetxt(root / "ball.xyz", BALL)
    ball, cube = open_dataset(root)
    assert (ball.parts, cube.parts) == ({"points"}, {"points", "mesh"})
    assert ball.is_object
    np.testing.assert_array_equal(cube.mesh().faces, CUBE_FACES)


def test_objects_far_from_the_origin(root):
    root.mkdir()
    far = np.stack([BALL + 1e6, TALL])
    np.savez(root / "far.npz", points=far)
    first, second = open_dataset(root)
    assert first.origin.tolist() == [1e6] * 3
    np.testing.assert_allclose(first.points().world(), BALL + 1e6, atol=1e-4)  # float32 about the origin
    assert second.points().origin is None
    for category in "ab":
        (root / "meshes" / category).mkdir(parents=True)
        for name in "xy":
            text = off_text(CUBE + 2e6, CUBE_FACES).replace("e+06", "000000")
            (root / "meshes" / category / f"{name}.off").write_text(text)
    scene = open_dataset(root / "meshes")[0]
    assert scene.mesh().to_points(scene.origin).world().max() == pytest.approx(2e6 + 1, abs=10)


@pytest.mark.skipif("GEO3D_TEST_DATA" not in os.environ, reason="GEO3D_TEST_DATA is not set: it names real data")
def test_real_objects():
    root = Path(os.environ["GEO3D_TEST_DATA"]) / "objects19"
    dataset = open_dataset(root)
    assert (dataset.kind, len(dataset), len(dataset.categories)) == ("object_arrays", 380, 19)
    assert np.bincount([scene.category for scene in dataset]).tolist() == [20] * 19
    assert dataset.categories[dataset["101.off"].category] == "Chair"
    assert dataset[0].points().xyz.shape == (2048, 3)
    meshes = open_dataset(root / "raw_meshes", "object_folders")
    assert list(meshes.scene_names) == ["Airplane/61", "Chair/101", "Cup/21", "Human/1", "Table/141"]
    for scene in meshes:
        mesh, labels = scene.mesh(), len((scene.root / f"{scene.file.stem}_labels.txt").read_text().split())
        assert len(mesh.faces) > 1000
        assert labels > 0
