"""CroCo's downstream networks: stereo and optical flow of two views, depth of one (Weinzaepfel et al., ICCV 2023).

The encoder and, for two views, the decoder of pre-training; in place of what completed patches stands a dense head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.checkpoints.croco_downstream import USUAL, read_croco_downstream
from geo3d.checkpoints.loading import Stored
from geo3d.errors import InputError
from geo3d.models.croco import PRESETS as CROCO_PRESETS
from geo3d.models.croco import CroCoFamily, large_encoder
from geo3d.models.croco_trunk import CroCoConfig, CroCoTrunk
from geo3d.models.family import ReleasedFile
from geo3d.nn import token_positions
from geo3d.nn.dpt import LEVELS, WIDTH, DPTHead, PixelHead, draw_head
from geo3d.nn.laplace import CriterionConfig

Task = Literal["stereo", "flow", "depth"]

#: Channels of what a task predicts, beside a confidence.
CHANNELS: dict[Task, int] = {"stereo": 1, "flow": 2, "depth": 1}
#: Exponent of a weight at most: sums of weighed values stay far below the largest float32, about exp(88).
_STEEPEST = 60.0


@dataclass(frozen=True)
class TileConfidence:
    """How raw confidences weigh overlapping tiles: exp(-beta * 2 * (sigmoid(c / scale) - 0.5)), low ones the most.

    Published as ``conf_expsigmoid_<beta>_<scale>``, and as ``conf_expbeta<beta>`` where there is no scale.
    """

    beta: float = 15.0
    """How sharply; 0: all tiles alike."""
    scale: float | None = 3.0
    """Over which confidences are divided; None: exp(-beta * c)."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf or (self.scale is not None and not 0 < self.scale < math.inf):
            raise InputError(
                f"tile_confidence: beta must not be negative and scale positive, got {self.beta} and {self.scale}"
            )

    def weight(self, confidence: Tensor) -> Tensor:
        """Raw confidences -> weights, of the same shape; neither 0 nor infinite."""
        if self.scale is None:
            return (-self.beta * confidence).clamp(-_STEEPEST, _STEEPEST).exp()
        return (-self.beta * 2 * ((confidence / self.scale).sigmoid() - 0.5)).exp()


