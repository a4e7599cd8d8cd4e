"""Recipes: what can be pre-trained, with the presets of each method."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from geo3d.errors import InputError
from geo3d.methods.croco import CrossViewCompletionConfig
from geo3d.train.config import TrainConfig


@dataclass
class CroCoRun:
    """Pre-train CroCo: complete a masked view from another view of the same scene."""

    data: tuple[Path, ...] = ()
    """Folders of scenes with several views each, in any layout of docs/datasets.md. None: synthetic rooms are made."""

    pairs: Path | None = None
    """Index of view pairs, as `tools/prepare.py pairs` writes it. None: pairs are mined from `data` at the start."""

    out: Path | None = None
    """Run folder; training goes on where it left off if it holds a run. None: a new numbered folder under `runs`."""

    rooms: int = 24
    """Synthetic rooms to make when `data` is empty."""

    held_out: float = 0.1
    """Share of the scenes kept out of training for the report at the end; at least one of each four or more."""

    strict: bool = False
    """Stop at the first broken scene instead of leaving it out and naming it in the report."""

    method: CrossViewCompletionConfig = field(default_factory=CrossViewCompletionConfig)
    """The task and the network."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""


def _croco_tiny() -> CroCoRun:
    """Minutes on a CPU: small images, small network, a brisk schedule."""
    return CroCoRun(
        train=TrainConfig(
            steps=600, batch_size=64, lr=1e-3, warmup_steps=40, clip_norm=1.0, workers=1, log_every=10,
            save_every_minutes=5, keep_last=2,
        )
    )  # fmt: skip


def _croco_paper() -> CroCoRun:
    """CroCo v2 with the large encoder: 8 GPUs x 64 pairs, stopped half-way down the cosine."""
    return CroCoRun(
        method=CrossViewCompletionConfig("croco_v2_large_base", (224, 224), resized=256),
        train=TrainConfig(
            epochs=125,
            schedule_epochs=250,
            warmup_epochs=12,
            batch_size=64,
            base_lr=1.5e-4,
            weight_decay=0.05,
            workers=8,
        ),
    )


def _croco_paper_v1() -> CroCoRun:
    """CroCo v1: 4 GPUs x 64 pairs, 400 epochs of a cosine over 800."""
    return CroCoRun(
        method=CrossViewCompletionConfig("croco_v1_base", (224, 224), resized=256),
        train=TrainConfig(
            epochs=400, schedule_epochs=800, warmup_epochs=40, batch_size=64, base_lr=1.5e-4, weight_decay=0.05,
            workers=8, precision="fp16",
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What a method offers on the command line.

    Args:
        run: config class of a run.
        presets: name -> factory of a config; the first is the default.
    """

    run: type
    presets: dict[str, Callable[[], Any]]

    def preset(self, name: str) -> Any:
        """The config of a preset.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.presets:
            raise InputError(f"unknown preset {name!r}; known: {', '.join(self.presets)}")
        return self.presets[name]()


RECIPES = {
    "croco": Recipe(CroCoRun, {"tiny": _croco_tiny, "paper": _croco_paper, "paper-v1": _croco_paper_v1}),
}


def save_config(config: Any, path: Path) -> None:
    """Write a run's config as YAML that :func:`load_config` replays."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False))


def load_config(kind: type, path: Path) -> Any:
    """Read a config that :func:`save_config` wrote; fields that the file leaves out take their defaults.

    Raises:
        InputError: no such file, not YAML, an unknown field or a value of the wrong type: says which.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a config ({' '.join(str(error).split())})") from error
    return _from_plain(kind, values, str(path))


def to_plain(value: Any) -> Any:
    """A config as dicts, lists, numbers and text."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _from_plain(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected fields of {kind.__name__}, found {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise InputError(f"{where}: unknown field {', '.join(map(str, unknown))}; known: {', '.join(hints)}")
        return kind(**{key: _from_plain(hints[key], v, f"{where}: {key}") for key, v in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        if value is None and type(None) in args:
            return None
        return _from_plain(next(a for a in args if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in args:
            raise InputError(f"{where}: must be one of {', '.join(map(str, args))}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise InputError(
                f"{where}: expected a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, found {value!r}"
            )
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_from_plain(k, v, where) for k, v in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
