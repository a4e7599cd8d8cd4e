"""CroCo and CroCo v2: cross-view completion (Weinzaepfel et al., NeurIPS 2022 and ICCV 2023).

One encoder sees both views, the first with most patches masked; a decoder fills the first in from the second.
Version 1 adds sine-cosine embeddings, version 2 turns queries and keys by their 2D position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.checkpoints.croco import read_croco
from geo3d.errors import InputError
from geo3d.models.encoder import StageInfo
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.image_encoder import ImageEncoder
from geo3d.nn import DecoderBlock, EncoderBlock, resize_position_embedding, sincos_2d, token_positions
from geo3d.nn.patches import patchify
from geo3d.nn.transformer import LAYER_NORM_EPS


@dataclass(frozen=True)
class CroCoConfig:
    """Sizes of a CroCo network; the defaults are those of version 1."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width of the training images, pixels; other sizes that the patch divides work too."""
    patch_size: int = 16
    """Side of a patch, pixels."""
    encoder_dim: int = 768
    """Channels of the encoder."""
    encoder_depth: int = 12
    """Blocks of the encoder."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_dim: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden channels of an MLP over its channels."""
    norm_memory: bool = True
    """Normalise the second view's tokens in every decoder block."""
    rope_base: float | None = None
    """Base of the rotary embedding (100 in version 2); None: sine-cosine embeddings (version 1)."""

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "int"}
        sizes |= {"mlp_ratio": self.mlp_ratio, "image_size": min(self.image_size)}
        sizes |= {} if self.rope_base is None else {"rope_base": self.rope_base}
        wrong = [f"{name}={getattr(self, name)!r}" for name, value in sizes.items() if not 0 < value < math.inf]
        if wrong:
            raise InputError(f"CroCo: sizes must be positive and finite, got {', '.join(wrong)}")
        height, width = self.image_size
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"CroCo: image size {height} x {width} is not a multiple of the patch size {self.patch_size}"
            )
        for part in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{part}_dim"), getattr(self, f"{part}_heads")
            if dim % heads or (self.rope_base is not None and (dim // heads) % 4) or dim % 4:
                raise InputError(
                    f"CroCo: {part}_dim {dim} over {part}_heads {heads} must give whole heads"
                    f"{', each a multiple of 4 channels' if self.rope_base is not None else ''}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at ``image_size``."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class CroCoOutput(NamedTuple):
    """What a forward pass yields.

    Args:
        prediction: (B, N, patch * patch * 3) for every patch of the first view, channel fastest.
        first: (B, V, C) encoder output of the visible patches of the first view.
        second: (B, N, C) encoder output of the second view.
        decoded: (B, N, D) decoder output before the prediction head.
    """

    prediction: Tensor
    first: Tensor
    second: Tensor
    decoded: Tensor


class PatchEmbedding(nn.Module):
    """Linear embedding of patches, stored as the convolution it equals."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, patch * patch * 3), channel fastest -> (B, N, C)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def visible_from_mask(mask: Tensor) -> Tensor:
    """Token indices that a mask leaves visible.

    Args:
        mask: (B, N) bool, True where masked.

    Returns:
        (B, V) int64, ascending in each row.

    Raises:
        InputError: rows that leave different numbers of tokens visible.
    """
    counts = (~mask).sum(1)
    if (counts != counts[0]).any():
        raise InputError(f"mask: every row must leave the same number of tokens visible, got {counts.tolist()[:8]}")
    return (~mask).nonzero()[:, 1].reshape(len(mask), -1)


class CroCoNet(ImageEncoder):
    """The network of CroCo (v1, section 3) and CroCo v2 (section 3.2), with the published parameter names.

    Images are (B, 3, H, W), normalised with ImageNet's mean and standard deviation; H and W are multiples of the
    patch size. Tokens are row-major.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "croco"
    decoder_prefixes = ("mask_token", "decoder_embed.", "dec_", "prediction_head.")

    def __init__(self, config: CroCoConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or CroCoConfig()
        c, d = config.encoder_dim, config.decoder_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d))
        if config.rope_base is None:
            self.register_buffer("enc_pos_embed", sincos_2d(c, *config.grid))
            self.register_buffer("dec_pos_embed", sincos_2d(d, *config.grid))
        self.patch_embed = PatchEmbedding(config.patch_size, c)
        encoder_block = partial(EncoderBlock, c, config.encoder_heads, config.mlp_ratio, config.rope_base)
        self.enc_blocks = nn.ModuleList(encoder_block() for _ in range(config.encoder_depth))
        self.enc_norm = nn.LayerNorm(c, eps=LAYER_NORM_EPS)
        self.decoder_embed = nn.Linear(c, d)
        decoder_block = partial(
            DecoderBlock, d, config.decoder_heads, config.mlp_ratio, config.rope_base, config.norm_memory
        )
        self.dec_blocks = nn.ModuleList(decoder_block() for _ in range(config.decoder_depth))
        self.dec_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.prediction_head = nn.Linear(d, 3 * config.patch_size**2)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: Xavier-uniform matrices, zero biases, mask token N(0, 0.02)."""
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def resize(self, image_size: tuple[int, int]) -> CroCoNet:
        """Make ``image_size`` the network's own, resampling stored position embeddings; returns itself."""
        config = replace(self.config, image_size=image_size)
        if config.rope_base is None:
            for name in ("enc_pos_embed", "dec_pos_embed"):
                setattr(self, name, resize_position_embedding(getattr(self, name), self.config.grid, config.grid))
        self.config = config
        return self

    def token_grid(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of an image (B, 3, H, W).

        Raises:
            InputError: not an image batch, or sides that the patch does not divide.
        """
        patch = self.config.patch_size
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % patch or image.shape[3] % patch:
            raise InputError(
                f"CroCo: images must be (B, 3, H, W) with H and W multiples of {patch}, got {tuple(image.shape)}"
            )
        return image.shape[2] // patch, image.shape[3] // patch

    @property
    def side_multiple(self) -> int:
        """Side of a patch, pixels."""
        return self.config.patch_size

    @property
    def feature_info(self) -> list[StageInfo]:
        """The encoder's blocks."""
        config = self.config
        return [StageInfo(f"block{n}", config.encoder_dim, config.patch_size) for n in range(config.encoder_depth)]

    def _position_embedding(self, name: str, grid: tuple[int, int]) -> Tensor:
        return resize_position_embedding(getattr(self, name), self.config.grid, grid)

    def _run_encoder(
        self, patches: Tensor, positions: Tensor, index: Tensor, grid: tuple[int, int], lengths, layers=()
    ):
        """Patches (B, N, patch * patch * 3) with their grid index (B, N) -> normalised tokens, and asked-for layers."""
        x = self.patch_embed(patches)
        if self.config.rope_base is None:
            x = x + self._position_embedding("enc_pos_embed", grid).to(x.dtype)[index]
        kept = {}
        for number, block in enumerate(self.enc_blocks):
            x = block(x, positions, lengths)
            if number in layers:
                kept[number] = x
        return self.enc_norm(x), kept

    def encode(self, image: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode one view.

        Args:
            image: (B, 3, H, W) normalised.
            visible: (B, V) int64 token indices to keep; all when not given.

        Returns:
            (B, V, C) tokens after the encoder's norm.
        """
        tokens, _ = self._encode(image, visible)
        return tokens

    def _encode(self, image: Tensor, visible: Tensor | None = None, layers: Sequence[int] = ()):
        self.require_images(image)
        grid = self.token_grid(image)
        patches = patchify(image, self.config.patch_size)
        if visible is None:
            visible = torch.arange(grid[0] * grid[1], device=image.device).expand(image.shape[0], -1)
        else:
            patches = _take(patches, visible)
        return self._run_encoder(patches, token_positions(*grid, image.device)[visible], visible, grid, None, layers)

    def features(self, image: Tensor, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Feature maps of one view, for dense heads.

        Args:
            image: (B, 3, H, W) normalised, as :meth:`prepare` makes it.
            layers: encoder blocks whose output to return, counted from 0 (negative from the end), or their names; all
                when not given. Only the last block's map is normalised.

        Returns:
            One (B, C, H / patch, W / patch) map a layer, in the order asked.

        Raises:
            InputError: a layer that the encoder does not have.
        """
        wanted = self.stage_numbers(layers)
        tokens, kept = self._encode(image, layers=wanted)
        kept[len(self.enc_blocks) - 1] = tokens
        return [kept[n].transpose(1, 2).unflatten(2, self.token_grid(image)) for n in wanted]

    def forward(self, first: Tensor, second: Tensor, visible: Tensor) -> CroCoOutput:
        """Complete the first view from its visible patches and the second view.

        Args:
            first, second: (B, 3, H, W) normalised images of equal size.
            visible: (B, V) int64 indices of the first view's visible tokens, ascending
                (:func:`visible_from_mask` makes them from a mask).

        Returns:
            A :class:`CroCoOutput`.

        Raises:
            InputError: views of different shapes, or sides that the patch does not divide.
        """
        if first.shape != second.shape:
            raise InputError(f"CroCo: views must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
        grid = self.token_grid(first)
        batch, kept, total = len(first), visible.shape[1], grid[0] * grid[1]
        every = torch.arange(total, device=first.device).expand(batch, -1)
        all_positions = token_positions(*grid, first.device)

        # Both views pass the encoder as one row of tokens, so that each weight is read and each gradient written once.
        patches = torch.cat(
            [_take(patchify(first, self.config.patch_size), visible), patchify(second, self.config.patch_size)], 1
        )
        index = torch.cat([visible, every], 1)
        encoded, _ = self._run_encoder(patches, all_positions[index], index, grid, (kept, total))
        embedded = self.decoder_embed(encoded)

        seen, memory = embedded.split((kept, total), 1)
        x = self.mask_token.to(seen.dtype).expand(batch, total, -1)
        x = x.scatter(1, visible.unsqueeze(-1).expand_as(seen), seen)
        positions = all_positions.expand(batch, -1, -1)
        if self.config.rope_base is None:
            embedding = self._position_embedding("dec_pos_embed", grid).to(x.dtype)
            x, memory = x + embedding, memory + embedding
        for block in self.dec_blocks:
            x = block(x, memory, positions, positions)
        x = self.dec_norm(x)
        return CroCoOutput(self.prediction_head(x), *encoded.split((kept, total), 1), x)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, V) of tokens (B, N, C)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


class CroCoFamily(Family):
    """CroCo's networks work at any image size, also with stored weights."""

    def configure(self, base: CroCoConfig, options: Mapping[str, Any]) -> CroCoConfig:
        """As :meth:`Family.configure`; one number will do for the sides of a square image."""
        size = options.get("image_size")
        square = {"image_size": (size, size)} if isinstance(size, int) else {}
        return super().configure(base, {**options, **square})

    def assemble(self, stored: CroCoConfig, wanted: CroCoConfig, *rest: Any) -> CroCoNet:
        """The network with the file's weights, its stored position embeddings resampled."""
        model = super().assemble(stored, replace(wanted, image_size=stored.image_size), *rest)
        return model.resize(wanted.image_size)


def _large(config: CroCoConfig) -> CroCoConfig:
    return replace(config, encoder_dim=1024, encoder_depth=24, encoder_heads=16)


_V2 = CroCoConfig(rope_base=100.0)
_V2_BASE_DECODER = replace(_V2, decoder_dim=768, decoder_depth=12, decoder_heads=12)

#: Named configurations. "small" and "base" at the end of a version 2 name are the decoder's size.
PRESETS = {
    "croco_v1_base": CroCoConfig(),
    "croco_v2_base_small": _V2,
    "croco_v2_base_base": _V2_BASE_DECODER,
    "croco_v2_large_base": _large(_V2_BASE_DECODER),
    "croco_tiny": CroCoConfig((64, 64), 8, 192, 6, 6, 128, 4, 4, rope_base=100.0),
}


def _released(file: str, model: str) -> ReleasedFile:
    return ReleasedFile(file, (model,), address=f"https://download.europe.naverlabs.com/ComputerVision/CroCo/{file}")


FAMILY = CroCoFamily(
    name="croco",
    title="CroCo",
    network=CroCoNet,
    config=CroCoConfig,
    presets=PRESETS,
    read=read_croco,
    free=("image_size",),
    of_decoder=("decoder_dim", "decoder_depth", "decoder_heads", "norm_memory"),
    files=(
        _released("CroCo.pth", "croco_v1_base"),
        _released("CroCo_V2_ViTBase_SmallDecoder.pth", "croco_v2_base_small"),
        _released("CroCo_V2_ViTBase_BaseDecoder.pth", "croco_v2_base_base"),
        _released("CroCo_V2_ViTLarge_BaseDecoder.pth", "croco_v2_large_base"),
    ),
    licence="CC-BY-NC-SA-4.0",
    non_commercial=True,
    page="https://github.com/naver/croco",
)

__all__ = [
    "FAMILY",
    "PRESETS",
    "CroCoConfig",
    "CroCoNet",
    "CroCoOutput",
    "visible_from_mask",
]
