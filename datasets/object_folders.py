"""Objects by category: a folder for each, with a file of points or a mesh for each object.

Layout::

    <root>/<category>/<object>.off                    or another file that read_points reads
           <category>/{train,test}/<object>.off       as ModelNet has its meshes
           {train,test}/<category>/<object>.off
           mvimgnet_category.txt                      `folder,name` lines, where folders are numbers
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from geo3d.datasets.files import list_line, looked_at, numeric_order, read_text, subfolders
from geo3d.datasets.objects import SUBSETS, ObjectFile
from geo3d.datasets.plain_text import split_lines
from geo3d.datasets.read_points import POINT_ENDINGS
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset, recognised_by
from geo3d.errors import InputError

_LOOKED_AT = 8
_CATEGORY_NAMES = "mvimgnet_category.txt"
# Lists and notes lie beside objects; files of these are objects only where a folder holds nothing else that is one.
_TEXT = frozenset({".txt", ".csv"})
# Scenes of which each array is a file of its own.
_NO_OBJECT = "coord.npy"
_FEWEST_NUMBERS = 3


class _Place(NamedTuple):
    """Where objects of one category lie."""

    folder: Path
    category: str
    subset: str


class ObjectFolders(SceneDataset):
    """Files of points or meshes in a folder for each category; tried after all layouts that say more."""

    kind = "object_folders"
    last_resort = True
    folder_scenes = False

    @classmethod
    def detect(cls, root: Path) -> bool:
        counts = [len(_object_files(place.folder)) for place in _places(root, _LOOKED_AT)]
        holding, beside = sum(count > 0 for count in counts), len(_object_files(root))
        # One file a folder, and files beside, are scenes with names of their own: point_files.
        if holding < 2 or holding <= beside or max(counts) < 2 or recognised_by(root, before=cls.kind):
            return False
        return not any(recognised_by(root / name, before=cls.kind) for name in subfolders(root)[:_LOOKED_AT])

    def names(self) -> list[str]:
        found: dict[str, tuple[Path, _Place]] = {}
        for place in _places(self.root):
            files = [place.folder / name for name in _object_files(place.folder)]
            stems = Counter(file.stem for file in files)
            for file in files:
                name = file.stem if stems[file.stem] == 1 else file.name
                found[f"{place.folder.relative_to(self.root).as_posix()}/{name}"] = (file, place)
        self._found = found
        self._folders = sorted({place.category for _, place in found.values()}, key=numeric_order)
        self._rows = {folder: row for row, folder in enumerate(self._folders)}
        known = category_names(self.root)
        self.categories = tuple(known.get(folder, folder) for folder in self._folders)
        beside = _object_files(self.root)
        if beside:
            reason = "files of points or meshes lie beside the folders of categories and are not read"
            self.quarantine.note([Remark(self.root.name, str(self.root / beside[0]), reason, len(beside))])
        return sorted(found, key=numeric_order)

    def open(self, name: str) -> ObjectFile:
        file, place = self._found[name]
        return ObjectFile(name, file, self._rows[place.category], place.subset)


def _places(root: Path, most: int | None = None) -> Iterator[_Place]:
    """Folders of objects, of the first so many categories."""
    children = subfolders(root)
    if children and all(name.lower() in SUBSETS for name in children):
        for child in children:
            for category in subfolders(root / child)[:most]:
                yield _Place(root / child / category, category, SUBSETS[child.lower()])
        return
    for category in children[:most]:
        yield _Place(root / category, category, "")
        for name in subfolders(root / category):
            if name.lower() in SUBSETS:
                yield _Place(root / category / name, category, SUBSETS[name.lower()])


def _object_files(folder: Path) -> list[str]:
    """Names of the files of a folder that hold an object each; files of text only where there are no others."""
    names = [entry.name for entry in looked_at(folder) if entry.is_file()]
    if _NO_OBJECT in names:
        return []
    by_ending = {name: os.path.splitext(name)[1].lower() for name in names}
    files = [name for name, ending in by_ending.items() if ending in POINT_ENDINGS and ending not in _TEXT]
    if not files:
        files = sorted(name for name, ending in by_ending.items() if ending == ".txt")
        files = files if files and _begins_with_numbers(folder / files[0]) else []
    return sorted(files, key=numeric_order)


def _begins_with_numbers(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            words = opened.readline(200).replace(b",", b" ").split()
        return len([float(word) for word in words]) >= _FEWEST_NUMBERS
    except (OSError, ValueError):
        return False  # no file of points, whatever else it is


def category_names(root: Path) -> dict[str, str]:
    """Names of numbered folders, by the list that MVImgNet and MVPNet bring; empty where there is none.

    Raises:
        InputError: the list cannot be read.
    """
    path = next(
        (folder / _CATEGORY_NAMES for folder in (root, root.parent) if (folder / _CATEGORY_NAMES).is_file()), None
    )
    if path is None:
        return {}
    try:
        lines = [list_line(line).partition(",") for line in split_lines(read_text(path, path.stem))]
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken
    return {number.strip(): name.strip() for number, _, name in lines if name.strip()}
