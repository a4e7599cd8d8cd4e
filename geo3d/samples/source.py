"""SampleSource: the items of a kind that some datasets hold, which is what methods train on."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from geo3d.datasets.quarantine import BrokenScene, Quarantine
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

Opened = TypeVar("Opened")


@dataclass
class Items:
    """The items of a source: columns of numbers, a row an item.

    Args:
        scene: (I,) row of the source's ``scenes``.
        group: (I,) items of one group belong together: they are held out together. Most often a group is a scene.
    """

    scene: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.scene)

    def kept(self, rows: np.ndarray) -> Self:
        """Some rows, by a mask (I,) or by number."""
        columns = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        if self.group is self.scene:  # one array, which stays one
            columns["group"] = columns["scene"]
        return replace(self, **columns)


@dataclass
class NumberedItems(Items):
    """Items that a number tells apart from others of their scene.

    Args:
        number: (I,) such as that of a view or an object, from 0; 0 where a scene is one item.
    """

    number: np.ndarray


class SampleSource(Generic[Opened]):
    """The items of one kind that the scenes of some datasets hold, as one long list.

    Small and picklable: it holds numbers and names, and each process opens scenes by itself when it needs them and
    keeps those used last.

    A kind of items is a subclass. It sets :attr:`kind`, :attr:`holds` and the parts that it reads; it overrides
    :meth:`groups_in` where a scene holds more than one item, and :meth:`load` where more than the scene is to be kept;
    and it adds a method that hands out item ``index``, from ``self.opened(index)`` and ``self.number(index)``.
    Objects of labelled scenes are such a kind of a dozen lines, see docs/datasets.md.

    Args:
        datasets: where the scenes are.
        scenes: dataset number and name of each scene.
        items: what there is in them; each scene is an item when not given.

    Raises:
        InputError: no item.
    """

    #: Name of the kind of items, and what a scene must hold to have any, for messages.
    kind: ClassVar[str]
    holds: ClassVar[str]
    #: Parts that a scene must hold; and those of which it must hold one, where there are any.
    needs: ClassVar[tuple[str, ...]] = ()
    one_of: ClassVar[tuple[str, ...]] = ()
    #: Scenes that stay open, in each process.
    open_scenes: ClassVar[int] = 64

    items: Items

    def __init__(
        self, datasets: Sequence[SceneDataset], scenes: Sequence[tuple[int, str]], items: Items | None = None
    ) -> None:
        self.datasets, self.scenes = tuple(datasets), tuple(scenes)
        rows = np.arange(len(self.scenes))
        self.items = items if items is not None else NumberedItems(rows, rows, np.zeros_like(rows))
        if not len(self.items):
            broken = [entry for dataset in self.datasets for entry in dataset.quarantine.entries]
            more = f"; {len(broken)} cannot be read, the first: {broken[0]}" if broken else ""
            raise InputError(f"{folders(self.datasets)}: no scene holds {self.holds}{more}; see docs/datasets.md")
        self._open: OrderedDict[int, Opened] = OrderedDict()

    @classmethod
    def find(cls, roots: Sequence[str | Path], strict: bool = False, **options: Any) -> Self:
        """The items of all scenes under some folders.

        Args:
            roots: the folders, or one.
            strict: whether the first broken scene is an error; else they go to the quarantine of their dataset.
            options: as :meth:`of_datasets` of the kind takes them.

        Raises:
            InputError: a folder is no dataset, or no scene holds what is read.
            BrokenScene: the first broken scene, if ``strict``.
        """
        roots = [roots] if isinstance(roots, str | Path) else roots
        return cls.of_datasets([cls.open_root(root, Quarantine(strict=strict)) for root in roots], **options)

    @classmethod
    def of_datasets(cls, datasets: Sequence[SceneDataset]) -> Self:
        """The items of all scenes of some datasets; broken ones go to the quarantine of their dataset.

        Raises:
            InputError: no scene holds what is read.
        """
        scenes: list[tuple[int, str]] = []
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        first_group = 0
        for number, dataset in enumerate(datasets):
            for scene in dataset.readable(*cls.needs):
                try:
                    if not cls.reads(scene):
                        continue
                    groups = cls.groups_in(scene)
                except BrokenScene as broken:
                    dataset.quarantine.add(broken)
                    continue
                if len(groups):
                    columns.append((np.full_like(groups, len(scenes)), first_group + groups, np.arange(len(groups))))
                    scenes.append((number, scene.name))
                    first_group += int(groups.max()) + 1
        table = [np.concatenate(column) for column in zip(*columns)] or [np.zeros(0, dtype=np.int64)] * 3
        return cls(datasets, scenes, NumberedItems(*table))

    @classmethod
    def open_root(cls, root: str | Path, quarantine: Quarantine) -> SceneDataset:
        """A folder as a dataset."""
        return open_dataset(root, quarantine=quarantine)

    @classmethod
    def reads(cls, scene: Scene) -> bool:
        """Whether a scene holds the parts that items are made of."""
        return scene.parts.issuperset(cls.needs) and (not cls.one_of or not scene.parts.isdisjoint(cls.one_of))

    @classmethod
    def groups_in(cls, scene: Scene) -> np.ndarray:
        """(n,) int64 group of each item of a scene, counted from 0 without gaps: how many there are, and what is one.

        A scene is a single item unless a kind says otherwise.

        Raises:
            BrokenScene: the scene cannot be read.
        """
        return np.zeros(1, dtype=np.int64)

    def load(self, scene: Scene) -> Opened:
        """What of a scene is kept for its items: the scene itself, unless a kind keeps what it read.

        Raises:
            InputError: the scene is broken, or not usable.
        """
        return scene

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def group_count(self) -> int:
        """Number of groups; those of a whole source are numbered 0 to ``group_count - 1``."""
        return len(np.unique(self.items.group))

    def group(self, index: int) -> int:
        """Group of an item."""
        return int(self.items.group[self.row(index)])

    def of_groups(self, numbers: Sequence[int] | np.ndarray) -> Self:
        """The items of some groups alone, whose numbers stay the same.

        Raises:
            ValueError: there is no group of a number.
        """
        if len(unknown := np.setdiff1d(numbers, self.items.group)):
            raise ValueError(f"{self.kind}: there is no group {unknown.tolist()[:8]}")
        part = copy.copy(self)  # which leaves behind what is open, as pickling does
        part.items = self.items.kept(np.isin(self.items.group, numbers))
        return part

    def row(self, index: int) -> int:
        """Row of :attr:`items` that is item ``index``.

        Raises:
            IndexError: there is no such item.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.kind}: item {index} of {len(self)}")
        return index

    def number(self, index: int) -> int:
        """Number of an item in its scene, of :class:`NumberedItems`."""
        return int(self.items.number[self.row(index)])

    def opened(self, index: int) -> Opened:
        """What :meth:`load` makes of the scene of an item.

        Raises:
            InputError: the scene is broken, or not usable.
        """
        key = int(self.items.scene[self.row(index)])
        if key not in self._open:
            dataset, name = self.scenes[key]
            self._open[key] = self.load(self.datasets[dataset].open(name))
            if len(self._open) > self.open_scenes:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def describe(self, index: int) -> str:
        """Folder and scene of an item, and its name in the scene; for a scene that cannot be opened its number."""
        dataset, name = self.scenes[self.items.scene[self.row(index)]]
        where = f"{self.datasets[dataset].root}: scene {name}"
        try:
            detail = self.name_in_scene(index)
        except InputError:
            detail = f"item {index}"
        return f"{where}: {detail}" if detail else where

    def name_in_scene(self, index: int) -> str:
        """What tells an item from others of its scene; empty where a scene is one item.

        Raises:
            InputError: the scene is broken.
        """
        return ""


def folders(datasets: Sequence[SceneDataset]) -> str:
    """Where some datasets are, for messages."""
    return ", ".join(str(dataset.root) for dataset in datasets)


__all__ = ["Items", "NumberedItems", "SampleSource", "folders"]
