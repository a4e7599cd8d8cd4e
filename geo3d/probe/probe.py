"""Probe: what frozen features of a checkpoint tell, beside those of fresh weights and what both networks are handed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from geo3d.config import coerce
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_seed
from geo3d.models import Encoder, create_model
from geo3d.models.encoder import Kind
from geo3d.progress import Log
from geo3d.viz.bars import draw_bars
from geo3d.writing import prepare_place

#: Takes what a probe looks at, such as the points of a scene; gives features (N, C), on the CPU.
Representation = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What every probe says; probes add their own fields."""

    checkpoint: Path
    """Run folder of `geo3d pretrain`, one of its checkpoints, the authors' file, hf://owner/repository/file[@revision],
    or the name of a model whose weights come with geo3d (`geo3d models --shipped`)."""
    model: str | None = None
    """Network that the file holds; None: as it says itself, which the authors' files do not (`swin3d`)."""
    seed: int = 0
    """Seed of all draws."""
    fresh: int = 1
    """Networks with fresh weights to compare with (count), of seeds that follow on `seed`."""
    baseline: Literal["random", "none"] = "random"
    """Random: compare with `fresh` networks with fresh weights. None: leave them out, and compare with inputs alone."""
    device: str = "cpu"
    """Where the networks run, such as `cuda`."""
    out: Path | None = None
    """JSON file for the figures. None: they are only printed."""
    picture: Path | None = None
    """PNG of the figures. None: beside `out`, and none where that is not given either."""
    strict: bool = False
    """Stop at the first scene that cannot be read instead of naming it and leaving it out."""

    def __post_init__(self) -> None:
        coerce(self)
        check_at_least(self, 1, "fresh")
        check_seed(self)
        try:
            if torch.empty(0, device=self.device).is_meta:
                raise RuntimeError("it holds no values")
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

    def bars(self) -> dict[str, tuple[float, float]]:
        """Title -> value and its spread, as the picture shows them; of the fields that are floats unless overridden."""
        return {name: (value, 0.0) for name, value in vars(self).items() if isinstance(value, float)}


class Probe(ABC):
    """What is measured of a checkpoint by name; an instance is the network with the data it is measured on.

    A probe names its config as a class attribute and says what is done; what is compared is the same for all.

    Args:
        config: the probe's.
        log: takes lines for people.

    Raises:
        InputError: checkpoint or data cannot be used; says what to do.
    """

    #: One line of help.
    summary: ClassVar[str]
    #: Config class.
    settings: ClassVar[type[ProbeConfig]]
    #: Picture that is drawn where the config names neither a picture nor a file for the figures.
    unasked_picture: ClassVar[Path | None] = None

    #: The checkpoint's; set by subclasses.
    network: Encoder

    def __init__(self, config: Any, log: Log) -> None:
        self.config, self.log = config, log
        beside = self.unasked_picture if config.out is None else config.out.with_suffix(".png")
        picture = beside if config.picture is None else config.picture
        #: Where the picture is drawn; None where there is to be none.
        self.picture = None if picture is None else prepare_place(picture)

    def representations(self) -> dict[str, Representation]:
        """What is compared: features of the checkpoint, those of fresh weights, and what both networks are handed."""
        found = {"checkpoint": self.network_features(self.network)}
        fresh = self.config.fresh if self.config.baseline == "random" else 0
        for seed in range(self.config.seed, self.config.seed + fresh):
            network = self.network.fresh(torch.Generator().manual_seed(seed))
            found[f"fresh weights, seed {seed}"] = self.network_features(network)
        return found | {"input features": self.input_features()}

    @abstractmethod
    def network_features(self, network: Encoder) -> Representation:
        """Features of a network, the checkpoint's or one with fresh weights."""

    @abstractmethod
    def input_features(self) -> Representation:
        """What the networks are handed."""

    @abstractmethod
    def measure(self, representations: dict[str, Representation]) -> dict[str, Score]:
        """Figures of each representation, on the same data and with the same budget."""

    @abstractmethod
    def note(self, scores: dict[str, Score]) -> str:
        """The line under the table: what the figures are of."""

    def draw(self, scores: dict[str, Score], picture: Path) -> None:
        """Draw the figures: bars, unless a probe has something else to show.

        Raises:
            InputError: the file cannot be written.
        """
        bars = {name: score.bars() for name, score in scores.items()}
        titles = next(iter(bars.values()))
        panels = {title: {name: values[title] for name, values in bars.items()} for title in titles}
        draw_bars(panels, picture, self.summary)


def load_encoder(checkpoint: Path, name: str | None, kind: Kind | tuple[Kind, ...], wanted: str) -> Encoder:
    """The network of a checkpoint, which must be of a kind, or one of several.

    Args:
        checkpoint: as ``create_model`` takes it.
        name: of the model; what the file says when None.
        kind: what the network must read.
        wanted: what to give, for the message, such as ``an encoder of voxels, such as a swin3d``.

    Raises:
        InputError: no such checkpoint, a damaged one, one that does not say what it holds, or of other networks.
    """
    model = create_model(name, checkpoint=checkpoint)
    if model.kind not in ((kind,) if isinstance(kind, str) else kind):
        raise InputError(f"{checkpoint}: {model.family} reads {model.kind}; give {wanted}")
    return model


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


__all__ = ["Probe", "ProbeConfig", "Representation", "Score", "load_encoder", "table"]
