"""A dataset of scenes that are handed in, without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from geo3d.datasets import Mesh, Scene, SceneDataset
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.geometry import PointCloud


class MemoryScene(Scene):
    """A mesh of a few labelled vertices, and a single point."""

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
    """Scenes in order; of a broken one there is only the name.

    Args:
        scenes: each, or the name of a broken one.
        root: that messages name.
    """

    kind = "memory"
    classes = SCANNET20_CLASSES

    def __init__(self, scenes: list[Scene | str], root: str = "memory") -> None:
        self.scenes = dict((scene, None) if isinstance(scene, str) else (scene.name, scene) for scene in scenes)
        self.opened: list[str] = []
        super().__init__(root)

    @classmethod
    def detect(cls, root: Path) -> bool:
        return False

    def names(self) -> list[str]:
        return list(self.scenes)

    def open(self, name: str) -> Scene:
        self.opened.append(name)
        if self.scenes[name] is None:
            raise BrokenScene(name, self.root, "cut")
        return self.scenes[name]
