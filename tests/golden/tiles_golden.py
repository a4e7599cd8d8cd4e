"""Golden cases of tiled prediction: a stand-in for the network that the case describes, blended by confidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import GoldenCase
from torch import Tensor

from geo3d.checkpoints.croco_downstream import tiles_from_published
from geo3d.inference.tiling import tiled_loss, tiled_prediction, tiles_of
from geo3d.models.croco_downstream import TileConfidence
from geo3d.nn.laplace import CriterionConfig

# Run in float64, so that what is stored as float32 is left: of the largest value 6e-8 at most.
RELATIVE = 2e-7


def stand_in(channels: int):
    """The network of the cases, as their ``stub_model`` says."""

    def predict(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        height, width = a.shape[2:]
        x = (torch.arange(width, dtype=a.dtype) / width).view(1, 1, -1)
        y = (torch.arange(height, dtype=a.dtype) / height).view(1, -1, 1)
        values = [3 * a[:, 0] - 2 * b[:, 1] + 0.5 * x, a[:, 1] * b[:, 0] + y][:channels]
        confidence = 4 * b[:, 2] + 6 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) * (1 + a[:, 2])
        return torch.stack(values, 1), confidence

    return predict


def check_tiled_prediction(case: GoldenCase, folder: Path) -> None:
    """Each pair of images of the case: blended values and confidences, and the loss over tiles."""
    for number, arguments in enumerate(case.meta["arguments"]):
        t = {k.split(".", 1)[1]: v.double() for k, v in case.tensors.items() if k.startswith(f"{number}.")}
        predict, crop = stand_in(arguments["channels"]), tuple(arguments["crop"])
        weigh = TileConfidence(**tiles_from_published(arguments["conf_mode"], case.path)).weight
        found = tiled_prediction(predict, t["img1"], t["img2"], crop, weigh, arguments["overlap"])
        for name, value in (("pred", found.values), ("conf", found.confidence)):
            assert value.shape == t[name].shape, (number, name)
            error = (value - t[name]).abs().max() / t[name].abs().max()
            assert error < RELATIVE, f"{number}.{name}: {error:.1e}"
        if not arguments["upscaled"]:
            tiles = tiles_of(tuple(t["img1"].shape[2:]), crop, arguments["overlap"])
            assert len(tiles) == arguments["tiles"]
        if "tiled_loss" in t:
            made = CriterionConfig("bounded2").build().loss
            loss = tiled_loss(predict, made, t["img1"], t["img2"], t["gt"], crop, arguments["overlap"])
            assert loss.item() == pytest.approx(t["tiled_loss"].item(), rel=RELATIVE)
