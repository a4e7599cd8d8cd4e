"""What networks for one's own labels share: any encoder of the registry, and a small head of one's own on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from geo3d.checkpoints.loading import Stored
from geo3d.config import to_plain, typed_value
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.models.encoder import Encoder, Kind, StageInfo, layers_within
from geo3d.models.family import Family
from geo3d.models.point_encoder import PointEncoder
from geo3d.models.registry import family_of
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints

_STD = 0.02


@dataclass(frozen=True)
class HeadedConfig:
    """An encoder by its name and sizes, and the classes that are told apart."""

    encoder: str
    """The encoder, one of `geo3d.list_models()`."""
    encoder_options: dict | None = None
    """Fields of its family's config that differ from what its name stands for; None: none do. A network states all."""
    num_classes: int = 20
    """Classes that are told apart."""
    #: What the encoder must read.
    kind: ClassVar[Kind]

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {self.num_classes}")

    def inner(self) -> Any:
        """The config of the encoder.

        Raises:
            InputError: no such encoder, one that reads something else, or sizes that make no sense.
        """
        family = family_of(self.encoder)
        if family.kind != self.kind:
            raise InputError(f"encoder must read {self.kind}; {self.encoder} reads {family.kind}")
        if issubclass(family.config, HeadedConfig) or (family.parts and not family.bare):
            inside = self.encoder_options or {}
            named = inside.get("encoder", "resnet50") if isinstance(inside, Mapping) else "resnet50"
            raise InputError(f"encoder must be one without a head or decoder around it, such as {named}")
        stated = typed_value(dict, self.encoder_options or {}, "encoder_options")
        base = family.presets.get(self.encoder, family.default)
        return family.configure(base, {**stated, **family.bare})

    def resolved(self) -> HeadedConfig:
        """The same with all sizes of the encoder stated, so that equal networks have equal configs."""
        return replace(self, encoder_options=to_plain(self.inner()))


class HeadedFamily(Family):
    """A family of such networks: configs state all sizes of the encoder."""

    def configure(self, base: HeadedConfig, options: Mapping[str, Any]) -> HeadedConfig:
        """As :meth:`Family.configure`, with all sizes of the encoder."""
        return super().configure(base, options).resolved()


class HeadedEncoder(Encoder):
    """An encoder within, as ``encoder``, and a ``head``; as an encoder it is the one within.

    Subclasses build ``head``, and come before the class of their kind among the bases.
    """

    decoder_prefixes = ("head.",)
    config: HeadedConfig
    encoder: Encoder

    def _build_encoder(self, config: HeadedConfig, generator: torch.Generator | None) -> Encoder:
        """Set config and the encoder within, without its decoder; what it brings along all the same is not trained."""
        self.config = config = config.resolved()
        self.encoder = family_of(config.encoder).network(config.inner(), generator)
        for name, parameter in self.encoder.named_parameters():
            if not self.encoder.is_of_encoder(name):
                parameter.requires_grad_(False)
        return self.encoder

    @torch.no_grad()
    def _reset_head(self, generator: torch.Generator | None) -> None:
        """Draw the head's weights: truncated normal matrices, zero biases."""
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def is_of_encoder(self, parameter: str) -> bool:
        """Whether a parameter is the encoder's within, and not of its own decoder."""
        return parameter.startswith("encoder.") and self.encoder.is_of_encoder(parameter.removeprefix("encoder."))

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Those of the encoder within."""
        return layers_within("encoder.", self.encoder.layer_prefixes())

    def rate_factors(self) -> dict[str, float]:
        """Those of the encoder within."""
        return {f"encoder.{name}": factor for name, factor in self.encoder.rate_factors().items()}

    @property
    def feature_info(self) -> list[StageInfo]:
        """The stages of the encoder within."""
        return self.encoder.feature_info

    def features(self, inputs: Any, layers: Sequence[int | str] | None = None) -> list[Any]:
        """Features of the encoder within."""
        return self.encoder.features(inputs, layers)


class HeadedVoxelEncoder(HeadedEncoder, VoxelEncoder):
    """A network around an encoder of voxels, which reads what that one reads."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of the encoder within."""
        return self.encoder.strides

    @property
    def channels(self) -> tuple[int, ...]:
        """Those of the encoder within."""
        return self.encoder.channels

    @property
    def reads(self) -> tuple[str, ...]:
        """What the encoder within reads."""
        return self.encoder.reads

    def inputs(self, cloud: PointCloud, voxel_size: float | None = None) -> Any:
        """As the encoder within."""
        return self.encoder.inputs(cloud, voxel_size)

    def voxel_inputs(self, points: VoxelPoints) -> Any:
        """As the encoder within."""
        return self.encoder.voxel_inputs(points)


class HeadedPointEncoder(HeadedEncoder, PointEncoder):
    """A network around an encoder of points, which reads what that one reads."""

    @property
    def points_read(self) -> int:
        """As the encoder within."""
        return self.encoder.points_read


def encoder_in(stored: Stored) -> Stored:
    """The encoder in what a file holds: that under a head, or within a network of pre-training; else all there is."""
    family = family_of(stored.family)
    if issubclass(family.config, HeadedConfig):
        config = family.configure(family.config(), stored.config)
        inside = {name: value for name, value in stored.state.items() if name.startswith("encoder.")}
        state = {name.removeprefix("encoder."): value for name, value in inside.items()}
        return Stored(state, family_of(config.encoder).name, config.encoder_options, name=config.encoder)
    if not family.bare:
        for name, take in family.parts.items():
            part = take(stored)
            if part.family == name and part.state:
                return part
    return stored


def declared(
    network: type[HeadedEncoder], title: str, config: type[HeadedConfig], free: tuple[str, ...] = ()
) -> Family:
    """The family of such networks.

    Args:
        network: its class.
        title: what people call it.
        config: of its sizes.
        free: fields that weights do not depend on.
    """
    own = tuple(name for name in config.__dataclass_fields__ if name not in ("encoder", "encoder_options", "kind"))
    return HeadedFamily(
        name=network.family,
        title=title,
        network=network,
        config=config,
        presets={network.family: config()},
        named=(),
        free=free,
        follows={"encoder_options": ("encoder",)},
        of_decoder=own,
    )


__all__ = [
    "HeadedConfig",
    "HeadedEncoder",
    "HeadedFamily",
    "HeadedPointEncoder",
    "HeadedVoxelEncoder",
    "declared",
    "encoder_in",
]
