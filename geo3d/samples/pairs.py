"""ViewPairs: the sample source of methods that read two views of one scene."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.covisibility import EVIDENCE
from geo3d.datasets.pair_index import PairIndex, read_pair_index
from geo3d.datasets.pair_mining import MinedScene, PairOptions, ScenePairs, mine_scenes, no_pairs
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.geometry import ViewPair

_OPEN_SCENES = 64  # a scene of some thousand frames takes under a megabyte


@dataclass
class PairTable:
    """View pairs by number: a million take 21 MB.

    Args:
        scenes: dataset number and name of each scene that has pairs.
        scene: (P,) int32 row of ``scenes``.
        first, second: (P,) int32 view indices in the scene.
        overlap: (P,) float32 in [0, 1]; NaN where unknown.
        angle: (P,) float32 radians; NaN where unknown.
        evidence: (P,) int8 position in ``covisibility.EVIDENCE``.
    """

    scenes: list[tuple[int, str]]
    scene: np.ndarray
    first: np.ndarray
    second: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    evidence: np.ndarray

    @classmethod
    def join(cls, mined: Sequence[MinedScene]) -> PairTable:
        """The pairs of some mined scenes, in order."""
        rows = [np.full(len(m.pairs), row, dtype=np.int32) for row, m in enumerate(mined)]
        evidence = [np.full(len(m.pairs), EVIDENCE.index(m.pairs.evidence), dtype=np.int8) for m in mined]
        columns = (
            np.concatenate([getattr(m.pairs, name) for m in mined]) for name in ("first", "second", "overlap", "angle")
        )
        return cls([(m.dataset, m.name) for m in mined], np.concatenate(rows), *columns, np.concatenate(evidence))


class ViewPairs:
    """All view pairs of some datasets, as one long list.

    Small and picklable: it holds numbers and names, and each process opens scenes by itself when it needs them.

    Args:
        datasets: where the scenes are.
        table: the pairs.
        both_orders: list every pair a second time with its views swapped, after all the others.
    """

    def __init__(self, datasets: Sequence[SceneDataset], table: PairTable, both_orders: bool = False) -> None:
        self.datasets, self.table, self.both_orders = tuple(datasets), table, both_orders
        self._open: OrderedDict[int, Scene] = OrderedDict()

    @classmethod
    def from_index(
        cls, index: PairIndex | str | Path, datasets: Sequence[SceneDataset] | None = None, both_orders: bool = False
    ) -> ViewPairs:
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
                view_names = datasets[number].open(name).view_names
            except BrokenScene as broken:
                datasets[number].quarantine.add(broken)
                broken_scenes.append(broken)
                continue
            readable[row] = True
            position = {view: i for i, view in enumerate(view_names)}
            for codes, numbers in ((index.first, first), (index.second, second)):
                numbers[pairs] = _view_numbers(index, pairs, codes[pairs], position, name)
        if not readable.any():
            raise InputError(f"{index.source}: every scene is broken, the first: {broken_scenes[0]}")
        kept = readable[index.scene]
        scene = (np.cumsum(readable) - 1).astype(np.int32)[index.scene]
        columns = (scene, first, second, index.overlap, index.angle, index.evidence)
        scenes = [scene for scene, use in zip(index.scenes, readable) if use]
        return cls(datasets, PairTable(scenes, *(column[kept] for column in columns)), both_orders)

    @classmethod
    def mine(
        cls, datasets: Sequence[SceneDataset], options: PairOptions, workers: int = 1, both_orders: bool = False
    ) -> ViewPairs:
        """Mine the pairs now and keep them in memory; broken scenes go to their dataset's quarantine.

        Raises:
            InputError: no pair in any scene; says why.
        """
        mined = list(mine_scenes(datasets, options, workers))
        found = [m for m in mined if m.pairs is not None and len(m.pairs)]
        if not found:
            raise no_pairs(datasets, [m.note for m in mined if m.pairs is not None])
        return cls(datasets, PairTable.join(found), both_orders)

    @classmethod
    def from_listed(cls, datasets: Sequence[SceneDataset], both_orders: bool = False) -> ViewPairs:
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
            raise InputError(f"no scene of {_roots(datasets)} lists view pairs; mine them: `tools/prepare.py pairs`")
        return cls(datasets, PairTable.join(found), both_orders)

    def __len__(self) -> int:
        return len(self.table.scene) * (2 if self.both_orders else 1)

    @property
    def scene_count(self) -> int:
        """Number of scenes that have pairs."""
        return len(np.unique(self.table.scene))

    def of_scenes(self, numbers: Sequence[int] | np.ndarray) -> ViewPairs:
        """The pairs of some scenes alone.

        Args:
            numbers: scenes, counted as by :meth:`scene_id`; their numbers stay the same.
        """
        kept = np.isin(self.table.scene, numbers)
        columns = {f.name: getattr(self.table, f.name)[kept] for f in fields(self.table) if f.name != "scenes"}
        return ViewPairs(self.datasets, replace(self.table, **columns), self.both_orders)

    group_count = scene_count
    of_groups = of_scenes

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Row of the table, and the first and second view of item ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        swapped, row = divmod(index, len(self.table.scene))
        first, second = int(self.table.first[row]), int(self.table.second[row])
        return (row, second, first) if swapped else (row, first, second)

    def _scene(self, row: int) -> Scene:
        """The scene of a row of the table; those used last stay open."""
        key = int(self.table.scene[row])
        if key not in self._open:
            number, name = self.table.scenes[key]
            self._open[key] = self.datasets[number].open(name)
            if len(self._open) > _OPEN_SCENES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def scene_id(self, index: int) -> int:
        """A number that two pairs share exactly when they are of one scene: 0 to ``scene_count - 1`` in a whole set."""
        return int(self.table.scene[self._locate(index)[0]])

    def describe(self, index: int) -> str:
        """Folder, scene and views of a pair."""
        row, first, second = self._locate(index)
        number, name = self.table.scenes[self.table.scene[row]]
        names = self._scene(row).view_names
        return f"{self.datasets[number].root}: scene {name}: {names[first]} | {names[second]}"

    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Both images of a pair, not yet decoded where the scene's reader is lazy.

        Raises:
            BrokenScene: a file of the scene cannot be read.
        """
        row, first, second = self._locate(index)
        scene = self._scene(row)
        return scene.image(first), scene.image(second)

    def pair(self, index: int) -> ViewPair:
        """A pair with all that its scene knows of both views, overlap and angle (radians) where they were measured."""
        row, first, second = self._locate(index)
        scene = self._scene(row)
        overlap, angle = (float(column[row]) for column in (self.table.overlap, self.table.angle))
        known = {"overlap": overlap, "angle": angle} if np.isfinite(overlap) else {}
        return ViewPair(scene.view(first), scene.view(second), **known)


def _roots(datasets: Sequence[SceneDataset]) -> str:
    return ", ".join(str(dataset.root) for dataset in datasets)


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
        f"{index.source}: has pairs of {lacking}, which is not among {_roots(datasets)}; give the same folders in the "
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
