"""A radiance grid: slices, a rendering, and its voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.reconstruction.grid_rendering import overview, render_grid
from geo3d.reconstruction.preview import grid_slices, label_slices
from geo3d.visualize.features import SOLID, grid_points, read_grids
from geo3d.visualize.options import DrawingOptions, PlaceOptions
from geo3d.visualize.places import shown_points
from geo3d.viz.grids import BELOW_CEILING, seen_along
from geo3d.viz.picture import ImagePanel, Picture3D, Space
from geo3d.viz.points import label_colors

_RENDERED = (480, 360)  # pixels


@dataclass(frozen=True, kw_only=True)
class GridOptions(DrawingOptions, PlaceOptions):
    """Show radiance grids: slices, a rendering, the voxels; labels where there are any."""


def draw(config: GridOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: there is no grid, or it is empty.
    """
    spaces: list[Space] = []
    images: list[ImagePanel] = []
    legend: tuple = ()
    notes = []
    for path in config.data:
        for name, grid, classes in read_grids(path, config.scene):
            rows, cloud = grid_points(grid, config.points)
            spaces.append(Space(f"{name}: voxels of opacity {SOLID} or more", (shown_points(cloud, config.points),)))
            told = f"{name}: {' x '.join(map(str, grid.sides))} voxels, {len(rows):,} of them solid"
            if grid.low is not None:
                told += f", of {100 * float(grid.voxel.mean()):.1f} cm"
                image, _ = render_grid(grid, *overview(grid, *_RENDERED))
                pixels = byte_color_tensor(image).numpy()
                images.append(ImagePanel(f"{name}: rendered", pixels))
            else:
                told += "; its size is not known, so that it is not rendered"
            notes.append(told)
            images.append(
                ImagePanel("from above, its upper 30 % left out", seen_along(grid.values, 2, 0, BELOW_CEILING))
            )
            images += [ImagePanel(f"slice across {axis}", pixels) for axis, pixels in zip("xyz", grid_slices(grid))]
            if grid.labels is None or not bool((grid.labels >= 0).any()):
                continue
            names = classes or [f"class {number}" for number in range(int(grid.labels.max()) + 1)]
            palette = label_colors(len(names))
            present = np.unique(grid.labels[grid.labels >= 0].numpy())
            legend = tuple((names[number], tuple(palette[number].tolist())) for number in present)
            labels = grid.labels[rows.unbind(1)].numpy()
            spaces.append(Space(f"{name}: labels", (shown_points(cloud, config.points, palette[labels]),)))
            images.append(ImagePanel("labels, a slice across z", label_slices(grid, len(names))[2]))
    return Picture3D("radiance grid", tuple(spaces), tuple(images), legend, notes=tuple(notes), columns=3)
