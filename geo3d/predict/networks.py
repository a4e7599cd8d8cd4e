"""The network of a checkpoint for a task, whichever family it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geo3d.checkpoints.hub import resolve
from geo3d.checkpoints.loading import read_weight_file
from geo3d.errors import InputError
from geo3d.inference.loaded import find_device
from geo3d.models import Encoder, first_model


def open_network(checkpoint: Path, names: Sequence[str], who: str, device: str = "auto", **told: Any) -> Encoder:
    """The network of a checkpoint, in evaluation mode on a device.

    Args:
        checkpoint: as :func:`geo3d.create_model` takes it.
        names: models that are tried in turn where the file does not say what it holds.
        who: asks for it, for messages.
        device: where it runs, by its name.
        told: options of the file.

    Raises:
        InputError: it cannot be read as any of these, or no such device.
    """
    place, path = find_device(device, who), resolve(checkpoint)
    return first_model(names, read_weight_file(path), path, **told).to(place)


def load_network(
    checkpoint: Path, task: str, authors: Sequence[str], does: str, device: str = "auto", **told: Any
) -> Encoder:
    """A network that has a head for a task, as :func:`open_network` opens it.

    Args:
        checkpoint, device, told: as there.
        task: as networks name theirs.
        authors: names of the models whose authors' files are tried where the file does not say what it holds.
        does: what such a network does, for the message, such as ``names the class of points``.

    Raises:
        InputError: it cannot be read, or holds a network without such a head; no such device.
    """
    model = open_network(checkpoint, authors, f"predict {task}", device, **told)
    without_head = getattr(model.config, "decoder", "") == "none"
    if model.task != task or without_head:
        what = f"{model.name or model.family}{', an encoder alone' if without_head or not model.task else ''}"
        raise InputError(
            f"{checkpoint}: holds a {what}, and nothing that {does}; give a run of `geo3d finetune {task}`"
        )
    return model


__all__ = ["load_network", "open_network"]
