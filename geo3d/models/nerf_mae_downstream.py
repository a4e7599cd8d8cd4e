"""What NeRF-MAE's encoder is pre-trained for: detection of objects and semantic voxels (section 4 of the paper).

Names of parameters are the published ones: the encoder lies under ``base.``, its pyramid under ``fpn_neck.``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.checkpoints.loading import Stored
from geo3d.checkpoints.nerf_mae_downstream import around_encoder, encoder_of, pyramid_of
from geo3d.errors import InputError
from geo3d.models.encoder import StageInfo, layers_within
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.grid_encoder import CHANNELS, GridEncoder, GridInput
from geo3d.models.nerf_mae import ADDRESS, PAGE, NeRFMAE, NeRFMAEConfig, NeRFMAEEncoderConfig, read_files
from geo3d.nn.anchor_free import AnchorFreeHead, FoundBoxes, HeadOutput, found_boxes
from geo3d.nn.feature_pyramid import FeaturePyramid
from geo3d.nn.swin_volume import PATCH
from geo3d.nn.volume_decoder import VolumeResidual, VolumeUp, draw_convolutions


@dataclass(frozen=True)
class NeRFMAEFPNConfig(NeRFMAEEncoderConfig):
    """Sizes of encoder and pyramid; the defaults are those of the released detectors."""

    pyramid_channels: int = 256
    """Channels of the pyramid's maps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pyramid_channels < 1:
            raise InputError(f"NeRF-MAE: pyramid_channels must be 1 or more, got {self.pyramid_channels}")


@dataclass(frozen=True)
class NeRFMAEDetectorConfig(NeRFMAEFPNConfig):
    """Sizes of a detector; the defaults are those of the released ones."""

    tower_depth: int = 4
    """Convolutions in each of the head's two towers."""
    corners: Literal["location", "bounds"] = "location"
    """From where the head tells the two corners that say how a box is turned: from the location, as published, or from
    where they would lie were it along the axes, which is learnt sooner."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tower_depth < 1:
            raise InputError(f"NeRF-MAE: tower_depth must be 1 or more, got {self.tower_depth}")
        if self.corners not in ("location", "bounds"):
            raise InputError(f"NeRF-MAE: corners must be location or bounds, got {self.corners!r}")


@dataclass(frozen=True)
class NeRFMAESemanticConfig(NeRFMAEEncoderConfig):
    """Sizes of a network of semantic voxels; the defaults are those of the published one for Front3D."""

    num_classes: int = 19
    """Classes that are told apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise InputError(f"NeRF-MAE: num_classes must be 1 or more, got {self.num_classes}")


