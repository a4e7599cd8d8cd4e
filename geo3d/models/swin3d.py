"""Swin3D: a U-Net of window attention over sparse voxels (Yang et al., 2023).

Voxels attend to each other inside regular and shifted windows of an irregular point set; what two voxels' position,
colour and normal differ by enters the attention through learnt tables (contextual relative signal encoding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import mul

import torch
from torch import Tensor, nn

from geo3d.checkpoints.swin3d import read_swin3d
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.geometry.sparse_voxels import SparseVoxels
from geo3d.models.encoder import require_prepared
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints, points_in_voxels, voxels_of
from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.sparse_layers import (
    ConvStem,
    InterpolationUpsample,
    MaxDownsample,
    ResidualStem,
    SubmanifoldConv,
)
from geo3d.nn.voxel_pyramid import Coarsening, Level, build_pyramid
from geo3d.nn.window_attention import SIGNAL_COLUMNS, WindowAttention, WindowBlock, signal_bins

#: Signals by their published name -> those that attention looks at.
SIGNALS = {
    "XYZ": ("xyz",),
    "XYZ_RGB": ("xyz", "rgb"),
    "XYZ_NORM": ("xyz", "norm"),
    "XYZ_RGB_NORM": ("xyz", "rgb", "norm"),
}
_PARTS = {"rgb": "colors", "norm": "normals"}  # signal -> field of the points
DECODERS = ("linear", "linear_attn")
NO_DECODER = "none"  # an encoder alone: what pre-training without labels leaves
POOLINGS = ("neighbors", "cell")
_DOWN_NEIGHBORS = 16
_BLOCK_RATE = 0.1  # of blocks of attention, over that of the rest, in training
_FACTOR = 2  # between levels, after the first step
_MLP_RATIO = 4.0
_DECODER_DROP_PATH = 0.1
_LINEAR_STD = 0.02
# Colours and normals reach from -1 to 1; the published signals are shrunk a little, so that they differ by less than 2.
_SIGNAL_SHRINK = 1.001


@dataclass(frozen=True)
class Swin3DConfig:
    """Sizes of a Swin3D network; the defaults are those of the small one, for ScanNet's classes."""

    depths: tuple[int, ...] = (2, 4, 9, 4, 4)
    """Blocks of each encoder stage; 0 at the first: a residual block of convolutions instead of attention."""
    channels: tuple[int, ...] = (48, 96, 192, 384, 384)
    """Channels of each stage."""
    heads: tuple[int, ...] = (6, 6, 12, 24, 24)
    """Attention heads of each stage."""
    windows: tuple[int, ...] = (5, 7, 7, 7, 7)
    """Side of a window at each stage, in voxels of the stage."""
    signals: str = "XYZ_RGB"
    """What attention sees of two voxels: XYZ, XYZ_RGB, XYZ_NORM or XYZ_RGB_NORM."""
    in_channels: int | None = None
    """Input features a voxel: its place in the cell (3), with colour (6), with normal too (9). None: as the signals."""
    num_classes: int = 20
    """Classes that are told apart."""
    first_stride: int = 3
    """Voxels that the first step down joins along a side: 3 (ScanNet, Structured3D) or 2 (S3DIS). Later steps: 2."""
    decoder: str = "linear"
    """Decoder stages: linear, linear_attn with a block of attention each, or none: an encoder, which names no class."""
    pooling: str = "neighbors"
    """What a coarse voxel takes the maximum of: the 16 neighbors of its representative, or the voxels of its cell."""
    quant_size: int = 4
    """Bins of the positional encoding along a voxel's side."""
    drop_path_rate: float = 0.3
    """Probability to drop a voxel's residual in the last encoder block; earlier ones less, in proportion."""
    voxel_size: float = 0.02
    """Edge of the voxels that the network is trained on, metres (S3DIS: 0.04)."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("depths", "channels", "heads", "windows")}
        if len(set(lengths.values())) != 1 or not self.depths:
            raise InputError(f"Swin3D: depths, channels, heads and windows must be of one length, got {lengths}")
        if self.signals not in SIGNALS:
            raise InputError(f"Swin3D: signals must be one of {', '.join(SIGNALS)}, got {self.signals!r}")
        if self.decoder not in (*DECODERS, NO_DECODER):
            known = ", ".join((*DECODERS, NO_DECODER))
            raise InputError(f"Swin3D: decoder must be one of {known}, got {self.decoder!r}")
        if self.pooling not in POOLINGS:
            raise InputError(f"Swin3D: pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if any(c % h for c, h in zip(self.channels, self.heads, strict=True)):
            raise InputError(f"Swin3D: channels {self.channels} over heads {self.heads} must give whole heads")
        sizes = (*self.depths[1:], *self.windows, self.num_classes, self.quant_size)
        fits = min(sizes) >= 1 and self.first_stride >= 2 and self.depths[0] >= 0
        if not (fits and 0 <= self.drop_path_rate < 1 and 0 < self.voxel_size < math.inf):
            raise InputError(
                "Swin3D: depths, windows, num_classes and quant_size must be at least 1, first_stride at least 2, "
                f"drop_path_rate in [0, 1), voxel_size positive, got {self}"
            )
        if self.in_channels is None:
            object.__setattr__(self, "in_channels", 3 * len(SIGNALS[self.signals]))

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The signals that attention looks at, keys of ``SIGNAL_COLUMNS``."""
        return SIGNALS[self.signals]

    @property
    def signal_width(self) -> int:
        """Columns that a signal row must have at least: 3, 6 or 9."""
        return max(SIGNAL_COLUMNS[name].stop for name in self.signal_names)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What input features are made of, before the place in the cell.

        Raises:
            InputError: ``in_channels`` is of no published input; such features have to be made by the caller.
        """
        named = {3: (), 6: ("norm",) if self.signals == "XYZ_NORM" else ("rgb",), 9: ("rgb", "norm")}
        if self.in_channels not in named:
            raise InputError(f"Swin3D: no rule makes {self.in_channels} input features of points; make them yourself")
        return named[self.in_channels]

    def bins(self, stage: int) -> dict[str, int]:
        """Signal -> rows of its tables per axis, at a stage."""
        return {name: signal_bins(name, self.windows[stage], self.quant_size) for name in self.signal_names}


@dataclass
class Swin3DInput:
    """Voxels as the network takes them.

    Args:
        voxels: stride 1, features (N, C); rows of one scene lie together, scenes ascend.
        signals: (N, 3, 6 or 9) float32: position in voxel units including its fraction, then colour and normal.
        index: (N,) int64 row of the point that each voxel was made of.
        inverse: (P,) int64 voxel of every point.
    """

    voxels: SparseVoxels
    signals: Tensor
    index: Tensor | None = None
    inverse: Tensor | None = None

    def to(self, device: torch.device | str) -> Swin3DInput:
        """Copy to a device."""
        others = (None if t is None else t.to(device) for t in (self.signals, self.index, self.inverse))
        return Swin3DInput(self.voxels.to(device), *others)


def inputs_from_points(
    xyz: Tensor,
    colors: Tensor | None,
    normals: Tensor | None,
    offsets: Tensor | None,
    voxel_size: float,
    config: Swin3DConfig | None = None,
    mode: str = "first",
    generator: torch.Generator | None = None,
) -> Swin3DInput:
    """Voxels, features and signals of points, as the published networks were trained on.

    Each scene is moved to begin at 0 and cut into voxels, and one point stands for each voxel.

    Args:
        xyz: (P, 3) metres, packed. Networks pre-trained with XYZ_RGB on Structured3D, and those for S3DIS, were trained
            with y up: hand them ``xyz[:, [0, 2, 1]]``.
        colors: (P, 3) in [0, 1]; needed where the network looks at colours.
        normals: (P, 3) unit vectors; needed where the network looks at normals.
        offsets: (B + 1,) int64, scene b owns rows ``offsets[b]`` to ``offsets[b + 1]``; one scene when None.
        voxel_size: edge of a voxel, metres.
        config: the network's; the defaults when not given.
        mode: which point stands for a voxel: the ``first`` one, or a ``random`` one (training).
        generator: draws random points.

    Raises:
        InputError: a part is missing that the network reads, or values out of range; says which.
    """
    points = points_in_voxels(PointCloud(xyz, colors, normals, offsets=offsets), voxel_size, mode, generator)
    inputs = inputs_from_voxels(points.xyz, points.colors, points.normals, points.offsets, config)
    return replace(inputs, index=points.index, inverse=points.inverse)


def inputs_from_voxels(
    xyz: Tensor,
    colors: Tensor | None,
    normals: Tensor | None,
    offsets: Tensor,
    config: Swin3DConfig | None = None,
) -> Swin3DInput:
    """Features and signals of points of which each has a voxel to itself.

    Features are colour and normal (as many as the network takes) and the point's place in its voxel, in [0, 1).

    Args:
        xyz: (N, 3) in voxel units; the voxel of a point is its floor.
        colors, normals, offsets, config: as :func:`inputs_from_points` takes them, a row a voxel.

    Raises:
        InputError: colours or normals are missing and the network reads them.
    """
    config = config or Swin3DConfig()
    xyz = xyz.float()
    known: dict[str, Tensor] = {}
    if colors is not None:
        known["rgb"] = 2 * colors.float() - 1
    if normals is not None:
        known["norm"] = normals.float()
    if "norm" in config.signal_names and "rgb" not in config.signal_names:
        known.setdefault("rgb", torch.zeros_like(xyz))  # only keeps the published columns in their places
    whole = ("rgb", "norm")[: config.signal_width // 3 - 1]
    for name in (*config.feature_names, *whole):
        if name not in known:
            what = {"rgb": "colours", "norm": "normals"}[name]
            raise InputError(f"Swin3D: a network of signals {config.signals} reads {what}, but the points have none")
    coords = voxels_of(xyz, offsets)
    features = torch.cat([*(known[name] for name in config.feature_names), xyz - xyz.floor()], 1)
    signals = torch.cat([xyz, *(known[name] / _SIGNAL_SHRINK for name in whole)], 1)
    return Swin3DInput(SparseVoxels(coords, features, batch_size=offsets.shape[0] - 1), signals)


class Stage(nn.Module):
    """Blocks over regular and shifted windows in turn.

    Args:
        config: sizes.
        stage: counted from the finest.
        drop_paths: probability to drop a residual, for each block.
    """

    def __init__(self, config: Swin3DConfig, stage: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.size, self.names, self.quant_size = config.windows[stage], config.signal_names, config.quant_size
        dim, heads, bins = config.channels[stage], config.heads[stage], config.bins(stage)
        self.blocks = nn.ModuleList(WindowBlock(dim, heads, bins, _MLP_RATIO, rate) for rate in drop_paths)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """(N, C) features of the level -> (N, C)."""
        for number, block in enumerate(self.blocks):
            x = block(x, level.windows(self.size, bool(number % 2), self.names, self.quant_size))
        return x


class EncoderStage(Stage):
    """Blocks of attention, and the way to the next stage's features."""

    called_in_parts = True  # the way is taken from outside, so FSDP must not shard a stage as one

    def __init__(self, config: Swin3DConfig, stage: int) -> None:
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), dtype=torch.float64, device="cpu").tolist()
        first = sum(config.depths[:stage])
        super().__init__(config, stage, rates[first : first + config.depths[stage]])
        if stage + 1 < len(config.depths):
            self.downsample = MaxDownsample(config.channels[stage], config.channels[stage + 1], config.pooling)


