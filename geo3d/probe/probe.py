"""Probe: what frozen features of a checkpoint tell, beside those of fresh weights and what both networks are handed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geo3d.datasets.files import make_folder
from geo3d.errors import InputError
from geo3d.models import create_model
from geo3d.progress import Log

#: Features (N, C) of what a probe looks at, on the CPU.
Representation = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What every probe says; probes add their own fields."""

    checkpoint: Path
    """Run folder of `geo3d pretrain`, one of its checkpoints, or the authors' file."""
    model: str | None = None
    """Network that the file holds; None: as it says itself, which the authors' files do not (`swin3d`)."""
    seed: int = 0
    """Seed of all draws."""
    fresh: int = 1
    """Networks with fresh weights to compare with (count), of seeds that follow on `seed`."""
    device: str = "cpu"
    """Where the networks run, such as `cuda`."""
    out: Path | None = None
    """JSON file for the figures. None: they are only printed."""

    def __post_init__(self) -> None:
        if self.fresh < 1:
            raise InputError(f"fresh must be at least 1, got {self.fresh}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"device {self.device!r} cannot be used here ({reason})") from error


class Score(ABC):
    """Base of the figures of one representation: a dataclass of numbers."""

    def as_dict(self) -> dict[str, float]:
        """For a file."""
        return asdict(self)

    @abstractmethod
    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""


class ProbeTask(ABC):
    """Base of what a probe does: a network, its features, and figures of any features.

    Args:
        config: the probe's config.
        log: takes lines for people.

    Raises:
        InputError: checkpoint or data cannot be used; says what to do.
    """

    #: The checkpoint's, as ``create_model`` makes it; set by subclasses.
    network: nn.Module

    def __init__(self, config: Any, log: Log) -> None:
        self.config, self.log = config, log

    @abstractmethod
    def network_features(self, network: nn.Module) -> Representation:
        """The features that are compared, of the checkpoint's network or of one with fresh weights."""

    @abstractmethod
    def input_features(self) -> Representation:
        """What the networks are handed."""

    @abstractmethod
    def measure(self, representations: dict[str, Representation]) -> dict[str, Score]:
        """Figures of each representation, with the same data and budget."""

    @abstractmethod
    def note(self, scores: dict[str, Score]) -> str:
        """The line under the table: what the figures are over."""


@dataclass(frozen=True)
class Probe:
    """What a probe offers by name.

    Args:
        summary: one line of help.
        config: config class.
        task: makes what is done of a config and of what takes lines for people.
    """

    summary: str
    config: type[ProbeConfig]
    task: Callable[[Any, Log], ProbeTask]

    def run(self, config: ProbeConfig, log: Log = print) -> dict[str, Score]:
        """Compare the checkpoint with fresh weights and inputs; log a table, and write the figures to ``config.out``.

        Returns:
            The name of each representation, and its figures.

        Raises:
            InputError: checkpoint or data cannot be used; says what to do.
        """
        if config.out is not None:
            make_folder(config.out.parent)
        task = self.task(config, log)
        scores = task.measure(_representations(task, config))
        if config.out is not None:
            config.out.write_text(json.dumps({name: s.as_dict() for name, s in scores.items()}, indent=2) + "\n")
        log(f"{table({name: score.cells() for name, score in scores.items()})}\n{task.note(scores)}")
        return scores


def fresh_network(network: nn.Module, seed: int) -> nn.Module:
    """The same network with the weights of a seed."""
    card = network.card()
    return create_model(card["family"], generator=torch.Generator().manual_seed(seed), **card["config"])


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows of cells under their titles, which are those of the first row."""
    titles = list(next(iter(rows.values())))
    widths = {title: max(len(title), *(len(cells[title]) for cells in rows.values())) for title in titles}
    first = max(map(len, rows))
    lines = [" " * first, *(f"{name:<{first}}" for name in rows)]
    for title in titles:
        column = [title, *(cells[title] for cells in rows.values())]
        lines = [f"{line}  {cell:>{widths[title]}}" for line, cell in zip(lines, column, strict=True)]
    return "\n".join(lines)


def _representations(task: ProbeTask, config: ProbeConfig) -> dict[str, Representation]:
    """What is compared, by the names that the table gives it."""
    found = {"checkpoint": task.network_features(task.network)}
    for seed in range(config.seed, config.seed + config.fresh):
        found[f"fresh weights, seed {seed}"] = task.network_features(fresh_network(task.network, seed))
    found["input features"] = task.input_features()
    return found


__all__ = ["Probe", "ProbeConfig", "ProbeTask", "Representation", "Score", "fresh_network", "table"]
