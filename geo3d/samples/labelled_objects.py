"""LabelledObjects and LabelledImages: the sample sources of methods that name the class of whole objects or images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from geo3d.datasets.files import folders_below
from geo3d.datasets.image_files import holds_images
from geo3d.datasets.objects import SUBSETS
from geo3d.datasets.quarantine import Quarantine
from geo3d.datasets.scene import SceneDataset
from geo3d.errors import InputError
from geo3d.samples.images import ImageSet, PhotoFolder, Photographs
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.source import Items, folders

if TYPE_CHECKING:
    from typing_extensions import Self


class LabelledObjects(ObjectClouds):
    """Objects as point clouds of which the category is known: those of labelled sets, of folders of categories, and the
    instances of labelled scenes.
    """

    kind = "labelled objects"
    holds = "objects of known categories: folders of categories, a labelled set, or instance labels"

    @classmethod
    def of_datasets(cls, datasets: Sequence[SceneDataset], **options: Any) -> Self:
        """As :meth:`ObjectClouds.of_datasets`; objects of no known category are left out.

        Raises:
            InputError: no object has one.
        """
        found = super().of_datasets(datasets, **options)
        known = found.items.category >= 0
        if not known.any():
            raise InputError(f"{folders(datasets)}: no scene holds {cls.holds}; see docs/datasets.md")
        return found if known.all() else found.of_rows(known)

    def of_rows(self, rows: np.ndarray) -> Self:
        """Some items alone, by a mask (I,) or by number; scenes without items are gone, groups numbered anew."""
        items = self.items.kept(rows)
        scenes, items.scene = np.unique(items.scene, return_inverse=True)
        items.group = items.scene
        return type(self)(self.datasets, [self.scenes[scene] for scene in scenes], items, self.categories)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what :meth:`category` counts in."""
        return self.categories

    @property
    def item_classes(self) -> np.ndarray:
        """(I,) int64 category of each item."""
        return self.items.category

    @property
    def item_subsets(self) -> np.ndarray:
        """(I,) str: ``train``, ``test``, ``val``, or empty, of each item."""
        return self.items.subset


class LabelledImages(ImageSet):
    """Images in a folder for each class, at any depth below it; and these in folders ``train``, ``val``, ``test``.

    Args:
        datasets, scenes, items: as :class:`~geo3d.samples.source.SampleSource` takes them.

    Raises:
        InputError: fewer than two classes, or images that lie in no folder of a class.
    """

    kind = "labelled images"
    holds = "images in a folder for each class"

    def __init__(
        self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]], items: Items | None = None
    ) -> None:
        super().__init__(datasets, scenes, items)
        places = [self._places(number, name) for number, name in self.scenes]
        named = sorted({place[0] for scene in places for place in scene})
        if len(named) < 2:
            raise InputError(
                f"{folders(self.datasets)}: images of one class alone ({named[0]}); lay them out in a folder for each "
                "class: <data>/<class>/<image>, or <data>/train/<class>/<image> and <data>/test/<class>/<image>"
            )
        #: Names of the classes.
        self.classes: tuple[str, ...] = tuple(named)
        rows = [places[scene][number] for scene, number in zip(self.items.scene, self.items.number)]
        self._category = np.array([named.index(category) for category, _ in rows], np.int64)
        self._subset = np.array([subset for _, subset in rows], dtype=np.str_)

    @classmethod
    def open_root(cls, root: str | Path, quarantine: Quarantine) -> SceneDataset:
        """A folder as one of photographs.

        Raises:
            InputError: it holds no images.
        """
        place = Path(root).absolute()
        if not (place.is_dir() and _holds_classes(place)):
            raise InputError(f"{root}: holds no images; a folder for each class is expected, with images in it")
        return PhotoFolder(place, quarantine)

    def _places(self, number: int, name: str) -> list[tuple[str, str]]:
        """Class and subset of each image of a folder.

        Raises:
            InputError: an image that lies in no folder of a class.
        """
        root, found = self.datasets[number].root, []
        for path in self.datasets[number].open(name).view_names:
            *parents, _ = PurePosixPath(path).parts
            subset = SUBSETS.get(parents[0].lower(), "") if parents else ""
            parents = parents[1:] if subset else parents
            if not parents:
                raise InputError(
                    f"{root / path}: lies in no folder of a class; lay images out as <data>/<class>/<image>"
                )
            found.append((parents[0], subset))
        return found

    @classmethod
    def groups_in(cls, scene: Photographs) -> np.ndarray:
        """Each image is a group of its own."""
        return np.arange(len(scene.view_names))

    def category(self, index: int) -> int:
        """Row of :attr:`classes` that an image is of."""
        return int(self.item_classes[self.row(index)])

    @property
    def item_classes(self) -> np.ndarray:
        """(I,) int64 class of each item."""
        return self._category[self.items.group]

    @property
    def item_subsets(self) -> np.ndarray:
        """(I,) str: ``train``, ``test``, ``val``, or empty, of each item."""
        return self._subset[self.items.group]


def _holds_classes(root: Path) -> bool:
    """Whether there are images in a folder, at any depth."""
    return any(map(holds_images, folders_below(root)))


__all__ = ["LabelledImages", "LabelledObjects"]
