"""NeRF-MAE: masked blocks of radiance grids are filled in from the others (Irshad et al., 2024).

A grid of colours and opacity is cut into blocks of 16 voxels a side, most of which are masked; the network predicts the
colours of all voxels that are not empty, and the opacity of those that were masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_between, check_positive, check_share
from geo3d.methods.grids import GridSampleConfig, batch_of_grids, draw_grid
from geo3d.methods.method import Method, MethodOutput, SourceSamples
from geo3d.models import create_model, family_of
from geo3d.models.grid_encoder import GridInput, fill_up
from geo3d.models.nerf_mae import BLOCK_VOXELS, OPACITY_THRESHOLD, NeRFMAE
from geo3d.nn.swin_volume import spread
from geo3d.samples.grids import GridScenes
from geo3d.viz.grids import BELOW_CEILING, seen_along, slice_of
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS = 3
_MASKED_GREY = 0.8


@dataclass(frozen=True)
class MaskedGridsConfig(GridSampleConfig):
    """How NeRF-MAE is pre-trained."""

    model: str = "nerf_mae_tiny"
    """Network, one of `geo3d.list_models("nerf_mae_*")` that fills in."""
    mask_ratio: float = 0.75
    """Share of the blocks that is masked."""
    masking: Literal["exact", "skip", "published"] = "exact"
    """exact: exactly that share of each grid's blocks, which the encoder reads as mask tokens; skip: the same, which
    it leaves out, faster; published: each block by chance, the same for the whole batch, read as tokens."""
    decoded: float = 1.0
    """Share of each grid's blocks that are filled in and count in a training step, drawn anew for each: the last
    decoder is most of the arithmetic. 1: all, as published."""
    rgb_weight: float = 1.0
    """Weight of the colours in the loss."""
    opacity_weight: float = 1.0
    """Weight of the opacity in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 1, "mask_ratio")
        check_share(self, "decoded")
        check_positive(self, "decoded")
        check_at_least(self, 0, "rgb_weight", "opacity_weight")
        if self.side % 32:
            raise InputError(
                f"side must be a multiple of 32 voxels, so that the decoder can join its maps, got {self.side}"
            )


def draw_mask(blocks: tuple[int, ...], ratio: float, exact: bool, rng: np.random.Generator) -> Tensor:
    """Which blocks of a grid are masked.

    Args:
        blocks: along x, y and z.
        ratio: share to mask.
        exact: whether exactly ``round(ratio * n)`` are, at least one and not all where there are two or more; else each
            is by chance, as published (section 3.1).
        rng: draws them.

    Returns:
        (bx, by, bz) bool.
    """
    count = int(np.prod(blocks))
    if not exact:
        return torch.from_numpy(rng.random(blocks) < ratio)
    masked = np.zeros(count, dtype=bool)
    masked[rng.permutation(count)[: min(max(round(ratio * count), 1), max(count - 1, 0))]] = True
    return torch.from_numpy(masked.reshape(blocks))


