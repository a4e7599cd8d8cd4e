"""CroCo and CroCo v2: cross-view completion (Weinzaepfel et al., NeurIPS 2022 and ICCV 2023).

One encoder sees both views, the first with most patches masked; a decoder fills the first in from the second.
Version 1 adds sine-cosine embeddings, version 2 turns queries and keys by their 2D position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geo3d.checkpoints.croco import read_croco
from geo3d.errors import InputError
from geo3d.models.croco_trunk import CroCoConfig, CroCoTrunk, take_tokens
from geo3d.models.family import Family, ReleasedFile
from geo3d.nn import token_positions
from geo3d.nn.patches import patchify


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


class CompletionNet(CroCoTrunk):
    """A network that fills in patches: CroCo's encoder, a token for hidden patches, a decoder and a prediction head.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    decoder_prefixes = ("mask_token", "decoder_embed.", "dec_", "prediction_head.")

    def __init__(self, config: CroCoConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(config or CroCoConfig())
        d = self.config.decoder_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d))
        self.build_decoder()
        self.prediction_head = nn.Linear(d, 3 * self.config.patch_size**2)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: Xavier-uniform matrices, zero biases, mask token N(0, 0.02)."""
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        super().reset_parameters(generator)

    @property
    def decoded_channels(self) -> int:
        """Channels of what the decoder makes of a view."""
        return self.config.decoder_dim

    def fill(self, seen: Tensor, visible: Tensor, total: int) -> Tensor:
        """Tokens (B, V, D) of visible patches (B, V) among mask tokens in the place of the others: (B, total, D)."""
        x = self.mask_token.to(seen.dtype).expand(len(seen), total, -1)
        return x.scatter(1, visible.unsqueeze(-1).expand_as(seen), seen)


class CroCoNet(CompletionNet):
    """The network of CroCo (v1, section 3) and CroCo v2 (section 3.2), with the published parameter names.

    Images are (B, 3, H, W), normalised with ImageNet's mean and standard deviation; H and W are multiples of the
    patch size. Tokens are row-major.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "croco"

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
            [take_tokens(patchify(first, self.config.patch_size), visible), patchify(second, self.config.patch_size)], 1
        )
        index = torch.cat([visible, every], 1)
        encoded, _ = self.run_encoder(patches, all_positions[index], index, grid, (kept, total))
        embedded = self.decoder_embed(encoded)

        seen, memory = embedded.split((kept, total), 1)
        x = self.fill(seen, visible, total)
        positions = all_positions.expand(batch, -1, -1)
        x, memory = (self.placed(tokens, all_positions, grid) for tokens in (x, memory))
        for block in self.dec_blocks:
            x = block(x, memory, positions, positions)
        x = self.dec_norm(x)
        return CroCoOutput(self.prediction_head(x), *encoded.split((kept, total), 1), x)

    def decoded(self, first: Tensor, second: Tensor) -> Tensor:
        """As :meth:`geo3d.models.image_encoder.SeesTwoViews.decoded`."""
        rows, columns = self.token_grid(first)
        every = torch.arange(rows * columns, device=first.device).expand(len(first), -1)
        return self(first, second, every).decoded.transpose(1, 2).unflatten(2, (rows, columns))


class CroCoFamily(Family):
    """CroCo's networks work at any image size, also with stored weights."""

    def configure(self, base: CroCoConfig, options: Mapping[str, Any]) -> CroCoConfig:
        """As :meth:`Family.configure`; one number will do for the sides of a square image."""
        size = options.get("image_size")
        square = {"image_size": (size, size)} if isinstance(size, int) else {}
        return super().configure(base, {**options, **square})

    def assemble(self, stored: CroCoConfig, wanted: CroCoConfig, *rest: Any) -> CroCoTrunk:
        """The network with the file's weights, its stored position embeddings resampled."""
        model = super().assemble(stored, replace(wanted, image_size=stored.image_size), *rest)
        return model.resize(wanted.image_size)


def large_encoder(config: CroCoConfig) -> CroCoConfig:
    """A config with the encoder of ViT-L."""
    return replace(config, encoder_dim=1024, encoder_depth=24, encoder_heads=16)


_V2 = CroCoConfig(rope_base=100.0)
_V2_BASE_DECODER = replace(_V2, decoder_dim=768, decoder_depth=12, decoder_heads=12)

#: Named configurations. "small" and "base" at the end of a version 2 name are the decoder's size.
PRESETS = {
    "croco_v1_base": CroCoConfig(),
    "croco_v2_base_small": _V2,
    "croco_v2_base_base": _V2_BASE_DECODER,
    "croco_v2_large_base": large_encoder(_V2_BASE_DECODER),
    "croco_tiny": CroCoConfig((64, 64), 8, 96, 4, 4, 64, 4, 4, rope_base=100.0, decoder_sincos=True),
}


def _released(file: str, model: str) -> ReleasedFile:
    return ReleasedFile(file, (model,), address=f"https://download.europe.naverlabs.com/ComputerVision/CroCo/{file}")


#: Fields that concern the decoder alone.
OF_DECODER = ("decoder_dim", "decoder_depth", "decoder_heads", "norm_memory", "decoder_sincos")

FAMILY = CroCoFamily(
    name="croco",
    title="CroCo",
    network=CroCoNet,
    config=CroCoConfig,
    presets=PRESETS,
    read=read_croco,
    free=("image_size",),
    of_decoder=OF_DECODER,
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
    "CompletionNet",
    "CroCoConfig",
    "CroCoFamily",
    "CroCoNet",
    "CroCoOutput",
    "visible_from_mask",
]
