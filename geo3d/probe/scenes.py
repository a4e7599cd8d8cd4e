"""The scenes that probes learn from, and those that they measure on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from geo3d.datasets.quarantine import log_broken
from geo3d.datasets.rooms import SCENES_TO_SPARE, split_scenes
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_between
from geo3d.probe.probe import ProbeConfig
from geo3d.progress import Log
from geo3d.samples.source import SampleSource

Source = TypeVar("Source", bound=SampleSource)


@dataclass(frozen=True, kw_only=True)
class SceneProbeConfig(ProbeConfig):
    """What probes of scenes say; they add their own fields."""

    data: tuple[Path, ...] = ()
    """Folders of scenes. None: the synthetic rooms that `geo3d pretrain` makes where it is given none."""
    test_data: tuple[Path, ...] = ()
    """Folders of scenes to measure on. None: those of `data` that a run of the same seed holds out."""
    rooms: int = 24
    """Synthetic rooms where `data` is empty (count); as in the run, so that the same ones are held out."""
    held_out: float = 0.1
    """Share of the scenes to measure on, where `test_data` is empty, of ten scenes or more; as in the run."""
    seed: int = 0
    """Seed of the rooms, of the split and of all draws; as in the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for folder in (*self.data, *self.test_data):
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder; give the root of a dataset")
        check_at_least(self, 1, "rooms")
        check_between(self, 0, 1, "held_out")


def find_scenes(
    config: SceneProbeConfig, source: type[Source], make: Callable[[int, int, Log], Path], log: Log
) -> tuple[Source, Source]:
    """Scenes to learn from, and those to measure on.

    Args:
        config: says which.
        source: what is read of them.
        make: makes so many rooms of a seed where none are given, and returns their folder.
        log: takes lines for people.

    Raises:
        InputError: no such scenes, too few to hold any out, or some in both.
    """
    if not (config.data or config.test_data) and config.rooms < SCENES_TO_SPARE:
        raise InputError(f"rooms must be at least {SCENES_TO_SPARE} so that some can be held out, got {config.rooms}")
    scenes = _found(config.data or (make(config.rooms, config.seed, log),), source, config, log)
    if config.test_data:
        others = _found(config.test_data, source, config, log)
        both = {scenes.describe(i) for i in range(len(scenes))} & {others.describe(i) for i in range(len(others))}
        if both:
            raise InputError(f"{min(both)} is among the scenes to learn from and among those to measure on")
        return scenes, others
    rows, held = split_scenes(scenes.group_count, config.held_out, config.seed)
    if len(held) == 0:
        raise InputError(
            f"{scenes.group_count} scenes are too few to hold any out, which takes {SCENES_TO_SPARE}; "
            "give others to measure on as --test-data"
        )
    return scenes.of_groups(rows), scenes.of_groups(held)


def find_measured(
    config: SceneProbeConfig, source: type[Source], make: Callable[[int, int, Log], Path], log: Log
) -> Source:
    """The scenes to measure on alone, for probes that learn nothing; as :func:`find_scenes` takes it."""
    if config.test_data:
        return _found(config.test_data, source, config, log)
    return find_scenes(config, source, make, log)[1]


def _found(folders: tuple[Path, ...], source: type[Source], config: SceneProbeConfig, log: Log) -> Source:
    scenes = source.find(folders, config.strict)
    log_broken(scenes.datasets, log)
    return scenes


__all__ = ["SceneProbeConfig", "find_measured", "find_scenes"]
