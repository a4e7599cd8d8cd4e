"""Naming the class of whole objects or images with any encoder: training on one's own labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.inference.normals import estimate_normals
from geo3d.methods.checks import check_at_least, check_below_one, check_positive
from geo3d.methods.finetuning import Finetuning, TaskConfig
from geo3d.methods.images import color_jitter, decoding, random_resized_crop, to_tensor
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.methods.objects import ObjectAugmentation
from geo3d.methods.points import random_point_a_voxel
from geo3d.metrics import accuracy
from geo3d.models import Encoder, family_of
from geo3d.models.point_encoder import PointInput
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels
from geo3d.nn.colors import normalise
from geo3d.samples.labelled_objects import LabelledImages, LabelledObjects
from geo3d.samples.objects import to_unit_sphere
from geo3d.samples.packing import pack
from geo3d.viz.points import draw_clouds
from geo3d.viz.sheet import captioned_sheet

if TYPE_CHECKING:
    from typing_extensions import Self

_POINTS, _VOXEL, _GREY = 2048, 0.05, 0.5
#: Things that a picture shows, at most.
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TaskConfig):
    """How an encoder is trained to name the class of objects or images."""

    model: str | None = None
    """Encoder under a small head, or a network that has one for the task, of `geo3d.list_models()`: one of points or
    voxels for objects, one of images for images. None: that of `init`, and i2p_mae_tiny where there is no `init`."""
    points: int | None = None
    """Points that are drawn of an object. None: as many as a network over points reads; 2,048 for one over voxels."""
    voxel_size: float | None = None
    """Edge of a voxel of networks over voxels; objects are scaled to a sphere of radius 1. None: 0.05."""
    augmentation: ObjectAugmentation = field(default_factory=lambda: ObjectAugmentation("z"))
    """How objects are changed at random."""
    image_size: int | None = None
    """Side of the square images that are trained on, pixels. None: 96."""
    crop: float = 0.35
    """Share of an image that a random window takes at least."""
    color_jitter: float = 0.2
    """Strength by which brightness, contrast and saturation of images change; 0: they do not."""
    smoothing: float = 0.1
    """Share of the certainty that the loss spreads over all classes."""
    dropout: float = 0.0
    """Share of the pooled features that are left out in training."""

    task: ClassVar = "classify"
    default_model: ClassVar[str] = "i2p_mae_tiny"
    headed: ClassVar = {"points": "cloud_classifier", "voxels": "voxel_classifier", "image": "image_classifier"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "voxel_size", "crop")
        check_at_least(self, 1, "points")
        check_at_least(self, 32, "image_size")
        check_below_one(self, "smoothing", "dropout", "color_jitter")
        if self.crop > 1:
            raise InputError(f"crop must lie above 0 and up to 1, got {self.crop:g}")

    def inner(self) -> Any:
        """As :meth:`TaskConfig.inner`, with points or voxels as they are chosen here."""
        kind, inner = family_of(self.model).kind, super().inner()
        chosen = {"points": {"points": self.points}, "voxels": {"voxel_size": self.voxel_size or _VOXEL}}.get(kind, {})
        return family_of(self.model).configure(inner, {k: v for k, v in chosen.items() if v is not None})

    def _stated(self, inner: Any) -> Self:
        kind = family_of(self.model).kind
        points = {"points": getattr(inner, "points", None), "voxels": self.points or _POINTS}.get(kind)
        size = inner.voxel_size if kind == "voxels" else self.voxel_size
        side = self.image_size or 96 if kind == "image" else self.image_size
        return replace(super()._stated(inner), points=points, voxel_size=size, image_size=side)


class ObjectSamples(SourceSamples[LabelledObjects]):
    """Objects as clouds in the unit sphere, changed at random.

    Args:
        source: where objects come from.
        config: of the method.
        reads: fields of points that the network reads; what objects lack is filled in.
        kind: of the network: ``points`` or ``voxels``.
    """

    def __init__(self, source: LabelledObjects, config: ClassifyConfig, reads: tuple[str, ...], kind: str) -> None:
        super().__init__(source)
        self.config, self.reads, self.kind = config, reads, kind

    def draw(self, index: int, rng: np.random.Generator, augment: bool = True) -> dict[str, Any]:
        """One object: ``xyz`` (P, 3), ``label`` (1,), and what the network reads; of voxels in units of these."""
        cloud = self.source.cloud(index, rng, self.config.points)
        xyz = to_unit_sphere(cloud.xyz.numpy())
        xyz = torch.from_numpy(self.config.augmentation.apply(xyz, rng) if augment else xyz)
        label = {"label": torch.tensor([self.source.category(index)])}
        if self.kind == "points":
            return {"xyz": xyz} | label
        scaled = (xyz - xyz.amin(0)) / self.config.voxel_size
        rows = random_point_a_voxel(scaled, rng)
        parts = filled(PointCloud(xyz, cloud.colors), self.reads)
        return {"xyz": scaled[rows]} | {name: values[rows] for name, values in parts.items()} | label


class ImageSamples(SourceSamples[LabelledImages]):
    """Images, cropped, mirrored and changed in colour at random.

    Args:
        source: where images come from.
        config: of the method.
    """

    def __init__(self, source: LabelledImages, config: ClassifyConfig) -> None:
        super().__init__(source)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator, augment: bool = True) -> dict[str, Any]:
        """One image: ``image`` (S, S, 3) uint8, and ``label`` (1,)."""
        config, image = self.config, self.source.image(index)
        with decoding(self.describe, index):
            if augment:
                image = random_resized_crop(image, (config.image_size, config.image_size), (config.crop, 1.0), rng)
                image = ImageOps.mirror(image) if rng.random() < 0.5 else image
                image = color_jitter(image, config.color_jitter, rng)
            else:
                image = middle(image, config.image_size)
        return {"image": to_tensor(image), "label": torch.tensor([self.source.category(index)])}


def middle(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of an image, of ``side`` pixels."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def filled(cloud: PointCloud, reads: Sequence[str]) -> dict[str, Tensor]:
    """What a network reads of an object's points beside their place, where it lacks: mid grey, estimated normals."""
    found = {}
    if "colors" in reads:
        found["colors"] = torch.full_like(cloud.xyz, _GREY) if cloud.colors is None else cloud.colors
    if "normals" in reads:
        found["normals"] = estimate_normals(cloud.xyz)
    return found


