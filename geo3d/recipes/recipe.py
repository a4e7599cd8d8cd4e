"""Recipe: everything a method needs to be pre-trained by name, and its config as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from geo3d.errors import InputError
from geo3d.methods.method import Method, SampleSet
from geo3d.progress import Log
from geo3d.train.config import TrainConfig

Result = TypeVar("Result")

#: Items that are tried in place of one that cannot be read.
_TRIES = 100


@dataclass(kw_only=True)
class Run:
    """What every pre-training run says; methods add their own fields."""

    data: tuple[Path, ...] = ()
    """Folders of scenes, in any layout of docs/datasets.md. None: synthetic rooms are made under `data`."""

    rooms: int = 32
    """Synthetic rooms to make where `data` is empty (count)."""

    out: Path | None = None
    """Run folder; training goes on where it left off if it holds a run. None: a new numbered folder under `runs`."""

    held_out: float = 0.1
    """Share of the scenes kept out of training for the report (0 to 1); none are where there are fewer than ten."""

    strict: bool = False
    """Stop at the first broken scene or sample instead of leaving it out and naming it in the run folder."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""

    def resolved(self) -> Run:
        """The same run with absolute paths of what it reads, so that it is the same from wherever it is started."""
        paths = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        single = {name: value.resolve() for name, value in paths.items() if isinstance(value, Path)}
        return dataclasses.replace(self, **single, data=tuple(folder.resolve() for folder in self.data))

    def check(self) -> None:
        """Raise :class:`InputError` naming the first field whose value makes no sense."""
        for folder in self.data:
            if not folder.is_dir():
                raise InputError(f"data: {folder} is not a folder; give the root of a dataset")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.rooms < 1:
            raise InputError(f"rooms must be at least 1, got {self.rooms}")
        self.train.check()


class Task(Protocol):
    """A method with its data, ready to be trained."""

    method: Method
    samples: SampleSet

    def measure(self) -> dict[str, float]:
        """Figures of the network as it is now, on data and masks that are the same at every call."""
        ...

    def report(self, before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, Any], str]:
        """What was learnt: figures for ``report.json``, and lines for people."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What a method offers on the command line.

    Args:
        summary: one line of help.
        run: config class.
        presets: name -> factory of a config; the first is the default.
        prepare: makes what the run needs on disk, in the first process alone; told whether the run folder is fresh, or
            what a run that is continued has made already is to be kept.
        task: builds the method and its samples from what is on disk, in every process.
    """

    summary: str
    run: type[Run]
    presets: dict[str, Callable[[], Any]]
    prepare: Callable[[Any, Path, Log, bool], None]
    task: Callable[[Any, Path, Log], Task]

    def preset(self, name: str) -> Any:
        """The config of a preset.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.presets:
            raise InputError(f"unknown preset {name!r}; known: {', '.join(self.presets)}")
        return self.presets[name]()


def draw_readable(samples: SampleSet, item: int, rng: np.random.Generator) -> dict[str, Any]:
    """Item ``item``, or the next one that can be read.

    Raises:
        InputError: that of the last of many items that cannot.
    """
    for step in range(_TRIES):
        try:
            return samples.draw((item + step) % len(samples), rng)
        except InputError as error:
            broken = error
    raise broken


def log_broken(datasets: Iterable[Any], log: Log) -> None:
    """Name the broken scenes that datasets left out."""
    for dataset in datasets:
        if dataset.quarantine.entries:
            log(f"{len(dataset.quarantine)} broken scenes left out:\n{dataset.quarantine.report()}")


def first_readable(
    scenes: Iterable[int], read: Callable[[int], Result], most: int, strict: bool, log: Log
) -> list[Result]:
    """What ``read`` makes of the first scenes that the report is on; broken ones are named.

    Args:
        scenes: rows, in order.
        read: raises InputError where a scene is broken.
        most: how many to read.
        strict: whether a broken scene is an error.

    Raises:
        InputError: a scene is broken and ``strict``, or all are.
    """
    found: list[Result] = []
    for scene in scenes:
        try:
            found.append(read(int(scene)))
        except InputError as error:
            if strict:
                raise
            log(f"left out of the report: {error}")
        if len(found) == most:
            break
    if not found:
        raise InputError("none of the scenes that the report is to be on can be read; the reasons are named above")
    return found
