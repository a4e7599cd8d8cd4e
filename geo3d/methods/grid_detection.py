"""Finding objects in radiance grids: what NeRF-MAE's encoder is fine-tuned for (section 4.2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_positive
from geo3d.methods.finetuning import Finetuning, FinetuningConfig
from geo3d.methods.grids import GridSampleConfig, batch_of_grids, draw_grid
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.models import create_model, family_of
from geo3d.models.grid_encoder import GridInput
from geo3d.models.nerf_mae_downstream import NeRFMAEDetector
from geo3d.nn.anchor_free import HeadOutput, detection_losses, found_boxes
from geo3d.nn.oriented_boxes import box_corners
from geo3d.samples.boxed_grids import BoxedGrids
from geo3d.viz.boxes import boxes_from_above

#: Objects found that a picture shows, at most.
_SHOWN = 20


@dataclass(frozen=True)
class GridDetectionConfig(GridSampleConfig, FinetuningConfig):
    """How a detector is trained on radiance grids."""

    model: str = "nerf_mae_detector_tiny"
    """Network, one of `geo3d.list_models("nerf_mae_detector*")`."""
    radius: float = 1.5
    """Locations tell an object that lie this near to its centre along each axis, in strides of their level."""
    each: bool = True
    """Whether an object that no location lies in is told by the nearest one. As published it is told by none."""
    least_volume: float = 64.0
    """Objects that are smaller, voxels, are left out, of figures too; that is a patch of the network. 0: none are."""
    box_weight: float = 1.0
    """Weight of the boxes' overlap in the loss."""
    bounds_weight: float = 0.3
    """Weight of the error of the boxes' bounds, voxels, in the loss. The published loss is the overlap alone: 0."""
    corner_weight: float = 1.0
    """Weight of the corners that tell the yaw in the loss. The published loss is the overlap alone: 0."""

    def __post_init__(self) -> None:
        GridSampleConfig.__post_init__(self)
        FinetuningConfig.__post_init__(self)
        check_positive(self, "radius")
        check_at_least(self, 0, "box_weight", "bounds_weight", "corner_weight", "least_volume")

    def counted(self, boxes: Tensor) -> Tensor:
        """The boxes (N, 7) of objects that are not too small."""
        return boxes[boxes[:, 3:6].prod(1) >= self.least_volume]


class GridDetectionSamples(SourceSamples[BoxedGrids]):
    """Grids turned, mirrored and cut, with the boxes around their objects.

    Args:
        source: where grids come from.
        config: of the method.
    """

    def __init__(self, source: BoxedGrids, config: GridDetectionConfig) -> None:
        super().__init__(source)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A grid: ``values`` (4, X, Y, Z), ``boxes`` (N, 7) in voxels."""
        grid = draw_grid(self.source.grid(index), self.config, rng)
        return {"values": grid.values, "boxes": self.config.counted(grid.boxes)}


class GridDetection(Finetuning):
    """Detection of objects in radiance grids.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: a network that finds no objects.
    """

    name = "detect"
    source = BoxedGrids

    def __init__(self, config: GridDetectionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        if (family := family_of(config.model).name) != NeRFMAEDetector.family:
            raise InputError(f"model must find objects, such as nerf_mae_detector_tiny; {config.model} is of {family}")
        self.network: NeRFMAEDetector = create_model(config.model, generator=generator)

    def samples(self, source: BoxedGrids) -> GridDetectionSamples:
        """The training items of a set of scenes."""
        return GridDetectionSamples(source, self.config)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch: ``values``, ``sizes``, ``boxes`` (sum N, 7) and ``box_offsets`` (B + 1,)."""
        batch = batch_of_grids([sample["values"] for sample in samples], self.network.side_multiple)
        counts = torch.tensor([0, *(len(sample["boxes"]) for sample in samples)])
        return batch | {"boxes": torch.cat([sample["boxes"] for sample in samples]), "box_offsets": counts.cumsum(0)}

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Losses of :func:`geo3d.nn.anchor_free.detection_losses`; paths are dropped by torch's global generator."""
        output = self.network(GridInput(batch["values"], batch["sizes"]))
        losses = detection_losses(output, batch["sizes"], own_boxes(batch), self.config.radius, self.config.each)
        losses["box"] = self.config.box_weight * losses["box"]
        losses["bounds"] = self.config.bounds_weight * losses["bounds"]
        losses["corners"] = self.config.corner_weight * losses["corners"]
        return MethodOutput(losses, {}, {"output": output})

    def model_names(self) -> tuple[str, ...]:
        """The authors' files that it may start from: detectors, and pre-trained networks."""
        return (NeRFMAEDetector.family, "nerf_mae")

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """The first grid from above with its objects, and with as many of those found, the best first."""
        truth = own_boxes(batch)[0]
        return draw_found(batch["values"][0], batch["sizes"][0], truth, output.extras["output"])


def draw_found(values: Tensor, size: Tensor, truth: Tensor, output: HeadOutput) -> np.ndarray:
    """A grid from above with its objects, and with as many of those that were found in it, the best first.

    Args:
        values: (4, X, Y, Z) as it was filled up.
        size: (3,) its own sides.
        truth: (N, 7) boxes.
        output: of the head, of a batch of which it is the first grid.
    """
    found = found_boxes(output.of(0), size[None], after=min(_SHOWN, max(1, len(truth))))[0].boxes
    x, y, z = size.tolist()
    panels = {"objects": truth, "found": found}
    corners = {caption: box_corners(boxes).detach().cpu().numpy() for caption, boxes in panels.items()}
    return boxes_from_above(values[:, :x, :y, :z].cpu(), corners)


def own_boxes(batch: dict[str, Any]) -> list[Tensor]:
    """Boxes (N, 7) of each grid of a batch."""
    return list(batch["boxes"].split(batch["box_offsets"].diff().tolist()))


__all__ = ["GridDetection", "GridDetectionConfig", "GridDetectionSamples", "draw_found", "own_boxes"]
