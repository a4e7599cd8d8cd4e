"""Folders of point files: names of scenes, classes and labels, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_builders import BUILDERS, picture
from point_writers import axes, pcd

from geo3d.datasets import BrokenScene, PointFiles, SceneDataset, list_datasets, open_dataset, register_dataset
from geo3d.datasets.scene import _REGISTRY
from geo3d.errors import InputError
from geo3d.samples.points import LabelledScenes
from geo3d.viz.ply import write_ply

XYZ = np.random.default_rng(0).uniform(0, 2, (20, 3))
LABELS = np.arange(20) % 3 - 1


def write_scene(path, labels: np.ndarray | None = LABELS, xyz: np.ndarray = XYZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ply(path, axes(xyz) | ({} if labels is None else {"label": labels.astype(np.int32)}))


def test_files_and_folders_are_scenes(tmp_path):
    root = tmp_path / "rooms"
    write_scene(root / "room10.ply")
    write_scene(root / "room9" / "any name.ply")
    pcd(root / "room2.pcd", axes(XYZ), "binary")
    np.savez(root / "hall.npz", points=XYZ, semantic=LABELS)
    np.savetxt(root / "attic.xyz", XYZ)
    (root / "notes.txt").write_text("1 2 3\n")
    (root / "empty").mkdir()
    dataset = open_dataset(root)
    assert isinstance(dataset, PointFiles)
    assert list(dataset.scene_names) == ["attic", "hall", "room2", "room9", "room10"]
    assert dataset.classes is None
    for scene in dataset:
        assert scene.parts == {"points"}
        np.testing.assert_allclose(scene.points().xyz, XYZ, atol=1e-6)
        assert scene.points().semantic is None, "labels of classes without names"


def test_classes_are_named_by_a_list(tmp_path):
    write_scene(tmp_path / "a.ply")
    write_scene(tmp_path / "b.ply", None)
    write_scene(tmp_path / "c.ply", LABELS + 1)
    (tmp_path / "classes.txt").write_text("\ufeffwall\r\n\r\n# of the bath\r\n'shower curtain'\r\n", newline="")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("wall", "shower curtain")
    assert [sorted(scene.parts) for scene in dataset] == [["labels", "points"], ["points"], ["labels", "points"]]
    assert dataset["a"].points().semantic.tolist() == LABELS.tolist()
    with pytest.raises(
        BrokenScene, match=r"scene c: .*c.ply: labels lie within 0 to 2; classes.txt names classes 0 to 1"
    ):
        dataset["c"].points()
    source = LabelledScenes.find([tmp_path])
    assert source.classes == ("wall", "shower curtain")
    assert len(source) == 2


@pytest.mark.parametrize("content", ["", "wall\nfloor\nwall\n"])
def test_lists_of_classes_that_are_none(tmp_path, content):
    write_scene(tmp_path / "a.ply")
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(InputError, match=r"classes.txt: the names of the classes are expected"):
        open_dataset(tmp_path)


def test_a_folder_with_one_file_is_one_scene(tmp_path):
    write_scene(tmp_path / "all" / "kitchen" / "scan.ply")
    (tmp_path / "all" / "classes.txt").write_text("wall\nfloor\n")
    for root in (tmp_path / "all", tmp_path / "all" / "kitchen"):
        (scene,) = open_dataset(root)
        assert (scene.name, scene.parts) == ("kitchen", {"points", "labels"})


def test_what_is_refused(tmp_path):
    write_scene(tmp_path / "a.ply")
    write_scene(tmp_path / "b" / "1.ply")
    write_scene(tmp_path / "b" / "2.ply")
    (tmp_path / "c.ply").write_bytes(b"ply\nformat")
    dataset = open_dataset(tmp_path)
    with pytest.raises(BrokenScene, match=r"scene b: .*holds 2 files of points; one a folder is expected"):
        dataset["b"]
    with pytest.raises(BrokenScene, match=r"scene c: .*c.ply"):
        dataset["c"].points()
    write_scene(tmp_path / "a" / "other.ply")
    with pytest.raises(InputError, match=r"a.ply and a are both scene 'a'"):
        open_dataset(tmp_path)


def test_origins_of_files(tmp_path):
    write_scene(tmp_path / "far.ply", xyz=XYZ + 1e6)
    (scene,) = open_dataset(tmp_path)
    assert scene.origin.tolist() == [1000001] * 3
    assert scene.points().origin.tolist() == [[1000001] * 3]


def test_invalid_points_are_counted(tmp_path):
    pcd(tmp_path / "a.pcd", axes(np.where(np.arange(20)[:, None] % 7 == 0, np.nan, XYZ)), "binary")
    (scene,) = open_dataset(tmp_path)
    assert (len(scene.points()), [remark.count for remark in scene.remarks]) == (17, [3])
    assert "3 points left out: their coordinates are not numbers" in str(scene.remarks[0])


def test_other_layouts_go_first(tmp_path):
    """Meshes beside the files of another dataset do not make it one of points."""
    for kind, build in BUILDERS.items():
        build(tmp_path / kind)
        write_scene(tmp_path / kind / "fused.ply")
        assert open_dataset(tmp_path / kind).kind == kind
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        picture(seed=number).save(tmp_path / "photos" / f"{number}.png")
    write_scene(tmp_path / "photos" / "model.ply")
    assert open_dataset(tmp_path / "photos").kind == "image_pairs"


def test_a_reader_of_ones_own_goes_first(tmp_path, monkeypatch):
    class Own(SceneDataset):
        kind = "own"

        @classmethod
        def detect(cls, root):
            return (root / "own.cfg").is_file()

        def names(self):
            return ["only"]

        def open(self, name):
            raise BrokenScene(name, self.root, "never opened here")

    monkeypatch.setattr("geo3d.datasets.scene._REGISTRY", dict(_REGISTRY))
    register_dataset(Own)
    assert list_datasets()[-3:] == ["own", "object_folders", "point_files"]
    write_scene(tmp_path / "a.ply")
    assert open_dataset(tmp_path).kind == "point_files"
    (tmp_path / "own.cfg").touch()
    assert open_dataset(tmp_path).kind == "own"
