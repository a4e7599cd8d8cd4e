"""Previews: what a grid looks like, beside the photos it was made of or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geo3d.datasets.image_files import decode
from geo3d.datasets.scene import Scene
from geo3d.geometry import Camera, VolumeGrid
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.metrics import psnr
from geo3d.reconstruction.grid_rendering import render_grid
from geo3d.reconstruction.routes import Made, Render
from geo3d.viz.grids import label_slice, slice_of
from geo3d.viz.sheet import MARGIN, Sheet

_TILE = 240  # pixels, the height of photos and the longest side of slices
_CAPTION = 18
_MEASURED = 4  # held-out views that PSNR is averaged over, and those that a preview shows
_SHOWN = 2
_LONGEST = 480  # pixels; larger photos are compared at this size


def grid_slices(grid: VolumeGrid, places: Sequence[int] | None = None) -> list[np.ndarray]:
    """Slices across x, y and z as (H, W, 3) uint8, colours over white by opacity; those across x and y are upright.

    Args:
        grid: to be cut.
        places: number of the voxel along x, y and z; None: where the most is in the middle half of each axis.
    """
    values = grid.values
    return [slice_of(values, axis, place) for axis, place in enumerate(places or _fullest_places(grid))]


def label_slices(grid: VolumeGrid, classes: int, places: Sequence[int] | None = None) -> list[np.ndarray]:
    """As :func:`grid_slices`, of the classes of voxels; white where there is none."""
    return [
        label_slice(grid.labels, classes, axis, place) for axis, place in enumerate(places or _fullest_places(grid))
    ]


def _fullest_places(grid: VolumeGrid) -> list[int]:
    return [_fullest(grid, axis) for axis in range(3)]


def measured_views(scene: Scene, made: Made) -> list[int]:
    """Views that a grid is compared with: those held out, or else evenly spread ones; at most so many."""
    views = list(made.held_out) or list(range(len(scene.view_names)))
    return [views[row] for row in np.unique(np.linspace(0, len(views) - 1, min(_MEASURED, len(views))).astype(int))]


def preview(scene: Scene, made: Made, classes: Sequence[str] = ()) -> tuple[np.ndarray, dict[str, float]]:
    """A picture of what was made of a scene, and how well it renders.

    Slices across x, y and z; below them two photos, renderings of the grid from there, and those of what the grid was
    read off where that is more than the grid.

    Args:
        scene: with views and poses.
        made: of the scene.
        classes: names of what labels count in.

    Returns:
        (H, W, 3) uint8, and figures, means over at most 4 views: ``psnr`` in dB of the grid, of those pixels alone
        whose light it stops by half or more, ``covered`` their share; ``psnr_route`` of what it was read off, of all
        pixels; ``views_held_out`` says whether the views were held out.

    Raises:
        BrokenScene: a photo is damaged.
    """
    ways: dict[str, Render] = {"grid": lambda camera, pose: render_grid(made.grid, camera, pose)}
    if made.render is not None:
        ways["route"] = made.render
    rows, figures = [], {name: [] for name in (*ways, "covered")}
    views = measured_views(scene, made)
    for number, index in enumerate(views):
        photo, camera, pose = _photo(scene, index)
        shown = [("photo held out" if made.held_out else "photo", photo)]
        for name, render in ways.items():
            colour, depth = render(camera, pose)
            if name == "grid":  # the surroundings of its box are not in it
                figures["covered"].append(float((depth > 0).float().mean()))
                value = psnr(colour[depth > 0], photo[depth > 0]) if figures["covered"][-1] > 0 else 0.0
            else:
                value = psnr(colour, photo)
            figures[name].append(value)
            shown.append((f"{'fitted field' if name == 'route' else 'grid'}, {value:.1f} dB", colour))
            if name == list(ways)[-1]:
                shown.append(("its depth", _grey(depth)))
        if number < _SHOWN:
            rows.append([(caption, _fitted(byte_color_tensor(image).numpy(), _TILE)) for caption, image in shown])
    slices = [(f"across {axis}", _fitted(image, _TILE)) for axis, image in zip("xyz", grid_slices(made.grid))]
    rows.insert(0, slices)
    if made.grid.labels is not None and len(classes):
        labels = label_slices(made.grid, len(classes))
        rows.insert(1, [("classes", _fitted(image, _TILE)) for image in labels])
    named = {"grid": "psnr", "route": "psnr_route", "covered": "covered"}
    told = {named[name]: round(float(np.mean(values)), 3) for name, values in figures.items()}
    return _laid_out(rows), told | {"views_held_out": bool(made.held_out)}


def _photo(scene: Scene, index: int) -> tuple[Tensor, Camera, Tensor]:
    """Colours (H, W, 3) in [0, 1] of a photo, its camera and pose; a large photo is averaged down."""
    where = f"{scene.root}: view {scene.view_names[index]}"
    camera = scene.camera(index)
    with scene.image(index) as picture:
        pixels = decode(picture, where, scene.name)
    scale = min(1.0, _LONGEST / max(camera.width, camera.height))
    width, height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    colours = torch.from_numpy(np.array(small)).float() / 255
    return colours, camera.resized(width, height), torch.from_numpy(scene.pose(index))


def _fullest(grid: VolumeGrid, axis: int) -> int:
    """The voxel in the middle half of an axis at which a slice holds the most."""
    others = tuple(other for other in range(3) if other != axis)
    sums, first = grid.opacity.sum(others), grid.sides[axis] // 4
    return first + int(sums[first : max(first + 1, 3 * grid.sides[axis] // 4)].argmax())


def _grey(depth: Tensor) -> Tensor:
    """Depth (H, W) as (H, W, 3): near is bright, unknown is black."""
    known = depth[depth > 0]
    if not len(known):
        return torch.zeros(*depth.shape, 3)
    near, far = float(known.quantile(0.02)), float(known.quantile(0.98))
    shade = 1 - 0.85 * ((depth - near) / max(far - near, 1e-9)).clamp(0, 1)
    return torch.where(depth > 0, shade, 0.0)[..., None].expand(*depth.shape, 3)


def _fitted(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Enlarged or reduced so that the longer side has so many pixels; single voxels stay to be seen."""
    scale = longest / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.array(Image.fromarray(pixels).resize(size, way))


def _laid_out(rows: list[list[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Captioned images in rows."""
    widths = [sum(image.shape[1] + MARGIN for _, image in row) for row in rows]
    heights = [max(image.shape[0] for _, image in row) + _CAPTION + MARGIN for row in rows]
    sheet, top = Sheet(max(widths) + MARGIN, sum(heights) + MARGIN), MARGIN
    for row, height in zip(rows, heights):
        left = MARGIN
        for caption, image in row:
            sheet.write(caption, left, top, image.shape[1])
            sheet.put(image, left, top + _CAPTION)
            left += image.shape[1] + MARGIN
        top += height
    return sheet.pixels()


__all__ = ["grid_slices", "label_slices", "measured_views", "preview"]