@dataclass(frozen=True)
class CroCoDownstreamConfig(CroCoConfig):
    """Sizes of a downstream network, what it predicts and how that is used on whole images."""

    task: Task = "stereo"
    """What is predicted: disparity (1 channel, pixels), optical flow (2, pixels) or depth (1, metres)."""
    views: int = 2
    """Images that it looks at; a network of one (depth) has no decoder."""
    confidence: bool = True
    """Predict one channel more: how sure each pixel is, as the criterion reads it."""
    head: Literal["dpt", "linear"] = "dpt"
    """DPT on four blocks, or one linear layer on the last."""
    hooks: tuple[int, ...] = ()
    """Blocks that the DPT head reads, the encoder's counted first, then the decoder's; empty: as published."""
    head_levels: tuple[int, int, int, int] = LEVELS
    """Channels of the DPT head's four levels."""
    head_width: int = WIDTH
    """Channels in which these are joined."""
    head_last: int = 32
    """Channels before the DPT head's last layer."""
    linear_order: Literal["channels_last", "channels_first"] = "channels_last"
    """What is fastest in a linear head's output: the channels (CroCo) or the pixels (DUSt3R)."""
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    """What it is trained by, which says what a confidence means."""
    crop: tuple[int, int] = (352, 704)
    """Height and width of the images that it is trained on, and of the tiles of larger ones, pixels."""
    tile_confidence: TileConfidence = field(default_factory=TileConfidence)
    """How confidences weigh overlapping tiles."""
    resized: int | None = None
    """Shorter side of the images that it was trained on, pixels; None: they were as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views not in (1, 2):
            raise InputError(f"CroCo: views must be 1 or 2, got {self.views}")
        if min(self.crop) <= 0 or any(side % self.patch_size for side in self.crop):
            raise InputError(f"CroCo: crop {self.crop} must be positive multiples of the patch size {self.patch_size}")
        if self.resized is not None and self.resized < 1:
            raise InputError(f"CroCo: resized must be at least 1 pixel, or none, got {self.resized}")
        if self.hooks and (len(self.hooks) != 4 or not all(0 <= hook < self.blocks for hook in self.hooks)):
            raise InputError(f"CroCo: hooks must be four numbers from 0 to {self.blocks - 1}, got {self.hooks}")
        if min(*self.head_levels, self.head_width, self.head_last) <= 0 or self.head_width % 2:
            raise InputError(
                "CroCo: head_levels, head_width and head_last must be positive, and head_width even, got "
                f"{self.head_levels}, {self.head_width} and {self.head_last}"
            )

    @property
    def blocks(self) -> int:
        """Blocks whose outputs there are."""
        return self.encoder_depth + (self.decoder_depth if self.views == 2 else 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks that the head reads, the encoder's first; ascending as published."""
        if self.head == "linear":
            return (self.blocks - 1,)
        if self.hooks:
            return self.hooks
        if self.views == 1:
            return tuple(-(-self.encoder_depth * part // 4) - 1 for part in (1, 2, 3, 4))
        step = -(-self.decoder_depth // 3)  # so that the first is before the decoder where this is of 8, 12 or 24
        return tuple(max(self.blocks - 1 - back * step, 0) for back in (3, 2, 1, 0))

    @property
    def channels(self) -> int:
        """Channels of the head's output."""
        return CHANNELS[self.task] + self.confidence


class DenseOutput(NamedTuple):
    """What a forward pass yields, raw as published.

    Args:
        values: (B, C, H, W): disparity of the first view, pixels, positive to the left; flow (x, y), pixels; depth.
        confidence: (B, H, W) as the criterion reads it, low where it is sure; None where there is none.
    """

    values: Tensor
    confidence: Tensor | None


class DPTOnBlocks(nn.Module):
    """A DPT head under the name that it has in published files."""

    def __init__(self, config: CroCoDownstreamConfig, dims: Sequence[int]) -> None:
        super().__init__()
        self.dpt = DPTHead(
            dims, config.channels, config.patch_size, config.head_levels, config.head_width, config.head_last
        )

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of four blocks -> (B, channels, H, W)."""
        return self.dpt(tokens, grid)


class CroCoDownstream(CroCoTrunk):
    """Stereo, optical flow or depth (CroCo v2, section 4), with the published parameter names.

    Both images go through the encoder as one batch. The head reads outputs of blocks of the encoder (for the first
    image) and of the decoder, of which the last one of each is normalised.

    Args:
        config: sizes and task.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "croco_downstream"
    decoder_prefixes = ("decoder_embed.", "dec_", "head.")
    head_prefixes = ("head.",)

    def __init__(self, config: CroCoDownstreamConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or CroCoDownstreamConfig())
        config = self.config
        if config.views == 2:
            self.build_decoder()
        dims = [config.encoder_dim if n < config.encoder_depth else config.decoder_dim for n in config.layers]
        if config.head == "dpt":
            self.head = DPTOnBlocks(config, dims)
        else:
            last = config.linear_order == "channels_last"
            self.head = PixelHead(dims[-1], config.channels, config.patch_size, channels_last=last)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: as CroCo's, and those of the head as :func:`geo3d.nn.dpt.draw_head` does."""
        super().reset_parameters(generator)
        draw_head(self.head.dpt if self.config.head == "dpt" else self.head, generator)

    def tokens(self, first: Tensor, second: Tensor | None, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of blocks for the first image, the encoder's counted first, then the decoder's.

        Args:
            first, second: (B, 3, H, W) normalised images of equal size; no second one of a network of one view.
            layers: numbers of blocks. The last of the encoder and the last of the decoder are normalised.

        Returns:
            One (B, N, C) a layer.
        """
        depth = self.config.encoder_depth
        images = first if second is None else torch.cat([first, second])
        encoded, kept = self._encode(images, layers=[n for n in layers if n < depth - 1])
        kept = {number: x[: len(first)] for number, x in kept.items()} | {depth - 1: encoded[: len(first)]}
        if second is not None:
            grid = self.token_grid(first)
            positions = token_positions(*grid, first.device).expand(len(first), -1, -1)
            x, memory = self.placed(self.decoder_embed(encoded), positions[:1], grid).chunk(2)
            for number, block in enumerate(self.dec_blocks, depth):
                x = block(x, memory, positions, positions)
                if number in layers:
                    kept[number] = x
            kept[self.config.blocks - 1] = self.dec_norm(x)
        return [kept[number] for number in layers]

    def start_at(self, values: Tensor) -> None:
        """Have a fresh head predict about these values (C,) at every pixel, such as the median of what is learnt."""
        (self.head.dpt if self.config.head == "dpt" else self.head).start_at(values)

    def forward(self, first: Tensor, second: Tensor | None = None) -> DenseOutput:
        """Predict for each pixel of the first image.

        Args:
            first, second: (B, 3, H, W) normalised images of equal size, H and W multiples of the patch size; of stereo
                left and right, of flow the earlier and the later; no second one of a network of one view.

        Returns:
            A :class:`DenseOutput`.

        Raises:
            InputError: one image too few or too many, different shapes, or sides that the patch does not divide.
        """
        if (second is not None) != (self.config.views == 2):
            raise InputError(
                f"CroCo: {self.config.task} takes {self.config.views} image{'s' * (self.config.views - 1)}"
            )
        if second is not None and first.shape != second.shape:
            raise InputError(f"CroCo: views must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
        tokens = self.tokens(first, second, self.config.layers)
        out = self.head(tokens if self.config.head == "dpt" else tokens[-1], self.token_grid(first))
        if not self.config.confidence:
            return DenseOutput(out, None)
        return DenseOutput(out[:, :-1], out[:, -1])


def _sizes(base: CroCoConfig, **chosen: Any) -> CroCoDownstreamConfig:
    """A downstream config around the trunk of a pre-training one."""
    trunk = {f.name: getattr(base, f.name) for f in fields(CroCoConfig)}
    crop = chosen.get("crop", trunk["image_size"])
    return CroCoDownstreamConfig(**{**trunk, "image_size": crop, **chosen})


_OF_TASK: dict[str, dict[str, Any]] = {
    "stereo": {"crop": (352, 704)},
    "flow": {"crop": (320, 384)},
    "depth": {"views": 1},
}


def _task(task: Task) -> dict[str, Any]:
    """What the published networks of a task have of their own."""
    usual = USUAL[task]
    return {
        "task": task,
        "criterion": CriterionConfig(**usual["criterion"]),
        "tile_confidence": TileConfidence(**usual["tile_confidence"]),
        **_OF_TASK[task],
    }


_TINY = {"head_levels": (16, 32, 48, 64), "head_width": 32}
_DEPTH = _task("depth")
_TRUNKS = {name.removeprefix("croco_v2_"): trunk for name, trunk in CROCO_PRESETS.items() if "_v2_" in name}

#: Named configurations: task, encoder and decoder as in the names of CroCo v2's.
PRESETS = {
    **{f"croco_{task}_{name}": _sizes(_TRUNKS[name], **_task(task)) for task in ("stereo", "flow") for name in _TRUNKS},
    "croco_depth_base": _sizes(CROCO_PRESETS["croco_v2_base_small"], **_DEPTH),
    "croco_depth_large": _sizes(large_encoder(CROCO_PRESETS["croco_v2_base_small"]), **_DEPTH),
    "croco_stereo_tiny": _sizes(CROCO_PRESETS["croco_tiny"], **_task("stereo") | _TINY | {"crop": (64, 128)}),
    "croco_flow_tiny": _sizes(CROCO_PRESETS["croco_tiny"], **_task("flow") | _TINY | {"crop": (64, 96)}),
    "croco_depth_tiny": _sizes(CROCO_PRESETS["croco_tiny"], **_DEPTH | _TINY),
}


def around_croco(croco: Stored) -> Stored:
    """A pre-training network as part of a downstream one, whose head is left to be drawn."""
    state = {name: v for name, v in croco.state.items() if not name.startswith(("mask_token", "prediction_head."))}
    return Stored(state, "croco_downstream", croco.config, croco.stated)


class CroCoDownstreamFamily(CroCoFamily):
    """Networks of one view leave out the decoder of files that have one."""

    def assemble(self, stored: CroCoDownstreamConfig, wanted: CroCoDownstreamConfig, found: Stored, *rest: Any):
        """As that of CroCo."""
        if wanted.views == 1:
            kept = {n: v for n, v in found.state.items() if not n.startswith(("decoder_embed.", "dec_"))}
            found = replace(found, state=kept)
        return super().assemble(stored, wanted, found, *rest)


_ADDRESS = "https://download.europe.naverlabs.com/ComputerVision/CroCo/StereoFlow_models/"
_OF_HEAD = ("task", "views", "confidence", "head", "hooks", "head_levels", "head_width", "head_last", "linear_order")
_OF_USE = ("criterion", "crop", "tile_confidence", "resized")


def _released(task: Task, ending: str, model: str = "large_base") -> ReleasedFile:
    file = f"croco{task}{ending}.pth"
    return ReleasedFile(file, (f"croco_{task}_{model}",), task, address=f"{_ADDRESS}{file}")


FAMILY = CroCoDownstreamFamily(
    name="croco_downstream",
    title="CroCo's downstream network",
    published="croco",
    network=CroCoDownstream,
    config=CroCoDownstreamConfig,
    presets=PRESETS,
    read=read_croco_downstream,
    named=tuple(f.name for f in fields(CroCoDownstreamConfig) if f.name not in ("image_size", "hooks", *_OF_USE)),
    free=("image_size", "hooks", "crop", "tile_confidence", "resized"),
    unstated=("criterion", "task", "linear_order"),
    of_decoder=("decoder_dim", "decoder_depth", "decoder_heads", "norm_memory"),
    of_head=(*_OF_HEAD, "criterion"),
    wholes={"croco": around_croco},
    files=(
        *(_released("stereo", ending) for ending in ("", "_subtrain", "_eth3d", "_finetune_kitti", "_finetune_spring")),
        _released("stereo", "_subtrain_vitb_smalldecoder", "base_small"),
        _released("stereo", "_subtrain_vitb_basedecoder", "base_base"),
        *(_released("flow", ending) for ending in ("", "_finetune_kitti", "_finetune_spring")),
        _released("flow", "_vitb_smalldecoder", "base_small"),
        _released("flow", "_vitb_basedecoder", "base_base"),
    ),
    licence="CC-BY-NC-SA-4.0",
    non_commercial=True,
    page="https://github.com/naver/croco",
)

__all__ = [
    "CHANNELS",
    "FAMILY",
    "PRESETS",
    "CroCoDownstream",
    "CroCoDownstreamConfig",
    "DenseOutput",
    "Task",
    "TileConfidence",
    "around_croco",
]
