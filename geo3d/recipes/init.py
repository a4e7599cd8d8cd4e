"""Starting from the weights of a file: what of it fits a method, what is taken, and what begins anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geo3d.checkpoints.hub import resolve
from geo3d.checkpoints.loading import (
    Stored,
    WeightFile,
    as_state_dict,
    own_state,
    read_weight_file,
    require_tensors,
)
from geo3d.config import to_plain
from geo3d.errors import InputError
from geo3d.methods.method import Method
from geo3d.models import Encoder, family_of, first_model, list_models
from geo3d.models.headed import encoder_in

_LISTED = 8


@dataclass
class InitialWeights:
    """Tensors of a file under the names of a method, of which it takes those that fit.

    Args:
        path: the file or folder.
        part: what is taken of it.
        taken: name in the method -> tensor.
        fresh: names of the method's other tensors, which stay as they were drawn.
        misfits: of these, the ones that the file holds in another shape, with both shapes.
        unused: names in the file that are not taken.
        licence: of weights that their authors license for non-commercial use alone.
    """

    path: Path
    part: Literal["whole", "encoder"]
    taken: dict[str, Tensor]
    fresh: list[str]
    misfits: list[str]
    unused: list[str]
    licence: str = ""

    @torch.no_grad()
    def load_into(self, method: Method) -> None:
        """Give the method the tensors that are taken."""
        own = method.state_dict()
        for name, tensor in self.taken.items():
            own[name].copy_(tensor)
        tell_licence(method, self.licence)

    def summary(self) -> dict[str, Any]:
        """Plain values for files: counts of tensors, by the parts of the network that they belong to."""
        return {
            "file": str(self.path),
            "part": self.part,
            "taken": _by_part(self.taken),
            "fresh": _by_part(self.fresh),
            "of_another_shape": self.misfits,
            "unused": _by_part(self.unused),
            "licence": self.licence,
        }

    def __str__(self) -> str:
        total = len(self.taken) + len(self.fresh)
        lines = [
            f"starting from {self.path} ({self.part}): {len(self.taken)} of {total} tensors are taken "
            f"({_counts(self.taken)}); {len(self.fresh)} are fresh ({_counts(self.fresh) or 'none'})"
        ]
        if self.misfits:
            lines.append(f"fresh since they are of another shape in the file: {_listed(self.misfits)}")
        if self.unused:
            lines.append(f"{len(self.unused)} tensors of the file are not used ({_counts(self.unused)})")
        return "\n".join(lines)


def tell_licence(method: Method, licence: str) -> None:
    """Have the files of a method's network tell the licence of the weights that it began with."""
    if licence:
        method.get_submodule(method.model_card().get("prefix", "").removesuffix(".")).licence = licence


def find_initial_weights(path: Path, part: Literal["whole", "encoder"], method: Method) -> InitialWeights:
    """What a method can take of a file.

    Files of geo3d's trainer bring all of a method, those of authors its network or its network's encoder, which is
    found wherever it lies in the network. The method may live on the meta device.

    Args:
        path: a run or checkpoint folder, a file of geo3d, or one in a layout of the network's authors; or what else
            :func:`geo3d.checkpoints.hub.resolve` takes.
        part: all that fits, or the encoder's tensors alone.
        method: whose names and shapes count; its frozen modules are left as they are.

    Raises:
        InputError: no such file, one that cannot be read or is of another family, or nothing in it fits.
    """
    prefix = method.model_card().get("prefix", "")
    network = method.get_submodule(prefix.removesuffix("."))
    stored, licence = _read(path, method, network, prefix)
    own = {name: tensor for name, tensor in method.state_dict().items() if not method.is_frozen(name)}
    wanted = own if part == "whole" else _of_encoder(own, network, prefix)
    known = wanted.keys() & stored.keys()
    taken = {name: stored[name] for name in wanted if name in known and stored[name].shape == own[name].shape}
    misfits = [
        f"{name} {tuple(stored[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in wanted
        if name in known and name not in taken
    ]
    if not taken:
        why = _listed(misfits) or f"its names are such as {_listed(list(stored), 3)}, not {_listed(list(wanted), 3)}"
        raise InputError(f"init: nothing in {path} fits {method.name} ({part}): {why}")
    fresh = [name for name in own if name not in taken]
    return InitialWeights(path, part, taken, fresh, misfits, [name for name in stored if name not in taken], licence)


