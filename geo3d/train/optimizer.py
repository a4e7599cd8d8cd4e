"""Optimizers, and which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from geo3d.methods.method import Method
from geo3d.train.config import TrainConfig
from geo3d.train.lamb import Lamb


def parameter_groups(method: Method, weight_decay: float) -> list[dict]:
    """Groups of the trainable parameters: for each rate factor those that decay, and those that do not.

    Biases, parameters of one dimension or none, and those in ``method.no_weight_decay()`` do not. ``rate_factor`` of a
    group is the factor of ``method.rate_factors()`` on the learning rate, 1 for parameters that it leaves out;
    ``decays`` says whether its parameters do.

    Raises:
        ValueError: ``no_weight_decay`` or ``rate_factors`` names a parameter that there is not.
    """
    exempt, factors = method.no_weight_decay(), method.rate_factors()
    for source, names in (("no_weight_decay", exempt), ("rate_factors", factors.keys())):
        if unknown := names - {name for name, _ in method.named_parameters()}:
            raise ValueError(f"{type(method).__name__}.{source}() names no parameter: {sorted(unknown)}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            decays = p.ndim > 1 and not name.endswith("bias") and name not in exempt
            groups.setdefault((factors.get(name, 1.0), decays), []).append(p)
    return [
        {
            "params": groups[factor, decays],
            "weight_decay": weight_decay if decays else 0.0,
            "rate_factor": factor,
            "decays": decays,
        }
        for factor, decays in sorted(groups, reverse=True)
    ]


def build_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config``; its learning rate is set at each step by the schedule."""
    groups = parameter_groups(method, config.weight_decay)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=0.0, betas=config.betas)
    # One fused pass over the weights; with fp16 gradients are unscaled before, which fused AdamW would do itself.
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = config.precision != "fp16" and devices <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=fused)
