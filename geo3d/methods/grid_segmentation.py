"""Naming the class of every voxel of radiance grids: NeRF-MAE's other downstream task (section 4.3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.finetuning import Finetuning, FinetuningConfig
from geo3d.methods.grids import GridSampleConfig, batch_of_grids, draw_grid
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.metrics import IGNORED, accuracy
from geo3d.models import create_model, family_of
from geo3d.models.grid_encoder import GridInput, fill_up
from geo3d.models.nerf_mae_downstream import (
    NeRFMAESemantic,
    labelled_cross_entropy,
    published_cross_entropy,
)
from geo3d.samples.grids import LabelledGrids
from geo3d.viz.grids import label_slice, slice_of
from geo3d.viz.sheet import captioned_sheet


@dataclass(frozen=True)
class GridSegmentationConfig(GridSampleConfig, FinetuningConfig):
    """How a network of semantic voxels is trained on radiance grids."""

    model: str = "nerf_mae_semantic_tiny"
    """Network, one of `geo3d.list_models("nerf_mae_semantic*")`."""
    published_loss: bool = False
    """As published: empty voxels are a class of their own, the first, and what grids are filled up with counts as
    voxels of that class of which the network knows nothing. Off: only voxels that have a class count."""

    def __post_init__(self) -> None:
        GridSampleConfig.__post_init__(self)
        FinetuningConfig.__post_init__(self)


class GridSegmentationSamples(SourceSamples[LabelledGrids]):
    """Grids turned, mirrored and cut, with the classes of their voxels.

    Args:
        source: where grids come from.
        config: of the method.
    """

    def __init__(self, source: LabelledGrids, config: GridSegmentationConfig) -> None:
        super().__init__(source)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A grid: ``values`` (4, X, Y, Z), ``labels`` (X, Y, Z) int64, -1 where there is none."""
        grid = draw_grid(self.source.grid(index), self.config, rng)
        return {"values": grid.values, "labels": grid.labels}


class GridSegmentation(Finetuning):
    """Semantic segmentation of the voxels of radiance grids.

    Args:
        config: task and network.
        classes: names of the classes, in the order of the labels.
        generator: draws the initial weights.

    Raises:
        InputError: a network that names no classes.
    """

    name = "segment_grids"
    source = LabelledGrids

    def __init__(
        self, config: GridSegmentationConfig, classes: tuple[str, ...], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        if (family := family_of(config.model).name) != NeRFMAESemantic.family:
            raise InputError(
                f"model must name classes of voxels, such as nerf_mae_semantic_tiny; {config.model} is of {family}"
            )
        # as published, class 0 is that of empty voxels
        self._first = int(config.published_loss)
        named = ("empty",) * self._first + classes
        self.network: NeRFMAESemantic = create_model(config.model, num_classes=len(named), generator=generator)
        self.network.classes = named

    def samples(self, source: LabelledGrids) -> GridSegmentationSamples:
        """The training items of a set of labelled scenes."""
        return GridSegmentationSamples(source, self.config)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch: ``values``, ``sizes`` and ``labels`` (B, X, Y, Z)."""
        batch = batch_of_grids([sample["values"] for sample in samples], self.network.side_multiple)
        sides = tuple(batch["values"].shape[2:])
        return batch | {"labels": torch.stack([fill_up(sample["labels"], sides, IGNORED) for sample in samples])}

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Cross-entropy; paths are dropped by torch's global generator."""
        inputs, labels = GridInput(batch["values"], batch["sizes"]), batch["labels"]
        logits = self.network(inputs)
        if self.config.published_loss:
            loss = published_cross_entropy(logits, labels + 1, inputs.valid)
        else:
            loss = labelled_cross_entropy(logits, labels)
        predicted = self.named(logits)
        return MethodOutput(
            {"cross_entropy": loss}, {"accuracy": accuracy(labels, predicted)}, {"predicted": predicted}
        )

    def named(self, logits: Tensor) -> Tensor:
        """(B, X, Y, Z) the best class of the data of logits (B, num_classes, X, Y, Z); never that of empty voxels."""
        return logits[:, self._first :].argmax(1)

    def predict(self, values: Tensor) -> Tensor:
        """(X, Y, Z) class of each voxel of a grid (4, X, Y, Z)."""
        return self.named(self.network.predict(values)[0][None])[0]

    def model_names(self) -> tuple[str, ...]:
        """The authors' files that it may start from: networks of semantic voxels, and pre-trained ones."""
        return (NeRFMAESemantic.family, "nerf_mae")

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """A slice of the first grid: its colours, its labels, and those of the network."""
        values, labels = batch["values"][0].cpu(), batch["labels"][0].cpu()
        return draw_classes(values, labels, output.extras["predicted"][0].cpu(), len(self.classes))


def draw_classes(values: Tensor, labels: Tensor, predicted: Tensor, classes: int) -> np.ndarray:
    """A slice across y of a grid: its colours, its labels, and those of a network where there are labels.

    Args:
        values: (4, X, Y, Z).
        labels, predicted: (X, Y, Z) int64, -1 where there is none.
        classes: how many there are.
    """
    counts = (labels != IGNORED).sum((0, 2))
    layer = int(counts.argmax())
    shown = torch.where(labels == IGNORED, IGNORED, predicted)
    parts = [slice_of(values, 1, layer), *(label_slice(part, classes, 1, layer) for part in (labels, shown))]
    return captioned_sheet(np.stack(parts)[None], ("colours", "labels", "predicted"))


__all__ = ["GridSegmentation", "GridSegmentationConfig", "GridSegmentationSamples", "draw_classes"]