def _of_encoder(own: Mapping[str, Tensor], network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Those of a method's tensors that are its encoder's."""
    is_of_encoder = getattr(network, "is_of_encoder", lambda name: True)
    inside = {name: v for name, v in own.items() if name.startswith(prefix)}
    return {name: v for name, v in inside.items() if is_of_encoder(name.removeprefix(prefix))}


def _read(path: Path, method: Method, network: nn.Module, prefix: str) -> tuple[dict[str, Tensor], str]:
    """Tensors of a file by the names that they have, or would have, in the method; and their licence, if it binds."""
    try:
        path = resolve(path)
        file = read_weight_file(path)
    except InputError as error:
        raise InputError(f"init: {error}") from error
    family, others = method.model_card().get("family"), {}
    licence = str(file.card.get("licence", ""))
    if file.card:
        require_tensors(file.content, path)
        state = _of_geo3d(path, file, method, network, family)
        used = {id(tensor) for tensor in state.values()}
        others = {name: v for name, v in file.content.items() if id(v) not in used}
    elif family in {*list_models()}:
        state, others, licence = _of_authors(path, file, method, family)
    else:
        state = file.content
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise InputError(f"init: {path}: expected names with tensors, found {type(state).__name__}")
    place = prefix + _place(state, network)
    return {place + name: tensor for name, tensor in state.items()} | others, licence


def _of_geo3d(
    path: Path, file: WeightFile, method: Method, network: nn.Module, family: str | None
) -> dict[str, Tensor]:
    """The tensors of a file of geo3d's that a network may take, under the names of the network or of a part of it.

    Those of a family that becomes part of the network's, under the names that they get there; those of the network's
    own family, of a part of it, or of one with the same trunk, as they are; else those of an encoder in the file.

    Raises:
        InputError: the families have nothing in common.
    """
    held, inside = file.card.get("family"), file.card.get("prefix", "")
    state = {name.removeprefix(inside): v for name, v in file.content.items() if name.startswith(inside)}
    within = {module.family for module in network.modules() if isinstance(module, Encoder)}
    if held in _wholes(family):
        return _taken_in(family, Stored(state, held, file.card.get("config")))[0]
    if held in {family, *within, *_parts(family)} or _shares_trunk(held, network):
        return state
    part = encoder_in(own_state(file, path)) if held in list_models() else None
    if part is not None and part.family in within:
        return part.state
    raise InputError(
        f"init: {path} holds a model of the family {held!r}, but {method.name} trains one of "
        f"{' around '.join([str(family), *sorted(within - {family})])!r}; give a file of that family"
    )


def _parts(family: str | None) -> Iterable[str]:
    """Families whose networks are parts of one of this family's, such as bare encoders."""
    return family_of(family).parts if family in list_models() else ()


def _shares_trunk(held: str | None, network: nn.Module) -> bool:
    """Whether networks of a family have the trunk of this one, so that tensors of one name are the same layer's."""
    trunk = getattr(network, "trunk", "")
    return bool(trunk) and held in list_models() and family_of(held).network.trunk == trunk


def _wholes(family: str | None) -> Mapping[str, Callable[[Stored], Stored]]:
    """Families whose networks become parts of one of this family's, such as pre-training's of a downstream one."""
    return family_of(family).wholes if family in list_models() else {}


def _taken_in(family: str, stored: Stored) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of another family's network under the names of this family's, and what of them has no place there."""
    state = _wholes(family)[stored.family](stored).state
    placed = {id(tensor) for tensor in state.values()}
    return state, {name: tensor for name, tensor in stored.state.items() if id(tensor) not in placed}


def _of_authors(
    path: Path, file: WeightFile, method: Method, family: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """The tensors of a file in a layout of the network's authors, or of a state dict alone.

    Returns:
        Those of the method's network, those that it has no place for, and their licence.
    """
    try:
        model = first_model((*method.model_names(), *_wholes(family)), file, path)
    except InputError as none:
        try:
            return as_state_dict(file.content, path), {}, ""  # of which what fits is taken
        except InputError as error:
            raise InputError(f"init: {none}") from error
    if model.family in _wholes(family):
        return *_taken_in(family, Stored(model.state_dict(), model.family, None)), model.licence
    return model.state_dict(), {}, model.licence


def _place(state: Mapping[str, Tensor], network: nn.Module) -> str:
    """Which part of a network, such as its encoder, a state is of; empty for the whole.

    The one that most of the names fit: parts of a network may share some, such as a layer of a decoder.
    """
    names = network.state_dict().keys()
    places = [f"{name}." if name else "" for name, _ in network.named_modules()]
    return max(places, key=lambda place: sum(place + name in names for name in state))


def _by_part(names: Iterable[str]) -> dict[str, int]:
    """Counts of names by their first two parts."""
    return dict(Counter(".".join(name.split(".")[:2]) for name in names))


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{part} {count}" for part, count in _by_part(names).items())


def _listed(names: list[str], most: int = _LISTED) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def encoder_of_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Model and sizes of the encoder that a file holds, which must be one of geo3d's that says what it holds.

    Raises:
        InputError: it cannot be read, or does not say so.
    """
    try:
        place = resolve(path)
        file = read_weight_file(place)
        if not file.card:
            raise InputError(f"{path}: does not say which model it holds; name it, by --method.model")
        family_of(str(file.card.get("family")))
        part = encoder_in(own_state(file, place))
    except InputError as error:
        raise InputError(f"init: {error}") from error
    family = family_of(part.family)
    named = part.name if part.name in family.presets else part.family
    return named, to_plain(family.configure(family.config(), part.config))
