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


def load_network(
    checkpoint: Path, task: str, names: Sequence[str], does: str, device: str = "auto", **told: Any
) -> Encoder:
    """The network of a checkpoint, made for a task, in evaluation mode on a device.

    Args:
        checkpoint: as :func:`geo3d.create_model` takes it.
        task: as networks, or their configs, name theirs.
        names: models that are tried in turn where the file does not say what it holds.
        does: what such a network does, for the message, such as ``names the class of points``.
        device: where it runs, by its name.
        told: options of the file.

    Raises:
        InputError: it cannot be read as any of these, or holds a network that is not made for the task; no such device.
    """
    place, path = find_device(device, f"predict {task}"), resolve(checkpoint)
    model = first_model(names, read_weight_file(path), path, **told)
    bare = getattr(model.config, "decoder", "") == "none"
    own = "" if bare else getattr(model.config, "task", model.task)
    if own != task:
        what = f"{model.name or model.family}{f' ({own})' if own else ', without a head'}"
        raise InputError(
            f"{checkpoint}: holds a {what}, and nothing that {does}; give a run of `geo3d finetune {task}`"
        )
    return model.to(place)


__all__ = ["load_network"]
