"""Reading weight files safely, putting them into a model without a gap, and writing them."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from geo3d.checkpoints.file_kind import LOOKED_AT, kind_of
from geo3d.config import typed_value
from geo3d.errors import InputError
from geo3d.writing import replacing, write_tensors, write_torch, writing

#: Key of a file's metadata under which geo3d describes the model that the weights are of.
MODEL_CARD_KEY = "geo3d.model"
#: Name of the constructor's arguments in a folder of the Hugging Face Hub, and the key under which they are handed on.
HUB_CONFIG = "config.json"
_LARGEST_CONFIG = 1_000_000  # bytes
#: Endings that are written as ``torch.save`` writes; every other file is safetensors.
TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
#: Names under which tools put a state dict into a container, the innermost last.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "base_model")
#: What tools put in front of names: data parallel, torch.compile, Lightning; in any order, on all names or on some.
_PREFIXES = ("module.", "_orig_mod.", "model.")
#: What tools put in the middle of names, where they wrap a part of a network.
_INFIXES = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: Entries of geo3d's description of a model -> their types.
_CARD_TYPES = {
    "family": str,
    "name": str,
    "prefix": str,
    "licence": str,
    "config": dict,
    "classes": tuple[str, ...],
    "about": dict,
}
#: How files of torch.save begin: a zip archive, and the pickles of torch before 1.6.
_PICKLED = (b"PK\x03\x04", b"\x80")
#: What torch says of files -> what they are.
_DAMAGES = {
    "TorchScript": "is a TorchScript archive, a program; save the state dict of its module instead",
    "not in a subdirectory": "is a zip archive of something else than weights; unpack it",
    "reading zip archive": "is damaged: its zip archive is cut or changed; fetch it again",
    "file not found": "is a zip archive of something else than weights, or damaged; unpack it or fetch it again",
}
#: How many names an error lists before it only counts.
_LISTED = 8


def _numpy_classes() -> Iterator[Any]:
    """What numpy's plain arrays and scalars are pickled by, under the names of numpy 1 and 2."""
    reconstruct = np.zeros(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    for core in ("core", "_core"):
        yield reconstruct, f"numpy.{core}.multiarray._reconstruct"
        yield scalar, f"numpy.{core}.multiarray.scalar"
    yield np.dtype
    yield np.ndarray
    codes = np.typecodes["All"].replace("O", "").replace("V", "")
    yield from {type(np.dtype(code)) for code in codes}


#: Classes that authors' files hold beside tensors and that do nothing when made. Everything else is refused.
_SAFE_CLASSES = [argparse.Namespace, pathlib.PosixPath, *_numpy_classes()]


@dataclass
class WeightFile:
    """What a file holds.

    Args:
        content: the unpickled container of a ``.pth``, or the tensors of a ``.safetensors`` file.
        card: geo3d's description of the model, where there is one.
    """

    content: Any
    card: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stored:
    """Weights of a file and the network that they are of.

    Args:
        state: the network's own names -> tensors.
        family: whose network it is, the name of a declared family.
        config: fields of the family's config; None where the file states none, and the name that was given must.
        stated: whether the file states its config; else it was read off names and shapes, which do not tell everything.
        name: under which geo3d made the model that was written, where it is known.
    """

    state: dict[str, Tensor]
    family: str
    config: dict[str, Any] | None
    stated: bool = True
    name: str | None = None


def read_weight_file(path: str | Path) -> WeightFile:
    """Read a weight file without running anything that it brings along.

    Args:
        path: a file of ``torch.save`` or safetensors, whatever its ending; a checkpoint folder of geo3d's trainer, or a
            run folder, of which the newest checkpoint is taken (name ``checkpoints/best`` in it for the best). What
            else a checkpoint may name is for :func:`geo3d.checkpoints.hub.resolve`.

    Raises:
        InputError: no such file, a damaged one, or one that asks for classes which are not plain data.
    """
    path = Path(path)
    try:
        if path.name == "best" and path.is_file():  # of a run: names the folder of its best checkpoint
            path = path.with_name(path.read_text(errors="replace").strip())
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            found = "is no file" if path.exists() else "no such checkpoint file"
            raise InputError(f"{path}: {found}; give a file of weights or the folder of a run")
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if (kind := kind_of(head)) is not None:
        raise InputError(f"{path}: holds no weights: it is {kind}")
    pickled = head.startswith(_PICKLED)
    if (path.suffix == ".safetensors" and not pickled) or _is_safetensors(head, path):
        return _read_safetensors(path)
    if not pickled:
        raise InputError(f"{path}: no file of weights that is known: neither of torch.save nor safetensors")
    content = _unpickled(path)
    card = content.get(MODEL_CARD_KEY) if isinstance(content, Mapping) else None
    if card is None:
        return WeightFile(content)
    if not isinstance(card, str):
        raise InputError(f"{path}: its description of the model should be text, found {type(card).__name__}")
    return WeightFile(content.get("state_dict"), _parsed_card(card, path))


def _unpickled(path: Path) -> Any:
    """What a file of torch.save holds."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_CLASSES), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # of torch, which says what the error says
            # By its name torch would take some for safetensors.
            named = file if path.suffix == ".safetensors" else path
            return torch.load(named, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, since it is not plain tensors and numbers ({_refusal(error)}); "
            "re-save its state dict with the code that wrote it"
        ) from error
    except Exception as error:  # damaged pickles raise whatever their bytes spell
        text = " ".join(str(error).split())
        known = next((reason for sign, reason in _DAMAGES.items() if sign in text), None)
        if known is None:
            known = f"is damaged or not a checkpoint ({type(error).__name__} {text[:200]}); fetch it again"
        raise InputError(f"{path}: {known}") from error


def _refusal(error: pickle.UnpicklingError) -> str:
    """Why torch would not unpickle a file, in few words."""
    text = " ".join(str(error).split())
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {wanted[1]}"
    if "numpy" in text and "dtype" in text:
        return "an array of NumPy beside the weights holds objects or records instead of numbers"
    reason = re.search(r"WeightsUnpickler error: (.*?)(?: Please file| Check the documentation|$)", text)
    return reason[1] if reason else "it is not a torch.save file"


def _is_safetensors(head: bytes, path: Path) -> bool:
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_folder(path: Path) -> WeightFile:
    """A checkpoint folder, or the newest readable checkpoint of a run folder."""
    steps = sorted((path / "checkpoints").glob("step_*[0-9]"), reverse=True) or [path]
    for number, step in enumerate(steps):
        file = step / "model.safetensors"
        try:
            if not file.is_file():
                raise InputError(f"{file}: no such checkpoint file")
            return _with_hub_config(_read_safetensors(file), step)
        except InputError as error:
            if number + 1 == len(steps):
                raise
            warnings.warn(f"{error}; reading {steps[number + 1].name} instead", stacklevel=4)
    raise AssertionError("unreachable: the last folder is read or raises")


def _with_hub_config(file: WeightFile, folder: Path) -> WeightFile:
    """A file of a folder of the Hub with the arguments that lie beside it, as ``save_pretrained`` writes them."""
    config = folder / HUB_CONFIG
    if file.card or not config.is_file():
        return file
    if (size := config.stat().st_size) > _LARGEST_CONFIG:
        raise InputError(
            f"{config}: {size:,} bytes are no arguments of a network, at most {_LARGEST_CONFIG:,} are read; fetch "
            "it again"
        )
    try:
        arguments = json.loads(config.read_text(encoding="utf-8-sig"))  # bare Infinity is a number there
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{config}: cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(arguments, dict):
        raise InputError(f"{config}: should hold named arguments, found {type(arguments).__name__}")
    return WeightFile({"model": file.content, HUB_CONFIG: arguments})


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # of damaged headers, and of types that torch does not know
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not a safetensors file ({reason}); fetch it again") from error
    return WeightFile(tensors, _parsed_card(metadata.get(MODEL_CARD_KEY, "{}"), path))


def _parsed_card(text: str, path: Path) -> dict[str, Any]:
    """geo3d's description of a model, of which each entry has its type."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        card = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its description of the model is damaged ({error})") from error
    if not isinstance(card, dict) or not (card == {} or isinstance(card.get("family"), str)):
        raise InputError(f"{path}: its description of the model names no family: {' '.join(text[:200].split())}")
    for name, value in card.items():
        wanted = _CARD_TYPES.get(name)
        if wanted is not None:
            typed_value(wanted, value, f"{path}: its description of the model: {name}")
    return card


def save_model(
    model: nn.Module, path: str | Path, *, half: bool = False, about: Mapping[str, str] | None = None
) -> None:
    """Write a model's weights and its description as one file that ``create_model`` loads, without name or options.

    Args:
        model: any model of geo3d's, also one that is compiled or data-parallel.
        path: the file to write: as ``torch.save`` writes where it ends in .pt, .pth, .bin or .ckpt, safetensors
            otherwise. Folders above it are made.
        half: write floats in half precision (float16), which halves the file. They are float32 again when loaded.
        about: text by name that goes into the description, such as data, command, date and licence; people read it.

    Raises:
        InputError: a model that is not geo3d's or has no weights yet; weights beyond the range of half precision; a
            path that cannot be written.
    """
    while isinstance(inner := model._modules.get("_orig_mod"), nn.Module) or (
        not hasattr(model, "card") and isinstance(inner := model._modules.get("module"), nn.Module)
    ):
        model = inner
    card, path = getattr(model, "card", None), Path(path)
    if card is None:
        raise InputError(
            f"save_model: {type(model).__name__} is no model of geo3d's, which say how they are built again by card(); "
            "hand in what create_model made, or write its state_dict with torch.save"
        )
    state = {_INFIXES.sub("", name.removeprefix("_orig_mod.")): value for name, value in model.state_dict().items()}
    if any(value.is_meta for value in state.values()):
        raise InputError(f"save_model: this {type(model).__name__} lies on the meta device and has no weights to write")
    _require_whole(model, state)
    state = untied({name: value.detach().cpu().contiguous() for name, value in state.items()})
    if half:
        state = {name: _halved(name, value) for name, value in state.items()}
    text = json.dumps(card() | ({"about": dict(about)} if about else {}))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as target:
        if path.suffix in TORCH_ENDINGS:
            write_torch(target, {"state_dict": state, MODEL_CARD_KEY: text})
        else:
            write_tensors(target, state, {"format": "pt", MODEL_CARD_KEY: text})


def _halved(name: str, value: Tensor) -> Tensor:
    """Floats in half precision; whole numbers as they are."""
    if not value.is_floating_point():
        return value
    half = value.half()
    if bool((half.isinf() & ~value.isinf()).any()):
        raise InputError(f"save_model: {name} holds {value.abs().max():.4g}, too much for half precision; write floats")
    return half


def _require_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise InputError where a model is not what its config describes, so that its file could not be loaded."""
    if not hasattr(model, "config"):
        return
    with torch.device("meta"):
        planned = type(model)(model.config).state_dict()
    changed = sorted(
        name
        for name in planned.keys() | state.keys()
        if name not in planned or name not in state or planned[name].shape != state[name].shape
    )
    if changed:
        raise InputError(
            f"save_model: this {type(model).__name__} is not what its config describes, by {_shorten(changed)}; "
            "choose sizes by options of create_model, or write its state_dict with torch.save"
        )


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with a copy of those that share another's memory."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return alone


def as_state_dict(content: Any, path: str | Path, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict in what a tool wrote, under the network's own names.

    Containers of tools (:data:`CONTAINERS`) are opened; numbers, text and arrays beside the tensors are left out; what
    data parallel, torch.compile, FSDP and Lightning put into names is taken off.

    Args:
        content: of a :class:`WeightFile`.
        path: of the file, for messages.
        prefixes: more beginnings of names to take off, such as ``backbone.``.

    Raises:
        InputError: there are no tensors under names; or two names become one.
    """
    while isinstance(content, Mapping):
        inner = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    named = content if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in named.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        kinds = ", ".join(f"{name} ({type(value).__name__})" for name, value in list(named.items())[:_LISTED])
        raise InputError(
            f"{path}: expected names with tensors, found {type(content).__name__}{f' of {kinds}' if kinds else ''}"
        )
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, value in tensors.items():
        bare = _bare(name, (*_PREFIXES, *prefixes))
        if bare in state:
            raise InputError(f"{path}: {origin[bare]} and {name} would both be {bare}; it holds two networks")
        state[bare], origin[bare] = value, name
    return state


def _bare(name: str, prefixes: tuple[str, ...]) -> str:
    name = _INFIXES.sub("", name)
    while prefix := next((p for p in prefixes if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def own_state(file: WeightFile, path: str | Path) -> Stored:
    """What a file that geo3d wrote holds; of a trained method, its network alone."""
    prefix = file.card.get("prefix", "")
    if not isinstance(file.card.get("config"), Mapping):
        raise InputError(f"{path}: its description of the model has no config, of which it could be built again")
    require_tensors(file.content, path)
    state = {name.removeprefix(prefix): value for name, value in file.content.items() if name.startswith(prefix)}
    return Stored(state, file.card["family"], file.card["config"], name=file.card.get("name"))


def require_tensors(content: Any, path: str | Path) -> None:
    """Raise InputError where a file does not hold names with tensors."""
    named = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: expected names with tensors beside the description of the model")


@contextmanager
def no_more_tensors(count: int, path: str | Path) -> Iterator[None]:
    """Context in which a network is built as a file describes it, which may be damaged.

    Raises:
        InputError: it has more than ``count`` parameters; so that it is not built to its end.
    """
    made = 0

    def counted(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > count:
            raise InputError(f"{path}: it describes a network of more than {count} tensors, and holds far fewer")

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def count_names(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names ``pattern`` there are, counted from 0 without a gap."""
    number = 0
    while pattern.format(number) in state:
        number += 1
    return number


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Make the tensors of ``state`` those of ``model``, in the model's dtypes; the model may live on the meta device.

    Raises:
        InputError: names that are missing, unexpected, of another shape or of a type that does not fit, such as whole
            numbers for weights; all are listed, nothing is loaded.
    """
    own = model.state_dict()
    require_fit(model, own, state, path)
    converted = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(untied(converted), assign=True)


def require_fit(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise InputError, as :func:`load_exactly` does, unless ``state`` fits ``own``, the tensors of a model."""
    shared = own.keys() & state.keys()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in shared
            if state[name].shape != own[name].shape
        ),
        "of another type": sorted(
            f"{name} ({_type_of(state[name])}) for {own[name].dtype}"
            for name in shared
            if not _fits(state[name], own[name].dtype)
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_shorten(names)}" for what, names in problems.items() if names)
        raise InputError(f"{path}: does not fit {type(model).__name__}: {listed}")


def _fits(value: Tensor, wanted: torch.dtype) -> bool:
    """Whether a stored tensor can become one of a type: floats of any width; whole numbers where these are asked for.

    Tools that halve a network make floats of its counters too.
    """
    if value.is_meta or value.is_quantized or value.layout != torch.strided or value.is_complex():
        return False
    if wanted.is_floating_point:
        return value.is_floating_point()
    if wanted == torch.bool or value.dtype == torch.bool:
        return value.dtype == wanted
    return not value.is_floating_point() or bool((value == value.float().round()).all())


def _type_of(value: Tensor) -> str:
    if value.is_meta:
        return "no values"
    return str(value.dtype if value.layout == torch.strided else value.layout)


def _shorten(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
