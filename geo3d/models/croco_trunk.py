"""The encoder of CroCo's family of networks, which CroCo, its downstream networks and its descendants share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.models.encoder import StageInfo
from geo3d.models.image_encoder import ImageEncoder
from geo3d.nn import DecoderBlock, EncoderBlock, resize_position_embedding, sincos_2d, sincos_at, token_positions
from geo3d.nn.patches import patchify
from geo3d.nn.transformer import LAYER_NORM_EPS

#: Buffers with position embeddings of version 1.
_POSITION_EMBEDDINGS = ("enc_pos_embed", "dec_pos_embed")


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

    decoder_sincos: bool = False
    """Beside rotary embeddings, add sine-cosine positions to the tokens that enter the decoder: it then knows where in
    the image a token lies, not only how far from others. No published network has both."""

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "int"}
        sizes |= {"mlp_ratio": self.mlp_ratio, "image_size": min(self.image_size)}
        sizes |= {} if self.rope_base is None else {"rope_base": self.rope_base}
        wrong = [f"{name}={getattr(self, name)!r}" for name, value in sizes.items() if not 0 < value < math.inf]
        if wrong:
            raise InputError(f"CroCo: sizes must be positive and finite, got {', '.join(wrong)}")
        if self.decoder_sincos and self.rope_base is None:
            raise InputError("CroCo: decoder_sincos goes beside rotary embeddings; without, all have such positions")
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


class PatchEmbedding(nn.Module):
    """Linear embedding of patches, stored as the convolution it equals."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, patch * patch * 3), channel fastest -> (B, N, C)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


class CroCoTrunk(ImageEncoder):
    """Encoder of CroCo (v1, section 3) and CroCo v2 (section 3.2), with the published parameter names.

    Images are (B, 3, H, W), normalised as :meth:`prepare` does it; H and W are multiples of the patch size. Tokens are
    row-major. A network on it builds its decoder with :meth:`build_decoder`, or has none, and then calls
    :meth:`reset_parameters`.

    Args:
        config: sizes.
    """

    trunk = "croco"

    def __init__(self, config: CroCoConfig) -> None:
        super().__init__()
        self.config = config
        c = config.encoder_dim
        if config.rope_base is None:
            self.register_buffer("enc_pos_embed", sincos_2d(c, *config.grid))
        self.patch_embed = PatchEmbedding(config.patch_size, c)
        block = partial(EncoderBlock, c, config.encoder_heads, config.mlp_ratio, config.rope_base)
        self.enc_blocks = nn.ModuleList(block() for _ in range(config.encoder_depth))
        self.enc_norm = nn.LayerNorm(c, eps=LAYER_NORM_EPS)

    def build_decoder(self) -> None:
        """Add what all decoders have: ``decoder_embed``, ``dec_blocks`` and ``dec_norm``."""
        config = self.config
        if config.rope_base is None:
            self.register_buffer("dec_pos_embed", sincos_2d(config.decoder_dim, *config.grid))
        self.decoder_embed = nn.Linear(config.encoder_dim, config.decoder_dim)
        self.dec_blocks = self.decoder_blocks()
        self.dec_norm = nn.LayerNorm(config.decoder_dim, eps=LAYER_NORM_EPS)

    @property
    def decoder_sizes(self) -> tuple[Any, ...]:
        """What a block of the decoder is made of, as :class:`DecoderBlock` takes it."""
        config = self.config
        return config.decoder_dim, config.decoder_heads, config.mlp_ratio, config.rope_base, config.norm_memory

    def decoder_blocks(self) -> nn.ModuleList:
        """New blocks of a decoder that looks from one view at another."""
        return nn.ModuleList(DecoderBlock(*self.decoder_sizes) for _ in range(self.config.decoder_depth))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: Xavier-uniform matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.no_grad()
    def resize(self, image_size: tuple[int, int]) -> CroCoTrunk:
        """Make ``image_size`` the network's own, resampling stored position embeddings; returns itself."""
        config = replace(self.config, image_size=image_size)
        for name in _POSITION_EMBEDDINGS:
            if name in self._buffers:
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

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """Embedding of patches, then the encoder's blocks; its norm belongs to the last one."""
        *blocks, last = [f"enc_blocks.{n}." for n in range(self.config.encoder_depth)]
        return [("patch_embed.",), *((block,) for block in blocks), (last, "enc_norm.")]

    def position_embedding(self, name: str, grid: tuple[int, int]) -> Tensor:
        """One of the stored embeddings (N, C), resampled to a grid of tokens."""
        return resize_position_embedding(getattr(self, name), self.config.grid, grid)

    def placed(self, tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embedded tokens as a decoder takes them: with absolute positions, where the network has any.

        Args:
            tokens: (B, N, D); all of the grid, row-major, of a network without rotary embeddings.
            positions: (B, N, 2) or (N, 2) rows and columns.
            grid: rows and columns of the image's tokens.
        """
        if self.config.rope_base is None:
            return tokens + self.position_embedding("dec_pos_embed", grid).to(tokens.dtype)
        if self.config.decoder_sincos:
            return tokens + sincos_at(positions.float(), tokens.shape[-1]).to(tokens.dtype)
        return tokens

    def run_encoder(self, patches: Tensor, positions: Tensor, index: Tensor, grid: tuple[int, int], lengths, layers=()):
        """Patches (B, N, patch * patch * 3) with their grid index (B, N) -> normalised tokens, and asked-for layers."""
        x = self.patch_embed(patches)
        if self.config.rope_base is None:
            x = x + self.position_embedding("enc_pos_embed", grid).to(x.dtype)[index]
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
            patches = take_tokens(patches, visible)
        return self.run_encoder(patches, token_positions(*grid, image.device)[visible], visible, grid, None, layers)

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


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, V) of tokens (B, N, C)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


__all__ = ["CroCoConfig", "CroCoTrunk", "PatchEmbedding", "take_tokens"]