class MaskedGridSamples(SourceSamples[GridScenes]):
    """Grids turned, mirrored and cut, with a mask each.

    Args:
        source: where grids come from.
        config: of the method.
    """

    def __init__(self, source: GridScenes, config: MaskedGridsConfig) -> None:
        super().__init__(source)
        self.config = config

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A grid: ``values`` (4, X, Y, Z); ``mask`` (n, n, n) bool of the blocks of a cube of ``side`` voxels.

        ``decoded`` likewise says which blocks are to be filled in.
        """
        config = self.config
        grid = draw_grid(self.source.grid(index), config, rng)
        cube = (-(-config.side // BLOCK_VOXELS),) * 3
        blocks = tuple(-(-side // BLOCK_VOXELS) for side in grid.sides)
        if config.masking == "published":
            mask = draw_mask(cube, config.mask_ratio, False, rng)
        else:
            mask = fill_up(draw_mask(blocks, config.mask_ratio, True, rng), cube, False)
        decoded = torch.from_numpy(rng.permutation(int(np.prod(blocks))).reshape(blocks))
        decoded = decoded < max(1, round(config.decoded * decoded.numel()))
        return {"values": grid.values, "mask": mask, "decoded": fill_up(decoded, cube, False)}


class MaskedGrids(Method):
    """Filling in masked blocks of radiance grids.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: a network that is none of NeRF-MAE's.
    """

    name = "nerf_mae"
    source = GridScenes

    def __init__(self, config: MaskedGridsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        if (family := family_of(config.model).name) != "nerf_mae":
            raise InputError(f"model must be a NeRF-MAE, such as nerf_mae_tiny; {config.model} is of {family}")
        masking = "skip" if config.masking == "skip" else "fill"
        self.network: NeRFMAE = create_model(config.model, masking=masking, generator=generator)

    def samples(self, source: GridScenes) -> MaskedGridSamples:
        """The training items of a set of scenes."""
        return MaskedGridSamples(source, self.config)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Grids filled up to one size, with ``sizes`` (B, 3) of each; as published one mask (bx, by, bz) for all."""
        batch = batch_of_grids([sample["values"] for sample in samples], self.network.side_multiple)
        x, y, z = blocks = [side // BLOCK_VOXELS for side in batch["values"].shape[2:]]

        def stacked(name: str) -> Tensor:
            return torch.stack([fill_up(sample[name][:x, :y, :z], blocks, False) for sample in samples])

        mask = stacked("mask")[0] if self.config.masking == "published" else stacked("mask")
        return batch | {"mask": mask, "decoded": stacked("decoded")}

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The two losses of :func:`geo3d.models.nerf_mae.reconstruction_losses`, weighted.

        Metrics are the PSNR of the colours of all voxels that are not empty, as published, and of the masked alone.
        """
        inputs, mask = GridInput(batch["values"], batch["sizes"]), batch["mask"]
        chosen = batch["decoded"] if self.training and self.config.decoded < 1 else None
        output = self.network(inputs, mask, chosen)
        losses = {
            "rgb": self.config.rgb_weight * output.losses["rgb"],
            "opacity": self.config.opacity_weight * output.losses["opacity"],
        }
        reconstruction = output.reconstruction.detach().float()
        made = inputs.valid if chosen is None else inputs.valid & spread(chosen, inputs.sides, BLOCK_VOXELS)
        metrics = {
            "psnr": colour_psnr(reconstruction, inputs.values, made),
            "masked_psnr": colour_psnr(reconstruction, inputs.values, made & self.hidden(batch)),
        }
        return MethodOutput(losses, metrics, {"reconstruction": reconstruction})

    def hidden(self, batch: dict[str, Any]) -> Tensor:
        """(B, X, Y, Z) bool: voxels of the grids themselves that are masked."""
        inputs = GridInput(batch["values"], batch["sizes"])
        mask = batch["mask"].view(-1, *batch["mask"].shape[-3:])
        return spread(mask, inputs.sides, BLOCK_VOXELS) & inputs.valid

    def filled(self, batch: dict[str, Any], output: MethodOutput) -> Tensor:
        """(B, 4, X, Y, Z): the grids with what was predicted in their masked blocks, clipped to [0, 1]."""
        predicted = output.extras["reconstruction"].clamp(0, 1)
        return torch.where(self.hidden(batch).unsqueeze(1), predicted, batch["values"])

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Some grids masked, filled in and in the original: from above without the ceiling, and a slice across y."""
        hidden, values = self.hidden(batch).unsqueeze(1), batch["values"]
        grey = values.new_tensor([_MASKED_GREY, _MASKED_GREY, _MASKED_GREY, 1]).view(1, 4, 1, 1, 1)
        masked = torch.where(hidden, 0, values), torch.where(hidden, grey, values)
        filled = self.filled(batch, output)
        panels = {"masked": masked, "filled in": (filled, filled), "original": (values, values)}
        side = max(batch["values"].shape[2:])
        rows = [
            [picture for part in panels.values() for picture in _two_sides(part[0][row], part[1][row], side)]
            for row in range(min(_PICTURE_ROWS, len(batch["values"])))
        ]
        captions = [f"{name}, {how}" for name in panels for how in ("from above", "slice")]
        return captioned_sheet(np.array(rows), captions)


def _two_sides(above: Tensor, cut: Tensor, side: int) -> list[np.ndarray]:
    """A grid from above and one cut open, each (side, side, 3) uint8."""
    pictures = seen_along(above, 2, 0, BELOW_CEILING), slice_of(cut, 1)
    framed = []
    for picture in pictures:
        frame = np.full((side, side, 3), 255, dtype=np.uint8)
        frame[side - len(picture) :, : picture.shape[1]] = picture
        framed.append(frame)
    return framed


def colour_psnr(reconstruction: Tensor, values: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal to noise ratio of the colours of voxels that are not empty, decibels; infinite where there is none.

    Args:
        reconstruction, values: (B, 4, X, Y, Z).
        where: (B, X, Y, Z) bool, voxels to look at among them.
    """
    seen = values[:, 3] > OPACITY_THRESHOLD
    seen = seen if where is None else seen & where
    squared = (reconstruction[:, :3] - values[:, :3]).square().mean(1)[seen]
    return -10 * squared.mean().log10() if len(squared) else squared.new_tensor(torch.inf)


def copied_blocks(batch: dict[str, Any]) -> Tensor:
    """Baseline without learning: a masked block looks like the nearest one of its grid that is not masked.

    Args:
        batch: of the method.

    Returns:
        (B, 4, X, Y, Z): the grids with their masked blocks so filled; the first of equally near blocks, 0 where none
        is visible.
    """
    values, sizes = batch["values"], batch["sizes"]
    masks = batch["mask"].view(-1, *batch["mask"].shape[-3:]).expand(len(values), -1, -1, -1)
    filled = values.clone()
    for number, mask in enumerate(masks):
        own = tuple(-(-int(side) // BLOCK_VOXELS) for side in sizes[number])
        within = torch.zeros_like(mask)
        within[: own[0], : own[1], : own[2]] = True
        visible, hidden = (within & ~mask).nonzero(), (within & mask).nonzero()
        near = torch.cdist(hidden.float(), visible.float()).argmin(1) if len(visible) else None
        for row, block in enumerate(hidden.tolist()):
            place = tuple(slice(BLOCK_VOXELS * n, BLOCK_VOXELS * (n + 1)) for n in block)
            if near is None:
                filled[(number, slice(None), *place)] = 0
                continue
            source = tuple(slice(BLOCK_VOXELS * n, BLOCK_VOXELS * (n + 1)) for n in visible[near[row]].tolist())
            filled[(number, slice(None), *place)] = values[(number, slice(None), *source)]
    return filled


__all__ = ["MaskedGridSamples", "MaskedGrids", "MaskedGridsConfig", "colour_psnr", "copied_blocks", "draw_mask"]
