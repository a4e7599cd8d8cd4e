"""Reading weight files safely, and putting them into a model without a gap."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geo3d.errors import InputError

#: Classes that authors' files hold beside tensors and that do nothing when made. Everything else is refused.
_SAFE_CLASSES = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    # numpy's scalars, under the names that numpy 1 and 2 pickle them by.
    *(
        (type(np.float64(0)).__reduce__(np.float64(0))[0], f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ),
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
]
#: Key of a safetensors file's metadata under which geo3d's trainer describes the model that the weights are of.
MODEL_CARD_KEY = "geo3d.model"
#: How many names an error lists before it only counts.
_LISTED = 8


@dataclass
class WeightFile:
    """What a file holds.

    Args:
        content: the unpickled container of a ``.pth``, or the tensors of a ``.safetensors`` file.
        card: the trainer's description of the model, where there is one.
    """

    content: Any
    card: dict[str, Any] = field(default_factory=dict)


def read_weight_file(path: str | Path) -> WeightFile:
    """Read a weight file without running anything that it brings along.

    Args:
        path: a file of ``torch.save`` or safetensors; a checkpoint folder of geo3d's trainer, or a run folder, of which
            the newest checkpoint is taken.

    Raises:
        InputError: no such file, a damaged one, or one that asks for classes which are not plain data.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_SAFE_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0]
        wanted = next((line.strip() for line in reason.splitlines() if "GLOBAL" in line), "it is not a torch.save file")
        raise InputError(
            f"{path}: refused, since it is not plain tensors and numbers ({wanted}); "
            "re-save its state dict with the code that wrote it"
        ) from error
    except Exception as error:  # damaged pickles raise whatever their bytes spell
        reason = f"{type(error).__name__} {error}".partition("\n")[0].strip()
        raise InputError(f"{path}: damaged or not a checkpoint ({reason}); fetch it again") from error
    return WeightFile(content)


def _read_folder(path: Path) -> WeightFile:
    """A checkpoint folder, or the newest readable checkpoint of a run folder."""
    steps = sorted((path / "checkpoints").glob("step_*[0-9]"), reverse=True) or [path]
    for number, step in enumerate(steps):
        file = step / "model.safetensors"
        try:
            if not file.is_file():
                raise InputError(f"{file}: no such checkpoint file")
            return _read_safetensors(file)
        except InputError as error:
            if number + 1 == len(steps):
                raise
            warnings.warn(f"{error}; reading {steps[number + 1].name} instead", stacklevel=4)
    raise AssertionError("unreachable: the last folder is read or raises")


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            card = json.loads(metadata.get(MODEL_CARD_KEY, "{}"))
            return WeightFile({name: file.get_tensor(name) for name in file.keys()}, card)  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from error


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights and its description as one safetensors file that ``create_model`` loads.

    Args:
        model: one that ``create_model`` made: it has a ``card()`` that says how to build it again.
        path: the ``.safetensors`` file to write.
    """
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(untied(state), path, metadata={MODEL_CARD_KEY: json.dumps(model.card())})


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with a copy of those that share another's memory."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return alone


def as_state_dict(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Check that ``content`` is a state dict, and take off a data-parallel ``module.`` in front of its names.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path}: expected names with tensors, found {type(content).__name__}")
    state = dict(content)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def own_state(file: WeightFile, family: str, path: str | Path) -> dict[str, Tensor]:
    """The network's tensors of a file that geo3d wrote, under the network's own names.

    Raises:
        InputError: the file has no description of a model, or is of another family.
    """
    if file.card.get("family") != family:
        if "family" not in file.card:
            raise InputError(f"{path}: does not say which model it holds; a {family} file is one that geo3d wrote")
        raise InputError(f"{path}: holds a model of the family {file.card['family']!r}, not {family}")
    prefix = file.card.get("prefix", "")
    state = as_state_dict(file.content, path)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Make the tensors of ``state`` those of ``model``, in the model's dtypes; the model may live on the meta device.

    Raises:
        InputError: names that are missing, unexpected or of another shape; all three are listed, nothing is loaded.
    """
    own = model.state_dict()
    shared = own.keys() & state.keys()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in shared
            if state[name].shape != own[name].shape
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_shorten(names)}" for what, names in problems.items() if names)
        raise InputError(f"{path}: does not fit {type(model).__name__}: {listed}")
    converted = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(untied(converted), assign=True)


def _shorten(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
