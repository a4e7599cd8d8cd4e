"""Stereo, optical flow and depth (CroCo v2, section 4): networks that predict a value and its error at every pixel."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_image_size, check_range, check_share
from geo3d.methods.finetuning import Finetuning, FinetuningConfig
from geo3d.methods.images import color_jitter, decoding, resized_window
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.metrics import depth_errors, flow_errors, outliers, stereo_errors
from geo3d.models import create_model, family_of
from geo3d.models.croco_downstream import CroCoDownstream, DenseOutput
from geo3d.nn.colors import normalise
from geo3d.samples.dense import DenseItem, FlowPairs, StereoPairs
from geo3d.samples.views import DepthViews
from geo3d.viz.dense import coloured, flow_colours
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS = 4


@dataclass(frozen=True)
class DenseConfig(FinetuningConfig):
    """How a dense network is trained on images."""

    model: str
    """Network, one of `geo3d.list_models("croco_stereo*")`, of `croco_flow*` or of `croco_depth*`."""
    image_size: tuple[int, int]
    """Height and width of the crops, pixels; multiples of the network's patch."""
    resized: int | None = None
    """Shorter side of an image before the crop, pixels. None: images are cropped as they are."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Images are enlarged by a random factor between these before the crop; disparity and flow grow with them."""
    color_jitter: float = 0.4
    """Brightness, contrast and saturation vary by factors of 1 +- this."""
    asymmetric: float = 0.2
    """Share of the pairs whose images are jittered each on its own; of the others both are jittered alike."""
    flip: float = 0.1
    """Share of the samples that are mirrored: stereo top to bottom, depth left to right, flow one or the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image_size(self)
        check_at_least(self, 1, "resized")
        check_range(self, "scale")
        check_share(self, "asymmetric", "flip")
        if not 0 <= self.color_jitter < 1:
            raise InputError(f"color_jitter must lie in [0, 1), got {self.color_jitter}")


class DenseSource(Protocol):
    """A source of images with something known at their pixels."""

    def dense(self, index: int) -> DenseItem:
        """An item."""
        ...


class DenseSamples(SourceSamples):
    """Images cropped, jittered and mirrored, and what is known of the first.

    Args:
        source: where items come from.
        config: of the method.
        mirrors: axes of an image, 0 or 1, along which an item may be mirrored.
        units: of the target's channels: the axis of an image (1 for x) whose pixels one counts; None: metres.
        augment: whether the crops are jittered, scaled and mirrored; their place is drawn anyway.
    """

    def __init__(
        self,
        source: DenseSource,
        config: DenseConfig,
        mirrors: tuple[int, ...],
        units: tuple[int | None, ...],
        augment: bool = True,
    ) -> None:
        super().__init__(source)
        self.config, self.mirrors, self.units, self.augment = config, mirrors, units, augment

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """``first``, and ``second`` of a pair, (H, W, 3) uint8; ``target`` (C, H, W) float32, NaN where unknown."""
        config, item = self.config, self.source.dense(index)
        width, height = item.images[0].size
        least = max(config.image_size[0] / height, config.image_size[1] / width)
        usual = max(least, config.resized / min(width, height) if config.resized else 1.0)
        zoom = max(least, usual * rng.uniform(*config.scale)) if self.augment else usual
        full = max(config.image_size[1], round(width * zoom)), max(config.image_size[0], round(height * zoom))
        corner = tuple(int(rng.integers(side - part + 1)) for side, part in zip(full, config.image_size[::-1]))
        with decoding(self.describe, index):
            crops = [resized_window(image, full, corner, config.image_size) for image in item.images]
        scale = full[1] / height, full[0] / width
        target = item.at(_places(corner, config.image_size, scale))
        # Enlarged further than others, what a camera sees seems nearer: so do its depths become.
        factors = [usual / zoom if axis is None else scale[axis] for axis in self.units]
        target = target * np.array(factors, dtype=np.float32)
        if self.augment:
            seeds = rng.integers(2**32, size=len(crops))
            alike = rng.random() >= config.asymmetric
            seeds = [seeds[0]] * len(crops) if alike else seeds
            crops = [color_jitter(c, config.color_jitter, np.random.default_rng(s)) for c, s in zip(crops, seeds)]
        images = [np.asarray(crop) for crop in crops]
        if self.augment and rng.random() < config.flip:
            axis = int(rng.choice(self.mirrors))
            images, target = [np.flip(image, axis) for image in images], np.flip(target, axis)
            target = target * np.array([-1 if unit == axis else 1 for unit in self.units])
        named = dict(zip(("first", "second"), (torch.from_numpy(image.copy()) for image in images)))
        return named | {"target": torch.from_numpy(np.moveaxis(target, -1, 0).astype(np.float32))}


def _places(corner: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """(H, W, 2) places (x, y) in an image of the pixels of a window of it, resized by factors down and across."""
    (left, top), (height, width), (down, across) = corner, size, scale
    x = (left + np.arange(width) + 0.5) / across - 0.5
    y = (top + np.arange(height) + 0.5) / down - 0.5
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1)


class DensePrediction(Finetuning):
    """A downstream network of CroCo, trained by its own criterion. Subclasses say what is predicted, and its figures.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: a network of another task, or a crop that its patch does not divide.
    """

    #: Images that an item has.
    images: ClassVar[int] = 2
    #: Axes along which an item may be mirrored, and units of the channels; see :class:`DenseSamples`.
    mirrors: ClassVar[tuple[int, ...]]
    units: ClassVar[tuple[int | None, ...]]

    def __init__(self, config: DenseConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        if (family := family_of(config.model).name) != CroCoDownstream.family:
            raise InputError(
                f"model must predict {self.name}, such as croco_{self.name}_tiny; {config.model} is of {family}"
            )
        sizes = {"image_size": config.image_size, "crop": config.image_size, "resized": config.resized}
        self.network: CroCoDownstream = create_model(config.model, **sizes, generator=generator)
        made = self.network.config
        if (made.task, made.views) != (self.name, self.images):
            told = f"{config.model} predicts {made.task} of {made.views} image(s)"
            raise InputError(f"model must predict {self.name} of {self.images} image(s); {told}")
        self.criterion = made.criterion.build()

    def samples(self, source: DenseSource) -> DenseSamples:
        """The training items of a source."""
        return DenseSamples(source, self.config, self.mirrors, self.units)

    def measured_samples(self, source: DenseSource) -> DenseSamples:
        """Items of a source as they are, but cropped."""
        return DenseSamples(source, self.config, self.mirrors, self.units, augment=False)

    def predict(self, batch: dict[str, Any]) -> DenseOutput:
        """The network's output for a batch of drawn items."""
        return self.network(*(normalise(batch[name]) for name in ("first", "second")[: self.images]))

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The criterion's loss on a batch; nothing is drawn here."""
        output, target = self.predict(batch), batch["target"]
        extras = {"values": output.values.detach()}
        return MethodOutput({"loss": self.criterion.loss(output, target)}, self.logged(output.values, target), extras)

    @torch.no_grad()
    def logged(self, values: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Named scalars of a batch for the log."""
        known = target.isfinite().all(1, keepdim=True)
        error = torch.where(known, values - target, 0.0).square().sum(1, keepdim=True).sqrt()
        return {"error": error.sum() / known.sum().clamp_min(1)}

    @classmethod
    @abstractmethod
    def errors(cls, values: Tensor, target: Tensor) -> dict[str, float]:
        """Figures of predictions (B, C, H, W) beside the truth, not finite where unknown; some of it must be known."""

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Rows of: first image, what is true of it, what is predicted, and how far that is off."""
        rows = []
        for number in range(min(_PICTURE_ROWS, len(batch["target"]))):
            truth, values = (part[number].float().cpu() for part in (batch["target"], output.extras["values"]))
            rows.append([batch["first"][number].cpu().numpy(), *draw_dense(values.numpy(), truth.numpy())])
        return captioned_sheet(np.array(rows), ("first image", self.name, "predicted", "error"))


def draw_dense(values: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of the truth (C, H, W), of predicted values, and of the length of their difference.

    Truth and prediction are drawn alike: from the 2nd to the 98th percentile of the truth, flow up to the latter's
    length. Errors go from none to a quarter of the largest length of these.
    """
    length = np.linalg.norm(truth, axis=0) if len(truth) > 1 else truth[0]
    known = length[np.isfinite(length)]
    low, high = np.quantile(known, [0.02, 0.98]) if len(known) else (0.0, 1.0)
    error = np.linalg.norm(values - truth, axis=0)
    if len(truth) > 1:
        drawn = [flow_colours(np.moveaxis(part, 0, -1), high) for part in (truth, values)]
    else:
        drawn = [coloured(part[0], low, high) for part in (truth, values)]
    return [*drawn, coloured(error, 0.0, high / 4)]


@dataclass(frozen=True)
class StereoConfig(DenseConfig):
    """How a network of stereo is trained."""

    model: str = "croco_stereo_tiny"
    """Network, one of `geo3d.list_models("croco_stereo*")`."""
    image_size: tuple[int, int] = (64, 128)
    """Height and width of the crops, pixels; multiples of the network's patch."""


class StereoMatching(DensePrediction):
    """Disparity of the left image of a rectified pair."""

    name = "stereo"
    source = StereoPairs
    mirrors, units = (0,), (1,)

    @classmethod
    def errors(cls, values: Tensor, target: Tensor) -> dict[str, float]:
        """``epe``, pixels; ``bad1``, ``bad2`` and KITTI's ``d1``, percent of the pixels."""
        found = stereo_errors(values, target, (1.0, 2.0))
        named = {"epe": found["average_error"], "bad1": found["bad@1.0"], "bad2": found["bad@2.0"]}
        return named | {"d1": outliers(values, target)}


@dataclass(frozen=True)
class FlowConfig(DenseConfig):
    """How a network of optical flow is trained."""

    model: str = "croco_flow_tiny"
    """Network, one of `geo3d.list_models("croco_flow*")`."""
    image_size: tuple[int, int] = (64, 96)
    """Height and width of the crops, pixels; multiples of the network's patch."""


class OpticalFlow(DensePrediction):
    """Optical flow from the first image to the second."""

    name = "flow"
    source = FlowPairs
    mirrors, units = (0, 1), (1, 0)

    @classmethod
    def errors(cls, values: Tensor, target: Tensor) -> dict[str, float]:
        """``epe``, pixels; ``bad1`` and KITTI's ``f1``, percent of the pixels."""
        found = flow_errors(values, target, (1.0,))
        return {"epe": found["epe"], "bad1": found["bad@1.0"], "f1": outliers(values, target)}


@dataclass(frozen=True)
class DepthConfig(DenseConfig):
    """How a network of depth is trained."""

    model: str = "croco_depth_tiny"
    """Network, one of `geo3d.list_models("croco_depth*")`."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width of the crops, pixels; multiples of the network's patch."""
    resized: int | None = 72
    """Shorter side of an image before the crop, pixels. None: images are cropped as they are. What is true of depth
    goes by the field of view, so that all images should be resized alike."""
    flip: float = 0.5
    """Share of the samples that are mirrored left to right."""


class DepthEstimation(DensePrediction):
    """Depth of a single image."""

    name = "depth"
    source = DepthViews
    images, mirrors, units = 1, (1,), (None,)

    @classmethod
    def errors(cls, values: Tensor, target: Tensor) -> dict[str, float]:
        """``abs_rel``, ``delta1`` (share within a factor of 1.25), ``rmse`` (metres) and ``rmse_log``."""
        return depth_errors(values, target)


__all__ = [
    "DenseConfig",
    "DensePrediction",
    "DenseSamples",
    "DepthConfig",
    "DepthEstimation",
    "FlowConfig",
    "OpticalFlow",
    "StereoConfig",
    "StereoMatching",
    "draw_dense",
]
