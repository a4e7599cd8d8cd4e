"""Photos without poses, by pairs that show the same place.

A scene is a folder, found at any depth under the root, that holds one of

- ``listing.txt``: a stem a line, whose images are ``<stem>_1.jpg`` and ``<stem>_2.jpg`` (or other images);
- ``pairs.txt``: two image paths a line, relative to the folder, parted by a space or a tab;
- images that all come as ``<id>_1`` and ``<id>_2``: these are the pairs;
- two or more images of any other names: each pairs with each.

Below a folder with a list no further scene is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.files import folders_below, list_line, looked_at, numeric_order, read_text, subfolders
from geo3d.datasets.image_files import find_image, holds_images, image_names, open_image
from geo3d.datasets.scannet_frames import scan_stem
from geo3d.datasets.scene import BrokenScene, Scene, SceneDataset
from geo3d.datasets.stereo_flow import StereoFlow

_LISTING, _PAIRS = "listing.txt", "pairs.txt"
_COUPLE = re.compile(r"(.+)_([12])(?:\.\w+)?", re.DOTALL)
# Names that tell that a folder is laid out for another reader, which would take the images as more than pairs.
_OTHER_LAYOUTS = re.compile(r"sparse|pose|transforms(_\w+)?\.json|frame-\d+\.pose\.txt")
# The words of a line: in quotes, or without spaces.
_WORD = re.compile(r"\"([^\"]*)\"|(\S+)")
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
            stems = dict.fromkeys(list_line(line).replace("\\", "/") for line, _ in self._lines(self.root / _LISTING))
            names = [f"{stem}_{side}" for stem in stems for side in (1, 2)]
            return names, np.arange(len(names), dtype=np.int64).reshape(-1, 2)
        if (self.root / _PAIRS).is_file():
            path = self.root / _PAIRS
            row: dict[str, int] = {}
            pairs = [self._pair(line, path, offset) for line, offset in self._lines(path)]
            indices = [[row.setdefault(name.replace("\\", "/"), len(row)) for name in pair] for pair in pairs]
            return list(row), np.array(indices, dtype=np.int64)
        names = image_names(self.root)
        couples = _couples(names)
        pairs = couples if couples is not None else list(combinations(range(len(names)), 2))
        return names, np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def _lines(self, path: Path) -> list[tuple[str, int]]:
        """The lines of a list that are neither blank nor comments, and the bytes before each."""
        text = read_text(path, self.name)
        lines, offset = [], 0
        for line in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text):
            if list_line(line):
                lines.append((line.strip(), offset))
            offset += len(line.encode())
        if not lines:
            raise BrokenScene(self.name, path, "the list is empty", 0)
        return lines

    def _pair(self, line: str, path: Path, offset: int) -> tuple[str, str]:
        """The two images that a line names; names with spaces are in quotes, parted by a tab, or exist."""
        words = [quoted or word for quoted, word in _WORD.findall(line)]
        if len(words) == 2:
            return words[0], words[1]
        if line.count("\t") == 1:
            choices = [tuple(line.split("\t"))]
        else:
            splits = [match.span() for match in re.finditer(r"\s+", line)]
            choices = [(line[:start], line[end:]) for start, end in splits]
            choices = [pair for pair in choices if all(find_image(self.root, name) for name in pair)]
        if len(choices) != 1:
            raise BrokenScene(self.name, path, f"2 name(s) a line expected, got {line!r}", offset)
        first, second = choices[0]
        return first.strip(), second.strip()

    @property
    def view_names(self) -> list[str]:
        return self._content[0]

    def image(self, index: int) -> Image.Image:
        name = self.view_names[index]
        return open_image(find_image(self.root, name) or self.root / name, self.name)

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
    return _is_listed(folder) or holds_images(folder, 2)


def _is_of_another_layout(folder: Path) -> bool:
    if scan_stem(folder) is not None or StereoFlow.is_scene(folder):
        return True
    return any(_OTHER_LAYOUTS.fullmatch(entry.name) for entry in looked_at(folder))


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
            if any(_is_of_another_layout(folder) for folder in level):
                return False
            found = found or any(map(_holds_pairs, level))
            level = [folder / name for folder in level for name in subfolders(folder)][:_LOOKED_AT]
        return found

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        return _holds_pairs(root)

    def names(self) -> list[str]:
        found = sorted(self._walk(), key=numeric_order)
        self._alone = found == ["."]
        return [self.root.name] if self._alone else found

    def _walk(self) -> Iterator[str]:
        listed: list[Path] = []
        for folder in folders_below(self.root):
            if any(folder.is_relative_to(above) for above in listed[-1:]):
                continue
            if _holds_pairs(folder):
                yield folder.relative_to(self.root).as_posix()
            if _is_listed(folder):
                listed.append(folder)

    def open(self, name: str) -> ImagePairsScene:
        return ImagePairsScene(name, self.root if self._alone else self.root / name)
