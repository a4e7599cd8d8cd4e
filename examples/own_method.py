"""Pre-train a method of your own, which colours grey photographs: `python examples/own_method.py --data FOLDER`.

Nothing of it lies in geo3d; docs/recipes.md explains each part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from geo3d.methods import Method, MethodOutput
from geo3d.methods.images import random_crop, to_tensor
from geo3d.recipes import Recipe, RoomsRun, pretrain, register_recipe
from geo3d.samples.images import ImageSet
from geo3d.train import TrainConfig


@dataclass(frozen=True)
class ColouringConfig:
    """How colouring is trained."""

    width: int = 16
    """Channels of the network."""
    size: int = 32
    """Height and width of the crops, pixels."""


class Crops:
    """Images as items; lives in loader workers."""

    def __init__(self, images: ImageSet, size: int) -> None:
        self.images, self.size = images, size
        self.describe = images.describe  # a name by which a person finds an item again

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A crop (size, size, 3) uint8; whatever is random is drawn from ``rng``."""
        return {"image": to_tensor(random_crop(self.images.image(index), (self.size, self.size), self.size, rng))}


class Colouring(Method):
    """Predicts the colours of an image from their mean."""

    name = "colouring"
    source = ImageSet

    def __init__(self, config: ColouringConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Conv2d(1, config.width, 5, padding=2)
        self.head = nn.Conv2d(config.width, 3, 5, padding=2)
        for layer in (self.encoder, self.head):
            nn.init.normal_(layer.weight, std=0.05, generator=generator)

    def samples(self, scenes: ImageSet) -> Crops:
        return Crops(scenes, self.config.size)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        colours = batch["image"].permute(0, 3, 1, 2) / 255
        predicted = self.head(self.encoder(colours.mean(1, keepdim=True)).relu())
        return MethodOutput({"colour": (predicted - colours).square().mean()})

    def model_card(self) -> dict[str, Any]:
        return {"family": "colouring", "prefix": ""}


@dataclass(kw_only=True)
class ColouringRun(RoomsRun):
    """Pre-train by colouring grey photographs."""

    method: ColouringConfig = field(default_factory=ColouringConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, batch_size=16, lr=1e-2, warmup_steps=10))


class ColouringRecipe(Recipe):
    """Everything else is as for the recipes of geo3d."""

    summary = "colour photographs that are seen in grey"
    run = ColouringRun
    presets: ClassVar = {"tiny": ColouringRun}
    method_class = Colouring
    items, groups = "images", "scenes or photographs"


register_recipe("colouring", ColouringRecipe)

if __name__ == "__main__":
    pretrain("colouring", tyro.cli(ColouringRun))
