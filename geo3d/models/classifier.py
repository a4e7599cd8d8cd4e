"""Networks that name the class of a whole object or image: any encoder, its features pooled, and a linear head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.models.headed import HeadedConfig, HeadedEncoder, HeadedPointEncoder, HeadedVoxelEncoder, declared
from geo3d.models.image_encoder import ImageEncoder
from geo3d.models.point_encoder import POOLINGS, PointInput, PointTokens, pool


@dataclass(frozen=True)
class _ClassifierConfig(HeadedConfig):
    """Sizes that classifiers share."""

    pooling: str = "max+mean"
    """How the features of a stage become one vector: max, mean, or both side by side."""
    dropout: float = 0.0
    """Share of the pooled features that are left out in training, at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {self.dropout:g}")


@dataclass(frozen=True)
class VoxelClassifierConfig(_ClassifierConfig):
    """Sizes of a classifier of voxelised objects."""

    encoder: str = "sparse_resnet_tiny"
    """The encoder, one of `geo3d.list_models()` that reads voxels."""
    kind: ClassVar = "voxels"

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels that the network is trained on."""
        return self.inner().voxel_size


@dataclass(frozen=True)
class CloudClassifierConfig(_ClassifierConfig):
    """Sizes of a classifier of clouds."""

    encoder: str = "i2p_mae_tiny"
    """The encoder, one of `geo3d.list_models()` that reads points."""
    kind: ClassVar = "points"


@dataclass(frozen=True)
class ImageClassifierConfig(_ClassifierConfig):
    """Sizes of a classifier of images."""

    encoder: str = "resnet_tiny"
    """The encoder, one of `geo3d.list_models()` that reads images."""
    image_size: int = 96
    """Side of the square images that it is trained on, pixels."""
    pooling: str = "mean"
    """How the features of the last stage become one vector: max, mean, or both side by side."""
    kind: ClassVar = "image"


class PooledHead(nn.Module):
    """Pooled features of one or more stages, each normalised, side by side, and a linear map of them to classes.

    Args:
        widths: columns of each stage.
        classes: that are told apart.
        dropout: share of the columns that are left out in training.
    """

    def __init__(self, widths: Sequence[int], classes: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(sum(widths), classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """(B, width) of each stage -> (B, classes)."""
        columns = [norm(values) for norm, values in zip(self.norms, pooled, strict=True)]
        return self.classifier(self.dropout(torch.cat(columns, 1)))


class _Classifier(HeadedEncoder):
    """An encoder, pooled features of its stages, and a linear map of these, normalised, to classes."""

    task = "classify"
    #: Whether the last stage's features are read alone, or those of all.
    last_alone: ClassVar[bool] = True

    def __init__(self, config: _ClassifierConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        stages = self._build_encoder(config, generator).feature_info
        ways = len(self.config.pooling.split("+"))
        widths = [ways * stage.channels for stage in (stages[-1:] if self.last_alone else stages)]
        self.head = PooledHead(widths, self.config.num_classes, self.config.dropout)
        self._reset_head(generator)

    @abstractmethod
    def pooled_features(self, inputs: Any) -> list[Tensor]:
        """(B, C) of each stage that is read, of what :meth:`prepare` made."""

    def forward(self, inputs: Any) -> Tensor:
        """What :meth:`prepare` made of objects or images -> (B, num_classes) logits."""
        return self.head(self.pooled_features(inputs))


class VoxelClassifier(_Classifier, HeadedVoxelEncoder):
    """A classifier of voxelised objects.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "voxel_classifier"

    def __init__(self, config: VoxelClassifierConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or VoxelClassifierConfig(), generator)

    def pooled_features(self, inputs: Any) -> list[Tensor]:
        """(B, C) over the voxels of the last stage of each object."""
        stage = self.features(inputs, [-1])[0]
        tokens = PointTokens(stage.coords, stage.feats[stage.topology.order], stage.topology.batch_offsets)
        return [pool(tokens, self.config.pooling)]


class CloudClassifier(_Classifier, HeadedPointEncoder):
    """A classifier of clouds.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "cloud_classifier"
    last_alone = False

    def __init__(self, config: CloudClassifierConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or CloudClassifierConfig(), generator)

    def pooled_features(self, inputs: PointInput) -> list[Tensor]:
        """(B, C) over the tokens of each level of each cloud."""
        return [pool(level, self.config.pooling) for level in self.features(inputs)]


class ImageClassifier(_Classifier, ImageEncoder):
    """A classifier of images.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "image_classifier"

    def __init__(self, config: ImageClassifierConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or ImageClassifierConfig(), generator)
        self.color_scale = self.encoder.color_scale

    @property
    def side_multiple(self) -> int:
        """As the encoder within."""
        return self.encoder.side_multiple

    def pooled_features(self, inputs: Tensor) -> list[Tensor]:
        """(B, C) over the last map of each image."""
        last = self.features(inputs, [-1])[0].flatten(2)
        ways: dict[str, Tensor] = {"max": last.amax(2), "mean": last.mean(2)}
        return [torch.cat([ways[way] for way in self.config.pooling.split("+")], 1)]


VOXEL_FAMILY = declared(VoxelClassifier, "classifier of voxels", VoxelClassifierConfig, ("dropout",))
CLOUD_FAMILY = declared(CloudClassifier, "classifier of clouds", CloudClassifierConfig, ("dropout",))
IMAGE_FAMILY = declared(ImageClassifier, "classifier of images", ImageClassifierConfig, ("dropout", "image_size"))

__all__ = [
    "CLOUD_FAMILY",
    "IMAGE_FAMILY",
    "VOXEL_FAMILY",
    "CloudClassifier",
    "CloudClassifierConfig",
    "ImageClassifier",
    "ImageClassifierConfig",
    "VoxelClassifier",
    "VoxelClassifierConfig",
]
