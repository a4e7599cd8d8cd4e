"""Pairs of images with disparity or optical flow, in the layouts that people have them in.

A scene is a folder that holds one or both of

- *plain*: ``left/``, ``right/`` and ``disparity/``; ``first/``, ``second/`` and ``flow/``; the files of a pair have the
  same stem;
- *KITTI*: ``image_2/``, ``image_3/`` and ``disp_occ_0/``; ``image_2/`` with ``<number>_10`` and ``<number>_11``, and
  ``flow_occ/`` (2015); ``colored_0/``, ``colored_1/`` or ``image_0/``, ``image_1/``, with ``disp_occ/`` and
  ``flow_occ/`` (2012). Give the folder ``training``;
- *Middlebury*: ``im0``, ``im1`` and ``disp0.pfm`` (2014, 2021); ``im2``, ``im6`` and ``disp2`` (2001, 2003); ``view1``,
  ``view5`` and ``disp1`` (2005, 2006). The maps of whole numbers are divided by what they were multiplied by.

How numbers in files are meant is told in :mod:`geo3d.datasets.disparity_files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from geo3d.datasets.disparity_files import DISPARITY_ENDINGS, FLOW_ENDINGS, read_disparity, read_flow
from geo3d.datasets.files import entries, looked_at, numeric_order, subfolders
from geo3d.datasets.image_files import IMAGE_ENDINGS, image_size, open_image
from geo3d.datasets.scene import BrokenScene, Remark, Scene, SceneDataset

_ENDINGS = {"disparity": frozenset(DISPARITY_ENDINGS), "flow": frozenset(FLOW_ENDINGS)}


class _Folders(NamedTuple):
    """A layout of folders: of the images of a pair and of what is known of it, and how the stems of files end."""

    part: str
    first: str
    second: str
    target: str
    ends: tuple[str, str] = ("", "")


_LAYOUTS = (
    _Folders("disparity", "left", "right", "disparity"),
    _Folders("flow", "first", "second", "flow"),
    _Folders("disparity", "image_2", "image_3", "disp_occ_0"),
    _Folders("flow", "image_2", "image_2", "flow_occ", ("_10", "_11")),
    _Folders("disparity", "colored_0", "colored_1", "disp_occ"),
    _Folders("flow", "colored_0", "colored_0", "flow_occ", ("_10", "_11")),
    _Folders("disparity", "image_0", "image_1", "disp_occ"),
    _Folders("flow", "image_0", "image_0", "flow_occ", ("_10", "_11")),
)
#: Layouts in which every pair is of a place of its own.
_STREETS = frozenset({"disp_occ_0", "disp_occ", "flow_occ"})
#: Middlebury's images of a pair and the disparity of the first -> width of the full images -> what whole numbers there
#: are multiplied by, from full size down.
_MIDDLEBURY = {
    ("im0", "im1", "disp0"): {},
    ("im2", "im6", "disp2"): {1800: 1, 900: 2, 450: 4, 0: 8},
    ("view1", "view5", "disp1"): {1100: 1, 550: 2, 0: 3},
}


class MatchedPair(NamedTuple):
    """Files of a pair: its images, and the map of what is known of it.

    Args:
        first, second: images.
        target: disparity or flow of the first.
        factor: what whole numbers in the map are multiplied by; None: as its format says.
    """

    first: Path
    second: Path
    target: Path
    factor: float | None = None


class StereoFlowScene(Scene):
    """Pairs of one folder.

    Args:
        name: unique in the dataset.
        root: the folder.
        alone: whether it is all of its dataset.
    """

    metric = False

    def __init__(self, name: str, root: Path, alone: bool = False) -> None:
        self.name, self.root = name, root
        self._layouts = _folder_layouts(root)
        self._files = _middlebury(root)
        known = {layout.part for layout in self._layouts} | ({"disparity"} if self._files else set())
        self.parts = frozenset({"views", "pairs", *known})
        self._compared: set[Path] = set()
        #: Whether its pairs are of places that have nothing to do with each other, and may be parted.
        self.of_many_places = alone or any(layout.target in _STREETS for layout in self._layouts)

    @cached_property
    def _found(self) -> tuple[dict[str, list[MatchedPair]], tuple[Remark, ...]]:
        """Part -> its pairs, and what was left out.

        Raises:
            BrokenScene: there is no pair at all.
        """
        pairs: dict[str, list[MatchedPair]] = {"disparity": list(self._files), "flow": []}
        remarks = []
        for layout in self._layouts:
            images = [_stems(self.root / folder, frozenset(IMAGE_ENDINGS)) for folder in (layout.first, layout.second)]
            targets = _stems(self.root / layout.target, _ENDINGS[layout.part])
            before, after = layout.ends
            alone = []
            for stem, target in targets.items():
                base = stem.removesuffix(before)
                first, second = images[0].get(stem), images[1].get(base + after)
                if first is None or second is None or not stem.endswith(before):
                    alone.append(stem)
                else:
                    pairs[layout.part].append(MatchedPair(first, second, target))
            if alone:
                where, reason = str(self.root / layout.target), f"without both images of its pair, such as {alone[0]}"
                remarks.append(Remark(self.name, where, reason, len(alone)))
        if not any(pairs.values()):
            raise BrokenScene(self.name, self.root, "no map of disparity or flow has both images of its pair")
        return pairs, tuple(remarks)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return self._found[1]

    @cached_property
    def _images(self) -> list[Path]:
        every = {path for pairs in self._found[0].values() for pair in pairs for path in pair[:2]}
        return sorted(every, key=lambda path: numeric_order(path.relative_to(self.root).as_posix()))

    @cached_property
    def _row(self) -> dict[Path, int]:
        return {path: row for row, path in enumerate(self._images)}

    @property
    def view_names(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self._images]

    def image(self, index: int) -> Image.Image:
        return open_image(self._images[index], self.name)

    def pairs(self) -> np.ndarray:
        both = [self._rows[part] for part in ("disparity", "flow")]
        return np.unique(np.concatenate(both), axis=0)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Part -> (P, 2) its pairs, as rows of the images; asked for with every sample."""
        rows = {
            part: [(self._row[p.first], self._row[p.second]) for p in pairs] for part, pairs in self._found[0].items()
        }
        return {part: np.array(pairs, dtype=np.int64).reshape(-1, 2) for part, pairs in rows.items()}

    def stereo_pairs(self) -> np.ndarray:
        self.require("disparity")
        return self._rows["disparity"]

    def disparity(self, number: int) -> np.ndarray:
        self.require("disparity")
        pair = self._found[0]["disparity"][number]
        return self._of_size(read_disparity(pair.target, self.name, pair.factor), pair)

    def flow_pairs(self) -> np.ndarray:
        self.require("flow")
        return self._rows["flow"]

    def flow(self, number: int) -> np.ndarray:
        self.require("flow")
        pair = self._found[0]["flow"][number]
        return self._of_size(read_flow(pair.target, self.name), pair)

    def _of_size(self, values: np.ndarray, pair: MatchedPair) -> np.ndarray:
        """A map, which must be of the size of its images; these are looked at when it is first read."""
        if pair.target in self._compared:
            return values
        height, width = values.shape[:2]
        for path in (pair.first, pair.second):
            size = image_size(path, self.name)
            if size != (width, height):
                reason = f"is {width} x {height}, but {path.name} of its pair is {size[0]} x {size[1]}"
                raise BrokenScene(self.name, pair.target, reason)
        self._compared.add(pair.target)
        return values


