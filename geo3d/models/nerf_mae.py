"""NeRF-MAE: masked modelling of dense radiance grids (Irshad et al., ECCV 2024).

A Swin transformer reads a grid of colours and opacity of which most blocks are masked; a skip decoder fills them in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.checkpoints.loading import Stored
from geo3d.checkpoints.nerf_mae import ComputedTables
from geo3d.checkpoints.nerf_mae_downstream import read_nerf_mae_files
from geo3d.errors import InputError
from geo3d.models.encoder import StageInfo
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.grid_encoder import CHANNELS, GridEncoder, GridInput
from geo3d.nn.subpixel_decoder import last_decoder
from geo3d.nn.swin_volume import (
    BLOCK,
    PATCH,
    Sides,
    SwinVolume,
    block_sides,
    relative_position_index,
    spread,
    volume_positions,
    volume_positions_of,
)
from geo3d.nn.volume_decoder import VolumeUp, draw_convolutions

_STAGES = 4
#: Voxels along a side of a block that is masked as a whole.
BLOCK_VOXELS = PATCH * BLOCK
#: Opacity from which on a voxel's colour counts in the loss.
OPACITY_THRESHOLD = 0.01
_STD = 0.02


@dataclass(frozen=True)
class NeRFMAEEncoderConfig:
    """Sizes of NeRF-MAE's encoder; the defaults are those of the released one."""

    embed_dim: int = 96
    """Channels of the first stage, a multiple of 6; each further stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each of the four stages."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    mlp_ratio: float = 4.0
    """Hidden channels of MLPs over their channels."""
    drop_path_rate: float = 0.1
    """Probability that a sample's residual of the last block is dropped; it rises evenly from 0 at the first."""
    resolution: int = 0
    """Voxels along the sides of the cube that grids are filled up to, as published; 0: each side to its own multiple
    of 32, which computes less."""

    def __post_init__(self) -> None:
        counts = (self.embed_dim, *self.depths, *self.heads)
        fits = len(self.depths) == len(self.heads) == _STAGES and all(count >= 1 for count in counts)
        fits = fits and all(self.channels[n] % heads == 0 for n, heads in enumerate(self.heads))
        if not (fits and self.embed_dim % 6 == 0):
            raise InputError(
                "NeRF-MAE: depths and heads must be four numbers of 1 or more, embed_dim a multiple of 6, and heads "
                f"divide the channels {self.channels if self.embed_dim else ()}, got {self}"
            )
        if not (0 <= self.drop_path_rate < 1 and self.mlp_ratio * self.embed_dim >= 1):
            raise InputError(
                f"NeRF-MAE: drop_path_rate must lie in [0, 1) and mlp_ratio give hidden channels, got {self}"
            )
        if not math.isfinite(self.mlp_ratio):
            raise InputError(f"NeRF-MAE: mlp_ratio must be finite, got {self}")
        if self.resolution < 0 or self.resolution % PATCH:
            raise InputError(f"NeRF-MAE: resolution must be a multiple of {PATCH}, or 0, got {self.resolution!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(_STAGES))


@dataclass(frozen=True)
class NeRFMAEConfig(NeRFMAEEncoderConfig):
    """Sizes of a NeRF-MAE network; the defaults are those of the released one."""

    decoder: bool = True
    """Whether there is a decoder, which fills in."""
    place_masked: bool = False
    """Whether masked tokens carry their positions. As published they do not; skipped ones always do."""
    masking: Literal["fill", "skip"] = "fill"
    """fill, as published: the encoder reads a token in place of each masked one; skip: it reads visible blocks alone,
    and the decoder sees learnt tokens with positions where blocks were masked."""
    skip_empty: bool = False
    """With skip: whether visible blocks all below an opacity of 0.01 are left out too, for a token of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masking not in ("fill", "skip") or (self.skip_empty and self.masking != "skip"):
            raise InputError(
                f"NeRF-MAE: masking must be fill or skip, and skip_empty goes with skip, got {self.masking!r}"
            )


@dataclass
class NeRFMAEOutput:
    """What a forward pass yields.

    Args:
        prediction: (B, 4, X, Y, Z) as the network gives it: colours, and the logit of opacity.
        losses: ``rgb`` and ``opacity``, scalars; see :func:`reconstruction_losses`.
        decoded: (B, bx, by, bz) bool, blocks that the prediction is of; it is 0 elsewhere. None: all.
    """

    prediction: Tensor
    losses: dict[str, Tensor]
    decoded: Tensor | None = None

    @property
    def rgb(self) -> Tensor:
        """(B, 3, X, Y, Z) colours, nearly in [0, 1]."""
        return self.prediction[:, :3]

    @property
    def opacity_logit(self) -> Tensor:
        """(B, X, Y, Z)."""
        return self.prediction[:, 3]

    @property
    def opacity(self) -> Tensor:
        """(B, X, Y, Z) in [0, 1]."""
        return self.opacity_logit.sigmoid()

    @property
    def reconstruction(self) -> Tensor:
        """(B, 4, X, Y, Z): colours and opacity, as an encoder reads them."""
        return torch.cat([self.rgb, self.opacity.unsqueeze(1)], 1)


def _tokens(channels: Sequence[int]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros(count)) for count in channels)


def reconstruction_losses(prediction: Tensor, inputs: GridInput, mask: Tensor | None) -> dict[str, Tensor]:
    """The two losses (section 3.3): squared errors of colours and of opacity.

    Colours count at all voxels whose opacity is beyond 0.01, masked or not: the sum of their squared errors over the
    three channels, over the number of voxels. Opacity counts at masked voxels of the grids themselves, not at what they
    were filled up with. Where no voxel counts the loss is 0.

    Args:
        prediction: (B, 4, X, Y, Z) colours and the logit of opacity.
        inputs: the grids.
        mask: (bx, by, bz) or (B, bx, by, bz) bool, true where a block of 16 voxels a side is masked; None: nowhere.

    Returns:
        ``rgb`` and ``opacity``, float32 scalars (float64 where the prediction is).
    """
    counted = None if mask is None else spread(mask, inputs.sides, BLOCK_VOXELS) & inputs.valid
    return _losses(prediction, inputs.values, counted)


def _losses(prediction: Tensor, values: Tensor, counted: Tensor | None) -> dict[str, Tensor]:
    """Of predictions and values (N, 4, ...), and where opacity counts (N, ...)."""
    seen = values[:, 3] > OPACITY_THRESHOLD
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    squared = (prediction[:, :3] - values[:, :3]).square() * seen.unsqueeze(1)
    rgb = squared.sum() / seen.sum().clamp_min(1)
    if counted is None:
        return {"rgb": rgb, "opacity": 0 * prediction[:, 3].sum()}
    errors = (prediction[:, 3].sigmoid() - values[:, 3]).square() * counted
    return {"rgb": rgb, "opacity": errors.sum() / counted.sum().clamp_min(1)}


def _take_blocks(grid: Tensor, blocks: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (N, C, 16, 16, 16) of the blocks whose flags (B, bx, by, bz) are set, in row-major order."""
    side = BLOCK_VOXELS
    b, c = grid.shape[:2]
    x, y, z = blocks.shape[1:]
    return grid.reshape(b, c, x, side, y, side, z, side).permute(0, 2, 4, 6, 1, 3, 5, 7)[blocks]


def _put_blocks(taken: Tensor, blocks: Tensor) -> Tensor:
    """Inverse of :func:`_take_blocks`, 0 elsewhere."""
    b, x, y, z = blocks.shape
    side, c = BLOCK_VOXELS, taken.shape[1]
    grid = taken.new_zeros(b, x, y, z, c, side, side, side)
    grid[blocks] = taken
    return grid.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, c, x * side, y * side, z * side)


