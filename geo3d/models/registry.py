"""The models by name, and the one door through which they are made."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from geo3d.errors import InputError


@dataclass(frozen=True)
class ModelEntry:
    """How a named model is made.

    Args:
        build: called with the user's options, returns the model with fresh weights.
        load: called with the checkpoint's path and the user's options, returns the model with the file's weights.
        family: published family, such as ``croco``.
    """

    build: Callable[..., nn.Module]
    load: Callable[..., nn.Module]
    family: str


_REGISTRY: dict[str, ModelEntry] = {}


def register_model(name: str, entry: ModelEntry) -> None:
    """Make ``name`` known to :func:`create_model`; a name is registered once."""
    if name in _REGISTRY:
        raise ValueError(f"model {name!r} is registered twice")
    _REGISTRY[name] = entry


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` takes, sorted; ``pattern`` is a shell wildcard."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def model_entry(name: str) -> ModelEntry:
    """The registered entry of ``name``.

    Raises:
        InputError: the name is not registered.
    """
    if name not in _REGISTRY:
        raise InputError(f"unknown model {name!r}; known: {', '.join(list_models())}")
    return _REGISTRY[name]


def create_model(name: str, checkpoint: str | Path | None = None, **options: Any) -> nn.Module:
    """Make a model, with fresh weights or those of a file.

    Args:
        name: one of :func:`list_models`.
        checkpoint: the authors' file (``.pth``) in its own layout, a ``.safetensors`` file, or a checkpoint or run
            folder of geo3d's trainer, whose newest weights are taken (name the ``ema.safetensors`` in it for their
            moving average). Nothing is ever unpickled unsafely.
        options: fields of the family's config, such as ``image_size=(256, 320)``.

    Returns:
        The model in evaluation mode, on the CPU, in float32.

    Raises:
        InputError: unknown name or option; a file that is damaged, of another model, or whose tensors are missing,
            unexpected or mis-shaped: the message lists them.

    Example:
        >>> model = create_model("croco_v2_base_small", checkpoint="CroCo_V2_ViTBase_SmallDecoder.pth")
        >>> tokens = model.encode(images)   # (B, N, 768)
    """
    entry = model_entry(name)
    model = entry.build(**options) if checkpoint is None else entry.load(Path(checkpoint), **options)
    return model.eval()
