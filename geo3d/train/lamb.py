"""LAMB: layer-wise adaptive moments for large batches (You et al., ICLR 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from geo3d.train.sharding import local_part, sum_over_shards


class Lamb(torch.optim.Optimizer):
    """Adam whose update of each tensor is scaled by |weights| / |update|, the trust ratio.

    Choices where the paper leaves one: moments are bias-corrected; weight decay is part of the update whose norm the
    ratio takes; the ratio is not bounded, is 1 where either norm is 0, and is 1 for groups without weight decay (norms
    and biases), as is customary. Norms are those of whole tensors, also where tensors are sharded.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = [self._update(p, group) for p in parameters]
            weights = [local_part(p) for p in parameters]
            if group["weight_decay"]:
                ratios = _trust_ratios(_norms(parameters, weights), _norms(parameters, updates))
                updates = [update * ratio for update, ratio in zip(updates, ratios)]
            for weight, update in zip(weights, updates):
                weight.sub_(update, alpha=group["lr"])
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Bias-corrected Adam direction plus weight decay, of the local part of a parameter."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].item(), group["betas"]
        gradient, weight = local_part(parameter.grad), local_part(parameter)
        first, second = local_part(state["exp_avg"]), local_part(state["exp_avg_sq"])
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        return (first / (1 - beta1**step)).div_(root).add_(weight, alpha=group["weight_decay"])


def _norms(parameters: list[Tensor], parts: list[Tensor]) -> Tensor:
    """Norm of each whole tensor, (P,), from the local ``parts`` of tensors that are sharded like ``parameters``."""
    squares = torch.stack([part.float().square().sum() for part in parts])
    return sum_over_shards(squares, parameters[0]).sqrt_()


def _trust_ratios(weights: Tensor, updates: Tensor) -> Tensor:
    return torch.where((weights > 0) & (updates > 0), weights / updates, torch.ones_like(weights))
