"""Naming the class of every point of scenes with any encoder of voxels or points: training on one's own labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from geo3d.geometry import PointCloud
from geo3d.geometry.unit_sphere import to_unit_sphere
from geo3d.methods.checks import check_positive, check_share
from geo3d.methods.finetuning import Finetuning, TaskConfig
from geo3d.methods.segmentation import LabelledCropConfig, SceneSegmentation, SegmentationSamples
from geo3d.metrics import IGNORED
from geo3d.models import family_of
from geo3d.models.point_encoder import PointInput
from geo3d.models.segmenter import PointSegmenterConfig
from geo3d.models.voxel_points import VoxelPoints
from geo3d.random import Stream, stream_generator
from geo3d.samples.labels import label_count
from geo3d.samples.points import LabelledScenes

if TYPE_CHECKING:
    from typing_extensions import Self

_VOXELS = 8_000


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TaskConfig, LabelledCropConfig):
    """How an encoder is trained to name the class of every point of scenes."""

    model: str | None = None
    """Encoder under a small head, or a network that has one for the task, of `geo3d.list_models()`. None: that of
    `init`, and sparse_resnet_tiny where there is no `init`."""
    signals: Literal["XYZ", "XYZ_RGB", "XYZ_NORM", "XYZ_RGB_NORM"] | None = None
    """What the network sees of points beside their place: colours, normals, or both. None: as the model says."""
    voxel_size: float | None = None
    """Edge of a voxel, metres. None: as the model says; of networks over points, 0.05."""
    max_voxels: int | None = None
    """Voxels of a training crop: the nearest ones to a random one. None: 8,000; of networks over points, as many as
    they read."""
    jitter: float = 0.01
    """Standard deviation by which each point is moved along each axis, metres, cut at four of them."""
    color_drop: float = 0.2
    """Probability that a scene loses all its colours."""
    point_labels: float = 1.0
    """Share of the labelled points of each training scene that are learnt from (above 0, up to 1), drawn by the run's
    seed; the others are as if they had no label."""
    width: int = 96
    """Channels of the head, where it is put on an encoder."""

    task: ClassVar = "segment"
    default_model: ClassVar[str] = "sparse_resnet_tiny"
    headed: ClassVar = {"voxels": "voxel_segmenter", "points": "point_segmenter"}

    def __post_init__(self) -> None:
        TaskConfig.__post_init__(self)
        LabelledCropConfig.__post_init__(self)
        check_positive(self, "point_labels")
        check_share(self, "point_labels")

    def inner(self) -> Any:
        """As :meth:`TaskConfig.inner`, with signals and size of voxels as they are chosen here."""
        family, inner = family_of(self.model), super().inner()
        chosen = {"signals": self.signals, "voxel_size": self.voxel_size if family.kind == "voxels" else None}
        return family.configure(inner, {name: value for name, value in chosen.items() if value is not None})

    def _stated(self, inner: Any) -> Self:
        points = family_of(self.model).kind == "points"
        size = inner.voxel_size if not points else self.voxel_size or PointSegmenterConfig.voxel_size
        most = self.max_voxels or (inner.points if points else _VOXELS)
        return replace(super()._stated(inner), voxel_size=size, max_voxels=most)


class SegmentSamples(SegmentationSamples):
    """As :class:`~geo3d.methods.segmentation.SegmentationSamples`, of points of which few may have a label.

    Args:
        source, config, reads: as there.
        seed: of the run, which draws the labels that are kept.
    """

    config: SegmentConfig

    def __init__(self, source: LabelledScenes, config: SegmentConfig, reads: tuple[str, ...], seed: int) -> None:
        super().__init__(source, config, reads)
        self.seed = seed

    def cloud(self, index: int) -> PointCloud:
        """All points of a scene; of those that have a label the chosen ones keep it."""
        cloud = super().cloud(index)
        if self.config.point_labels == 1:
            return cloud
        rows = (cloud.semantic != IGNORED).nonzero()[:, 0]
        rng = stream_generator(self.seed, Stream.FEW_POINTS, int(self.source.items.scene[self.source.row(index)]))
        kept = rng.permutation(len(rows))[: label_count(self.config.point_labels, len(rows))]
        semantic = torch.full_like(cloud.semantic, IGNORED)
        semantic[rows[kept]] = cloud.semantic[rows[kept]]
        return replace(cloud, semantic=semantic)


class Segment(Finetuning, SceneSegmentation):
    """Naming the class of every point of scenes.

    Args:
        config: task and network.
        classes: names of the classes, in the order of the labels.
        generator: draws the initial weights.
        seed: of the run, which draws the labels that are learnt from, where they are few.

    Raises:
        InputError: a model that reads neither voxels nor points.
    """

    name = "segment"
    config: SegmentConfig

    def __init__(
        self,
        config: SegmentConfig,
        classes: tuple[str, ...],
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.classes, self.seed = config.settle(), classes, seed
        head: dict[str, Any] = {"width": config.width}
        if family_of(self.config.model).kind == "points":
            head["voxel_size"] = self.config.voxel_size
        self.network = self.config.build(len(classes), generator, **head)
        self.network.classes = classes

    def samples(self, source: LabelledScenes) -> SegmentSamples:
        """The training items of a set of labelled scenes."""
        return SegmentSamples(source, self.config, self.network.reads, self.seed)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """As :meth:`SceneSegmentation.logits`."""
        xyz, offsets = batch["xyz"], batch["offsets"]
        if self.network.kind == "points":
            return self.network(PointInput(to_unit_sphere(xyz.double(), offsets)[0].float(), offsets))
        points = VoxelPoints(xyz, batch.get("colors"), batch.get("normals"), offsets)
        return self.network(self.network.voxel_inputs(points))


__all__ = ["Segment", "SegmentConfig", "SegmentSamples"]
