"""ModelNet40: 12,311 objects of 40 categories, as two kinds of point clouds.

Layouts::

    modelnet40_ply_hdf5_2048/ply_data_train0.h5 ...      data (N, 2048, 3), label (N, 1); y is up
                             shape_names.txt             names of the categories; else ModelNet40's own
    modelnet40_normal_resampled/modelnet40_shape_names.txt, modelnet40_train.txt, modelnet40_test.txt
                                airplane/airplane_0001.txt ...     x,y,z,nx,ny,nz lines

The meshes, ``<class>/{train,test}/*.off``, are read by :mod:`geo3d.datasets.object_folders`.
"""

from __future__ import annotations

import os
from pathlib import Path

from geo3d.datasets.files import list_line, looked_at, numeric_order, read_text
from geo3d.datasets.hdf5_rows import HDF5Rows
from geo3d.datasets.objects import ObjectFile
from geo3d.datasets.plain_text import split_lines
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset
from geo3d.errors import InputError

#: In the order of the labels.
MODELNET40_CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
_SHAPE_NAMES = "_shape_names.txt"


def _read_list(path: Path) -> list[str]:
    try:
        return [line for text in split_lines(read_text(path, path.stem)) if (line := list_line(text))]
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken


class ModelNetHDF5(HDF5Rows):
    """ModelNet40 as PointNet's authors sampled it, in HDF5 files."""

    kind = "modelnet_hdf5"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return any(_is_hdf5(entry.name) for entry in looked_at(root))

    def files(self) -> list[Path]:
        names = self.root / "shape_names.txt"
        self.categories = tuple(_read_list(names)) if names.is_file() else MODELNET40_CLASSES
        return [self.root / n for n in sorted((e.name for e in looked_at(self.root) if _is_hdf5(e.name)), key=_order)]


def _is_hdf5(name: str) -> bool:
    return name.startswith(("ply_data_train", "ply_data_test")) and name.endswith(".h5")


def _order(name: str) -> tuple:
    """Training files first."""
    return "test" in name, numeric_order(name)


class ModelNetResampled(SceneDataset):
    """ModelNet40 or 10 as PointNet++'s authors sampled it: 10,000 points with normals each, in text files.

    Caches of it that other programs have pickled (``.dat``) are not read, as unpickling runs what is in a file.
    """

    kind = "modelnet_resampled"
    folder_scenes = False

    @classmethod
    def detect(cls, root: Path) -> bool:
        return _stem(root) is not None

    def names(self) -> list[str]:
        stem = _stem(self.root)
        self.categories = tuple(_read_list(self.root / f"{stem}{_SHAPE_NAMES}"))
        lists = {subset: self.root / f"{stem}_{subset}.txt" for subset in ("train", "test")}
        self._subsets = {n: subset for subset, path in lists.items() if path.is_file() for n in _read_list(path)}
        if not self._subsets:
            raise InputError(f"{self.root}: {stem}_train.txt and {stem}_test.txt, which list the objects, are missing")
        self._note_pickles()
        return list(self._subsets)

    def _note_pickles(self) -> None:
        pickles = sorted(entry.name for entry in looked_at(self.root) if entry.name.endswith(".dat"))
        if not pickles:
            return
        why = "pickled caches are not read, as unpickling runs what is in a file; the .txt files are"
        if not any((self.root / name).is_dir() for name in self.categories):
            raise InputError(f"{self.root / pickles[0]}: {why} needed")
        self.quarantine.note([Remark(self.root.name, str(self.root / pickles[0]), f"{why} used", len(pickles))])

    def open(self, name: str) -> ObjectFile:
        category = name.rpartition("_")[0]
        file = self.root / category / f"{name}.txt"
        if category not in self.categories:
            raise BrokenScene(name, file, f"{category!r} is none of the {len(self.categories)} categories")
        row = self.categories.index(category)
        return ObjectFile(name, file, row, self._subsets[name], columns="x y z nx ny nz")


def _stem(root: Path) -> str | None:
    """How the lists' names begin: ``modelnet40`` before ``modelnet10``; None where there are none."""
    found = [e.name.removesuffix(_SHAPE_NAMES) for e in looked_at(root) if e.name.endswith(_SHAPE_NAMES)]
    known = [name for name in found if name.lower().startswith("modelnet") and os.path.isdir(root)]
    return max(known, default=None, key=numeric_order)
