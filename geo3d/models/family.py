"""Family: one declaration of how the models of a published family are made, loaded and described."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from geo3d.checkpoints.loading import (
    Stored,
    WeightFile,
    as_state_dict,
    load_exactly,
    no_more_tensors,
    own_state,
    require_fit,
)
from geo3d.config import typed_value
from geo3d.errors import InputError, NonCommercialWeights, did_you_mean
from geo3d.models.encoder import Encoder, Kind

#: Reads the authors' layouts: what a file holds, its path and the user's options -> weights and network.
Reader = Callable[[Any, Path, Mapping[str, Any]], Stored]

#: What of a network is drawn instead of taken from a file.
Fresh = Literal["nothing", "decoder", "head"]

#: How many tensors more than its file a network may have until it is taken for a damaged description, and the largest
#: number of one.
_MORE_TENSORS, _LARGEST = 5_000, 10**6


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Context in which a network is made as a file describes it: whatever comes of that, the message names the file.

    Raises:
        InputError: nothing comes of it.
    """
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{path}: no network can be made of what it describes ({reason})") from error


def _require_believable(config: Any, path: Path) -> None:
    """Raise InputError where a description holds numbers beyond what any network has."""
    if isinstance(config, Mapping):
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            _require_believable(value, path)
    elif isinstance(config, int | float) and not abs(config) <= _LARGEST:
        raise InputError(f"{path}: its description of the model holds {config}, which is no size of a network")


def _lacking(config: Any, described: Mapping[str, Any]) -> list[str]:
    """Fields of a config, and of those within, that a description does not state."""
    lacking = []
    for name in (f.name for f in fields(config)):
        value = getattr(config, name)
        if name not in described:
            lacking.append(name)
        elif is_dataclass(value) and isinstance(described[name], Mapping):
            lacking += [f"{name}.{inner}" for inner in _lacking(value, described[name])]
    return lacking


@dataclass(frozen=True)
class ReleasedFile:
    """A file of weights that its authors released.

    Args:
        file: its name; ``*`` stands for a part that varies.
        models: names of the models that it fits.
        task: what the weights were trained for.
        megabytes: of the whole file, where its page tells it.
        address: where it is, beside the family's page; one of ``hf://`` can be given as a checkpoint.
    """

    file: str
    models: tuple[str, ...]
    task: str = "pre-training"
    megabytes: float | None = None
    address: str = ""

    def __str__(self) -> str:
        size = f", {self.megabytes:g} MB" if self.megabytes is not None else ""
        return f"{self.file} ({self.task}{size})" + (f", {self.address}" if self.address else "")


