"""ImageSet: single images, of the scenes of any dataset or of any folder of photographs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.files import folders_below, subfolders
from geo3d.datasets.image_files import holds_images, image_names, open_photo
from geo3d.datasets.image_pairs import ImagePairs
from geo3d.datasets.quarantine import Quarantine
from geo3d.datasets.scene import Scene, SceneDataset, SeveralDatasets, open_dataset
from geo3d.errors import InputError
from geo3d.samples.source import SampleSource

#: With at least so many folders of photographs, pictures of one folder are kept together; they may show one place.
_FOLDERS_TO_SPARE = 10


class Photographs(Scene):
    """All images under a folder, at any depth, turned as their EXIF orientation says.

    Args:
        root: the folder.
    """

    parts = frozenset({"views"})
    metric = False

    def __init__(self, root: Path) -> None:
        self.name, self.root = root.name, root
        self._names = [
            (Path(folder) / name).relative_to(root).as_posix()
            for folder in folders_below(root)
            for name in image_names(folder)
        ]

    @property
    def view_names(self) -> list[str]:
        return self._names

    def image(self, index: int) -> Image.Image:
        return open_photo(self.root / self._names[index], self.name)


class PhotoFolder(SceneDataset):
    """A folder of photographs as a dataset of one scene. It is listed once, and the list travels to other processes."""

    kind = "photographs"

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Whether there are images in the folder, or in those just below."""
        return root.is_dir() and any(map(holds_images, [root, *(root / name for name in subfolders(root))]))

    def names(self) -> list[str]:
        self._photographs = Photographs(self.root)
        return [self._photographs.name]

    def open(self, name: str) -> Photographs:
        return self._photographs


class ImageSet(SampleSource[Scene]):
    """Images, in groups that belong together: the views of a scene, or each photograph alone.

    A folder that is laid out as a dataset of scenes gives their views, which are a group; any other with images in it,
    or in folders just below, gives all images at any depth, which are groups of their own or, where there are ten
    folders of them or more, a group a folder.
    """

    kind = "images"
    holds = "images"
    needs = ("views",)

    @classmethod
    def open_root(cls, root: str | Path, quarantine: Quarantine) -> SceneDataset:
        root = Path(root).absolute()
        try:
            dataset = open_dataset(root, quarantine=quarantine)
        except SeveralDatasets:
            raise
        except InputError:
            if not PhotoFolder.detect(root):
                raise
            return PhotoFolder(root, quarantine)
        return PhotoFolder(root, quarantine) if dataset.kind == ImagePairs.kind else dataset

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        if not isinstance(scene, Photographs):
            return np.zeros(len(scene.view_names), dtype=np.int64)
        folders, labels = np.unique([os.path.dirname(name) for name in scene.view_names], return_inverse=True)
        return labels if len(folders) >= _FOLDERS_TO_SPARE else np.arange(len(scene.view_names))

    def name_in_scene(self, index: int) -> str:
        return self.opened(index).view_names[self.number(index)]

    def image(self, index: int) -> Image.Image:
        """An image, not yet decoded where the scene's reader is lazy.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        return self.opened(index).image(self.number(index))