def _stems(folder: Path, endings: frozenset[str]) -> dict[str, Path]:
    """Stem -> file of the files of some endings in a folder, sorted as numbers."""
    found: dict[str, Path] = {}
    for name in sorted((entry.name for entry in entries(folder)), key=numeric_order):
        stem, ending = os.path.splitext(name)
        if ending.lower() in endings:
            found.setdefault(stem, folder / name)
    return found


def _folder_layouts(root: Path) -> tuple[_Folders, ...]:
    names = set(subfolders(root))
    return tuple(layout for layout in _LAYOUTS if names.issuperset((layout.first, layout.second, layout.target)))


def _middlebury(root: Path) -> tuple[MatchedPair, ...]:
    """The pair of a folder of Middlebury's files, of which there is one; none where it is no such folder."""
    names = {entry.name for entry in looked_at(root)}
    for stems, factors in _MIDDLEBURY.items():
        images = [next((stem + end for end in IMAGE_ENDINGS if stem + end in names), None) for stem in stems[:2]]
        target = next((stems[2] + end for end in DISPARITY_ENDINGS if stems[2] + end in names), None)
        if None not in (*images, target):
            first, second, target = (root / name for name in (*images, target))
            return (MatchedPair(first, second, target, _factor(first, target, factors)),)
    return ()


def _factor(first: Path, target: Path, factors: dict[int, int]) -> float | None:
    """What the whole numbers of a map are multiplied by, which goes by the width of the images."""
    if not factors or target.suffix.lower() not in IMAGE_ENDINGS:
        return None
    width, _ = image_size(first, first.parent.name)
    return float(next(factor for least, factor in factors.items() if width >= least))


class StereoFlow(SceneDataset):
    """Folders of pairs with disparity or flow: one, or a folder of them."""

    kind = "stereo_flow"
    part_folders = frozenset(name for layout in _LAYOUTS for name in layout[1:4])

    @classmethod
    def detect(cls, root: Path) -> bool:
        return cls.is_scene(root) or next(cls._scenes(root), None) is not None

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        if _folder_layouts(root):
            return True
        names = {os.path.splitext(entry.name)[0] for entry in looked_at(root)}
        return any(names.issuperset(stems) for stems in _MIDDLEBURY)

    @classmethod
    def _scenes(cls, root: Path) -> Iterator[str]:
        return (name for name in subfolders(root) if cls.is_scene(root / name))

    def names(self) -> list[str]:
        self._alone = self.is_scene(self.root)
        return [self.root.name] if self._alone else list(self._scenes(self.root))

    def open(self, name: str) -> StereoFlowScene:
        return StereoFlowScene(name, self.root if self._alone else self.root / name, self._alone)
