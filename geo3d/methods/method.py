"""Method: one pretext task, as the trainer sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from geo3d.samples.source import SampleSource

if TYPE_CHECKING:
    from typing_extensions import Self

Source = TypeVar("Source", bound=SampleSource)


@runtime_checkable
class DrawsPictures(Protocol):
    """A method that shows people what its network makes of a batch; a method may do without."""

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """An image (H, W, 3) uint8 of a batch and what :meth:`Method.forward` returned for it."""
        ...


class SampleSet(Protocol):
    """What a method trains on: items that are drawn with a generator that is handed in, never with a global one.

    Lives in loader workers, so it must be picklable and must not hold the network.
    """

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Item ``index``, augmented and masked with ``rng`` alone: tensors, and plain values to log."""
        ...

    def describe(self, index: int) -> str:
        """A name by which a person finds item ``index`` again."""
        ...


@runtime_checkable
class SharesDraws(Protocol):
    """A :class:`SampleSet` whose items share something in each step, such as their size; a set may do without."""

    def of_step(self, rng: np.random.Generator) -> SampleSet:
        """The set from which one step is drawn, on all processes: what its items share is drawn with ``rng`` alone."""
        ...


class SourceSamples(ABC, Generic[Source]):
    """The items of a source as the samples of a method, one each.

    Args:
        source: where they come from.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """As :meth:`SampleSet.draw`."""

    def describe(self, index: int) -> str:
        """Where an item is, as the source says."""
        return self.source.describe(index)


@dataclass
class MethodOutput:
    """What a forward pass returns.

    Args:
        losses: named scalar losses; their sum is minimised.
        metrics: named scalars to log, not minimised.
        extras: tensors that pictures and tests need, such as predictions.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Sum of the losses."""
        return torch.stack(list(self.losses.values())).sum()


class Method(nn.Module, ABC):
    """A pretext task: a network, how its samples are drawn and masked, and its loss.

    Subclasses are built from a dataclass config and set ``name`` and ``source``. Given equal batches, generators and
    weights they return equal numbers: whatever is random comes from the sample's or the step's generator. Those with a
    method ``picture`` (see :class:`DrawsPictures`) are asked for pictures while they are trained.
    """

    name: ClassVar[str]
    #: The kind of items that it reads; those of any folders are ``source.find(folders)``.
    source: ClassVar[type[SampleSource]]
    #: Name of the attribute that is the network to hand out.
    handed_out: ClassVar[str] = "network"

    @abstractmethod
    def samples(self, source: SampleSource) -> SampleSet:
        """The training items of a source of the kind that the method reads."""

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Join drawn items into a batch."""
        return default_collate(samples)

    @abstractmethod
    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """One step's losses. ``generator`` (on the CPU) feeds whatever is drawn per step, such as dropped paths."""

    def no_weight_decay(self) -> set[str]:
        """Parameters kept out of weight decay beyond those of one dimension (norms, biases)."""
        return set()

    def rate_factors(self) -> dict[str, float]:
        """Parameters that learn at another rate: name -> factor on the schedule's learning rate."""
        return {}

    def model_card(self) -> dict[str, Any]:
        """What a checkpoint says beside the weights so that ``create_model`` builds the network again.

        The card of the network, and as ``prefix`` how its names begin among the method's own.
        """
        return getattr(self, self.handed_out).card() | {"prefix": f"{self.handed_out}."}

    def model_names(self) -> tuple[str, ...]:
        """Names under which ``create_model`` reads files of the network's authors, in the order to try them in."""
        return (self.model_card()["family"],)

    def frozen_modules(self) -> tuple[str, ...]:
        """Names of parts that are never trained, such as a teacher; the method builds them with the weights they keep.

        They stay in evaluation mode and out of gradients, optimizer, moving average and checkpoints.
        """
        return ()

    def kept_modules(self) -> tuple[str, ...]:
        """Names of parts of the network that keep the weights they begin with, such as an encoder under a head.

        They stay in evaluation mode and out of gradients and optimizer; being part of what the run hands out, they are
        given their weights by ``init`` and lie in checkpoints.
        """
        return ()

    def is_frozen(self, name: str) -> bool:
        """Whether a parameter or buffer of this name belongs to one of :meth:`frozen_modules`."""
        return any(name.startswith(f"{module}.") for module in self.frozen_modules())

    def freeze(self) -> None:
        """Take :meth:`frozen_modules` and :meth:`kept_modules` out of training.

        Raises:
            ValueError: there is no module of a name.
        """
        for module in self._frozen():
            module.requires_grad_(False).eval()

    def _frozen(self) -> list[nn.Module]:
        """The modules of :meth:`frozen_modules` and :meth:`kept_modules`."""
        modules, names = dict(self.named_modules()), (*self.frozen_modules(), *self.kept_modules())
        if unknown := sorted(set(names) - modules.keys()):
            raise ValueError(f"{type(self).__name__} freezes what is no module of it: {unknown}")
        return [modules[name] for name in names]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but frozen and kept ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context in which the network is measured: evaluation mode, no gradients; afterwards the mode from before."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)
