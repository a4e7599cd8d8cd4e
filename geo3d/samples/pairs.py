"""ViewPairs: the sample source of methods that read two views of one scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from geo3d.datasets.covisibility import EVIDENCE
from geo3d.datasets.pair_index import PairIndex, read_pair_index
from geo3d.datasets.pair_mining import MinedScene, PairOptions, ScenePairs, mine_scenes, no_pairs
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.geometry import ViewPair
from geo3d.samples.source import Items, SampleSource, folders

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class PairTable(Items):
    """View pairs by number, each scene a group: a million take 21 MB.

    Args:
        first, second: (P,) int32 view indices in the scene.
        overlap: (P,) float32 in [0, 1]; NaN where unknown.
        angle: (P,) float32 radians; NaN where unknown.
        evidence: (P,) int8 position in ``covisibility.EVIDENCE``.
    """

    first: np.ndarray
    second: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    evidence: np.ndarray


class ViewPairs(SampleSource[Scene]):
    """View pairs: those that the scenes list, or that were mined.

    Args:
        datasets, scenes: as :class:`SampleSource` takes them.
        items: the pairs.
        both_orders: list every pair a second time with its views swapped, after all the others.

    Raises:
        InputError: no pair.
    """

    kind = "view pairs"
    holds = "view pairs, or posed views to find them among"
    needs = ("views",)
    one_of = ("pairs", "poses")

    items: PairTable

    def __init__(
        self,
        datasets: Sequence[SceneDataset],
        scenes: Sequence[tuple[int, str]],
        items: PairTable,
        both_orders: bool = False,
    ) -> None:
        super().__init__(datasets, scenes, items)
        self.both_orders = both_orders

    @classmethod
    def of_datasets(
        cls,
        datasets: Sequence[SceneDataset],
        options: PairOptions | None = None,
        workers: int = 1,
        both_orders: bool = False,
    ) -> Self:
        """Mine the pairs now and keep them in memory; broken scenes go to their dataset's quarantine.

        Args:
            datasets: where the scenes are.
            options: which pairs are wanted; all defaults when not given.
            workers: scenes looked at side by side.
            both_orders: as in the class.

        Raises:
            InputError: no pair in any scene; says why.
        """
        mined = list(mine_scenes(datasets, options or PairOptions(), workers))
        found = [m for m in mined if m.pairs is not None and len(m.pairs)]
        if not found:
            raise no_pairs(datasets, [m.note for m in mined if m.pairs is not None])
        found = [m for m in found if cls._holds_needed(datasets[m.dataset].open(m.name))]
        if not found:
            raise InputError(f"{folders(datasets)}: no scene holds {cls.holds}; see docs/datasets.md")
        return cls._of_mined(datasets, found, both_orders)

    @classmethod
    def from_index(
        cls, index: PairIndex | str | Path, datasets: Sequence[SceneDataset] | None = None, both_orders: bool = False
    ) -> Self:
        """The pairs of an index file.

        Opens every scene once, to turn names into numbers; scenes that are broken go to their dataset's quarantine and
        their pairs are left out.

        Args:
            index: the file, or what :func:`read_pair_index` made of it.
            datasets: the datasets of the index, wherever they lie now: those at the index's own folders in any order,
                or else as many as it names, in its order. Opened from the folders in the index when not given.
            both_orders: as in the class.

        Raises:
            InputError: datasets that do not fit the index; an unknown scene or view, by file and line; no pair left.
        """
        index = index if isinstance(index, PairIndex) else read_pair_index(index)
        datasets = _matched_datasets(index, datasets)
        known = [set(dataset.scene_names) for dataset in datasets]
        broken_scenes: list[BrokenScene] = []
        order = np.argsort(index.scene, kind="stable")
        start = np.searchsorted(index.scene[order], np.arange(len(index.scenes) + 1))
        first, second = np.zeros(len(index), dtype=np.int32), np.zeros(len(index), dtype=np.int32)
        readable = np.zeros(len(index.scenes), dtype=bool)
        for row, (number, name) in enumerate(index.scenes):
            pairs = order[start[row] : start[row + 1]]
            if name not in known[number]:
                raise InputError(f"{index.place(int(pairs[0]))}: {datasets[number].root} has no scene {name!r}")
            try:
                scene = datasets[number].open(name)
                view_names = scene.view_names
            except BrokenScene as broken:
                datasets[number].quarantine.add(broken)
                broken_scenes.append(broken)
                continue
            if not cls._holds_needed(scene):
                continue
            readable[row] = True
            position = {view: i for i, view in enumerate(view_names)}
            for codes, numbers in ((index.first, first), (index.second, second)):
                numbers[pairs] = _view_numbers(index, pairs, codes[pairs], position, name)
        if not readable.any() and broken_scenes:
            raise InputError(f"{index.source}: every scene is broken, the first: {broken_scenes[0]}")
        if not readable.any():
            raise InputError(f"{index.source}: no scene holds {cls.holds}; see docs/datasets.md")
        scene = (np.cumsum(readable) - 1).astype(np.int32)[index.scene]
        scenes = [scene for scene, use in zip(index.scenes, readable) if use]
        pairs = PairTable(scene, scene, first, second, index.overlap, index.angle, index.evidence)
        return cls(datasets, scenes, pairs.kept(readable[index.scene]), both_orders)

    @classmethod
    def from_listed(cls, datasets: Sequence[SceneDataset], both_orders: bool = False) -> Self:
        """The pairs that the datasets list themselves; broken scenes go to their dataset's quarantine.

        Raises:
            InputError: no scene lists a pair.
        """
        found = []
        for number, dataset in enumerate(datasets):
            for scene in dataset.readable("pairs"):
                try:
                    pairs = ScenePairs.listed(scene.pairs())
                except BrokenScene as broken:
                    dataset.quarantine.add(broken)
                    continue
                if len(pairs):
                    found.append(MinedScene(number, scene.name, pairs=pairs))
        if not found:
            raise InputError(f"no scene of {folders(datasets)} lists view pairs; mine them: `geo3d prepare pairs`")
        return cls._of_mined(datasets, found, both_orders)

    @classmethod
    def _holds_needed(cls, scene: Scene) -> bool:
        """Whether a scene of which there are pairs also holds what else is read."""
        return scene.parts.issuperset(cls.needs)

    @classmethod
    def _of_mined(cls, datasets: Sequence[SceneDataset], mined: Sequence[MinedScene], both_orders: bool) -> Self:
        """The pairs of mined scenes, in order; of each there must be some."""
        scene = np.concatenate([np.full(len(m.pairs), row, dtype=np.int32) for row, m in enumerate(mined)])
        evidence = [np.full(len(m.pairs), EVIDENCE.index(m.pairs.evidence), dtype=np.int8) for m in mined]
        columns = (
            np.concatenate([getattr(m.pairs, name) for m in mined]) for name in ("first", "second", "overlap", "angle")
        )
        table = PairTable(scene, scene, *columns, np.concatenate(evidence))
        return cls(datasets, [(m.dataset, m.name) for m in mined], table, both_orders)

    def __len__(self) -> int:
        return len(self.items) * (2 if self.both_orders else 1)

    def row(self, index: int) -> int:
        return super().row(index) % len(self.items)

    def views(self, index: int) -> tuple[int, int]:
        """First and second view of a pair, counted as its scene does."""
        row = self.row(index)
        first, second = int(self.items.first[row]), int(self.items.second[row])
        return (first, second) if index == row else (second, first)

    def name_in_scene(self, index: int) -> str:
        names = self.opened(index).view_names
        return " | ".join(names[view] for view in self.views(index))

    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Both images of a pair, not yet decoded where the scene's reader is lazy.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        scene = self.opened(index)
        first, second = self.views(index)
        return scene.image(first), scene.image(second)

    def pair(self, index: int) -> ViewPair:
        """A pair with all that its scene knows of both views, overlap and angle (radians) where they were measured."""
        row, scene = self.row(index), self.opened(index)
        first, second = self.views(index)
        overlap, angle = float(self.items.overlap[row]), float(self.items.angle[row])
        known = {"overlap": overlap, "angle": angle} if np.isfinite(overlap) else {}
        return ViewPair(scene.view(first), scene.view(second), **known)


def _matched_datasets(index: PairIndex, datasets: Sequence[SceneDataset] | None) -> list[SceneDataset]:
    """For each dataset that the index names, the one that holds its scenes now."""
    if datasets is None:
        return [open_dataset(d.root, kind=d.kind) for d in index.datasets]
    by_root = {dataset.root.resolve(): dataset for dataset in datasets}
    matched = [by_root.get(d.root.resolve()) for d in index.datasets]
    if None not in matched:
        return matched
    if len(datasets) == len(index.datasets):
        return list(datasets)
    lacking = ", ".join(str(d.root) for d, found in zip(index.datasets, matched) if found is None)
    raise InputError(
        f"{index.source}: has pairs of {lacking}, which is not among {folders(datasets)}; give the same folders in the "
        "same order, or mine a new index"
    )


def _view_numbers(
    index: PairIndex, pairs: np.ndarray, codes: np.ndarray, position: dict[str, int], scene: str
) -> np.ndarray:
    """Codes of view names in the index, as view indices of a scene."""
    used, inverse = np.unique(codes, return_inverse=True)
    numbers = np.array([position.get(index.views[code], -1) for code in used], dtype=np.int32)[inverse]
    if (numbers < 0).any():
        at = int((numbers < 0).argmax())
        raise InputError(f"{index.place(int(pairs[at]))}: scene {scene!r} has no view {index.views[codes[at]]!r}")
    return numbers