class _OnEncoder(GridEncoder):
    """A network around the encoder of NeRF-MAE."""

    patch: ClassVar[int] = PATCH
    config: NeRFMAEEncoderConfig

    @property
    def encoder(self) -> NeRFMAE:
        """The encoder within."""
        return self.base

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Those of the encoder within."""
        place = next(name for name, module in self.named_modules() if module is self.encoder)
        return layers_within(f"{place}.", self.encoder.layer_prefixes())

    @property
    def side_multiple(self) -> int:
        """As the encoder has it."""
        return self.encoder.side_multiple

    @property
    def resolution(self) -> int:
        """Side of the cube to which grids are filled up; 0 for none."""
        return self.config.resolution


def _bare(config: NeRFMAEEncoderConfig) -> NeRFMAEConfig:
    """The config of the encoder of a network alone."""
    return NeRFMAEConfig(**{f.name: getattr(config, f.name) for f in fields(NeRFMAEEncoderConfig)}, decoder=False)


class NeRFMAEFPN(_OnEncoder):
    """Encoder and feature pyramid, whose maps all have the same channels.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "nerf_mae_fpn"
    decoder_prefixes = ("fpn_neck.",)

    def __init__(self, config: NeRFMAEFPNConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or NeRFMAEFPNConfig()
        self.base = NeRFMAE(_bare(config), generator)
        self.fpn_neck = FeaturePyramid(config.channels, config.pyramid_channels)
        draw_convolutions(self.fpn_neck, generator)

    @property
    def feature_info(self) -> list[StageInfo]:
        """The four maps of the pyramid."""
        channels = self.config.pyramid_channels
        return [StageInfo(f"level{n}", channels, stage.stride) for n, stage in enumerate(self.base.feature_info)]

    def features(self, inputs: GridInput, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Maps of the pyramid (B, pyramid_channels, x, y, z) of strides 4, 8, 16 and 32, sides rounded up.

        Args:
            inputs: of :meth:`prepare`; sides are multiples of 4.
            layers: which, all when not given.
        """
        numbers = self.stage_numbers(layers)
        maps = self.fpn_neck(self.base.features(inputs))
        return [maps[n] for n in numbers]

    def forward(self, inputs: GridInput) -> list[Tensor]:
        """As :meth:`features`."""
        return self.features(inputs)


class NeRFMAEDetector(_OnEncoder):
    """Encoder, pyramid and an anchor-free head that finds objects, as boxes with yaw (section 4.2).

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "nerf_mae_detector"
    task = "detect"
    decoder_prefixes = ("backbone.fpn_neck.", "head.")

    def __init__(self, config: NeRFMAEDetectorConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or NeRFMAEDetectorConfig()
        self.backbone = NeRFMAEFPN(config, generator)
        self.head = AnchorFreeHead(
            config.pyramid_channels, config.tower_depth, len(config.channels), config.corners == "bounds"
        )
        self.head.reset_parameters(generator)

    @property
    def encoder(self) -> NeRFMAE:
        """The encoder within."""
        return self.backbone.base

    @property
    def feature_info(self) -> list[StageInfo]:
        """The four maps of the pyramid."""
        return self.backbone.feature_info

    def features(self, inputs: GridInput, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """As :meth:`NeRFMAEFPN.features`."""
        self.require_grids(inputs)
        return self.backbone.features(inputs, layers)

    def forward(self, inputs: GridInput) -> HeadOutput:
        """What the head says at every location of every map."""
        return self.head(self.features(inputs), [stage.stride for stage in self.feature_info])

    @torch.no_grad()
    def detect(self, grids: Any, before: int = 2500, after: int = 2500, threshold: float = 0.3) -> list[FoundBoxes]:
        """Objects in grids, best first: boxes in voxels of each grid, and scores.

        Args:
            grids: whatever :meth:`prepare` takes, or what it made.
            before, after, threshold: as :func:`geo3d.nn.anchor_free.found_boxes` takes them.

        Raises:
            InputError: something that is no grid.
        """
        inputs = grids if isinstance(grids, GridInput) else self.prepare(grids)
        return found_boxes(self(inputs), inputs.sizes, before, after, threshold)


class NeRFMAESemantic(_OnEncoder):
    """Encoder and skip decoder that name the class of every voxel (section 4.3).

    The decoder's first three stages are those of pre-training; the last one also reads the voxels themselves.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "nerf_mae_semantic"
    task = "segment"
    decoder_prefixes = ("base.decoder", "encoder1.", "decoder1.", "sem_out.")

    def __init__(self, config: NeRFMAESemanticConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or NeRFMAESemanticConfig()
        first, second, third, last = config.channels
        half = first // 2
        self.base = NeRFMAE(_bare(config), generator)
        self.base.decoder4 = VolumeUp(last, third)
        self.base.decoder3 = VolumeUp(third, second)
        self.base.decoder2 = VolumeUp(second, first)
        self.encoder1 = nn.ModuleDict({"layer": VolumeResidual(CHANNELS, half)})
        self.decoder1 = VolumeUp(first, half, PATCH)
        self.sem_out = nn.ModuleDict({"conv": nn.Conv3d(half, config.num_classes, 1)})
        for name, module in self.named_modules():
            if name.startswith(self.decoder_prefixes) and isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                draw_convolutions(module, generator)

    @property
    def feature_info(self) -> list[StageInfo]:
        """The four stages of the encoder."""
        return self.base.feature_info

    def features(self, inputs: GridInput, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Maps of the encoder's stages, as :meth:`geo3d.models.nerf_mae.NeRFMAE.features` has them."""
        self.require_grids(inputs)
        return self.base.features(inputs, layers)

    def decode(self, maps: Sequence[Tensor], values: Tensor) -> list[Tensor]:
        """Maps (B, C, x, y, z) of the decoder.

        Args:
            maps: of :meth:`features`, of grids whose sides are multiples of 32.
            values: (B, 4, X, Y, Z) the grids.

        Returns:
            Of ``encoder1``, ``decoder4``, ``decoder3``, ``decoder2`` and ``decoder1``: strides 1, 16, 8, 4 and 1.
        """
        fine = self.encoder1["layer"](values)
        decoded = [fine]
        x = maps[-1]
        for decoder, skip in (
            (self.base.decoder4, maps[2]),
            (self.base.decoder3, maps[1]),
            (self.base.decoder2, maps[0]),
            (self.decoder1, fine),
        ):
            x = decoder(x, skip)
            decoded.append(x)
        return decoded

    def forward(self, inputs: GridInput) -> Tensor:
        """(B, num_classes, X, Y, Z) logits of every voxel, what grids were filled up with among them.

        Raises:
            InputError: sides that the decoder does not take.
        """
        maps = self.features(inputs)
        if any(side % self.side_multiple for side in inputs.sides):
            raise InputError(
                f"NeRF-MAE: the decoder takes sides that are multiples of {self.side_multiple}, got {inputs.sides}; "
                "prepare fills them up"
            )
        values = inputs.values.to(self.encoder1["layer"].conv1.weight.dtype)
        return self.sem_out["conv"](self.decode(maps, values)[-1])

    @torch.no_grad()
    def predict(self, grids: Any) -> list[Tensor]:
        """Logits (num_classes, X, Y, Z) of the voxels of each grid, in its own sides.

        Args:
            grids: whatever :meth:`prepare` takes, or what it made.

        Raises:
            InputError: something that is no grid.
        """
        inputs = grids if isinstance(grids, GridInput) else self.prepare(grids)
        sizes = inputs.sizes.tolist()
        return [logits[:, :x, :y, :z] for logits, (x, y, z) in zip(self(inputs), sizes, strict=True)]


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the voxels that have a class.

    Args:
        logits: (B, classes, X, Y, Z).
        labels: (B, X, Y, Z) int64, -1 where there is none.

    Returns:
        A scalar; 0 where no voxel has a class.
    """
    count = (labels >= 0).sum().clamp_min(1)
    return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum") / count


def published_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """The published loss, which counts all voxels: those that are masked out as uniform logits of class 0.

    Args:
        logits: (B, classes, X, Y, Z); class 0 stands for empty voxels.
        labels: (B, X, Y, Z) int64 from 0.
        mask: (B, X, Y, Z) bool, voxels that are not masked out: those of the grids, not what these were filled up with.
        weight: (classes,); the mean is then weighted.
    """
    shown = logits.to(torch.promote_types(logits.dtype, torch.float32)) * mask.unsqueeze(1)
    return F.cross_entropy(shown, labels * mask, weight=None if weight is None else weight.to(shown.dtype))


# Registration

_TINY = {"embed_dim": 48, "depths": (2, 2, 4, 2), "heads": (3, 6, 12, 24), "drop_path_rate": 0.0}
_SIZES = ("embed_dim", "depths", "heads", "mlp_ratio")
_FREE = ("drop_path_rate", "resolution")
_FINE_TUNED = ("front3d_obb_finetuned.pt", "scannet_obb_finetuned.pt")


def _declared(
    network: type[_OnEncoder],
    title: str,
    config: type,
    tiny: dict[str, Any],
    files: tuple[str, ...] = (),
    parts: Mapping[str, Callable[[Stored], Stored]] | None = None,
    unstated: tuple[str, ...] = (),
) -> Family:
    name = network.family
    own = tuple(f.name for f in fields(config) if f.name not in {g.name for g in fields(NeRFMAEEncoderConfig)})
    return Family(
        name=name,
        title=title,
        published="nerf_mae",
        network=network,
        config=config,
        presets={name: config(), f"{name}_tiny": config(**_TINY, **tiny)},
        read=read_files,
        named=(*_SIZES, *own),
        free=_FREE,
        unstated=unstated,
        of_decoder=own,
        parts={"nerf_mae": encoder_of} | dict(parts or {}),
        wholes={"nerf_mae": partial(around_encoder, family=name)},
        files=tuple(ReleasedFile(file, (name,), "detection", 314, f"{ADDRESS}{file}") for file in files),
        page=PAGE if files else "",
    )


FPN_FAMILY = _declared(NeRFMAEFPN, "NeRF-MAE's pyramid", NeRFMAEFPNConfig, {"pyramid_channels": 64})
DETECTOR_FAMILY = _declared(
    NeRFMAEDetector,
    "NeRF-MAE's detector",
    NeRFMAEDetectorConfig,
    {"pyramid_channels": 64, "tower_depth": 2, "corners": "bounds"},
    files=_FINE_TUNED,
    parts={"nerf_mae_fpn": pyramid_of},
    unstated=("corners",),
)
SEMANTIC_FAMILY = _declared(NeRFMAESemantic, "NeRF-MAE's semantic network", NeRFMAESemanticConfig, {})

__all__ = [
    "DETECTOR_FAMILY",
    "FPN_FAMILY",
    "SEMANTIC_FAMILY",
    "NeRFMAEDetector",
    "NeRFMAEDetectorConfig",
    "NeRFMAEFPN",
    "NeRFMAEFPNConfig",
    "NeRFMAESemantic",
    "NeRFMAESemanticConfig",
    "labelled_cross_entropy",
    "published_cross_entropy",
]
