"""What training for a task shares: the network, how much of it learns, how fast, and from how many labels."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from geo3d.config import to_plain
from geo3d.errors import InputError
from geo3d.methods.checks import check_positive
from geo3d.methods.method import Method
from geo3d.models import Encoder, create_model, family_of
from geo3d.random import Stream, stream_generator
from geo3d.samples.labels import few_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from geo3d.samples.source import SampleSource


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """How much of a pre-trained encoder learns, and from how many labels; methods add their own fields."""

    frozen: bool = False
    """Keep the encoder as it is, its batch norms too, and train decoder and head alone."""
    layer_decay: float = 1.0
    """Every layer of the encoder learns at the rate of the one after it times this (above 0, up to 1); decoder and head
    learn at the full rate. 1: all do."""
    trunk_rate: float = 1.0
    """What pre-training brings, decoder and all, learns at this share of the rate (above 0, up to 1), times what
    `layer_decay` leaves of it; what a task alone has, the head, learns at the full rate."""
    labels: float = 1.0
    """Labelled items to learn from: a share of those there are (up to 1) or how many (above 1), drawn by the run's
    seed, of all classes alike where an item has one; those of a smaller number are among those of a larger one. All of
    what is held out is measured."""

    def __post_init__(self) -> None:
        check_positive(self, "labels")
        for name in ("layer_decay", "trunk_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} must lie above 0 and up to 1, got {getattr(self, name):g}")
        if self.labels > 1 and self.labels != round(self.labels):
            raise InputError(f"labels above 1 count items, so that they must be whole, got {self.labels:g}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(FinetuningConfig):
    """Any encoder, trained for a task under a head of its own; methods add their own fields."""

    model: str | None = None
    """Encoder under a small head, or a network that has one for the task, of `geo3d.list_models()`. None: that of
    `init`, and a small one where there is no `init`."""
    model_options: tuple[str, ...] = ()
    """Fields of its family's config that differ from what its name stands for, such as voxel_size=0.02."""

    #: The task, as networks that have a head for it name it; the model that stands for None; and for every kind of
    #: encoder the family that puts a head on it.
    task: ClassVar[str]
    default_model: ClassVar[str]
    headed: ClassVar[dict[str, str]]

    @property
    def settled(self) -> bool:
        """Whether the network is chosen."""
        return self.model is not None

    def inner(self) -> Any:
        """Config of the encoder, or of the network that has a head for the task.

        Raises:
            InputError: no such model, one that reads what the task cannot do with, or no such option.
        """
        family = family_of(self.model)
        if family.kind not in self.headed:
            hint = "; for grids there is segment_grids" if (family.kind, self.task) == ("grid", "segment") else ""
            raise InputError(f"model must read {' or '.join(self.headed)}; {self.model} reads {family.kind}{hint}")
        options = {}
        for text in self.model_options:
            name, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"model_options: {text!r} should be a name and a value, such as voxel_size=0.02")
            options[name] = _value(value)
        if not self.is_whole:
            options |= family.bare
        return family.configure(family.presets.get(self.model, family.default), options)

    def settle(self, model: str | None = None, options: dict[str, Any] | None = None) -> Self:
        """The same with the network chosen and all its sizes stated.

        Args:
            model, options: a name and fields of its config, where this config names none.

        Raises:
            InputError: as :meth:`inner`.
        """
        chosen = self
        if not self.settled:
            texts = tuple(f"{name}={json.dumps(value)}" for name, value in (options or {}).items())
            chosen = replace(self, model=model or self.default_model, model_options=(*texts, *self.model_options))
        return chosen._stated(chosen.inner())

    def _stated(self, inner: Any) -> Self:
        """The same with all sizes of a network stated."""
        left_out = ("num_classes",) if self.is_whole else ()
        stated = {name: value for name, value in to_plain(inner).items() if name not in left_out}
        return replace(self, model_options=tuple(f"{name}={json.dumps(value)}" for name, value in stated.items()))

    @property
    def is_whole(self) -> bool:
        """Whether the model has a head for the task."""
        return family_of(self.model).network.task == self.task

    def build(self, classes: int, generator: torch.Generator | None, **head: Any) -> Encoder:
        """The network.

        Args:
            classes: that are told apart.
            generator: draws the initial weights.
            head: further fields of the config of a network that is put around an encoder.
        """
        family, inner = family_of(self.model), to_plain(self.inner())
        if not self.is_whole:
            options = {"encoder": self.model, "encoder_options": inner, "num_classes": classes} | head
            return create_model(self.headed[family.kind], generator=generator, **options)
        usual = family.config()  # a network of which the file held the encoder alone is given its decoder
        lacking = {name: getattr(usual, name) for name, bare in family.bare.items() if inner[name] == bare}
        return create_model(self.model, generator=generator, **inner | lacking | {"num_classes": classes})


