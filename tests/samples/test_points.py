"""Scenes of points and labelled scenes as samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_scenes import MemoryDataset, MemoryScene

from geo3d import InputError
from geo3d.datasets import MissingPart, open_dataset, register_dataset
from geo3d.datasets import scene as scene_module
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.samples.points import LabelledScenes, PointScenes


def _scenes(*scenes: MemoryScene) -> LabelledScenes:
    return LabelledScenes.of_datasets([MemoryDataset(list(scenes))])


def test_points_come_before_the_mesh_and_labels_stay() -> None:
    assert MemoryScene("a").cloud().semantic.tolist() == [0, -1, 19]
    assert MemoryScene("b", parts=("mesh", "points", "labels")).cloud().semantic.tolist() == [7]
    with pytest.raises(MissingPart, match="has no points"):
        MemoryScene("c", parts=()).cloud()


def test_clouds_are_read_once() -> None:
    scene = MemoryScene("a")
    scenes = _scenes(scene)
    assert scenes.cloud(0) is scenes.cloud(0)
    assert scene.reads == 1
    assert scenes.classes == SCANNET20_CLASSES


@pytest.mark.parametrize(
    ("labels", "message"), [((0, 20, 1), "outside -1 to 19"), ((0, -2, 1), "outside"), ((), "no point")]
)
def test_unusable_labels_are_named(labels, message) -> None:
    with pytest.raises(InputError, match=f"scene odd .*{message}"):
        _scenes(MemoryScene("odd", labels)).cloud(0)


def test_only_scenes_that_hold_points_are_listed() -> None:
    scenes = [
        MemoryScene("views", parts=("views",)),
        MemoryScene("mesh", parts=("mesh",)),
        MemoryScene("both"),
        MemoryScene("points", parts=("points",)),
    ]
    assert [name for _, name in PointScenes.of_datasets([MemoryDataset(scenes)]).scenes] == ["mesh", "both", "points"]
    assert [name for _, name in _scenes(*scenes).scenes] == ["both"]
    with pytest.raises(InputError, match="no scene holds labelled points or a labelled mesh"):
        _scenes(*scenes[:2])


def test_unlabelled_scenes_are_read_and_empty_ones_named() -> None:
    dataset = MemoryDataset([MemoryScene("plain", parts=("mesh",)), MemoryScene("empty", (), ("mesh",))])
    scenes = PointScenes.of_datasets([dataset])
    assert len(scenes.cloud(0)) == 3
    assert scenes.metric(0)
    with pytest.raises(InputError, match=r"scene empty .*holds no point"):
        scenes.cloud(1)
    with pytest.raises(MissingPart, match="labels"):
        LabelledScenes([dataset], [(0, "plain")]).cloud(0)


class Orchard(MemoryDataset):
    """A layout of one's own, with classes of its own: a file ``<scene>.txt`` of labels."""

    kind = "orchard"
    classes = ("leaf", "apple")

    def __init__(self, root, quarantine=None, split=None) -> None:
        scenes = [
            MemoryScene(path.stem, tuple(map(int, path.read_text().split()))) for path in sorted(root.glob("*.txt"))
        ]
        super().__init__(scenes, str(root))

    @classmethod
    def detect(cls, root: Path) -> bool:
        return (root / "apples.txt").is_file()


@pytest.fixture
def orchard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scene_module, "_REGISTRY", dict(scene_module._REGISTRY))
    register_dataset(Orchard)
    (tmp_path / "apples.txt").write_text("0 1 -1")
    (tmp_path / "pears.txt").write_text("0 2 1")
    return tmp_path


def test_labelled_data_in_a_layout_of_ones_own(orchard: Path) -> None:
    scenes = LabelledScenes.find([orchard])
    assert scenes.classes == ("leaf", "apple")
    assert scenes.cloud(0).semantic.tolist() == [0, 1, -1]
    with pytest.raises(InputError, match=r"scene pears .*labels outside -1 to 1"):
        scenes.cloud(1)


def test_datasets_of_other_classes_or_of_none_are_named(orchard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = [open_dataset(orchard), MemoryDataset([MemoryScene("a")], "elsewhere")]
    with pytest.raises(InputError, match=f"{orchard}, .*elsewhere: labelled with different classes"):
        LabelledScenes.of_datasets(datasets)
    monkeypatch.setattr(Orchard, "classes", SCANNET20_CLASSES)
    assert len(LabelledScenes.of_datasets(datasets)) == 3
    monkeypatch.setattr(Orchard, "classes", None)
    with pytest.raises(InputError, match=f"{orchard}: its scenes are labelled, but Orchard does not name the classes"):
        LabelledScenes.of_datasets(datasets)
    assert len(PointScenes.of_datasets(datasets)) == 3
