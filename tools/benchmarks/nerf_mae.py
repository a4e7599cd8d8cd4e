"""One training step of NeRF-MAE beside a plain-PyTorch twin, and with masked blocks skipped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from benchmarks.nerf_mae_twin import NeRFMAETwin
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.errors import InputError
from geo3d.models import create_model
from geo3d.models.nerf_mae import BLOCK_VOXELS, NeRFMAE
from geo3d.models.registry import family_of

_TWIN, _GEO3D = "plain PyTorch twin", "geo3d"
#: Both see the same weights, grids and masks; sums in another order move a loss by some 1e-6 of itself in float32, and
#: by some 1e-2 where halves round.
_LOSS_SPREAD = {"float32": 1e-3, "bfloat16": 3e-2}
_RATIO = 0.75


@dataclass
class NeRFMAEBenchmark:
    """One training step of NeRF-MAE, beside a plain-PyTorch twin, and with masked blocks skipped."""

    model: str = "nerf_mae_swin_s"
    """The network."""
    resolution: int = 64
    """Voxels along a side of the grids, a multiple of 32."""
    batch: int = 1
    """Grids a step."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """float32, and bfloat16 by autocast; one case each."""
    twin: bool = True
    """Whether the twin runs too."""
    threads: int = 2
    """CPU threads."""
    turns: int = 5
    """Timed steps of each variant; the median counts."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""


def room(resolution: int, batch: int) -> Tensor:
    """(B, 4, R, R, R) grids: walls, a floor and boxes of any colours in an empty room, whose upper quarter is empty."""
    generator = torch.Generator().manual_seed(0)
    r = resolution
    grids = torch.zeros(batch, 4, r, r, r)
    for grid in grids:
        colours = torch.rand(12, 3, 1, 1, 1, generator=generator)
        parts = [(slice(0, 2), slice(0, r), slice(0, 3 * r // 4)), (slice(0, r), slice(0, 2), slice(0, 3 * r // 4))]
        parts.append((slice(0, r), slice(0, r), slice(0, 2)))
        for start in torch.randint(0, 3 * r // 4, (9, 2), generator=generator).tolist():
            parts.append((*(slice(s, s + r // 5) for s in start), slice(0, r // 4)))
        for part, colour in zip(parts, colours):
            grid[(slice(0, 3), *part)] = colour
            grid[(3, *part)] = 0.9
    return grids


def _network(model: str, masking: str) -> NeRFMAE:
    if family_of(model).network is not NeRFMAE:
        raise InputError(f"this benchmark compares networks of NeRF-MAE that fill in, not {model!r}")
    return create_model(model, generator=torch.Generator().manual_seed(0), drop_path_rate=0.0, masking=masking).train()


def _drawn(batch: int, blocks: int, share: float, seed: int) -> Tensor:
    """(B, b, b, b) bool, exactly so many true in each sample."""
    draws = torch.rand(batch, blocks**3, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return (draws < round(share * blocks**3)).view(batch, blocks, blocks, blocks)


def training_step(
    model: str,
    resolution: int,
    batch: int,
    dtype: str,
    device: str,
    twin: bool = False,
    masking: str = "fill",
    decoded: float = 1.0,
) -> Callable[[], float]:
    """The function to time: one forward, losses and backward; returns the loss.

    Args:
        model, resolution, batch, dtype, device: see :class:`NeRFMAEBenchmark`.
        twin: the twin.
        masking: of the network.
        decoded: share of the blocks that are filled in.
    """
    network: Any = _network(model, masking)
    inputs = network.prepare(room(resolution, batch)).to(device)
    blocks = resolution // BLOCK_VOXELS
    mask = _drawn(batch, blocks, _RATIO, 1).to(device)
    chosen = _drawn(batch, blocks, decoded, 2).to(device) if decoded < 1 else None
    if twin:
        weights, network = network.state_dict(), NeRFMAETwin(network.config)
        network.load_state_dict(weights)
    network = network.to(device).train()
    shared, valid = mask[0], inputs.valid
    half = dtype == "bfloat16"

    def step() -> float:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            if twin:
                loss = sum(network(inputs.values, valid, shared))
            elif masking == "fill":
                loss = sum(network(inputs, shared, chosen).losses.values())
            else:
                loss = sum(network(inputs, mask, chosen).losses.values())
        loss.backward()
        return loss.item()

    return step


def run(config: NeRFMAEBenchmark) -> list[dict[str, Any]]:
    """Rows for each type of numbers, the twin the base of the ratios where it runs."""
    if config.resolution < 32 or config.resolution % 32:
        raise InputError(f"resolution must be a multiple of 32, got {config.resolution}")
    rows: list[dict[str, Any]] = []
    for dtype in config.dtypes:
        if dtype not in _LOSS_SPREAD:
            raise InputError(f"dtypes are float32 and bfloat16, got {dtype!r}")
        forms: dict[str, dict[str, Any]] = {_TWIN: {"twin": True}} if config.twin else {}
        forms |= {_GEO3D: {}, "geo3d, masked blocks skipped": {"masking": "skip"}}
        forms["geo3d, skipped, half the blocks decoded"] = {"masking": "skip", "decoded": 0.5}
        forms["geo3d, skipped, a quarter decoded"] = {"masking": "skip", "decoded": 0.25}
        arguments = {"model": config.model, "resolution": config.resolution, "batch": config.batch}
        arguments |= {"dtype": dtype, "device": config.device}
        variants = [
            Variant(name, f"{__name__}:training_step", arguments | form, dtype, config.device, config.threads)
            for name, form in forms.items()
        ]
        case = f"{config.model} step, batch {config.batch} x {config.resolution}^3, {dtype}, {config.threads} threads"
        found = race(case, variants, config.turns)
        if config.twin:
            expected, made = found[0]["value"], found[1]["value"]
            if abs(made - expected) > _LOSS_SPREAD[dtype] * abs(expected):
                raise InputError(f"the variants do not compute the same loss: {expected} and {made}")
        rows += found
    return rows
