"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from geo3d.methods.method import Method
from geo3d.train.sharding import local_part, sharded_like, whole, whole_model_state


class Ema:
    """A second set of weights that follows the first: ``average += (1 - decay) * (weights - average)`` at each update.

    It starts from the weights at hand. Buffers are not averaged, and frozen modules have no part in it.

    Args:
        method: whose parameters are followed; sharded ones stay sharded.
        decay: in (0, 1).
    """

    def __init__(self, method: Method, decay: float) -> None:
        self._method, self._decay = method, decay
        self._average: dict[Tensor, Tensor] = {p: p.detach().clone() for _, p in self._followed()}

    def _followed(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters; a shared one under each of its names."""
        named = self._method.named_parameters(remove_duplicate=False)
        return ((name, p) for name, p in named if not self._method.is_frozen(name))

    @torch.no_grad()
    def update(self) -> None:
        """Move one step towards the method's weights."""
        for parameter, average in self._average.items():
            local_part(average).lerp_(local_part(parameter), 1 - self._decay)

    def whole_state(self) -> dict[str, Tensor]:
        """The method's state with the averaged weights, by plain names. Every process must call it."""
        averages = {name: whole(self._average[p]) for name, p in self._followed()}
        return whole_model_state(self._method) | averages

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the averages that :meth:`whole_state` returned."""
        for name, p in self._followed():
            self._average[p] = sharded_like(state[name], p)
