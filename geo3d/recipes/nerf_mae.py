"""NeRF-MAE's recipe: radiance grids of posed captures, and how well masked blocks of held-out ones are filled in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from geo3d.geometry import VolumeGrid
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.methods.nerf_mae import MaskedGrids, MaskedGridsConfig, colour_psnr, copied_blocks
from geo3d.recipes.grids import GridsRecipe, GridsRun, published_training
from geo3d.reconstruction.grid_rendering import overview, render_grid
from geo3d.train.config import TrainConfig
from geo3d.viz.sheet import captioned_sheet, write_picture

_PICTURE_SCENES = 3
_VIEW = (240, 180)  # pixels


@dataclass(kw_only=True)
class NeRFMAERun(GridsRun):
    """Pre-train NeRF-MAE: fill in masked blocks of radiance grids."""

    method: MaskedGridsConfig = field(default_factory=MaskedGridsConfig)
    """The task and the network."""


def _tiny() -> NeRFMAERun:
    """Minutes on a CPU: a small network, grids of 64 voxels a side; what is masked is left out of the encoder, and half
    of the blocks are decoded in a step."""
    method = MaskedGridsConfig(decoded=0.5)
    train = TrainConfig(steps=600, batch_size=2, lr=1e-3, warmup_steps=30, min_lr=1e-5, clip_norm=1.0, workers=1)
    return NeRFMAERun(method=method, train=train)


def _paper() -> NeRFMAERun:
    """The published recipe: 1,200 epochs, batches of 32, AdamW and one cycle; grids of 160 voxels a side."""
    method = MaskedGridsConfig("nerf_mae_swin_s", side=160, masking="published")
    return NeRFMAERun(method=method, grid_side=160, train=published_training(1200, 32, 1e-4))


class NeRFMAERecipe(GridsRecipe):
    """Filling in with training scenes, and held-out scenes to measure it on."""

    summary = "NeRF-MAE: fill in masked blocks of radiance grids, which are made of posed photos"
    run = NeRFMAERun
    presets: ClassVar = {"tiny": _tiny, "paper": _paper}
    method_class = MaskedGrids
    measured_batch = 1  # so that figures are means over scenes

    def describe(self) -> str:
        """How much is masked."""
        return f"; {100 * self.config.method.mask_ratio:g} % of their blocks masked"

    def figures(self) -> dict[str, float]:
        """Means over scenes: the losses; PSNR of colours, decibels; and root mean squared errors of opacity.

        ``psnr`` is of all voxels that are not empty, as published; ``masked_psnr`` of the masked ones alone, and
        ``copied_psnr`` of these where a masked block is taken to look like the nearest visible one. ``opacity_error``
        and ``copied_opacity_error`` are of masked voxels.
        """
        return self.means(self._scene_figures)

    def _scene_figures(self, batch: dict[str, Any]) -> dict[str, float]:
        output = self.method(batch)
        values, hidden = batch["values"], self.method.hidden(batch)
        found = {f"{name}_loss": value.item() for name, value in output.losses.items()}
        copied = copied_blocks(batch)
        quality = {
            "psnr": output.metrics["psnr"],
            "masked_psnr": colour_psnr(self.method.filled(batch, output), values, hidden),
            "copied_psnr": colour_psnr(copied, values, hidden),
        }
        found |= {"loss": output.loss.item()} | {name: v.item() for name, v in quality.items() if v.isfinite()}
        if bool(hidden.any()):
            for name, filled in (("opacity_error", output.extras["reconstruction"]), ("copied_opacity_error", copied)):
                found[name] = (filled[:, 3] - values[:, 3])[hidden].square().mean().sqrt().item()
        return found

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Figures before and after; some measured scenes are drawn as ``filled.png`` and ``views.png``."""
        lines = super().text(before, after)
        if "masked_psnr" in after:
            lines += (
                f"\ncolours of masked voxels: {before['masked_psnr']:.2f} dB {self.beginning}, "
                f"{after['masked_psnr']:.2f} dB trained "
                f"(copying the nearest visible block: {after['copied_psnr']:.2f} dB)"
            )
        if "opacity_error" in after:
            lines += (
                f"\nopacity of masked voxels, root mean squared error: {before['opacity_error']:.3f} {self.beginning}, "
                f"{after['opacity_error']:.3f} trained (copying: {after['copied_opacity_error']:.3f})"
            )
        self._write_pictures()
        return (
            f"{lines}\nscenes masked, filled in and in the original: {self.folder / 'filled.png'}; "
            f"as a camera in them sees them: {self.folder / 'views.png'}"
        )

    def _write_pictures(self) -> None:
        """Draw some measured scenes."""
        drawn = []
        for batch, _ in self.batches():
            drawn.append({name: value.cpu() for name, value in batch.items()})
            if len(drawn) == _PICTURE_SCENES:
                break
        samples = [
            {"values": _own(batch)} | {name: batch[name].view(batch[name].shape[-3:]) for name in ("mask", "decoded")}
            for batch in drawn
        ]
        batch = self.on_device(self.method.collate(samples))
        with self.method.measuring():
            output = self.method(batch)
            picture, filled = self.method.picture(batch, output), self.method.filled(batch, output)
        write_picture(self.folder / "filled.png", picture)
        masked = torch.where(self.method.hidden(batch).unsqueeze(1), 0, batch["values"])
        rows = []
        for row, sides in enumerate(batch["sizes"].tolist()):
            parts = [_placed(part[row].cpu(), sides) for part in (masked, filled, batch["values"])]
            view = overview(parts[-1], *_VIEW)
            rows.append([byte_color_tensor(render_grid(part, *view)[0]).numpy() for part in parts])
        write_picture(self.folder / "views.png", captioned_sheet(np.array(rows), ["masked", "filled in", "original"]))


def _placed(values: torch.Tensor, sides: list[int]) -> VolumeGrid:
    """A grid without what it was filled up with, its voxels of length 1."""
    x, y, z = sides
    grid = VolumeGrid.of_values(values[:, :x, :y, :z].float())
    return replace(grid, low=torch.zeros(3, dtype=torch.float64), high=torch.tensor(sides, dtype=torch.float64))


def _own(batch: dict[str, Any]) -> torch.Tensor:
    """The grid (4, X, Y, Z) of a batch of one, without what it was filled up with."""
    x, y, z = batch["sizes"][0].tolist()
    return batch["values"][0, :, :x, :y, :z]


__all__ = ["NeRFMAERecipe", "NeRFMAERun"]