class NeRFMAE(SwinVolume, GridEncoder):
    """The network of NeRF-MAE (section 3), with published parameter names.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "nerf_mae"
    patch = PATCH
    decoder_prefixes = ("mask_token", "stage_tokens.", "empty_tokens.", "decoder", "out.")

    def __init__(self, config: NeRFMAEConfig | None = None, generator: torch.Generator | None = None) -> None:
        config = config or NeRFMAEConfig()
        super().__init__(config.embed_dim, config.depths, config.heads, config.mlp_ratio, config.drop_path_rate)
        self.config = config
        if config.decoder:
            first, second, third, last = config.channels
            half = first // 2
            if config.masking == "fill":
                self.mask_token = nn.Parameter(torch.zeros(first))
            else:
                self.stage_tokens = _tokens(config.channels[:-1])
            if config.skip_empty:
                self.empty_tokens = _tokens(config.channels[:-1])
            self.decoder4 = VolumeUp(last, third)
            self.decoder3 = VolumeUp(third, second)
            self.decoder2 = VolumeUp(second, first)
            self.decoder1 = VolumeUp(first, half, PATCH, skip=False)
            self.out = nn.ModuleDict({"conv": nn.Conv3d(half, CHANNELS, 1)})
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""
        self.reset_encoder(generator)
        if not self.config.decoder:
            return
        for name, parameter in self.named_parameters():
            if name.startswith(("mask_token", "stage_tokens.", "empty_tokens.")):
                nn.init.trunc_normal_(parameter, std=_STD, generator=generator)
        for name, module in self.named_modules():
            if name.startswith(self.decoder_prefixes) and isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                draw_convolutions(module, generator)

    @property
    def side_multiple(self) -> int:
        """Voxels of which the decoder takes a multiple along every side."""
        return PATCH * 2 ** (_STAGES - 1)

    @property
    def resolution(self) -> int:
        """Side of the cube to which grids are filled up; 0 for none."""
        return self.config.resolution

    @property
    def feature_info(self) -> list[StageInfo]:
        """The four stages."""
        return [StageInfo(f"stage{n}", dim, PATCH * 2**n) for n, dim in enumerate(self.config.channels)]

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Embedding of patches, then the blocks of all stages; the way down belongs to the first block after it."""
        layers: list[tuple[str, ...]] = [("patch_partition.",)]
        for stage, depth in enumerate(self.config.depths):
            way_down = int(stage > 0)  # which is the first of the stage's parts
            blocks = [(f"stages.{stage}.{block + way_down}.",) for block in range(depth)]
            layers += [(f"stages.{stage}.0.", *blocks[0]), *blocks[1:]]
        return layers

    def features(self, inputs: GridInput, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Maps of the stages, nothing masked.

        Args:
            inputs: of :meth:`prepare`; sides are multiples of 4.
            layers: stages, all when not given.

        Returns:
            (B, C, x, y, z) of strides 4, 8, 16 and 32, sides rounded up; channels last in memory.
        """
        numbers = self.stage_numbers(layers)
        maps = self.encode(inputs)
        return [maps[n] for n in numbers]

    def encode(self, inputs: GridInput, mask: Tensor | None = None) -> list[Tensor]:
        """Maps (B, C, x, y, z) of the four stages, where blocks are masked or not.

        Args:
            inputs: of :meth:`prepare`.
            mask: (bx, by, bz) bool for the whole batch, or (B, bx, by, bz): blocks whose tokens are the mask token.
        """
        self.require_grids(inputs)
        mask = self._checked(mask, inputs)
        tokens = self.embed(self._typed(inputs.values))
        if mask is None or self.config.masking == "fill":
            stages = self.run_stages(self.masked_tokens(tokens, mask))
        else:
            stages = self._run_visible(tokens, inputs, mask.expand(len(tokens), -1, -1, -1))
        return [stage.permute(0, 4, 1, 2, 3) for stage in stages]

    def _run_visible(self, tokens: Tensor, inputs: GridInput, mask: Tensor) -> list[Tensor]:
        if any(side % BLOCK_VOXELS for side in inputs.sides):
            raise InputError(
                f"NeRF-MAE: where masked blocks are skipped, sides are multiples of {BLOCK_VOXELS}, got {inputs.sides}"
            )
        # Blocks that grids were only filled up with are no more looked at than masked ones.
        mask = mask | (F.max_pool3d(inputs.valid.unsqueeze(1).float(), BLOCK_VOXELS)[:, 0] == 0)
        empty = None
        if self.config.skip_empty:
            opacity = F.max_pool3d(inputs.values[:, 3:], BLOCK_VOXELS)[:, 0]
            empty = (opacity <= OPACITY_THRESHOLD) & ~mask
        visible = ~mask if empty is None else ~(mask | empty)
        if not visible.any():
            raise InputError("NeRF-MAE: all blocks of the batch are masked or empty: there is nothing to encode")

        def fill(number: int, sides: Sides) -> Tensor:
            token = self.stage_tokens[number].expand(len(mask), *sides, -1)
            if empty is not None:
                flags = spread(empty, sides, BLOCK >> number).unsqueeze(-1)
                token = torch.where(flags, self.empty_tokens[number], token)
            return token + volume_positions_of(token.shape[-1], sides).to(token)

        return self.run_visible(self.place(tokens), visible, fill)

    def masked_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, x, y, z, C) tokens of :meth:`embed` with their positions, masked ones overwritten by the mask token."""
        placed = self.place(tokens)
        if mask is None:
            return placed
        hidden = spread(mask, tuple(tokens.shape[1:4]), BLOCK).unsqueeze(-1)
        token = self.mask_token.to(placed.dtype)
        if self.config.place_masked:
            token = self.place(token.expand(1, *tokens.shape[1:]))
        return torch.where(hidden, token, placed)

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, x, y, z) of the decoder.

        Args:
            maps: of :meth:`encode`, of grids whose sides are multiples of 32.

        Returns:
            Of ``decoder4``, ``decoder3``, ``decoder2`` and ``decoder1``: strides 16, 8, 4 and 1.
        """
        joined = self.join(maps)
        return [*joined, self.decoder1(joined[-1])]

    def join(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`decode`, without ``decoder1``."""
        x, joined = maps[-1], []
        for number in (4, 3, 2):
            x = getattr(self, f"decoder{number}")(x, maps[number - 2])
            joined.append(x)
        return joined

    def predict(self, decoded: Tensor) -> Tensor:
        """(B, C, X, Y, Z) map of the last decoder -> (B, 4, X, Y, Z) colours and the logit of opacity."""
        return self.out["conv"](decoded)

    def forward(self, inputs: GridInput, mask: Tensor | None = None, decoded: Tensor | None = None) -> NeRFMAEOutput:
        """Fill in masked blocks.

        Args:
            inputs: of :meth:`prepare`; sides are multiples of 32.
            mask: (bx, by, bz) bool, one for the whole batch as published, or (B, bx, by, bz): true where a block of 16
                voxels a side is masked. None: nowhere.
            decoded: (B, bx, by, bz) bool, blocks that alone are filled in by the last decoder, at least one a sample.
                Losses are those of these blocks, and its norms see these and one voxel around each. None: all.

        Raises:
            InputError: an encoder alone; sides that the decoder does not take; a mask of another shape; a sample of
                which no block is to be decoded.
        """
        if not self.config.decoder:
            raise InputError("NeRF-MAE: an encoder alone fills in nothing; make it with fresh_decoder=True")
        self.require_grids(inputs)
        if any(side % self.side_multiple for side in inputs.sides):
            raise InputError(
                f"NeRF-MAE: the decoder takes sides that are multiples of {self.side_multiple}, got {inputs.sides}; "
                "prepare fills them up"
            )
        chosen = self._checked(decoded, inputs)
        if chosen is not None:
            chosen = chosen.expand(len(inputs.values), -1, -1, -1)
            if not chosen.flatten(1).any(1).all():
                raise InputError("NeRF-MAE: decoded must hold at least one block of each sample")
        joined = self.join(self.encode(inputs, mask))[-1]
        made = last_decoder(joined, self.decoder1, self.out["conv"], chosen)
        if chosen is None:
            return NeRFMAEOutput(made, reconstruction_losses(made, inputs, self._checked(mask, inputs)))
        counted = None
        if mask is not None:
            counted = _take_blocks(inputs.valid.unsqueeze(1), chosen)[:, 0]
            counted = counted & self._checked(mask, inputs).expand_as(chosen)[chosen].view(-1, 1, 1, 1)
        losses = _losses(made, _take_blocks(inputs.values, chosen), counted)
        return NeRFMAEOutput(_put_blocks(made, chosen), losses, chosen)

    def _typed(self, values: Tensor) -> Tensor:
        return values.to(self.patch_partition["0"].weight.dtype)

    def _checked(self, mask: Tensor | None, inputs: GridInput) -> Tensor | None:
        """(1 or B, bx, by, bz), if it fits."""
        if mask is None:
            return None
        if not self.config.decoder:
            raise InputError("NeRF-MAE: an encoder alone has no token for what is masked; make it with decoder=True")
        blocks = block_sides(inputs.sides)
        shape = tuple(mask.shape)
        if mask.dtype != torch.bool or shape not in (blocks, (1, *blocks), (len(inputs.values), *blocks)):
            raise InputError(
                f"NeRF-MAE: a mask of these grids is {blocks} or {(len(inputs.values), *blocks)} bool, true where a "
                f"block of {BLOCK_VOXELS} voxels a side is masked, got {shape} of {mask.dtype}"
            )
        return mask.view(-1, *blocks).to(inputs.values.device)


