"""Labelled scenes as samples, and their pictures and PLY files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_builders import BUILDERS

from geo3d import InputError
from geo3d.datasets import Mesh, MissingPart, Scene, SceneDataset, list_datasets, open_dataset
from geo3d.datasets.ply import read_ply
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.geometry import PointCloud
from geo3d.methods.spark3d import SparK3D, SparK3DConfig
from geo3d.samples.points import LabelledScenes, PointScenes, labelled_points
from geo3d.viz.points import draw_labels, label_colors, write_labelled_points


class MemoryScene(Scene):
    """Three vertices with labels."""

    def __init__(self, name: str, labels=(0, -1, 19), parts=("mesh", "labels")) -> None:
        self.name, self.root, self.parts, self.labels = name, Path("memory"), frozenset(parts), labels
        self.reads = 0

    def mesh(self) -> Mesh:
        self.reads += 1
        vertices = np.eye(3, dtype=np.float32)[: len(self.labels)]
        return Mesh(vertices, np.array([[0, 1, 2]]), semantic=np.array(self.labels, dtype=np.int64))

    def points(self) -> PointCloud:
        return PointCloud(torch.zeros(1, 3), semantic=torch.tensor([7]))


class MemoryDataset(SceneDataset):
    """Scenes that are handed in."""

    kind = "memory"
    classes = SCANNET20_CLASSES

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = {scene.name: scene for scene in scenes}
        super().__init__("memory")

    @classmethod
    def detect(cls, root: Path) -> bool:
        return False

    def names(self) -> list[str]:
        return list(self.scenes)

    def open(self, name: str) -> Scene:
        if name == "broken":
            raise BrokenScene(name, self.root, "cut")
        return self.scenes[name]


def _scenes(*scenes: Scene) -> LabelledScenes:
    return LabelledScenes([MemoryDataset(list(scenes))], [(0, scene.name) for scene in scenes])


def test_points_come_before_the_mesh_and_labels_stay() -> None:
    assert labelled_points(MemoryScene("a")).semantic.tolist() == [0, -1, 19]
    assert labelled_points(MemoryScene("b", parts=("mesh", "points", "labels"))).semantic.tolist() == [7]
    with pytest.raises(MissingPart, match="labels"):
        labelled_points(MemoryScene("c", parts=("mesh",)))


def test_clouds_are_read_once_and_not_pickled() -> None:
    scene = MemoryScene("a")
    scenes = _scenes(scene, MemoryScene("b"))
    assert scenes.cloud(0) is scenes.cloud(0)
    assert scene.reads == 1
    assert len(pickle.loads(pickle.dumps(scenes))._kept) == 0
    assert scenes.subset([1]).describe(0).endswith(": b")
    assert scenes.classes[0] == "wall"
    assert len(scenes.classes) == 20


@pytest.mark.parametrize(
    ("labels", "message"), [((0, 20, 1), "outside -1 to 19"), ((0, -2, 1), "outside"), ((), "no point")]
)
def test_unusable_labels_are_named(labels, message) -> None:
    with pytest.raises(InputError, match=f"scene odd .*{message}"):
        _scenes(MemoryScene("odd", labels)).cloud(0)


def test_no_labelled_scene_says_where() -> None:
    with pytest.raises(InputError, match="no scene holds labelled"):
        LabelledScenes([MemoryDataset([])], [])


@pytest.mark.parametrize("kind", list_datasets())
def test_every_dataset_that_holds_points_feeds_the_filling_in_of_cells(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "data")
    holds = [scene.name for scene in open_dataset(tmp_path / "data") if scene.parts & {"points", "mesh"}]
    if not holds:
        with pytest.raises(InputError, match="no scene holds points or a mesh"):
            PointScenes.find([tmp_path / "data"])
        return
    scenes = PointScenes.find([tmp_path / "data"])
    assert [name for _, name in scenes.scenes] == holds
    config = SparK3DConfig(signals="XYZ", voxel_size=0.2, decoder_width=16, decoder_context=0)
    method = SparK3D(config, torch.Generator().manual_seed(0)).eval()
    samples = method.samples(scenes)
    for index in range(len(samples)):
        assert scenes.metric(index) == open_dataset(tmp_path / "data").open(holds[index]).metric
        sample = samples.draw(index, np.random.default_rng(index))
        assert len(sample["xyz"]) > 0
        with torch.no_grad():
            assert method(method.collate([sample])).loss.isfinite()


def test_unlabelled_scenes_are_read_and_empty_ones_named() -> None:
    dataset = MemoryDataset([MemoryScene("plain", parts=("mesh",)), MemoryScene("empty", (), ("mesh",))])
    scenes = PointScenes([dataset], [(0, "plain"), (0, "empty")])
    assert len(scenes.cloud(0)) == 3
    assert scenes.metric(0)
    with pytest.raises(InputError, match=r"scene empty .*holds no point"):
        scenes.cloud(1)
    assert isinstance(scenes.subset([0]), PointScenes)
    with pytest.raises(MissingPart, match="labels"):
        LabelledScenes([dataset], [(0, "plain")]).cloud(0)


def test_labelled_points_survive_their_ply(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    labels = np.array([0, 3, -1, 2, 3])
    write_labelled_points(tmp_path / "points.ply", xyz, labels, 4)
    ply = read_ply(tmp_path / "points.ply", "points")
    np.testing.assert_array_equal(ply.stacked("x", "y", "z"), xyz)
    np.testing.assert_array_equal(ply.vertex["label"], labels)
    np.testing.assert_array_equal(ply.stacked("red", "green", "blue"), label_colors(4)[labels])


def test_colors_of_classes_differ() -> None:
    colors = label_colors(20).astype(int)
    apart = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert apart[np.triu_indices(21, 1)].min() > 20


def test_nearer_points_cover_those_behind_and_surfaces_that_face_away_are_left_out() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), -1).reshape(-1, 2)
    floor, lid = (np.c_[grid, np.full(len(grid), z)] for z in (0.0, 0.3))
    xyz = np.concatenate([lid, floor])
    labels = np.repeat([1, 0], len(grid))
    normals = np.repeat([[0, 0, -1.0], [0, 0, 1.0]], len(grid), axis=0)
    palette = label_colors(2)

    def share(image: np.ndarray, label: int) -> float:
        return (image[30:450] == palette[label]).all(-1).sum() / (image[30:450] != 255).any(-1).sum()

    covered = draw_labels(xyz, None, {"labels": labels}, ("floor", "lid"))
    assert share(covered, 1) > share(covered, 0) > 0.05
    opened = draw_labels(xyz, normals, {"labels": labels}, ("floor", "lid"))
    assert share(opened, 1) == 0
    assert share(opened, 0) > 0.9
    assert draw_labels(xyz[:0], None, {"labels": labels[:0]}, ()).dtype == np.uint8
