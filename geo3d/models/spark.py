"""SparK: masked modelling for convolutional networks (Tian et al., ICLR 2023).

The encoder sees the active cells of an image alone, at every layer; where cells are hidden, learnt tokens fill its
maps of four scales, and a small U-Net decodes them into pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.checkpoints.spark import encoder_of, read_spark, whole_around
from geo3d.config import typed_value
from geo3d.errors import InputError, did_you_mean
from geo3d.models.convnext import ConvNeXt, ConvNeXtConfig
from geo3d.models.encoder import StageInfo, layers_within
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.image_encoder import ImageEncoder, PyramidEncoder
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
        if self.decoder_width < 1 or self.decoder_width % CELL:
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


class SparK(ImageEncoder):
    """The network of SparK (section 3), with the published parameter names.

    Images are (B, 3, H, W), normalised with ImageNet's mean and standard deviation, H and W multiples of 32. Masks are
    (B, 1, H / 32, W / 32) bool, true where a cell is seen.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "spark"
    side_multiple = CELL
    decoder_prefixes = ("dense_decoder.", "densify_", "mask_tokens.")

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

    @property
    def feature_info(self) -> list[StageInfo]:
        """The encoder's stages."""
        return self.sparse_encoder.sp_cnn.feature_info

    def card(self) -> dict[str, Any]:
        """As :meth:`Encoder.card`; it also says of which kind the encoder is."""
        card = super().card()
        return card | {"config": {"encoder_kind": self.config.encoder_kind} | card["config"]}

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Those of the encoder inside."""
        return layers_within("sparse_encoder.sp_cnn.", self.sparse_encoder.sp_cnn.layer_prefixes())

    def features(self, images: Tensor, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """The encoder's maps of whole images, of which no cell is hidden.

        Args:
            images: (B, 3, H, W) normalised, as :meth:`prepare` makes them.
            layers: stages, all when not given.
        """
        self.require_images(images)
        maps = self.encode(images, images.new_ones(len(images), 1, *self.grid(images), dtype=torch.bool))
        return [maps[n] for n in self.stage_numbers(layers)]

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

_PAGE = "https://github.com/keyu-tian/SparK"
_WHOLE = "{}_withdecoder_1kpretrained_spark_style.pth"


def _released(layout: str, bare: Mapping[str, str], whole: Mapping[str, str]) -> tuple[ReleasedFile, ...]:
    """Bare encoders and whole networks that the authors released: model -> what the name of its file begins with."""
    return (
        *(ReleasedFile(layout.format(start), (name,), "pre-trained encoder") for name, start in bare.items()),
        *(ReleasedFile(_WHOLE.format(start), (name, "spark"), "encoder and decoder") for name, start in whole.items()),
    )


_DEPTHS = (50, 101, 152, 200)
_RESNETS = _released(
    "{}_1kpretrained_timm_style.pth",
    {f"resnet{depth}": f"resnet{depth}" for depth in _DEPTHS},
    {f"resnet{depth}": f"res{depth}" for depth in _DEPTHS},
)
_CONVNEXTS = _released(
    "{}_1kpretrained_official_style.pth",
    {"convnext_small": "convnextS", "convnext_base": "convnextB", "convnext_large": "convnextL"},
    {"convnext_small": "cnxS224", "convnext_large": "cnxL384"},
)


class SparKFamily(Family):
    """The whole network around an encoder, which goes by its name; paths are dropped in the encoder."""

    def options(self) -> dict[str, Any]:
        """As :meth:`Family.options`."""
        return super().options() | {"encoder": str | EncoderConfig, "drop_path_rate": float}

    def configure(self, base: SparKConfig, options: Mapping[str, Any]) -> SparKConfig:
        """As :meth:`Family.configure`, with an encoder by name or as a file describes it, and its drop path rate.

        Raises:
            InputError: also where an encoder is not known.
        """
        options = dict(options)
        kind, encoder = options.pop("encoder_kind", None), options.pop("encoder", None)
        rate = options.pop("drop_path_rate", None)
        if kind is not None and not isinstance(encoder, Mapping):
            raise InputError("SparK: unknown option encoder_kind; encoder names a kind and its sizes, such as resnet50")
        if kind is not None:
            family = ENCODER_FAMILIES[typed_value(Literal["resnet", "convnext"], kind, "SparK: encoder_kind")]
            encoder = family.configure(family.config(), encoder)
        elif isinstance(encoder, str):
            if encoder not in ENCODERS:
                raise InputError(
                    f"SparK: unknown encoder {encoder!r}; known: {', '.join(ENCODERS)}{did_you_mean(encoder, ENCODERS)}"
                )
            encoder = ENCODERS[encoder]
        elif encoder is not None:
            encoder = typed_value(EncoderConfig, encoder, "SparK: option encoder")
        if encoder is not None and not _same_sizes(encoder, base.encoder):
            options.setdefault("densify_norm", "bn" if isinstance(encoder, ResNetConfig) else "ln")
            base = replace(base, encoder=encoder)
        elif kind is not None:
            base = replace(base, encoder=encoder)
        if rate is not None:
            value = typed_value(float, rate, "SparK: option drop_path_rate")
            base = replace(base, encoder=replace(base.encoder, drop_path_rate=value))
        return super().configure(base, options)


def _same_sizes(one: EncoderConfig, other: EncoderConfig) -> bool:
    """Whether two encoders are one, but for the rate at which paths are dropped."""
    return replace(one, drop_path_rate=0.0) == replace(other, drop_path_rate=0.0)


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


def _encoder_family(name: str, network: type[PyramidEncoder], config: type, files: tuple[ReleasedFile, ...]) -> Family:
    """The family of a kind of encoder."""
    presets = {preset: sizes for preset, sizes in ENCODERS.items() if isinstance(sizes, config)}
    return Family(
        name,
        title=network.__name__,
        network=network,
        config=config,
        presets=presets,
        read=read_spark,
        published="spark",
        free=("drop_path_rate",),
        files=files,
        licence="MIT",
        page=_PAGE,
    )


RESNET_FAMILY = _encoder_family("resnet", ResNet, ResNetConfig, _RESNETS)
CONVNEXT_FAMILY = _encoder_family("convnext", ConvNeXt, ConvNeXtConfig, _CONVNEXTS)
ENCODER_FAMILIES = {"resnet": RESNET_FAMILY, "convnext": CONVNEXT_FAMILY}
FAMILY = SparKFamily(
    name="spark",
    title="SparK",
    network=SparK,
    config=SparKConfig,
    presets={"spark": SparKConfig(ENCODERS["resnet50"])},
    read=read_spark,
    named=(),
    free=("drop_path_rate",),
    of_decoder=("densify_norm", "decoder_width"),
    parts={"resnet": encoder_of, "convnext": encoder_of},
    wholes={"resnet": whole_around, "convnext": whole_around},
    files=tuple(file for file in (*_RESNETS, *_CONVNEXTS) if "spark" in file.models),
    licence="MIT",
    page=_PAGE,
)

__all__ = ["CELL", "ENCODERS", "FAMILY", "SparK", "SparKConfig", "SparKOutput"]