@torch.no_grad()
def class_logits(network: Encoder, inputs: Sequence[Any], side: int = 96) -> Tensor:
    """Logits (B, classes), on the CPU, of what a classifier is asked of.

    Args:
        network: of the task ``classify``.
        inputs: Pillow images for one of images, else clouds of any size and place.
        side: pixels of the square in the middle of an image that is looked at.

    Raises:
        InputError: a cloud without points.
    """
    if network.kind == "image":
        return network(network.prepare([middle(image, side) for image in inputs])).float().cpu()
    clouds: list[PointCloud] = list(inputs)
    if network.kind == "points":
        return network(network.prepare(clouds)).float().cpu()
    rows = []
    for cloud in clouds:
        if not len(cloud):
            raise InputError("the object holds no point")
        xyz = torch.from_numpy(to_unit_sphere(cloud.xyz.cpu().numpy()))
        points = points_in_voxels(PointCloud(xyz, cloud.colors), network.config.voxel_size)
        colors = None if cloud.colors is None else cloud.colors[points.index]
        parts = filled(PointCloud(xyz[points.index], colors), network.reads)
        points.colors, points.normals = parts.get("colors"), parts.get("normals")
        rows.append(network(network.voxel_inputs(points).to(network.device)))
    return torch.cat(rows).float().cpu()


class Classify(Finetuning):
    """Naming the class of objects or images.

    Args:
        config: task and network.
        classes: names of the classes.
        generator: draws the initial weights.

    Raises:
        InputError: a model that reads neither objects nor images.
    """

    name = "classify"
    source = LabelledObjects
    config: ClassifyConfig

    def __init__(
        self, config: ClassifyConfig, classes: tuple[str, ...], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.classes = config.settle(), classes
        kind = family_of(self.config.model).kind
        head = {"dropout": config.dropout} | ({"image_size": self.config.image_size} if kind == "image" else {})
        self.network = self.config.build(len(classes), generator, **head)
        self.network.classes = classes

    def samples(self, source: LabelledObjects | LabelledImages) -> ObjectSamples | ImageSamples:
        """The training items of a set of labelled objects or images."""
        if self.network.kind == "image":
            return ImageSamples(source, self.config)
        return ObjectSamples(source, self.config, getattr(self.network, "reads", ()), self.network.kind)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch: ``image`` (B, S, S, 3), or clouds packed one after the other; ``label`` (B,)."""
        if "image" in samples[0]:
            return {
                "image": torch.stack([sample["image"] for sample in samples]),
                "label": torch.cat([sample["label"] for sample in samples]),
            }
        return pack(samples)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(B, classes) of a batch."""
        if "image" in batch:
            return self.network(normalise(batch["image"], self.network.color_scale))
        xyz, offsets = batch["xyz"], batch["offsets"]
        if self.network.kind == "points":
            return self.network(PointInput(xyz, offsets))
        points = VoxelPoints(xyz, batch.get("colors"), batch.get("normals"), offsets)
        return self.network(self.network.voxel_inputs(points))

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Cross-entropy; paths and features are dropped by torch's global generator."""
        logits, labels = self.logits(batch), batch["label"]
        smoothing = self.config.smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        predicted = logits.argmax(1)
        return MethodOutput(
            {"cross_entropy": loss}, {"accuracy": accuracy(labels, predicted)}, {"predicted": predicted}
        )

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """The first objects or images, with their class and the network's."""
        labels, predicted = batch["label"].tolist()[:_SHOWN], output.extras["predicted"].tolist()[:_SHOWN]
        captions = [
            f"{self.classes[truth]}" + ("" if truth == found else f", taken for {self.classes[found]}")
            for truth, found in zip(labels, predicted)
        ]
        if "image" in batch:
            return captioned_sheet(batch["image"][None, :_SHOWN].cpu().numpy(), captions)
        parts = batch["xyz"].cpu().split(batch["offsets"].diff().tolist())
        named = {f"{n}: {caption}": _shaded(xyz) for n, (caption, xyz) in enumerate(zip(captions, parts), 1)}
        return draw_clouds(named)


def _shaded(xyz: Tensor) -> PointCloud:
    """A cloud in greys by which way its surface faces, so that its shape is seen."""
    light = F.normalize(torch.tensor([1.0, 2.0, 3.0]), dim=0)
    grey = 0.15 + 0.65 * (estimate_normals(xyz) @ light).abs()
    return PointCloud(xyz, grey.unsqueeze(1).expand(-1, 3))


__all__ = ["Classify", "ClassifyConfig", "ImageSamples", "ObjectSamples", "class_logits", "filled", "middle"]
