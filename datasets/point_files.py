"""Files of points, one scene each: a layout of one's own without a line of code.

Layout::

    <root>/classes.txt             names of the classes, one a line; needed only for labels
           <scene>.ply             or another file that read_points reads, and
           <scene>/<any name>.ply  folders that hold one such file; such a folder may also be the root
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import numpy as np

from geo3d.datasets.files import list_line, looked_at, numeric_order, read_text, subfolders
from geo3d.datasets.plain_text import split_lines
from geo3d.datasets.read_points import POINT_ENDINGS, has_faces, holds_labels, read_scene_mesh, read_scene_points
from geo3d.datasets.scene import BrokenScene, Mesh, Remark, Scene, SceneDataset, recognised_by
from geo3d.errors import InputError
from geo3d.geometry import PointCloud

Labels = TypeVar("Labels")

_CLASSES = "classes.txt"
_LOOKED_AT = 8
# Too much else is kept in these: lists, notes, tables.
_NO_SCENES = frozenset({".txt", ".csv"})


class PointFileScene(Scene):
    """The points of one file.

    ``labels`` are there when the dataset names its classes and the file has a column of labels. Nothing tells in which
    unit a file's lengths are, nor which way is up: metres and z are assumed. Nor is an object told from a place.

    Args:
        name: unique in the dataset.
        file: the file.
        classes: names of the classes that labels count in; None when there are none.

    Raises:
        BrokenScene: the file's header is damaged.
    """

    is_object = True

    def __init__(self, name: str, file: Path, classes: tuple[str, ...] | None) -> None:
        self.name, self.root, self.file, self._classes = name, file.parent, file, classes
        self._left_out = 0
        self._origin: np.ndarray | None = None
        labelled = classes is not None and holds_labels(file, name)
        held = {"points": True, "labels": labelled, "mesh": has_faces(file, name)}
        self.parts = frozenset(part for part, there in held.items() if there)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Points that were left out, once they have been read."""
        reason = "points left out: their coordinates are not numbers"
        return (Remark(self.name, str(self.file), reason, self._left_out),) if self._left_out else ()

    @property
    def origin(self) -> np.ndarray:
        if self._origin is None:
            self.points()
        return self._origin.copy()

    def points(self) -> PointCloud:
        """The file's points; labels are class numbers, -1 where ignored, and left out where no classes are named.

        Raises:
            BrokenScene: the file is damaged, or a label is no class.
        """
        cloud, self._left_out = read_scene_points(self.file, self.name)
        self._origin = np.zeros(3) if cloud.origin is None else cloud.origin[0].numpy()
        cloud.semantic = self._checked(cloud.semantic)
        return cloud

    def mesh(self) -> Mesh:
        """The file's mesh, with labels as :meth:`points` has them.

        Raises:
            BrokenScene: the file is damaged, or a label is no class.
        """
        self.require("mesh")
        mesh, self._origin = read_scene_mesh(self.file, self.name)
        mesh.semantic = self._checked(mesh.semantic)
        return mesh

    def _checked(self, labels: Labels) -> Labels | None:
        """Labels of classes; None where no classes are named."""
        if "labels" not in self.parts:
            return None
        low, high = int(labels.min()), int(labels.max())
        if not -1 <= low <= high < len(self._classes):
            reason = f"labels lie within {low} to {high}; {_CLASSES} names classes 0 to {len(self._classes) - 1}"
            raise BrokenScene(self.name, self.file, f"{reason}, and -1 means none")
        return labels


class PointFiles(SceneDataset):
    """A folder of files of points, or of folders with one such file each; or one of these folders."""

    kind = "point_files"
    last_resort = True

    @classmethod
    def detect(cls, root: Path) -> bool:
        children = [root / name for name in subfolders(root)[:_LOOKED_AT]]
        alone = (child for child in children if len(_point_files(child)) == 1)
        holds = bool(_point_files(root)) or any(not recognised_by(child, before=cls.kind) for child in alone)
        return holds and not recognised_by(root, before=cls.kind)

    def names(self) -> list[str]:
        files, folders = _point_files(self.root), subfolders(self.root)
        inside = [name for name in folders if _point_files(self.root / name)]
        alone = len(files) == 1 and not inside
        self.classes = read_classes([self.root, self.root.parent] if alone else [self.root])
        if alone:
            self._places = {self.root.name: self.root}
            return [self.root.name]
        places = [(Path(name).stem, self.root / name) for name in files] + [(name, self.root / name) for name in inside]
        self._places = dict(places)
        for name, place in places:
            if self._places[name] != place:
                raise InputError(f"{self.root}: {place.name} and {self._places[name].name} are both scene {name!r}")
        return sorted(self._places, key=numeric_order)

    def open(self, name: str) -> PointFileScene:
        place = self._places[name]
        if place.is_dir():
            files = _point_files(place)
            if len(files) != 1:
                raise BrokenScene(name, place, f"holds {len(files)} files of points; one a folder is expected")
            place /= files[0]
        return PointFileScene(name, place, self.classes)


def _point_files(folder: Path) -> list[str]:
    """Names of the files of points in ``folder``."""
    names = [entry.name for entry in looked_at(folder) if entry.is_file()]
    endings = set(POINT_ENDINGS) - _NO_SCENES
    return sorted((n for n in names if os.path.splitext(n)[1].lower() in endings), key=numeric_order)


def read_classes(folders: list[Path]) -> tuple[str, ...] | None:
    """Names of the classes by the first list in some folders; None where there is none.

    Raises:
        InputError: the list is damaged or names none, or one twice.
    """
    path = next((folder / _CLASSES for folder in folders if (folder / _CLASSES).is_file()), None)
    if path is None:
        return None
    try:
        text = read_text(path, path.parent.name)
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken
    classes = tuple(name for line in split_lines(text) if (name := list_line(line)))
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"{path}: the names of the classes are expected, one a line and each once, found {classes}")
    return classes
