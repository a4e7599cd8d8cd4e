"""SparK: masked modelling for convolutional networks (Tian et al., ICLR 2023).

The encoder sees the active cells of an image alone, at every layer; where cells are hidden, learnt tokens fill its
maps of four scales, and a small U-Net decodes them into pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.checkpoints.loading import load_exactly
from geo3d.checkpoints.spark import read_spark_checkpoint
from geo3d.errors import InputError
from geo3d.models.convnext import ConvNeXt, ConvNeXtConfig
from geo3d.models.registry import ModelEntry, register_model
from geo3d.models.resnet import ResNet, ResNetConfig
from geo3d.nn.filled_conv import Fill, FilledConv2d
from geo3d.nn.masked_conversion import Layout, to_sparse
from geo3d.nn.masked_layers import MaskedBatchNorm2d, MaskedChannelNorm
from geo3d.nn.uncompiled import uncompiled
from geo3d.nn.unet_decoder import UNetDecoder

#: Pixels along a side of a cell: the total stride of the encoders.
CELL = 32
_LEVELS = 4
_STD = 0.02
_LN_EPS = 1e-6

EncoderConfig = ResNetConfig | ConvNeXtConfig
_ENCODERS = {"resnet": (ResNet, ResNetConfig), "convnext": (ConvNeXt, ConvNeXtConfig)}


@dataclass(frozen=True)
class SparKConfig:
    """Sizes of a SparK network; the defaults are those of ResNet-50."""

    encoder: EncoderConfig = field(default_factory=ResNetConfig)
    """The encoder's."""
    densify_norm: Literal["bn", "ln", "none"] = "bn"
    """Norm of the encoder's maps before tokens fill them: bn with ResNets, ln with ConvNeXts, as published."""
    decoder_width: int = 768
    """Channels of the decoder at the coarsest scale; halved at each finer one."""

    def __post_init__(self) -> None:
        if self.densify_norm not in ("bn", "ln", "none"):
            raise InputError(f"SparK: densify_norm must be bn, ln or none, got {self.densify_norm!r}")
        if type(self.decoder_width) is not int or self.decoder_width < 1 or self.decoder_width % CELL:
            raise InputError(f"SparK: decoder_width must be a multiple of {CELL}, got {self.decoder_width!r}")

    @property
    def encoder_kind(self) -> str:
        """``resnet`` or ``convnext``."""
        return next(kind for kind, (_, config) in _ENCODERS.items() if isinstance(self.encoder, config))


class SparKOutput(NamedTuple):
    """What a forward pass yields.

    Args:
        reconstruction: (B, 3, H, W) patch-normalised colours.
        densified: decoder inputs (B, C, h, w), coarsest first.
    """

    reconstruction: Tensor
    densified: list[Tensor]


