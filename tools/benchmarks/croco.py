"""One training step of CroCo: forward, loss and backward.

The floor of `croco_v2_base_small` at batch 4 and 224 x 224: 85.65 M encoder weights x 216 tokens (20 visible and 196)
and 33.6 M decoder weights x 196 tokens, three products each way and two operations a weight, some 610 GFLOP a step
with attention: 3.2 s at 190 GFLOP/s in float32, 0.52 s at 1,180 GFLOP/s in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.croco_twin import CroCoTwin
from benchmarks.race import Variant, race

from geo3d.errors import InputError
from geo3d.methods.croco import completion_loss
from geo3d.models import create_model
from geo3d.nn.colors import normalise
from geo3d.nn.patches import patchify

#: All variants see the same weights and images; bfloat16 moves the loss by some 1e-4 of itself.
_LOSS_SPREAD = 2e-3


@dataclass
class CroCoBenchmark:
    """One training step (forward, loss, backward) of CroCo, beside a plain-PyTorch twin."""

    model: str = "croco_v2_base_small"
    """Network with rotary embedding: croco_v2_base_small, croco_v2_base_base, croco_v2_large_base or croco_tiny."""
    batch: int = 4
    """Pairs a step."""
    size: int = 224
    """Side of the square images, pixels."""
    threads: int = 2
    """CPU threads."""
    turns: int = 5
    """Timed steps of each variant; the median counts."""
    device: str = "cpu"
    """cpu or cuda."""


def _inputs(batch: int, size: int, tokens: int, device: str):
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, batch, size, size, 3), generator=generator, dtype=torch.uint8)
    hidden = int(0.9 * tokens)
    visible = torch.rand(batch, tokens, generator=generator).argsort(1)[:, hidden:].sort(1).values
    mask = torch.ones(batch, tokens, dtype=torch.bool).scatter(1, visible, False)
    first, second = normalise(views[0].to(device)), normalise(views[1].to(device))
    return first, second, visible.to(device), mask.to(device)


def training_step(model: str, batch: int, size: int, dtype: str, device: str, twin: bool):
    """The function to time: one forward, loss and backward; returns the loss."""
    if not model.startswith("croco"):
        raise InputError(f"this benchmark compares CroCo networks, not {model!r}")
    network = create_model(model, image_size=size, generator=torch.Generator().manual_seed(0)).to(device).train()
    first, second, visible, mask = _inputs(batch, size, network.config.grid[0] * network.config.grid[1], device)
    if network.config.rope_base is None:
        raise InputError(f"the twin has rotary embedding only; {model} has sine-cosine embeddings")
    peer = CroCoTwin(network) if twin else None

    def step() -> float:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            if peer is not None:
                loss = peer(first, second, mask)
            else:
                prediction = network(first, second, visible).prediction
        if peer is None:
            loss = completion_loss(prediction, patchify(first, network.config.patch_size), mask, True)
        loss.backward()
        return loss.item()

    return step


def run(config: CroCoBenchmark) -> list[dict[str, Any]]:
    """Rows of the twin and of geo3d, in float32 and bfloat16; the twin in float32 is the base of the ratios."""
    variants = []
    for dtype in ("float32", "bfloat16"):
        for name, twin in (("plain PyTorch twin", True), ("geo3d", False)):
            arguments = {"model": config.model, "batch": config.batch, "size": config.size}
            arguments |= {"dtype": dtype, "device": config.device, "twin": twin}
            variants.append(
                Variant(
                    f"{name}, {dtype}",
                    "benchmarks.croco:training_step",
                    arguments,
                    dtype,
                    config.device,
                    config.threads,
                )
            )
    case = f"{config.model} step, batch {config.batch}, {config.size} px, {config.threads} threads"
    rows = race(case, variants, config.turns)
    losses = [row["value"] for row in rows]
    if max(losses) - min(losses) > _LOSS_SPREAD * losses[0]:
        raise InputError(f"the variants do not compute the same loss: {losses}")
    return rows