# Registration


def read_files(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors holds: this network, or one that is made of its encoder."""
    return read_nerf_mae_files(content, path, ComputedTables(volume_positions, relative_position_index()))


#: The first is what the family's own name stands for. The published swin_b cannot be built: 128 channels are no
#: multiple of 6.
PRESETS: dict[str, NeRFMAEConfig] = {
    "nerf_mae_swin_s": NeRFMAEConfig(),
    "nerf_mae_swin_t": NeRFMAEConfig(depths=(2, 2, 6, 2)),
    "nerf_mae_swin_l": NeRFMAEConfig(embed_dim=192, heads=(6, 12, 24, 48)),
    "nerf_mae_tiny": NeRFMAEConfig(embed_dim=48, depths=(2, 2, 4, 2), heads=(3, 6, 12, 24), drop_path_rate=0.0),
}
#: Where the released files are.
PAGE, ADDRESS = "https://github.com/zubair-irshad/NeRF-MAE", "hf://mirshad7/NeRF-MAE/"

FAMILY = Family(
    name="nerf_mae",
    title="NeRF-MAE",
    network=NeRFMAE,
    config=NeRFMAEConfig,
    presets=PRESETS,
    read=read_files,
    named=("embed_dim", "depths", "heads", "mlp_ratio"),
    free=("drop_path_rate", "resolution", "place_masked"),
    bare={"decoder": False},
    of_decoder=("decoder", "masking", "skip_empty"),
    files=(
        ReleasedFile(
            "nerf_mae_pretrained.pt", ("nerf_mae_swin_s",), megabytes=306, address=f"{ADDRESS}nerf_mae_pretrained.pt"
        ),
    ),
    page=PAGE,
)

__all__ = [
    "ADDRESS",
    "BLOCK_VOXELS",
    "FAMILY",
    "OPACITY_THRESHOLD",
    "PAGE",
    "PRESETS",
    "NeRFMAE",
    "NeRFMAEConfig",
    "NeRFMAEEncoderConfig",
    "NeRFMAEOutput",
    "read_files",
    "reconstruction_losses",
]
