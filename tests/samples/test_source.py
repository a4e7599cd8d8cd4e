"""What all sample sources share: finding, groups, what stays open, names; and a source of one's own."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_builders import CUBE, build_scannet
from memory_scenes import MemoryDataset, MemoryScene
from torch import nn

from geo3d import InputError
from geo3d.datasets import Scene
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.rooms import split_scenes
from geo3d.methods import Method, MethodOutput, SourceSamples
from geo3d.samples.images import ImageSet
from geo3d.samples.pairs import ViewPairs
from geo3d.samples.points import LabelledScenes, PointScenes
from geo3d.samples.source import SampleSource
from geo3d.train import TrainConfig, Trainer

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"


class Words(SampleSource[Scene]):
    """A toy: two items for each letter of a scene's name, of which those of one letter are a group."""

    kind = "words"
    holds = "a mesh"
    needs = ("mesh",)

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        if scene.name == "damaged":
            raise BrokenScene(scene.name, scene.root, "no letter can be read")
        return np.repeat(np.arange(len(scene.name)), 2)

    def name_in_scene(self, index: int) -> str:
        return f"{self.opened(index).name[self.number(index) // 2]}{self.number(index) % 2}"


def _dataset(*names: str) -> MemoryDataset:
    return MemoryDataset([MemoryScene(name, parts=("mesh",)) for name in names])


def test_items_and_groups_are_numbered_over_all_scenes() -> None:
    source = Words.of_datasets([_dataset("ab"), _dataset("c", "def")])
    assert len(source) == 12
    assert source.scenes == ((0, "ab"), (1, "c"), (1, "def"))
    assert [source.group(i) for i in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert source.group_count == 6
    names = [source.describe(i).rpartition("scene ")[2] for i in range(12)]
    assert names[:6] == ["ab: a0", "ab: a1", "ab: b0", "ab: b1", "c: c0", "c: c1"]
    assert source.describe(0) == f"{Path('memory').absolute()}: scene ab: a0"
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"words: item {index} of 12"):
            source.opened(index)


def test_groups_are_held_out_and_keep_their_numbers() -> None:
    source = Words.of_datasets([_dataset("abcdefgh", "ijkl")])
    rows, held = split_scenes(source.group_count, 0.25, 3)
    parts = source.of_groups(rows), source.of_groups(held)
    groups = [{part.group(i) for i in range(len(part))} for part in parts]
    assert groups == [set(rows), set(held)]
    assert [part.group_count for part in parts] == [9, 3]
    described = [{part.describe(i) for i in range(len(part))} for part in parts]
    assert not described[0] & described[1]
    assert described[0] | described[1] == {source.describe(i) for i in range(24)}
    again = parts[0].of_groups(rows[:2])
    assert (len(again), len(parts[0]), len(source)) == (4, 18, 24)
    assert len(source.of_groups([])) == 0


def test_the_scenes_used_last_stay_open_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "open_scenes", 2)
    dataset = _dataset("a", "b", "c")
    source = Words.of_datasets([dataset])
    dataset.opened.clear()
    for index in (0, 2, 1, 4, 0, 2):
        source.opened(index)
    assert dataset.opened == ["a", "b", "c", "b"]  # the least lately used is closed first


def test_what_is_open_is_left_behind() -> None:
    source = Words.of_datasets([_dataset("ab", "c")])
    source.opened(0)
    expected = [source.describe(i) for i in range(len(source))]
    for other in (pickle.loads(pickle.dumps(source)), source.of_groups([0, 1, 2])):
        assert not other._open
        assert [other.describe(i) for i in range(len(other))] == expected
    assert len(source._open) == 2