class SparK(nn.Module):
    """The network of SparK (section 3), with the published parameter names.

    Images are (B, 3, H, W), normalised with ImageNet's mean and standard deviation, H and W multiples of 32. Masks are
    (B, 1, H / 32, W / 32) bool, true where a cell is seen.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    kind = "spark"

    def __init__(self, config: SparKConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or SparKConfig()
        network, _ = _ENCODERS[config.encoder_kind]
        self.sparse_encoder = to_sparse(network(config.encoder, generator))
        self.dense_decoder = UNetDecoder(config.decoder_width, CELL.bit_length() - 1)
        widths = config.encoder.channels[::-1]
        self.densify_norms = nn.ModuleList(self._norm(width) for width in widths)
        self.densify_projs = nn.ModuleList(
            _projection(width, config.decoder_width // 2**level, level) for level, width in enumerate(widths)
        )
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, width, 1, 1)) for width in widths)
        self.reset_parameters(generator)

    def _norm(self, channels: int) -> nn.Module:
        kind = self.config.densify_norm
        if kind == "none":
            return nn.Identity()
        norm = MaskedBatchNorm2d(channels) if kind == "bn" else MaskedChannelNorm(channels, eps=_LN_EPS)
        norm.holder = self.sparse_encoder.holder
        return norm

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights of all but the encoder: truncated normal tokens and kernels, zero biases."""
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=_STD, a=-_STD, b=_STD, generator=generator)
        for module in self.densify_projs:
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
                nn.init.zeros_(module.bias)
        self.dense_decoder.reset_parameters(generator)

    def card(self) -> dict[str, Any]:
        """What a file must say beside the weights so that the network can be built again."""
        config = {"encoder_kind": self.config.encoder_kind} | asdict(self.config)
        return {"family": "spark", "kind": self.kind, "config": config}

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of cells of images (B, 3, H, W).

        Raises:
            InputError: not an image batch, or sides that 32 does not divide.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % CELL or images.shape[3] % CELL:
            raise InputError(f"SparK: images must be (B, 3, H, W), H and W multiples of {CELL}, got {images.shape}")
        return images.shape[2] // CELL, images.shape[3] // CELL

    def _check(self, images: Tensor, active: Tensor) -> None:
        if self.grid(images) != tuple(active.shape[-2:]):
            raise InputError(
                f"SparK: images of {self.grid(images)} cells, a mask of {tuple(active.shape[-2:])}; cells are of "
                f"{CELL} pixels"
            )

    def encode(self, images: Tensor, active: Tensor, path: Layout = "auto") -> list[Tensor]:
        """The encoder's maps of strides 4, 8, 16 and 32, zero where cells are hidden.

        Args:
            images: (B, 3, H, W) normalised.
            active: (B, 1, H / 32, W / 32) bool.
            path: see :meth:`geo3d.nn.masked_conversion.SparseEncoder.seeing`.
        """
        self._check(images, active)
        return self.sparse_encoder(images, active, path)

    def densify(self, images: Tensor, active: Tensor, path: Layout = "auto") -> list[Tensor]:
        """The decoder's inputs, coarsest first: normalised maps, tokens where cells are hidden, projected."""
        return self._densify(images, active, path)[0]

    @uncompiled  # layers ask their holder for the cells, which differ from pass to pass
    def _densify(self, images: Tensor, active: Tensor, path: Layout) -> tuple[list[Tensor], bool]:
        """The decoder's inputs, and whether they were made of tiles."""
        self._check(images, active)
        densified = []
        with self.sparse_encoder.seeing(active, path) as cells:
            maps = self.sparse_encoder.maps(images)[::-1]
            for x, norm, token, project in zip(maps, self.densify_norms, self.mask_tokens, self.densify_projs):
                densified.append(project(norm(x), token.flatten(), cells))
        return densified, cells.tiled

    def forward(self, images: Tensor, active: Tensor, path: Layout = "auto") -> SparKOutput:
        """Reconstruct images from their active cells.

        Args:
            images, active, path: see :meth:`encode`. ``dense`` is the published computation, layer after layer; with
                ``tiles`` the decoder too takes the quicker way that it knows for each of its blocks.

        Raises:
            InputError: shapes that do not fit each other; no active cell.
        """
        densified, tiled = self._densify(images, active, path)
        return SparKOutput(self.dense_decoder(densified, plain=not tiled), densified)


def _projection(channels: int, out: int, level: int) -> nn.Module:
    if level == 0:
        return Fill() if channels == out else FilledConv2d(channels, out, 1)
    return FilledConv2d(channels, out, 3, padding=1)


# Registration


def _configure(preset: Any, options: dict[str, Any], what: str, extra: Sequence[str] = ()) -> Any:
    """The preset with the user's options; an unknown option is an error."""
    known = {f.name for f in fields(preset)} | set(extra)
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"{what}: unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return replace(preset, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def _build_encoder(preset: EncoderConfig, generator: torch.Generator | None = None, **options: Any) -> nn.Module:
    network, what = _network_of(preset)
    return network(_configure(preset, options, what), generator)


def _network_of(config: EncoderConfig) -> tuple[type[nn.Module], str]:
    network = next(network for network, kind in _ENCODERS.values() if isinstance(config, kind))
    return network, network.__name__


def _load_encoder(path: Path, preset: EncoderConfig, **options: Any) -> nn.Module:
    """Weights of a bare encoder, or those of the encoder in a file of the whole network."""
    file = read_spark_checkpoint(path).encoder()
    network, what = _network_of(preset)
    if file.kind != network.kind:
        raise InputError(f"{path}: holds a {file.kind}, not a {network.kind}")
    stored = _configure(replace(preset), file.config, what)
    _require_same(path, stored, preset)
    wanted = _configure(stored, options, what)
    _require_only(path, wanted, stored)
    with torch.device("meta"):  # the file brings every tensor: draw none
        model = network(wanted)
    load_exactly(model, file.state, path)
    return model


