"""Photos without poses, by pairs that show the same place.

A scene is a folder, found at any depth under the root, that holds one of

- ``listing.txt``: a stem a line, whose images are ``<stem>_1.jpg`` and ``<stem>_2.jpg`` (also .jpeg, .png);
- ``pairs.txt``: two image paths a line, relative to the folder;
- images that all come as ``<id>_1`` and ``<id>_2``: these are the pairs;
- two or more images of any other names: each pairs with each.

Below a folder with a list no further scene is looked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.files import IMAGE_SUFFIXES, image_names, numeric_order, open_image, read_text, subfolders
from geo3d.datasets.scannet_frames import scan_stem
from geo3d.datasets.scene import BrokenScene, Scene, SceneDataset

_LISTING, _PAIRS = "listing.txt", "pairs.txt"
_SUFFIXES = (".jpg", ".jpeg", ".png")
_COUPLE = re.compile(r"(.+)_([12])\.\w+")
# What tells that a folder is laid out for another reader, which would take the images as more than pairs.
_OTHER_LAYOUTS = frozenset({"sparse", "pose", "transforms.json"})
_LOOKED_AT = 8
_DEEPEST_LOOK = 6


class ImagePairsScene(Scene):
    """Images of one folder and the pairs among them.

    Args:
        name: unique in the dataset.
        root: the folder.
    """

    parts = frozenset({"views", "pairs"})
    metric = False

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    @cached_property
    def _content(self) -> tuple[list[str], np.ndarray]:
        """View names and pairs."""
        if (self.root / _LISTING).is_file():
            stems = [stem for (stem,) in self._lines(self.root / _LISTING, 1)]
            names = [f"{stem}_{side}" for stem in stems for side in (1, 2)]
            return names, np.arange(len(names), dtype=np.int64).reshape(-1, 2)
        if (self.root / _PAIRS).is_file():
            pairs = list(self._lines(self.root / _PAIRS, 2))
            row: dict[str, int] = {}
            indices = [[row.setdefault(name, len(row)) for name in pair] for pair in pairs]
            return list(row), np.array(indices, dtype=np.int64)
        names = image_names(self.root)
        couples = _couples(names)
        pairs = couples if couples is not None else list(combinations(range(len(names)), 2))
        return names, np.array(pairs, dtype=np.int64)

    def _lines(self, path: Path, words: int) -> Iterator[list[str]]:
        """The words of each line of a list."""
        text = read_text(path, self.name)
        if not text.strip():
            raise BrokenScene(self.name, path, "the list is empty", 0)
        offset = 0
        for line in text.splitlines(keepends=True):
            found = line.split()
            if found and len(found) != words:
                raise BrokenScene(self.name, path, f"{words} name(s) a line expected, got {line.strip()!r}", offset)
            if found:
                yield found
            offset += len(line.encode())

    @property
    def view_names(self) -> list[str]:
        return self._content[0]

    def image(self, index: int) -> Image.Image:
        path = self.root / self.view_names[index]
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            candidates = [path.with_name(path.name + suffix) for suffix in _SUFFIXES]
            path = next((c for c in candidates if c.is_file()), candidates[0])
        return open_image(path, self.name)

    def pairs(self) -> np.ndarray:
        return self._content[1].copy()


def _couples(names: list[str]) -> list[tuple[int, int]] | None:
    """Rows of ``<id>_1`` and ``<id>_2`` for each id; None unless that makes up all of ``names``."""
    sides: dict[str, dict[str, int]] = {}
    for row, name in enumerate(names):
        match = _COUPLE.fullmatch(name)
        if match is None:
            return None
        sides.setdefault(match[1], {})[match[2]] = row
    if 2 * len(sides) != len(names) or any(len(rows) != 2 for rows in sides.values()):
        return None
    return [(rows["1"], rows["2"]) for rows in sides.values()]


def _holds_pairs(folder: Path) -> bool:
    return _is_listed(folder) or len(image_names(folder)) >= 2


def _is_listed(folder: Path) -> bool:
    return (folder / _LISTING).is_file() or (folder / _PAIRS).is_file()


class ImagePairs(SceneDataset):
    """Folders of images that pair up: any folder with images somewhere in it, unless it is laid out for another reader.

    A folder that holds several datasets is therefore not recognised, rather than read without its poses.
    """

    kind = "image_pairs"

    @classmethod
    def detect(cls, root: Path) -> bool:
        level, found = [root], False
        for _ in range(_DEEPEST_LOOK):
            if any(_OTHER_LAYOUTS.intersection(os.listdir(folder)) or scan_stem(folder) for folder in level):
                return False
            found = found or any(map(_holds_pairs, level))
            level = [folder / name for folder in level for name in subfolders(folder)][:_LOOKED_AT]
        return found

    def names(self) -> list[str]:
        found = sorted(self._walk(self.root), key=numeric_order)
        self._alone = found == ["."]
        return [self.root.name] if self._alone else found

    def _walk(self, folder: Path) -> Iterator[str]:
        if _holds_pairs(folder):
            yield folder.relative_to(self.root).as_posix()
        if not _is_listed(folder):
            for name in subfolders(folder):
                yield from self._walk(folder / name)

    def open(self, name: str) -> ImagePairsScene:
        return ImagePairsScene(name, self.root if self._alone else self.root / name)