def test_broken_scenes_are_quarantined_and_named_where_nothing_is_left() -> None:
    dataset = MemoryDataset([MemoryScene("a", parts=("mesh",)), "gone", MemoryScene("damaged", parts=("mesh",))])
    source = Words.of_datasets([dataset])
    assert [name for _, name in source.scenes] == ["a"]
    assert [entry.scene for entry in dataset.quarantine.entries] == ["gone", "damaged"]
    only = MemoryDataset(["gone", MemoryScene("b", parts=("points",))])
    with pytest.raises(InputError, match=r"no scene holds a mesh; 1 cannot be read, the first: scene gone: .*cut"):
        Words.of_datasets([only])
    with pytest.raises(InputError, match="memory: no scene holds a mesh; see docs"):
        Words.of_datasets([_dataset()])


def test_the_first_broken_scene_ends_a_strict_search(tmp_path: Path) -> None:
    build_scannet(tmp_path)
    for ending in ("_vh_clean_2.ply", ".sens"):
        (tmp_path / "scans" / "scene0000_01" / f"scene0000_01{ending}").write_bytes(b"")
    for source in (PointScenes, ImageSet):
        found = source.find([tmp_path])
        assert found.group_count == 3 - len(found.datasets[0].quarantine)
    with pytest.raises(BrokenScene, match="scene0000_01"):
        ImageSet.find([tmp_path], strict=True)


def test_a_scene_that_broke_since_still_has_a_name() -> None:
    dataset = _dataset("ab")
    source = Words.of_datasets([dataset])
    dataset.scenes["ab"] = None
    assert source.describe(3).endswith("scene ab: item 3")
    with pytest.raises(BrokenScene):
        source.opened(3)


@pytest.mark.parametrize(
    ("source", "parts", "reads"),
    [
        (PointScenes, "points", True),
        (PointScenes, "mesh views", True),
        (PointScenes, "labels views", False),
        (LabelledScenes, "labels points", True),
        (LabelledScenes, "mesh", False),
        (ImageSet, "views poses", True),
        (ImageSet, "mesh points labels", False),
        (ViewPairs, "views pairs", True),
        (ViewPairs, "views poses", True),
        (ViewPairs, "views masks", False),
        (ViewPairs, "points", False),
    ],
)
def test_which_scenes_are_read(source: type[SampleSource], parts: str, reads: bool) -> None:
    assert source.reads(MemoryScene("a", parts=parts.split())) is reads


# A source of one's own, as the documentation shows it, and a method that is trained on it.


def _example(name: str) -> type[SampleSource]:
    """The class ``name`` that a block of Python in the documentation defines."""
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if f"class {name}" in code]
    names: dict[str, Any] = {}
    exec(block, names)
    return names[name]


class ObjectSamples(SourceSamples):
    """An object's points, three of them drawn at random."""

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        xyz = self.source.cloud(index).xyz
        return {"xyz": xyz[torch.from_numpy(rng.integers(len(xyz), size=3))]}


class MiddleOfObjects(Method):
    """A toy: the middle of all objects."""

    name = "middle"
    source = _example("InstanceClouds")

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.zeros(3))

    def samples(self, source: SampleSource) -> ObjectSamples:
        return ObjectSamples(source)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        return MethodOutput({"distance": (batch["xyz"] - self.middle).square().mean()})

    def model_card(self) -> dict[str, Any]:
        return {"family": "middle"}


def test_the_documented_source_lists_every_object_and_trains_a_method(tmp_path: Path) -> None:
    build_scannet(tmp_path / "data")
    source = MiddleOfObjects.source.find([tmp_path / "data"])
    assert (len(source), source.group_count) == (6, 3)  # two objects in each of three scans
    sizes = [len(source.cloud(index)) for index in range(2)]
    assert sizes == [2, 4]  # instances of the cube's corners
    assert len(CUBE) == 8
    assert source.describe(1).endswith("scene scene0000_00: object 1")
    method = MiddleOfObjects()
    config = TrainConfig(steps=3, batch_size=4, lr=0.1, workers=0, accelerator="cpu", warmup_steps=0)
    result = Trainer(method, method.samples(source), config, tmp_path / "run").fit()
    assert result.steps == 3
    assert result.final_loss < result.first_loss
    assert method.middle.detach().ne(0).all()
