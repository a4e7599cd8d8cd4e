"""Encoder: the face that all models share, whatever their family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from geo3d.config import to_plain
from geo3d.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

#: What an encoder reads.
Kind = Literal["image", "voxels", "points", "grid"]
#: What the head of a network is for; empty where it has none.
Task = Literal["", "segment", "classify", "detect", "pointmaps"]


@dataclass(frozen=True)
class StageInfo:
    """A stage of an encoder, whose features can be asked for.

    Args:
        name: unique in the encoder.
        channels: of its features.
        stride: input pixels, voxels or cells along a side of one of its features'.
    """

    name: str
    channels: int
    stride: int


class Encoder(nn.Module, ABC):
    """What every model of geo3d offers: what it reads, what its stages are, and their features.

        >>> encoder = geo3d.create_model("resnet50", checkpoint="resnet50_1kpretrained_timm_style.pth")
        >>> encoder.kind, [stage.channels for stage in encoder.feature_info]
        ('image', [256, 512, 1024, 2048])
        >>> maps = encoder.features(encoder.prepare(Image.open("chair.jpg")))

    Subclasses set the class attributes and ``config``, a dataclass of which they can be built again.

    Attributes:
        family: name of the declared family.
        kind: what it reads.
        trunk: name of the layers that its family shares with others, under the same names; empty where it shares none.
        task: what its head is for, where it has one.
        decoder_prefixes: beginnings of the names of parameters that are not the encoder's.
        head_prefixes: of these, the ones that are a task's alone, which pre-training does not bring.
        config: sizes.
        name: under which ``create_model`` made it; empty where it was built by its class.
        licence: of the weights, where their authors license them for non-commercial use alone; files tell it on.
        classes: names of the classes that it tells apart, where they are known; files tell them on.
    """

    family: ClassVar[str]
    kind: ClassVar[Kind]
    trunk: ClassVar[str] = ""
    task: ClassVar[Task] = ""
    decoder_prefixes: ClassVar[tuple[str, ...]] = ()
    head_prefixes: ClassVar[tuple[str, ...]] = ()
    config: Any
    name: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def feature_info(self) -> list[StageInfo]:
        """The stages, in the order in which data passes them."""

    @abstractmethod
    def prepare(self, inputs: Any) -> Any:
        """Make of what people have at hand what :meth:`features` reads.

        Raises:
            InputError: something that this kind of encoder does not read, or of the wrong type, shape or range.
        """

    @abstractmethod
    def features(self, inputs: Any, layers: Sequence[int | str] | None = None) -> list[Any]:
        """Features of the stages.

        Args:
            inputs: of :meth:`prepare`.
            layers: numbers of stages (negative ones from the end) or their names; all when not given.

        Returns:
            One for each stage asked for, in that order.

        Raises:
            InputError: inputs that do not fit, or a stage that there is not.
        """

    def stage_numbers(self, layers: Sequence[int | str] | None) -> list[int]:
        """Numbers, from 0, of the stages that are asked for.

        Raises:
            InputError: a stage that there is not.
        """
        names = [stage.name for stage in self.feature_info]
        if layers is None:
            return list(range(len(names)))
        if isinstance(layers, str | Integral):
            raise InputError(f"{type(self).__name__}.features: layers is a list, such as [{layers!r}]")
        numbers = []
        for layer in layers:
            if isinstance(layer, str) and layer in names:
                numbers.append(names.index(layer))
            elif isinstance(layer, Integral) and not isinstance(layer, bool) and -len(names) <= layer < len(names):
                numbers.append(int(layer) % len(names))
            else:
                near = did_you_mean(layer, names) if isinstance(layer, str) else ""
                raise InputError(
                    f"{type(self).__name__}.features: layers {list(layers)}: there is no {layer!r} among the "
                    f"{len(names)} stages {', '.join(names)}{near}"
                )
        return numbers

    def card(self) -> dict[str, Any]:
        """What a file must hold beside the weights so that the network can be built again."""
        named = {"name": self.name} if self.name else {}
        licence = {"licence": self.licence} if self.licence else {}
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"family": self.family, **named, **licence, **classes, "config": to_plain(self.config)}

    def fresh(self, generator: torch.Generator | None = None) -> Self:
        """Another network of the same config, in evaluation mode, whose weights ``generator`` draws."""
        made = type(self)(self.config, generator)
        made.name = self.name
        return made.eval()

    def is_of_encoder(self, parameter: str) -> bool:
        """Whether a parameter or buffer, by its name, belongs to the encoder and not to a decoder or head."""
        return not parameter.startswith(self.decoder_prefixes) if self.decoder_prefixes else True

    def is_no_head(self, parameter: str) -> bool:
        """Whether a parameter or buffer, by its name, belongs to encoder or decoder and not to the head of a task."""
        return not parameter.startswith(self.head_prefixes) if self.head_prefixes else True

    def is_of_pretraining(self, parameter: str) -> bool:
        """Whether pre-training brings a parameter or buffer, by its name: all but the head of a task.

        Of a network that names no :attr:`head_prefixes` it brings the encoder alone.
        """
        return self.is_no_head(parameter) if self.head_prefixes else self.is_of_encoder(parameter)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Beginnings of the names of each layer's parameters, in the order in which data passes the layers.

        A layer is what learns at one rate in fine-tuning: stem and embeddings are the first, then every block with what
        leads to it. Unless a family says otherwise, the encoder's children are, and those of its lists one by one.
        """
        layers: list[tuple[str, ...]] = []
        for name, child in self.named_children():
            listed = isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 0
            parts = [f"{name}.{number}." for number, _ in child.named_children()] if listed else [f"{name}."]
            layers += [(part,) for part in parts if self.is_of_encoder(part)]
        return layers

    @property
    def layer_count(self) -> int:
        """How many layers the encoder has."""
        return len(self.layer_prefixes())

    def depth_of(self, parameter: str) -> int:
        """Layer, from 0, that a parameter belongs to by its name; :attr:`layer_count` for those of decoder and heads.

        Parameters of the encoder that are in none of :meth:`layer_prefixes` count with the first layer.
        """
        return self.depths([parameter])[parameter]

    def depths(self, parameters: Iterable[str]) -> dict[str, int]:
        """:meth:`depth_of` of several parameters, by their names."""
        layers, found = self.layer_prefixes(), {}
        for name in parameters:
            numbers = (number for number, beginnings in enumerate(layers) if name.startswith(beginnings))
            found[name] = next(numbers, 0) if self.is_of_encoder(name) else len(layers)
        return found

    def rate_factors(self) -> dict[str, float]:
        """Parameters that its authors train at another rate: name -> factor."""
        return {}

    def encoder_modules(self) -> list[str]:
        """Names of the largest parts that are the encoder's alone; together they hold all of its parameters.

        Raises:
            ValueError: a part of encoder and decoder has parameters of the encoder of its own.
        """
        found: list[str] = []

        def walk(module: nn.Module, prefix: str) -> None:
            for name, child in module.named_children():
                inside = [f"{prefix}{name}.{rest}" for rest in child.state_dict()]
                if inside and all(map(self.is_of_encoder, inside)):
                    found.append(prefix + name)
                elif any(map(self.is_of_encoder, inside)):
                    walk(child, f"{prefix}{name}.")

        walk(self, "")
        beginnings = tuple(f"{name}." for name in found)
        if bare := [n for n, _ in self.named_parameters() if self.is_of_encoder(n) and not n.startswith(beginnings)]:
            raise ValueError(f"{type(self).__name__}: {bare} are the encoder's, but in no part of its own")
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights lie; what :meth:`prepare` makes is put there."""
        return next(self.parameters()).device


def layers_within(prefix: str, layers: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Layers of :meth:`Encoder.layer_prefixes` of a network that is a part of another, under the names it has there."""
    return [tuple(prefix + beginning for beginning in layer) for layer in layers]


