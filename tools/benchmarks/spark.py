"""SparK's encoders and whole training steps: tiles of the active cells beside the published emulation by dense maps.

Floors, with two operations a weight and site and three products a step. ConvNeXt-S at 224 x 224: 8.7 GFLOP a forward
pass of one image, at 20 of 49 cells 3.6; ResNet-50: 8.2 and 3.4. Decoder and projections of one image: 20.2 and 4.2
GFLOP (1.6 with ConvNeXt-S), whatever the mask. A step of ConvNeXt-S with batch 2 is thus 152 GFLOP, of ResNet-50 with
batch 4 334 GFLOP; of them 3 x 3 convolutions of whole maps, 103 and 239, take 1 / 2.25 of that in Winograd's way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.spark import reconstruction_loss
from geo3d.models import create_model
from geo3d.models.spark import CELL

#: How far results of variants may lie apart, of their size: sums in another order, and bfloat16.
_SPREAD = {"float32": 2e-5, "bfloat16": 2e-2}
_VARIANTS = (("dense", "float32"), ("tiles", "float32"), ("tiles", "bfloat16"))
_PARTS = ("encoder", "step")


@dataclass
class SparKBenchmark:
    """Forward and backward of SparK's encoder, and of a whole training step, on tiles and on dense maps."""

    models: tuple[str, ...] = ("convnext_small", "resnet50")
    """Encoders."""
    batches: tuple[int, ...] = (2, 4)
    """Images a step, for each encoder."""
    size: int = 224
    """Side of the square images, pixels."""
    mask_ratio: float = 0.6
    """Share of the cells that are hidden."""
    threads: int = 2
    """CPU threads."""
    turns: int = 5
    """Timed steps of each variant; the median counts."""
    device: str = "cpu"
    """cpu or cuda."""


def training_step(model: str, batch: int, size: int, mask_ratio: float, part: str, path: str, dtype: str, device: str):
    """The function to time: forward and backward of the encoder, or of the whole network with its loss."""
    run, network = _forward(model, batch, size, mask_ratio, part, path, dtype, device)

    def step() -> float:
        network.zero_grad(set_to_none=True)
        loss = run()
        loss.backward()
        return loss.item()

    return step


def _forward(model: str, batch: int, size: int, mask_ratio: float, part: str, path: str, dtype: str, device: str):
    """A function that returns the loss, and the network."""
    generator = torch.Generator().manual_seed(0)
    network = create_model("spark", encoder=model, drop_path_rate=0.0, generator=generator).to(device).train()
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    cells = (size // CELL) ** 2
    kept = round(cells * (1 - mask_ratio))
    active = torch.rand(batch, cells, generator=generator).argsort(1) < kept
    active = active.view(batch, 1, size // CELL, size // CELL).to(device)

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            if part == "encoder":
                with network.sparse_encoder.seeing(active, path):
                    maps = network.sparse_encoder.maps(images)
            else:
                reconstruction = network(images, active, path).reconstruction
        if part == "step":
            return reconstruction_loss(reconstruction, images, active)
        return sum(m.float().square().sum() for m in maps) / batch

    return loss, network


def kept_for_backward(**arguments: Any) -> float:
    """Memory of what the forward pass keeps for the backward pass beside the weights, MiB."""
    run, network = _forward(**arguments)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # which also keeps them from being used again meanwhile

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = run()
    del loss
    return sum(storage.nbytes() for storage in kept.values()) / 2**20


def run(config: SparKBenchmark) -> list[dict[str, Any]]:
    """Rows of every encoder and part; the dense emulation in float32 is the base of the ratios."""
    if len(config.models) != len(config.batches):
        raise InputError(f"{len(config.models)} models need as many batches, got {len(config.batches)}")
    rows = []
    for model, batch in zip(config.models, config.batches):
        for part in _PARTS:
            rows += _race(config, {"model": model, "batch": batch, "part": part})
    return rows


def _race(config: SparKBenchmark, which: dict[str, Any]) -> list[dict[str, Any]]:
    variants = []
    for path, dtype in _VARIANTS:
        arguments = which | {"size": config.size, "mask_ratio": config.mask_ratio, "device": config.device}
        arguments |= {"path": path, "dtype": dtype}
        name = f"{path}, {dtype}; {kept_for_backward(**arguments):.0f} MB kept for backward"
        factory = "benchmarks.spark:training_step"
        variants.append(Variant(name, factory, arguments, dtype, config.device, config.threads))
    case = f"{which['model']} {which['part']}, batch {which['batch']}, {config.size} px, {config.threads} threads"
    rows = race(case, variants, config.turns)
    for row in rows:
        apart = abs(row["value"] - rows[0]["value"]) / abs(rows[0]["value"])
        if apart > _SPREAD[row["dtype"]]:
            raise InputError(f"{case}: {row['variant']} computes something else, {apart:.1e} apart")
    return rows
