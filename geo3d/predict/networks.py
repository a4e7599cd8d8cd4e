"""The network of a checkpoint for a task, whichever family it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geo3d.checkpoints.hub import resolve
from geo3d.checkpoints.loading import read_weight_file
from geo3d.errors import InputError
from geo3d.inference.loaded import find_device
from geo3d.models import Encoder, create_model


def load_network(
    checkpoint: Path, task: str, authors: Sequence[str], does: str, device: str = "auto", **told: Any
) -> Encoder:
    """A network that has a head for a task, with the weights of a checkpoint, on a device.

    Args:
        checkpoint: as :func:`geo3d.create_model` takes it.
        task: as networks name theirs.
        authors: names of the models whose authors' files are tried where the file does not say what it holds.
        does: what such a network does, for the message, such as ``names the class of points``.
        device: where it runs, by its name.
        told: options of the authors' files.

    Raises:
        InputError: it cannot be read, or holds a network without such a head; no such device.
    """
    place = find_device(device, f"predict {task}")
    if read_weight_file(resolve(checkpoint)).card:
        model = create_model(checkpoint=checkpoint, **told)
    else:
        reasons = []
        for name in authors:
            try:
                model = create_model(name, checkpoint=checkpoint, **told)
                break
            except InputError as error:
                reasons.append(str(error))
        else:
            raise InputError("; ".join(dict.fromkeys(reasons)))
    without_head = getattr(model.config, "decoder", "") == "none"
    if model.task != task or without_head:
        what = f"{model.name or model.family}{', an encoder alone' if without_head or not model.task else ''}"
        raise InputError(
            f"{checkpoint}: holds a {what}, and nothing that {does}; give a run of `geo3d finetune {task}`"
        )
    return model.to(place)


__all__ = ["load_network"]
