"""A model of one's own: a small convolutional encoder of images that geo3d makes, saves, loads and describes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import geo3d
from geo3d.models import Family, StageInfo
from geo3d.models.image_encoder import ImageEncoder


@dataclass(frozen=True)
class PlainConfig:
    """Sizes of a plain convolutional network."""

    channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the stages of stride 2, 4, 8, ..."""

    def __post_init__(self) -> None:
        if min(self.channels, default=0) < 1:
            raise geo3d.InputError(f"Plain: channels must be at least 1 in a stage or more, got {self.channels}")


class Plain(ImageEncoder):
    """Strided convolutions, one after the other."""

    family = "plain"

    def __init__(self, config: PlainConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        widths = zip((3, *config.channels), config.channels)
        self.stages = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in widths)
        for stage in self.stages:
            nn.init.kaiming_normal_(stage.weight, generator=generator)
            nn.init.zeros_(stage.bias)

    @property
    def side_multiple(self) -> int:
        return 2 ** len(self.stages)

    @property
    def feature_info(self) -> list[StageInfo]:
        return [StageInfo(f"stage{n}", width, 2 ** (n + 1)) for n, width in enumerate(self.config.channels)]

    def features(self, inputs: Tensor, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            inputs = stage(inputs).relu()
            maps.append(inputs)
        return [maps[n] for n in self.stage_numbers(layers)]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.features(inputs)[-1]


geo3d.register_family(Family("plain", "Plain", Plain, PlainConfig, {"plain_small": PlainConfig()}))


def main() -> None:
    """Make one, save it, and load it without saying what it is."""
    model = geo3d.create_model("plain_small", channels=(8, 16), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        geo3d.save_model(model, Path(folder) / "plain.safetensors")
        loaded = geo3d.create_model(checkpoint=Path(folder) / "plain.safetensors")
    maps = loaded.features(loaded.prepare(np.zeros((50, 70, 3), np.uint8)))
    print(geo3d.model_info("plain_small"))
    print(f"loaded with channels {loaded.config.channels}; its maps are {[tuple(m.shape) for m in maps]}")


if __name__ == "__main__":
    main()