class DecoderStage(InterpolationUpsample):
    """Features of level ``stage`` from those of the next coarser one and the encoder's."""

    def __init__(self, config: Swin3DConfig, stage: int) -> None:
        super().__init__(config.channels[stage + 1], config.channels[stage])
        if config.decoder == "linear_attn":
            self.block = Stage(config, stage, [_DECODER_DROP_PATH])

    def forward(self, coarse: Tensor, fine: Tensor, step: Coarsening, level: Level) -> Tensor:
        """(M, C_coarse) and the encoder's (N, C_fine) -> (N, C_fine)."""
        x = super().forward(coarse, fine, step)
        return self.block(x, level) if hasattr(self, "block") else x


class Swin3DUNet(VoxelEncoder):
    """The network of Swin3D (section 3), with the published parameter names.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "swin3d"
    task = "segment"
    decoder_prefixes = ("upsamples.", "classifier.")
    head_prefixes = ("classifier.",)

    def __init__(self, config: Swin3DConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or Swin3DConfig()
        stages, width = len(config.depths), config.channels[0]
        if config.depths[0]:
            self.stem_layer = ConvStem(config.in_channels, width)
        else:
            self.stem_layer = ResidualStem(config.in_channels, width)
            if stages > 1:
                self.downsample = MaxDownsample(width, config.channels[1], config.pooling)
        self.layers = nn.ModuleList(EncoderStage(config, stage) for stage in range(stages) if config.depths[stage])
        if config.decoder != NO_DECODER:
            self.upsamples = nn.ModuleList(DecoderStage(config, stage) for stage in reversed(range(stages - 1)))
            self.classifier = nn.Sequential(
                nn.Linear(width, width), VoxelNorm1d(width), nn.ReLU(), nn.Linear(width, config.num_classes)
            )
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: truncated normal matrices and tables, zero biases, uniform convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_LINEAR_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                module.reset_tables(generator)
            elif isinstance(module, SubmanifoldConv):
                module.reset_parameters(generator)

    @property
    def strides(self) -> tuple[int, ...]:
        """Voxel edge of every stage, in input voxels."""
        stages = len(self.config.depths)
        return tuple(accumulate((1, self.config.first_stride, *[_FACTOR] * stages)[:stages], mul))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every stage, finest first."""
        return self.config.channels

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of points that the network reads beside their place: ``colors``, ``normals``, both or none."""
        used = {*self.config.signal_names, *self.config.feature_names}
        return tuple(part for name, part in _PARTS.items() if name in used)

    def inputs(self, cloud: PointCloud, voxel_size: float | None = None) -> Swin3DInput:
        """What this network reads of points, in voxels of its own size or another; see :func:`inputs_from_points`."""
        size = self.config.voxel_size if voxel_size is None else voxel_size
        return inputs_from_points(cloud.xyz, cloud.colors, cloud.normals, cloud.offsets, size, self.config)

    def voxel_inputs(self, points: VoxelPoints) -> Swin3DInput:
        """What this network reads of points of which each has a voxel to itself."""
        return inputs_from_voxels(points.xyz, points.colors, points.normals, points.offsets, self.config)

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The stem, then the blocks of all stages; the way down belongs to the last block before it."""
        layers: list[tuple[str, ...]] = [("stem_layer.", "downsample.")]
        for stage, depth in enumerate(depth for depth in self.config.depths if depth):
            names = [f"layers.{stage}.blocks.{block}." for block in range(depth)]
            layers += [*((name,) for name in names[:-1]), (names[-1], f"layers.{stage}.downsample.")]
        return layers

    def rate_factors(self) -> dict[str, float]:
        """Parameters of attention blocks learn at a tenth of the rate, as published."""
        return {name: _BLOCK_RATE for name, _ in self.named_parameters() if "blocks" in name}

    def pyramid(self, inputs: Swin3DInput) -> tuple[list[Level], list[Coarsening]]:
        """The voxels of every stage, and the steps between them.

        Raises:
            InputError: features or signals that do not fit the network, or scenes whose rows do not lie together.
        """
        self._check(inputs)
        factors = [fine_to_coarse // fine for fine, fine_to_coarse in pairwise(self.strides)]
        return build_pyramid(inputs.voxels.topology, inputs.signals.float(), factors, _DOWN_NEIGHBORS)

    def _check(self, inputs: Swin3DInput) -> None:
        require_prepared(self, inputs, Swin3DInput)
        voxels, signals, config = inputs.voxels, inputs.signals, self.config
        if voxels.stride != 1:
            raise InputError(f"Swin3D: voxels must have stride 1, got {voxels.stride}")
        if voxels.feats.shape[1] != config.in_channels:
            raise InputError(f"Swin3D: voxels have {voxels.feats.shape[1]} features, the network {config.in_channels}")
        if signals.shape[0] != voxels.coords.shape[0] or signals.shape[1] < config.signal_width:
            raise InputError(
                f"Swin3D: signals must be ({voxels.coords.shape[0]}, {config.signal_width}) or wider for "
                f"{config.signals}, got {tuple(signals.shape)}"
            )
        if torch.compiler.is_exporting():
            return  # there are no values yet
        if not signals.isfinite().all() or not voxels.feats.isfinite().all():
            raise InputError("Swin3D: features or signals hold NaN or infinite values")
        if (voxels.coords[:, 0].diff() < 0).any():
            raise InputError("Swin3D: rows of one scene must lie together and scenes ascend; sort voxels by batch")

    def encode(self, features: Tensor, levels: Sequence[Level], steps: Sequence[Coarsening]) -> list[Tensor]:
        """(N, C) input features -> features of every stage before its way down, finest first."""
        x, encoded = self.stem_layer(features, levels[0].topology), []
        stages = list(self.layers) if self.config.depths[0] else [None, *self.layers]
        for number, (stage, level) in enumerate(zip(stages, levels, strict=True)):
            if stage is not None:
                x = stage(x, level)
            encoded.append(x)
            if number < len(steps):
                x = (stage or self).downsample(x, steps[number])
        return encoded

    def decode(self, encoded: Sequence[Tensor], levels: Sequence[Level], steps: Sequence[Coarsening]) -> list[Tensor]:
        """The encoder's features -> those of every decoder stage, coarsest first."""
        x, decoded = encoded[-1], []
        ways = zip(self.upsamples, encoded[-2::-1], steps[::-1], levels[-2::-1], strict=True)
        for stage, fine, step, level in ways:
            x = stage(x, fine, step, level)
            decoded.append(x)
        return decoded

    def features(
        self, inputs: Swin3DInput, layers: Sequence[int | str] | None = None, *, decoded: bool = False
    ) -> list[SparseVoxels]:
        """Voxels with features, for heads of one's own.

        Args:
            inputs: of :meth:`prepare`, :meth:`inputs` or :meth:`voxel_inputs`.
            layers: stages, all when not given, finest first; of the decoder there are all but the coarsest.
            decoded: those of the decoder stages instead of the encoder's.

        Raises:
            InputError: inputs that do not fit, a stage that there is not, or no decoder.
        """
        wanted = self.stage_numbers(layers)
        if decoded:
            self._require_decoder()
            last = len(self.channels) - 1
            if layers is not None and last in wanted:
                raise InputError(f"Swin3D: the decoder has no stage{last}, which is the encoder's last")
            wanted = [n for n in wanted if n != last]
        levels, steps = self.pyramid(inputs)
        found = self.encode(inputs.voxels.feats, levels, steps)
        if decoded:
            found = self.decode(found, levels, steps)[::-1]
        return [levels[n].topology.voxels(found[n]) for n in wanted]

    def _require_decoder(self) -> None:
        if self.config.decoder == NO_DECODER:
            raise InputError(
                "Swin3D: an encoder alone, which names no class; a decoder and classifier with fresh weights come with "
                "create_model(..., decoder='linear', fresh_decoder=True)"
            )

    def forward(self, inputs: Swin3DInput) -> Tensor:
        """Class logits of every voxel.

        Args:
            inputs: of :meth:`inputs` or :func:`inputs_from_points`.

        Returns:
            (N, classes), in the order of the voxels; ``[inputs.inverse]`` gives those of the points.

        Raises:
            InputError: features or signals that do not fit the network, or a network without decoder.
        """
        self._require_decoder()
        levels, steps = self.pyramid(inputs)
        encoded = self.encode(inputs.voxels.feats, levels, steps)
        return self.classifier(self.decode(encoded, levels, steps)[-1] if steps else encoded[-1])

    @torch.no_grad()
    def predict(self, cloud: PointCloud, voxel_size: float | None = None) -> Tensor:
        """Class logits of every point: those of its voxel, of which the first point is read.

        Args:
            cloud: points with the colours and normals that the network reads, on any device.
            voxel_size: edge of a voxel, metres; that of the training when not given.

        Returns:
            (P, classes) on the CPU.
        """
        self._require_decoder()
        inputs = self.inputs(cloud, voxel_size)
        return self(inputs.to(self.classifier[0].weight.device)).cpu()[inputs.inverse.cpu()]


_SMALL = Swin3DConfig()
_LARGE = replace(_SMALL, channels=(80, 160, 320, 640, 640), heads=(10, 10, 20, 40, 40))
_TINY = replace(
    _SMALL, depths=(1, 2, 2), channels=(32, 64, 128), heads=(4, 4, 8), windows=(5, 5, 5), drop_path_rate=0.1
)

#: Named configurations.
PRESETS = {"swin3d_s": _SMALL, "swin3d_l": _LARGE, "swin3d_tiny": _TINY}

#: Page of the files that were trained further.
_TASKS = "https://github.com/Yukichiii/Swin3D_Task"

FAMILY = Family(
    name="swin3d",
    title="Swin3D",
    network=Swin3DUNet,
    config=Swin3DConfig,
    presets=PRESETS,
    read=read_swin3d,
    named=("depths", "channels", "heads", "windows"),
    free=("drop_path_rate", "voxel_size"),
    unstated=("first_stride", "quant_size", "pooling"),
    follows={"in_channels": ("signals",)},
    bare={"decoder": NO_DECODER},
    of_decoder=("decoder", "num_classes"),
    of_head=("num_classes",),
    files=(
        ReleasedFile("Swin3D_RGB*_S.pth", ("swin3d_s",), "segmentation of Structured3D"),
        ReleasedFile("Swin3D_RGB*_L.pth", ("swin3d_l",), "segmentation of Structured3D"),
        ReleasedFile("swin3d_s_*.pth", ("swin3d_s",), "segmentation of ScanNet or S3DIS", address=_TASKS),
        ReleasedFile("swin3d_l_*.pth", ("swin3d_l",), "segmentation of ScanNet or S3DIS", address=_TASKS),
    ),
    licence="MIT",
    page="https://github.com/microsoft/Swin3D",
)

__all__ = [
    "DECODERS",
    "FAMILY",
    "NO_DECODER",
    "POOLINGS",
    "PRESETS",
    "SIGNALS",
    "Swin3DConfig",
    "Swin3DInput",
    "Swin3DUNet",
    "inputs_from_points",
    "inputs_from_voxels",
]