def _require_same(path: Path, stored: EncoderConfig, preset: EncoderConfig) -> None:
    differing = [
        f"{f.name} is {getattr(stored, f.name)} in the file, {getattr(preset, f.name)} in the model"
        for f in fields(preset)
        if f.name != "drop_path_rate" and getattr(stored, f.name) != getattr(preset, f.name)
    ]
    if differing:
        raise InputError(f"{path}: holds another network than the one named: {'; '.join(differing)}")


def _require_only(path: Path, wanted: Any, stored: Any) -> None:
    if replace(wanted, drop_path_rate=stored.drop_path_rate) != stored:
        raise InputError(f"{path}: of a network with stored weights, only drop_path_rate can be changed")


#: Named encoders, with the rate at which paths were dropped when they were pre-trained.
ENCODERS: dict[str, EncoderConfig] = {
    "resnet50": ResNetConfig((3, 4, 6, 3), drop_path_rate=0.05),
    "resnet101": ResNetConfig((3, 4, 23, 3), drop_path_rate=0.08),
    "resnet152": ResNetConfig((3, 8, 36, 3), drop_path_rate=0.1),
    "resnet200": ResNetConfig((3, 24, 36, 3), drop_path_rate=0.15),
    "resnet_tiny": ResNetConfig((1, 1, 1, 1), width=16),
    "convnext_small": ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768), 0.2),
    "convnext_base": ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024), 0.3),
    "convnext_large": ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536), 0.4),
    "convnext_atto": ConvNeXtConfig((2, 2, 6, 2), (40, 80, 160, 320)),
}


def _spark_config(encoder: str, options: dict[str, Any]) -> SparKConfig:
    """The config of the whole network around a named encoder.

    Raises:
        InputError: an encoder that is not known; an unknown option.
    """
    if encoder not in ENCODERS:
        raise InputError(f"SparK: unknown encoder {encoder!r}; known: {', '.join(ENCODERS)}")
    inside = ENCODERS[encoder]
    if "drop_path_rate" in options:
        inside = replace(inside, drop_path_rate=options["drop_path_rate"])
    preset = SparKConfig(inside, "bn" if isinstance(inside, ResNetConfig) else "ln")
    own = {k: v for k, v in options.items() if k != "drop_path_rate"}
    return _configure(preset, own, "SparK", ("drop_path_rate",))


def _build(encoder: str = "resnet50", generator: torch.Generator | None = None, **options: Any) -> SparK:
    return SparK(_spark_config(encoder, options), generator)


def _load(path: Path, encoder: str | None = None, **options: Any) -> SparK:
    """The whole network that a file holds."""
    file = read_spark_checkpoint(path)
    if file.kind != "spark":
        raise InputError(
            f"{path}: holds a bare {file.kind}, not the whole network; load it as {_names_like(file.kind, file.config)}"
        )
    values = dict(file.config)
    _, kind = _ENCODERS[values.pop("encoder_kind")]
    inside = _configure(kind(), values.pop("encoder"), "SparK")
    if encoder is not None:
        _require_same(path, inside, _spark_config(encoder, {}).encoder)
    unknown = sorted(set(options) - {"drop_path_rate"})
    if unknown:
        raise InputError(f"{path}: of a network with stored weights, only drop_path_rate can be changed, not {unknown}")
    config = _configure(SparKConfig(replace(inside, **options)), values, "SparK")
    with torch.device("meta"):
        model = SparK(config)
    load_exactly(model, file.state, path)
    return model


def _names_like(kind: str, config: dict[str, Any]) -> str:
    """The named encoder of a config, or the kind where it has no name."""
    _, config_class = _ENCODERS[kind]
    wanted = replace(config_class(**config), drop_path_rate=0.0)
    return next((n for n, c in ENCODERS.items() if replace(c, drop_path_rate=0.0) == wanted), kind)


for _name, _preset in ENCODERS.items():
    register_model(_name, ModelEntry(partial(_build_encoder, _preset), partial(_load_encoder, preset=_preset), "spark"))
# Encoder and decoder: the network that the file describes, or that the options describe.
register_model("spark", ModelEntry(_build, _load, "spark"))

__all__ = ["CELL", "ENCODERS", "SparK", "SparKConfig", "SparKOutput"]