@dataclass(frozen=True)
class Family:
    """How the models of a family are made. Registered by :func:`geo3d.models.register_family`, in one line.

    Args:
        name: of the family; a model of this name is what a file or the options describe.
        title: what people call it, for messages.
        network: class of the network, built by ``network(config, generator)``.
        config: dataclass of its sizes, whose ``__post_init__`` raises InputError on values that make no sense. Its
            annotations are what options are checked against.
        presets: name -> config. The first is what the family's own name stands for.
        read: reads files of the authors; None: there are none, beside geo3d's own a state dict will do.
        published: family of the literature that it belongs to; its own name when not given.
        named: fields that a preset's name promises, so that a file of others is refused. None: all but the ``free``.
        free: fields that weights do not depend on, so that they can be chosen when weights are loaded.
        unstated: further ones that can be, where the file does not state them.
        follows: field -> fields that it follows from; it becomes None where one of these is chosen and it is not.
        bare: options that leave out the decoder.
        of_decoder: fields that concern the decoder alone.
        of_head: fields that concern the head of a task alone, see :attr:`Encoder.head_prefixes`.
        parts: family -> how one of its models is taken out of a file of this family's, such as an encoder alone.
        wholes: family -> how its file becomes one of this family's, of which the decoder, or the head, is left to be
            drawn.
        files: what the authors released.
        licence: under which they released it, as an SPDX identifier.
        non_commercial: whether that is for non-commercial use alone.
        page: address of the page that says where the files are.
    """

    name: str
    title: str
    network: type[Encoder]
    config: type
    presets: Mapping[str, Any]
    read: Reader | None = None
    published: str = ""
    named: tuple[str, ...] | None = None
    free: tuple[str, ...] = ()
    unstated: tuple[str, ...] = ()
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bare: Mapping[str, Any] = field(default_factory=dict)
    of_decoder: tuple[str, ...] = ()
    of_head: tuple[str, ...] = ()
    parts: Mapping[str, Callable[[Stored], Stored]] = field(default_factory=dict)
    wholes: Mapping[str, Callable[[Stored], Stored]] = field(default_factory=dict)
    files: tuple[ReleasedFile, ...] = ()
    licence: str = ""
    non_commercial: bool = False
    page: str = ""

    @property
    def kind(self) -> Kind:
        """What its models read."""
        return self.network.kind

    @property
    def default(self) -> Any:
        """The config that the family's own name stands for."""
        return next(iter(self.presets.values()))

    def options(self) -> dict[str, Any]:
        """Names of the options that its models take, and the types of their values."""
        hints = typing.get_type_hints(self.config)
        return {f.name: hints[f.name] for f in fields(self.config)}

    # Making

    def configure(self, base: Any, options: Mapping[str, Any]) -> Any:
        """A config with some of its fields chosen.

        Raises:
            InputError: an unknown option, or a value of the wrong type or that makes no sense; names the option.
        """
        known = self.options()
        for name in options:
            if name not in known:
                near = did_you_mean(name, known)
                raise InputError(f"{self.title}: unknown option {name}; known: {', '.join(sorted(known))}{near}")
        chosen = {k: typed_value(known[k], v, f"{self.title}: option {k}") for k, v in options.items()}
        for follower, sources in self.follows.items():
            if follower not in chosen and any(chosen.get(s, getattr(base, s)) != getattr(base, s) for s in sources):
                chosen[follower] = None
        return replace(base, **chosen)

    def build(self, name: str, options: Mapping[str, Any], generator: torch.Generator | None = None) -> Encoder:
        """A model with fresh weights."""
        model = self.network(self.configure(self.presets.get(name, self.default), options), generator)
        model.name = name
        return model

    # Loading

    def stored(self, file: WeightFile, path: Path, options: Mapping[str, Any]) -> Stored:
        """What a file holds, by geo3d's description of it or by the authors' layout.

        Raises:
            InputError: neither.
        """
        if file.card:
            found = own_state(file, path)
            _require_believable(found.config, path)
            return found
        if self.read is None:  # a state dict alone: the name and the options describe the network
            return Stored(as_state_dict(file.content, path), self.name, None)
        return self.read(file.content, path, options)

    def load(
        self,
        name: str,
        file: WeightFile,
        path: Path,
        options: Mapping[str, Any],
        fresh: Fresh = "nothing",
        generator: torch.Generator | None = None,
        families: Mapping[str, Family] | None = None,
    ) -> Encoder:
        """A model with the weights of a file.

        Args:
            name: of the model that is asked for: a preset must describe what the file holds, the family's own name
                takes what there is.
            file, path: the file.
            options: of which only those that weights do not depend on may differ from the file's.
            fresh: what of the network ``generator`` draws instead of taking it from the file: ``decoder`` (with any
                head) or ``head``.
            families: all that are known, of which one may hold this family's networks as parts.

        Raises:
            InputError: a file of another network, or whose tensors do not fit; says how they differ.
        """
        with _about(path):
            found = self.stored(file, path, options)
            described = found
            if found.family != self.name and fresh != "nothing" and found.family in self.wholes:
                found = self.wholes[found.family](found)
            if found.family != self.name:
                found = self._part_of(found, name, path, families or {})
            drawn = self._drawn(fresh)
            found = self._with_usual(name, found, drawn, found.family != described.family, fresh)
            stored = self._stored_config(name, found, path)
            if file.card and found is described and (lacking := _lacking(stored, found.config)):
                raise InputError(f"{path}: its description of the model lacks {', '.join(lacking)}")
        changeable = self.free if found.stated else (*self.free, *self.unstated)
        if found.config is None:
            changeable = tuple(self.options())
        changeable = (*changeable, *drawn)
        if fresh != "nothing" and self._is_bare(stored):
            usual = self.presets.get(found.name, self.config())
            decoder = {name: options.get(name, getattr(usual, name)) for name in self.bare}
            with _about(path):
                stored = self.configure(stored, decoder)
        wanted = self.configure(stored, {k: v for k, v in options.items() if k in changeable})
        self._require_unchanged(wanted, options, changeable, path)
        with _about(path):
            model = self.assemble(stored, wanted, found, path, fresh, generator)
        model.name = found.name or (name if name in self.presets else "")
        released = self.licence if self.non_commercial and not file.card else ""
        model.licence = released or file.card.get("licence", "")
        model.classes = () if fresh != "nothing" else tuple(file.card.get("classes", ()))
        if model.licence:
            warnings.warn(
                f"{path}: the authors of {self.title} license their weights for non-commercial use ({model.licence})",
                NonCommercialWeights,
                stacklevel=3,
            )
        return model

    def _drawn(self, fresh: Fresh) -> tuple[str, ...]:
        """Fields of what is drawn.

        Raises:
            InputError: these networks have no head of their own.
        """
        if fresh == "head" and not self.network.head_prefixes:
            raise InputError(f"{self.title} has no head of its own; fresh_decoder=True draws all but the encoder")
        return {"nothing": (), "head": self.of_head, "decoder": (*self.of_decoder, *self.of_head)}[fresh]

    def _with_usual(self, name: str, found: Stored, drawn: tuple[str, ...], taken_in: bool, fresh: Fresh) -> Stored:
        """A file with what it does not tell of a network: the named preset's fields of what is drawn, and all others.

        Args:
            taken_in: it is of another family, whose network becomes a part of this one's.
        """
        preset = self.presets.get(name) if name != self.name else None  # the family's own name takes what there is
        if found.config is None or preset is None or not (taken_in or fresh == "head"):
            return found
        lacking = [f.name for f in fields(preset) if f.name not in (*found.config, *self.follows)] if taken_in else []
        return replace(found, config={**found.config, **{f: getattr(preset, f) for f in (*lacking, *drawn)}})

    def _require_unchanged(
        self, wanted: Any, options: Mapping[str, Any], changeable: tuple[str, ...], path: Path
    ) -> None:
        """Raise InputError where an option asks for another network than the weights are of."""
        if self.configure(wanted, options) == wanted:
            return
        others = [
            f"{name} ({getattr(wanted, name, None)!r} in the file, {options[name]!r} asked for)"
            for name in sorted(set(options) - set(changeable))
            if self.configure(wanted, {name: options[name]}) != wanted
        ]
        alone = " (it holds the encoder alone: fresh_decoder=True adds a decoder with fresh weights)"
        raise InputError(
            f"{path}: of a network with stored weights, only {', '.join(changeable)} can be changed, not "
            f"{', '.join(others)}{alone if self._is_bare(wanted) else ''}"
        )

    def _part_of(self, found: Stored, name: str, path: Path, families: Mapping[str, Family]) -> Stored:
        """This family's network in a file of another family's.

        Raises:
            InputError: there is none; says what is there.
        """
        other = families.get(found.family)
        if other is not None and self.name in other.parts:
            found = other.parts[self.name](found)
            other = families.get(found.family)
            if found.family == self.name:
                return found
        held = found.name or (other.preset_of(found) if other is not None else "") or found.family
        asked = name if name == self.name else f"{name} ({self.title})"
        fresh = "fresh_head" if self.network.head_prefixes else "fresh_decoder"
        whole = f"; load it as {held}, or with {fresh}=True" if found.family in self.wholes else ""
        bare = "bare " if found.family in self.wholes else ""
        title = other.title if other is not None else found.family
        raise InputError(f"{path}: holds a {bare}{held} ({title}), not a {asked}{whole}")

    def preset_of(self, found: Stored) -> str:
        """Name of the preset that a file's network is one of; empty where it is of none."""
        if found.config is None:
            return ""
        stored = self.configure(self.config(), found.config)
        return next((n for n, c in self.presets.items() if self._same(c, stored)), "")

    def _stored_config(self, name: str, found: Stored, path: Path) -> Any:
        """The config of the network that a file holds.

        Raises:
            InputError: the name promises another one.
        """
        preset = self.presets.get(name) if name != self.name else None  # the family's own name takes what there is
        if found.config is None:
            return self.default if preset is None else preset
        stored = self.configure(self.config(), found.config)
        if preset is None or found.name == name:
            return stored
        differing = [
            f"{field} is {getattr(stored, field)} in the file, {getattr(preset, field)} in the model"
            for field in self._promised
            if getattr(stored, field) != getattr(preset, field)
        ]
        if differing:
            held = found.name or self.preset_of(found) or f"another {self.title}"
            raise InputError(f"{path}: holds {held}, not the {name} that is asked for: {'; '.join(differing)}")
        return stored

    @property
    def _promised(self) -> tuple[str, ...]:
        if self.named is not None:
            return self.named
        return tuple(f.name for f in fields(self.config) if f.name not in self.free)

    def _same(self, one: Any, other: Any) -> bool:
        return all(getattr(one, name) == getattr(other, name) for name in self._promised)

    def _is_bare(self, config: Any) -> bool:
        return bool(self.bare) and all(getattr(config, name) == value for name, value in self.bare.items())

    def assemble(
        self,
        stored: Any,
        wanted: Any,
        found: Stored,
        path: Path,
        fresh: Fresh,
        generator: torch.Generator | None,
    ) -> Encoder:
        """The network with the file's weights; ``wanted`` differs from ``stored`` only in what can be chosen."""
        with torch.device("meta"), no_more_tensors(len(found.state) + _MORE_TENSORS, path):
            model = self.network(wanted)  # the file brings every tensor: draw none
        if fresh != "nothing":
            is_kept = model.is_of_encoder if fresh == "decoder" else model.is_no_head
            kept = {name: value for name, value in model.state_dict().items() if is_kept(name)}
            require_fit(model, kept, {name: v for name, v in found.state.items() if is_kept(name)}, path)
            model = self.network(wanted, generator)
            drawn = {name: value for name, value in model.state_dict().items() if not is_kept(name)}
            load_exactly(model, {name: found.state[name] for name in kept} | drawn, path)
            return model
        load_exactly(model, found.state, path)
        return model


__all__ = ["Family", "Fresh", "Reader", "ReleasedFile"]
