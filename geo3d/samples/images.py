"""ImageSet: single images, of the scenes of any dataset or of any folder of photographs."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.datasets.files import image_names, open_image, subfolders
from geo3d.datasets.image_pairs import ImagePairs
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError

_OPEN_SCENES = 64  # a scene of some thousand frames takes under a megabyte
#: With at least so many folders of photographs, pictures of one folder are kept together; they may show one place.
_FOLDERS_TO_SPARE = 10


class PhotoFolder(Scene):
    """All images under a folder, at any depth.

    Args:
        root: the folder.
    """

    parts = frozenset({"views"})
    metric = False

    def __init__(self, root: Path) -> None:
        self.name, self.root = root.name, root
        self._names = [
            (Path(folder) / name).relative_to(root).as_posix()
            for folder in _folders(root)
            for name in image_names(folder)
        ]

    @property
    def view_names(self) -> list[str]:
        return self._names

    def image(self, index: int) -> Image.Image:
        return open_image(self.root / self._names[index], self.name)


def _folders(root: Path) -> list[Path]:
    """A folder and all below it, in a fixed order; hidden ones are left out."""
    return [root, *(path for name in subfolders(root) for path in _folders(root / name))]


class ImageSet:
    """Images as one long list, in groups that belong together: the views of a scene, or each photograph alone.

    Small and picklable: each process opens scenes by itself when it needs them.

    Args:
        datasets: where the images are: datasets of scenes, or folders of photographs.
        scenes: dataset number and name of each scene.
        scene, view, group: (I,) scene, view in it, and group of each image.
    """

    def __init__(
        self,
        datasets: Sequence[SceneDataset | PhotoFolder],
        scenes: Sequence[tuple[int, str]],
        scene: np.ndarray,
        view: np.ndarray,
        group: np.ndarray,
    ) -> None:
        self.datasets, self.scenes = tuple(datasets), tuple(scenes)
        self.scene, self.view, self.group = scene, view, group
        self._open: OrderedDict[int, Scene] = OrderedDict()

    @classmethod
    def find(cls, roots: Sequence[str | Path]) -> ImageSet:
        """The images under some folders; broken scenes go to their dataset's quarantine.

        A folder that is laid out as a dataset of scenes gives their views, which are a group; any other with images in
        it, or in folders just below, gives all images at any depth, which are groups of their own or, where there are
        ten folders of them or more, a group a folder.

        Raises:
            InputError: a folder that is neither, or no image at all.
        """
        datasets: list[SceneDataset | PhotoFolder] = []
        scenes: list[tuple[int, str]] = []
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        groups = 0
        for root in roots:
            number = len(datasets)
            datasets.append(_open(root))
            for scene in _scenes(datasets[-1]):
                labels = _groups(scene)
                columns.append((np.full(len(labels), len(scenes)), np.arange(len(labels)), groups + labels))
                scenes.append((number, scene.name))
                groups += int(labels.max(initial=-1)) + 1
        table = [np.concatenate(column).astype(np.int64) for column in zip(*columns)]
        if not table or not len(table[0]):
            raise InputError(f"{', '.join(map(str, roots))}: no image in any scene that can be read")
        return cls(datasets, scenes, *table)

    def __len__(self) -> int:
        return len(self.scene)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def group_count(self) -> int:
        """Number of groups."""
        return len(np.unique(self.group))

    def of_groups(self, numbers: Sequence[int] | np.ndarray) -> ImageSet:
        """The images of some groups alone."""
        kept = np.isin(self.group, numbers)
        return ImageSet(self.datasets, self.scenes, self.scene[kept], self.view[kept], self.group[kept])

    def _scene(self, row: int) -> Scene:
        """The scene of an image; those used last stay open."""
        if row not in self._open:
            number, name = self.scenes[row]
            dataset = self.datasets[number]
            self._open[row] = dataset if isinstance(dataset, PhotoFolder) else dataset.open(name)
            if len(self._open) > _OPEN_SCENES:
                self._open.popitem(last=False)
        self._open.move_to_end(row)
        return self._open[row]

    def describe(self, index: int) -> str:
        """Folder, scene and name of an image."""
        row = int(self.scene[index])
        number, name = self.scenes[row]
        return f"{self.datasets[number].root}: scene {name}: {self._scene(row).view_names[int(self.view[index])]}"

    def image(self, index: int) -> Image.Image:
        """An image, not yet decoded where the scene's reader is lazy.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        return self._scene(int(self.scene[index])).image(int(self.view[index]))


def _open(root: str | Path) -> SceneDataset | PhotoFolder:
    root = Path(root).absolute()
    try:
        dataset = open_dataset(root)
    except InputError:
        if not root.is_dir() or not any(
            image_names(folder) for folder in [root, *map(root.joinpath, subfolders(root))]
        ):
            raise
        return PhotoFolder(root)
    return PhotoFolder(root) if dataset.kind == ImagePairs.kind else dataset


def _scenes(dataset: SceneDataset | PhotoFolder) -> list[Scene]:
    return [dataset] if isinstance(dataset, PhotoFolder) else list(dataset.readable("views"))


def _groups(scene: Scene) -> np.ndarray:
    """(V,) group of every view of a scene, counted from 0."""
    if not isinstance(scene, PhotoFolder):
        return np.zeros(len(scene.view_names), dtype=np.int64)
    folders, labels = np.unique([os.path.dirname(name) for name in scene.view_names], return_inverse=True)
    return labels if len(folders) >= _FOLDERS_TO_SPARE else np.arange(len(scene.view_names))
