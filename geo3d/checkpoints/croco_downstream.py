"""CroCo's files of stereo and flow, and state dicts of its downstream networks."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.call_text import parse_call
from geo3d.checkpoints.croco import config_from_published, read_croco
from geo3d.checkpoints.dpt import without_doubles
from geo3d.checkpoints.loading import Stored, as_state_dict
from geo3d.errors import InputError

#: Published names of criteria -> ours.
CRITERIA = {
    "L1Loss": "l1",
    "LaplacianLoss": "laplacian",
    "LaplacianLossBounded": "bounded",
    "LaplacianLossBounded2": "bounded2",
}
#: Task -> what its published networks are trained by and how their tiles are weighed, where a file does not say; the
#: criterion of depth is not published: without a bound of b, as "laplacian" has it, training diverges at times.
USUAL: dict[str, dict[str, Any]] = {
    "stereo": {"criterion": {"name": "bounded2"}, "tile_confidence": {"beta": 15.0, "scale": 3.0}},
    "flow": {"criterion": {"name": "bounded"}, "tile_confidence": {"beta": 10.0, "scale": 5.0}},
    "depth": {"criterion": {"name": "bounded2"}, "tile_confidence": {"beta": 15.0, "scale": 3.0}},
}
_ARGUMENTS = ("max_gtnorm", "a", "b")
_HEAD = "head."
_TASK_CHANNELS = {"stereo": 1, "flow": 2, "depth": 1}
_NUMBER = r"(\d+(?:\.\d+)?)"


def read_croco_downstream(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors holds: a stereo or flow network, or a pre-training one, of which it becomes a part.

    Stereo and flow files are ``{"model", "args"}``; the args say ``task``, ``criterion``, ``tile_conf_mode``, ``crop``
    and ``croco_args``, the arguments of the network's constructor; none of it is evaluated. A state dict alone will do
    where a name and options describe the network.

    Raises:
        InputError: neither, or arguments that are not known.
    """
    state = as_state_dict(content, path)
    args = content.get("args") if isinstance(content, Mapping) else None
    args = vars(args) if isinstance(args, Namespace) else {}
    if "croco_args" not in args and not any(name.startswith(_HEAD) for name in state):
        return read_croco(content, path, options)
    state = without_doubles(state, f"{_HEAD}dpt.")
    if "croco_args" not in args:
        return Stored(state, "croco_downstream", None)
    arguments = args["croco_args"]
    config = config_from_published(vars(arguments) if isinstance(arguments, Namespace) else arguments, path)
    config |= {"task": args.get("task"), "views": 2 if "decoder_embed.weight" in state else 1}
    channels = _TASK_CHANNELS.get(str(config["task"]))
    if channels is None:
        raise InputError(f"{path}: args.task {config['task']!r} is not known; known: {', '.join(_TASK_CHANNELS)}")
    head = _head_config(state, config.get("patch_size", 16), path)
    found = head.pop("channels")
    if found - channels not in (0, 1):
        raise InputError(f"{path}: its head has {found} channels; {config['task']} has {channels}, or one more")
    config |= USUAL[config["task"]] | head | {"confidence": found > channels}
    if args.get("criterion") is not None:
        config["criterion"] = criterion_from_published(args["criterion"], path)
    if args.get("tile_conf_mode") is not None:
        config["tile_confidence"] = tiles_from_published(args["tile_conf_mode"], path)
    crop = args.get("crop") or config.get("image_size")
    return Stored(state, "croco_downstream", config | ({} if crop is None else {"crop": crop}))


def _head_config(state: Mapping[str, Tensor], patch_size: Any, path: Path) -> dict[str, Any]:
    """What the tensors of a head say of its sizes, and ``channels``."""
    try:
        if f"{_HEAD}proj.weight" in state:
            return {"head": "linear", "channels": len(state[f"{_HEAD}proj.weight"]) // patch_size**2}
        last = state[f"{_HEAD}dpt.head.4.weight"].shape
        levels = tuple(len(state[f"{_HEAD}dpt.act_postprocess.{n}.0.weight"]) for n in range(4))
        width = len(state[f"{_HEAD}dpt.scratch.layer1_rn.weight"])
        return {"head": "dpt", "channels": last[0], "head_last": last[1], "head_levels": levels, "head_width": width}
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not a whole downstream network of CroCo's: its head lacks {error}") from error


def criterion_from_published(text: str, path: str | Path) -> dict[str, Any]:
    """A criterion as text, such as ``LaplacianLossBounded2(a=3.0)`` -> fields of ``CriterionConfig``.

    Raises:
        InputError: no such criterion or argument.
    """
    name, arguments = parse_call(text, path, "args.criterion")
    if name not in CRITERIA or any(argument not in _ARGUMENTS for argument in arguments):
        raise InputError(
            f"{path}: args.criterion {text!r} is not known; known: {', '.join(CRITERIA)}, with {', '.join(_ARGUMENTS)}"
        )
    return {"name": CRITERIA[name]} | arguments


def tiles_from_published(mode: str, path: str | Path) -> dict[str, Any]:
    """How tiles are weighed: ``conf_expsigmoid_<beta>_<scale>`` or ``conf_expbeta<beta>`` -> ``TileConfidence``.

    Raises:
        InputError: anything else.
    """
    if found := re.fullmatch(rf"conf_expsigmoid_{_NUMBER}_{_NUMBER}", str(mode)):
        return {"beta": float(found.group(1)), "scale": float(found.group(2))}
    if found := re.fullmatch(rf"conf_expbeta{_NUMBER}", str(mode)):
        return {"beta": float(found.group(1)), "scale": None}
    raise InputError(
        f"{path}: args.tile_conf_mode {mode!r} should be conf_expsigmoid_ and two numbers, or conf_expbeta and one"
    )


__all__ = ["CRITERIA", "USUAL", "criterion_from_published", "read_croco_downstream", "tiles_from_published"]
