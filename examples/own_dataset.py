"""A dataset of one's own: labelled plots of an orchard, two arrays in a folder each.

    python examples/own_dataset.py FOLDER

reads ``FOLDER/<plot>/points.npy`` (N, 3), metres, and ``FOLDER/<plot>/class.npy`` (N,). Once the class below is
registered, all of geo3d reads such folders: ``open_dataset``, and every method that learns from points.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import geo3d
from geo3d.datasets import BrokenScene, Scene, SceneDataset, register_dataset


class Plot(Scene):
    parts = frozenset({"points", "labels"})  # what a scene holds; geo3d.datasets.PARTS lists all there is
    metric = True  # lengths are metres

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    def points(self) -> geo3d.PointCloud:
        try:
            cloud = geo3d.read_points(self.root / "points.npy")
            labels = torch.from_numpy(np.load(self.root / "class.npy").astype(np.int64))  # -1: ignored
            return replace(cloud, semantic=labels)
        except (OSError, ValueError) as error:  # a damaged scene is named and left out
            raise BrokenScene(self.name, self.root, str(error)) from error


@register_dataset
class Orchard(SceneDataset):
    kind = "orchard"
    classes = ("ground", "leaf", "apple")  # in the order of the labels

    @classmethod
    def detect(cls, root: Path) -> bool:
        return next(root.glob("*/class.npy"), None) is not None

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/class.npy"))

    def open(self, name: str) -> Plot:
        return Plot(name, self.root / name)


if __name__ == "__main__":
    dataset = geo3d.open_dataset(sys.argv[1])
    print(dataset)
    for scene in dataset.readable("labels"):
        labels = scene.points().semantic
        print(scene.name, {name: int((labels == number).sum()) for number, name in enumerate(dataset.classes)})
