"""The weights that come with geo3d: one file a model, in half precision, which tells what it was trained on and how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from geo3d.checkpoints.loading import MODEL_CARD_KEY
from geo3d.errors import InputError, did_you_mean

#: What stands for a model's own shipped weights where a checkpoint is asked for.
SHIPPED = "shipped"
#: What the description in a shipped file tells beside the network.
ABOUT = ("data", "command", "time", "date", "licence", "figures")
_FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class ShippedWeights:
    """Weights that come with geo3d.

    Args:
        name: of the model that they are of.
        path: the file.
        size: of the file, bytes.
        about: text by the names of :data:`ABOUT`: data that they were trained on, command, time that it took, date,
            licence, and what probes say of them beside random weights.
    """

    name: str
    path: Path
    size: int
    about: dict[str, str]

    def __str__(self) -> str:
        return f"{self.path.name}, {self.size / 1e6:.1f} MB, {self.about['licence']}, trained on {self.about['data']}"


def shipped_names() -> list[str]:
    """Names of the models whose weights come with geo3d, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def shipped_weights(name: str) -> Path | None:
    """The file of a model's weights that comes with geo3d; None where none does."""
    return _FOLDER / f"{name}.safetensors" if name in shipped_names() else None


def require_shipped(name: str) -> Path:
    """The file of a model's weights that comes with geo3d.

    Raises:
        InputError: none does; names those that do.
    """
    path = shipped_weights(name)
    if path is None:
        known = shipped_names()
        raise InputError(
            f"no weights of {name} come with geo3d, only those of {', '.join(known) or 'no model'}"
            f"{did_you_mean(name, known)}; give a file, or train them: geo3d pretrain --help"
        )
    return path


def shipped_info(name: str) -> ShippedWeights:
    """What there is to know of a model's weights that come with geo3d.

    Raises:
        InputError: none do.
    """
    path = require_shipped(name)
    with safe_open(path, framework="pt") as file:
        card: dict[str, Any] = json.loads(file.metadata()[MODEL_CARD_KEY])
    return ShippedWeights(name, path, path.stat().st_size, card["about"])


__all__ = ["ABOUT", "SHIPPED", "ShippedWeights", "require_shipped", "shipped_info", "shipped_names", "shipped_weights"]
