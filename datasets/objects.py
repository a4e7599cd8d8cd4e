"""What datasets of objects share: scenes that are a file, or a row of an array of many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from geo3d.datasets.files import require_finite
from geo3d.datasets.read_points import has_faces, read_scene_mesh, read_scene_points
from geo3d.datasets.scene import BrokenScene, Mesh, Remark, Scene, SceneDataset
from geo3d.geometry import PointCloud
from geo3d.geometry.origin import find_origin, origin_rows

#: Names of folders and parts of names of files -> the subset that they say.
SUBSETS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "validation": "val"}


class ObjectScene(Scene):
    """One object, in units that nothing tells.

    Args:
        name: unique in the dataset.
        root: folder of its file.
        category: row of the dataset's ``categories``, -1 where it is not known.
        subset: ``train``, ``test``, ``val`` or empty.
    """

    metric = False
    is_object = True

    def __init__(self, name: str, root: Path, category: int = -1, subset: str = "") -> None:
        self.name, self.root, self.category, self.subset = name, root, category, subset


class ObjectFile(ObjectScene):
    """An object in a file of points, or of a mesh, that :func:`read_points` reads.

    Which of the two is told by the ending; of a PLY file by its header, which is read when ``parts`` is asked for.

    Args:
        name, category, subset: as :class:`ObjectScene` takes them.
        file: the file.
        columns: names of the columns of a text file, see :func:`read_points`.
    """

    def __init__(self, name: str, file: Path, category: int = -1, subset: str = "", columns: str | None = None) -> None:
        super().__init__(name, file.parent, category, subset)
        self.file, self._columns = file, columns
        self._parts: frozenset[str] | None = None
        self._left_out = 0
        self._origin: np.ndarray | None = None

    @property
    def parts(self) -> frozenset[str]:
        """``mesh`` or ``points``.

        Raises:
            BrokenScene: a PLY file cannot be read.
        """
        if self._parts is None:
            self._parts = frozenset({"mesh" if has_faces(self.file, self.name) else "points"})
        return self._parts

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Points that were left out, once they have been read."""
        reason = "points left out: their coordinates are not numbers"
        return (Remark(self.name, str(self.file), reason, self._left_out),) if self._left_out else ()

    @property
    def origin(self) -> np.ndarray:
        if self._origin is None:
            self.cloud()
        return self._origin.copy()

    def points(self) -> PointCloud:
        self.require("points")
        cloud, self._left_out = read_scene_points(self.file, self.name, columns=self._columns)
        self._origin = np.zeros(3) if cloud.origin is None else cloud.origin[0].numpy()
        return cloud

    def mesh(self) -> Mesh:
        self.require("mesh")
        mesh, self._origin = read_scene_mesh(self.file, self.name)
        return mesh


class ObjectRow(ObjectScene):
    """The points of an object that are a row of an array.

    Args:
        name, category, subset: as :class:`ObjectScene` takes them.
        dataset: the kind of dataset, which reads the row.
        file: the file of the array.
        row: number of the row.
    """

    parts = frozenset({"points"})

    def __init__(
        self, name: str, dataset: type[RowDataset], file: Path, row: int, category: int = -1, subset: str = ""
    ) -> None:
        super().__init__(name, file.parent, category, subset)
        self.file, self.row, self._dataset = file, row, dataset

    def _xyz(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (P, 3) float64 less the origin, and that origin (3,)."""
        with np.errstate(all="ignore"):  # what damaged numbers come to is looked at below
            xyz = np.asarray(self._dataset.read_row(self.file, self.row, self.name), np.float64)
        if not len(xyz):
            raise BrokenScene(self.name, self.file, "holds no point")
        require_finite(xyz, self.file, self.name)
        origin = find_origin(xyz)
        return xyz - origin, origin

    @property
    def origin(self) -> np.ndarray:
        return self._xyz()[1]

    def points(self) -> PointCloud:
        xyz, origin = self._xyz()
        return PointCloud(torch.from_numpy(xyz.astype(np.float32)), origin=origin_rows(origin))


class RowDataset(SceneDataset):
    """Objects that are the rows of arrays in a few files, named ``<file>/<row>``.

    A kind says which files there are and how they are read. A file that cannot be opened goes to the quarantine.
    """

    folder_scenes: ClassVar[bool] = False

    @abstractmethod
    def files(self) -> list[Path]:
        """The files of arrays under ``root``, in a fixed order."""

    @classmethod
    @abstractmethod
    def labels(cls, file: Path) -> np.ndarray:
        """(N,) int64 label of each object of a file, -1 where there is none.

        Raises:
            BrokenScene: the file cannot be read, or is not of the kind.
        """

    @classmethod
    @abstractmethod
    def read_row(cls, file: Path, row: int, scene: str) -> np.ndarray:
        """Points (P, 3) of one object.

        Raises:
            BrokenScene: the file cannot be read.
        """

    @classmethod
    def subset_of(cls, file: Path) -> str:
        """The subset to which the objects of a file belong, by its name."""
        return subset_in(file.stem)

    def row_names(self, file: Path, count: int) -> Iterable[str]:
        """Name of each of the objects of a file."""
        return (f"{file.stem}/{row}" for row in range(count))

    def names(self) -> list[str]:
        self._rows: dict[str, tuple[Path, int, int]] = {}
        known = len(self.quarantine)
        for file in self.files():
            try:
                labels = self.labels(file).tolist()
                names = self.row_names(file, len(labels))
            except BrokenScene as broken:
                self.quarantine.add(broken)
                continue
            self._rows |= {name: (file, row, label) for row, (name, label) in enumerate(zip(names, labels))}
        if not self._rows and len(self.quarantine) > known:
            raise self.quarantine.entries[known]
        return list(self._rows)

    def open(self, name: str) -> ObjectRow:
        file, row, label = self._rows[name]
        if label >= len(self.categories):
            raise BrokenScene(name, file, f"row {row} has label {label}; there are {len(self.categories)} categories")
        return ObjectRow(name, type(self), file, row, label, self.subset_of(file))


def subset_in(name: str) -> str:
    """The subset that a file's name tells by one of its words; empty where it tells none."""
    words = name.lower().replace("-", "_").split("_")
    plain = (word.rstrip("0123456789") for word in words)
    return next((SUBSETS[word] for word in plain if word in SUBSETS), "")
