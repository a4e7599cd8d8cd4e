"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geo3d.train.sharding import local_part, sharded_like, whole, whole_model_state


class Ema:
    """A second set of weights that follows the first: ``average += (1 - decay) * (weights - average)`` at each update.

    It starts from the weights at hand. Buffers are not averaged.

    Args:
        module: whose parameters are followed; sharded ones stay sharded.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._average: dict[Tensor, Tensor] = {p: p.detach().clone() for p in module.parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move one step towards the module's weights."""
        for parameter, average in self._average.items():
            local_part(average).lerp_(local_part(parameter), 1 - self._decay)

    def whole_state(self) -> dict[str, Tensor]:
        """The module's state with the averaged weights, by plain names. Every process must call it."""
        averages = {name: whole(self._average[p]) for name, p in self._module.named_parameters(remove_duplicate=False)}
        return whole_model_state(self._module) | averages

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the averages that :meth:`whole_state` returned."""
        for name, p in self._module.named_parameters():
            self._average[p] = sharded_like(state[name], p)