def _value(text: str) -> Any:
    """A value as people write it: a number, true or false, a list; else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def decayed_rates(
    network: Encoder, layer_decay: float, trunk_rate: float = 1.0, prefix: str = "network."
) -> dict[str, float]:
    """Rate factors of a network's parameters, under the names they have in a method.

    A parameter of layer ``d`` of ``n`` learns at ``layer_decay ** (n - d)`` of the rate, times what the network's
    authors give it (:meth:`~geo3d.models.Encoder.rate_factors`); those of decoder and heads have ``d = n``. What
    :meth:`~geo3d.models.Encoder.is_of_pretraining` learns at ``trunk_rate`` of that.
    """
    own, count = network.rate_factors(), network.layer_count
    depths = network.depths([name for name, _ in network.named_parameters()])
    shares = {True: trunk_rate, False: 1.0}
    return {
        prefix + name: own.get(name, 1.0) * shares[network.is_of_pretraining(name)] * layer_decay ** (count - depth)
        for name, depth in depths.items()
    }


class Finetuning(Method):
    """A method whose network is an :class:`~geo3d.models.Encoder` with a head: :class:`FinetuningConfig` at work.

    Subclasses set ``config`` and the network, under the name :attr:`~Method.handed_out`.
    """

    config: FinetuningConfig

    @property
    def _network(self) -> Encoder:
        return getattr(self, self.handed_out)

    def rate_factors(self) -> dict[str, float]:
        """Rates that decay from the head down."""
        return decayed_rates(self._network, self.config.layer_decay, self.config.trunk_rate, f"{self.handed_out}.")

    def model_names(self) -> tuple[str, ...]:
        """The authors' files that it may start from: of its network, or of the encoder within."""
        inner = [module.family for module in self._network.modules() if isinstance(module, Encoder)]
        return tuple(dict.fromkeys(reversed(inner)))

    def kept_modules(self) -> tuple[str, ...]:
        """The encoder's parts, where it is frozen."""
        if not self.config.frozen:
            return ()
        return tuple(f"{self.handed_out}.{name}" for name in self._network.encoder_modules())


def with_few_labels(source: SampleSource, labels: float, seed: int, classes: np.ndarray | None = None) -> SampleSource:
    """The items of a source that are learnt from, where labels are few.

    Args:
        source: of the training items.
        labels: as :attr:`FinetuningConfig.labels` says.
        seed: of the run.
        classes: (N,) class of each item, where it has one; all are drawn alike then.

    Returns:
        A source of the same kind; the same one where all labels are used.
    """
    if labels == 1:
        return source
    every = np.zeros(len(source.items), np.int64) if classes is None else classes
    part = copy.copy(source)  # which leaves behind what is open, as pickling does
    part.items = source.items.kept(few_of(labels, every, stream_generator(seed, Stream.FEW_LABELS)))
    return part


__all__ = ["Finetuning", "FinetuningConfig", "TaskConfig", "decayed_rates", "with_few_labels"]
