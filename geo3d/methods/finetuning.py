"""What training for a task shares: how much of the encoder learns, how fast, and from how many labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geo3d.errors import InputError
from geo3d.methods.checks import check_positive
from geo3d.methods.method import Method
from geo3d.random import Stream, stream_generator
from geo3d.samples.labels import few_of

if TYPE_CHECKING:
    from geo3d.models import Encoder
    from geo3d.samples.source import SampleSource


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """How much of a pre-trained encoder learns, and from how many labels; methods add their own fields."""

    frozen: bool = False
    """Keep the encoder as it is, its batch norms too, and train decoder and head alone."""
    layer_decay: float = 1.0
    """Every layer of the encoder learns at the rate of the one after it times this (above 0, up to 1); decoder and head
    learn at the full rate. 1: all do."""
    labels: float = 1.0
    """Labelled items to learn from: a share of those there are (up to 1) or how many (above 1), drawn by the run's
    seed, of all classes alike where an item has one; those of a smaller number are among those of a larger one. All of
    what is held out is measured."""

    def __post_init__(self) -> None:
        check_positive(self, "labels")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must lie above 0 and up to 1, got {self.layer_decay:g}")
        if self.labels > 1 and self.labels != round(self.labels):
            raise InputError(f"labels above 1 count items, so that they must be whole, got {self.labels:g}")


def decayed_rates(network: Encoder, layer_decay: float, prefix: str = "network.") -> dict[str, float]:
    """Rate factors of a network's parameters, under the names they have in a method.

    A parameter of layer ``d`` of ``n`` learns at ``layer_decay ** (n - d)`` of the rate, times what the network's
    authors give it (:meth:`~geo3d.models.Encoder.rate_factors`); those of decoder and heads have ``d = n``.
    """
    own, count = network.rate_factors(), network.layer_count
    depths = network.depths([name for name, _ in network.named_parameters()])
    return {prefix + name: own.get(name, 1.0) * layer_decay ** (count - depth) for name, depth in depths.items()}


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
        return decayed_rates(self._network, self.config.layer_decay, f"{self.handed_out}.")

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
    every = np.zeros(len(source), np.int64) if classes is None else classes
    part = copy.copy(source)  # which leaves behind what is open, as pickling does
    part.items = source.items.kept(few_of(labels, every, stream_generator(seed, Stream.FEW_LABELS)))
    return part


__all__ = ["Finetuning", "FinetuningConfig", "decayed_rates", "with_few_labels"]
