"""Optimizers, and which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from geo3d.methods.method import Method
from geo3d.train.config import TrainConfig
from geo3d.train.lamb import Lamb


def parameter_groups(method: Method, weight_decay: float) -> list[dict]:
    """Two groups of the trainable parameters: those that decay, and those that do not.

    Biases, parameters of one dimension or none, and those in ``method.no_weight_decay()`` do not.

    Raises:
        ValueError: ``no_weight_decay`` names a parameter that there is not.
    """
    exempt = method.no_weight_decay()
    trainable = {name: p for name, p in method.named_parameters() if p.requires_grad}
    if unknown := exempt - {name for name, _ in method.named_parameters()}:
        raise ValueError(f"{type(method).__name__}.no_weight_decay() names no parameter: {sorted(unknown)}")
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in trainable.items():
        groups[p.ndim > 1 and not name.endswith("bias") and name not in exempt].append(p)
    both = [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def build_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config``; its learning rate is set at each step by the schedule."""
    groups = parameter_groups(method, config.weight_decay)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=0.0, betas=config.betas)
    # One fused pass over the weights; with fp16 gradients are unscaled before, which fused AdamW would do itself.
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = config.precision != "fp16" and devices <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=fused)