def layers_said(texts: Sequence[str]) -> list[int | str]:
    """Stages as people write them on a command line, as :meth:`Encoder.stage_numbers` takes them: numbers, or names."""
    return [int(text) if text.removeprefix("-").isdecimal() else text for text in texts]


def require_prepared(model: Encoder, inputs: Any, kind: type) -> None:
    """Raise InputError unless a model is handed what its :meth:`Encoder.prepare` makes, by its type."""
    if not isinstance(inputs, kind):
        raise InputError(
            f"{type(model).__name__}: expected a {kind.__name__}, as prepare makes it, found {type(inputs).__name__}; "
            "call features(prepare(...))"
        )


def as_list(inputs: Any) -> list[Any]:
    """What is handed to :meth:`Encoder.prepare`, as a list.

    Raises:
        InputError: an empty list.
    """
    listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not listed:
        raise InputError("prepare: the list is empty; hand in at least one image, cloud or set of voxels")
    return listed


def require_range(values: Tensor, low: float, high: float, what: str, hint: str) -> Tensor:
    """The values, if they are finite numbers within a range.

    Args:
        values: float, any shape.
        low, high: ends of the range, both within.
        what: is checked, for the message.
        hint: what to do.

    Raises:
        InputError: they are not.
    """
    if values.numel() and not values.isfinite().all():
        raise InputError(f"{what} hold NaN or infinite values; {hint}")
    if values.numel() and (values.min() < low or values.max() > high):
        raise InputError(f"{what} must lie in [{low:g}, {high:g}], found {values.min():g} to {values.max():g}; {hint}")
    return values
