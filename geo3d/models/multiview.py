"""Multi-view completion: any number of views of a scene, each with patches masked, filled in from one another.

CroCo masks one view of two; MuM (CVPR 2026) masks all of many views alike and lets the decoder look across them. This
is that task on CroCo's trunk, so that weights of either initialise the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geo3d.errors import InputError
from geo3d.models.croco import OF_DECODER, CompletionNet, CroCoFamily, visible_from_mask
from geo3d.models.croco import PRESETS as CROCO_PRESETS
from geo3d.models.croco_trunk import CroCoConfig, take_tokens
from geo3d.nn import MultiViewBlock, token_positions
from geo3d.nn.patches import patchify


class MultiViewOutput(NamedTuple):
    """What a forward pass yields.

    Args:
        prediction: (V, N, patch * patch * 3) for every patch of every view, channel fastest.
        decoded: (V, N, D) decoder output before the prediction head.
    """

    prediction: Tensor
    decoded: Tensor


class MultiViewNet(CompletionNet):
    """CroCo's encoder, and a decoder whose blocks look within each view and then over all views of its group.

    Its layers have the names and shapes of a :class:`~geo3d.models.croco.CroCoNet`'s. No view is special and views have
    no embedding: the first attention of a block is within the view, so that hidden patches take in what is theirs
    before they look at others, and exchanging views exchanges what comes out. Any number of views will do.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "multiview"

    def decoder_blocks(self) -> nn.ModuleList:
        """New blocks of a decoder that looks over all views."""
        return nn.ModuleList(MultiViewBlock(*self.decoder_sizes) for _ in range(self.config.decoder_depth))

    def forward(
        self, images: Tensor, mask: Tensor | None = None, sizes: Sequence[int] | None = None
    ) -> MultiViewOutput:
        """Complete views from what is visible of them and of the others of their group.

        Args:
            images: (V, 3, H, W) normalised views, those of a group one after the other.
            mask: (V, N) bool, true where a patch is hidden; of each view one patch at least is visible, and how many
                may differ between views. None: nothing is hidden.
            sizes: views of each group, which sum to V; groups of equal sizes are quickest one after the other. None:
                all views are one group.

        Returns:
            A :class:`MultiViewOutput`.

        Raises:
            InputError: sides that the patch does not divide; a mask or sizes that do not fit the images.
        """
        self.require_images(images)
        grid, views = self.token_grid(images), len(images)
        total = grid[0] * grid[1]
        sizes = (views,) if sizes is None else sizes
        if sum(sizes) != views or min(sizes, default=0) < 1:
            raise InputError(f"multiview: sizes must be 1 or more and sum to the {views} views, got {list(sizes)[:8]}")
        if mask is None:
            mask = torch.zeros(views, total, dtype=torch.bool, device=images.device)
        if mask.shape != (views, total) or mask.dtype != torch.bool:
            raise InputError(f"multiview: mask must be ({views}, {total}) bool, got {tuple(mask.shape)} {mask.dtype}")
        runs = [(len(list(equal)), size) for size, equal in groupby(sizes)]
        positions = token_positions(*grid, images.device).expand(views, -1, -1)
        x = self.placed(self._embedded(images, mask, grid), positions[:1], grid)
        for block in self.dec_blocks:
            x = block(x, positions, runs)
        x = self.dec_norm(x)
        return MultiViewOutput(self.prediction_head(x), x)

    def _embedded(self, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the decoder begins with, (V, N, D): views encoded, those of equally many visible patches at once."""
        kept = (~mask).sum(1)
        order = torch.argsort(kept, stable=True)
        counts = [len(list(equal)) for _, equal in groupby(kept[order].tolist())]
        if len(counts) == 1:
            return self._filled(images, mask, grid)
        parts = [self._filled(images[rows], mask[rows], grid) for rows in order.split(counts)]
        return torch.cat(parts)[torch.argsort(order)]

    def _filled(self, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """As :meth:`_embedded`, of views of which equally many patches are visible."""
        visible = visible_from_mask(mask)
        if not visible.shape[1]:
            raise InputError("multiview: the mask hides all patches of a view; one at least must be visible")
        patches = take_tokens(patchify(images, self.config.patch_size), visible)
        encoded, _ = self.run_encoder(patches, token_positions(*grid, images.device)[visible], visible, grid, None)
        return self.fill(self.decoder_embed(encoded), visible, mask.shape[1])

    def decoded(self, first: Tensor, second: Tensor) -> Tensor:
        """As :meth:`geo3d.models.image_encoder.SeesTwoViews.decoded`."""
        views = torch.stack([first, second], 1).flatten(0, 1)
        decoded = self(views, sizes=(2,) * len(first)).decoded[::2]
        return decoded.transpose(1, 2).unflatten(2, self.token_grid(first))


#: Named configurations: those of CroCo's networks with rotary embedding, whose weights they can start from.
PRESETS: dict[str, CroCoConfig] = {
    "multiview_base": CROCO_PRESETS["croco_v2_base_base"],
    "multiview_large": CROCO_PRESETS["croco_v2_large_base"],
    "multiview_tiny": CROCO_PRESETS["croco_tiny"],
}

FAMILY = CroCoFamily(
    name="multiview",
    title="multi-view completion",
    network=MultiViewNet,
    config=CroCoConfig,
    presets=PRESETS,
    free=("image_size",),
    of_decoder=OF_DECODER,
)

__all__ = ["FAMILY", "PRESETS", "MultiViewNet", "MultiViewOutput"]
