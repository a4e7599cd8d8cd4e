"""Pictures of every kind of `geo3d visualize`, and a sheet of all of them, as docs/images holds them.

python tools/visualize_gallery.py --data data/rooms --voxels runs/spark3d-001 --out docs/images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo3d.cli import command_line
from geo3d.visualize.kinds import get_kind
from geo3d.viz.render import Renderer, render
from geo3d.viz.sheet import MARGIN, Sheet
from geo3d.writing import replacing

_COLUMN, _COLUMNS, _CAPTION = 470, 3, 18  # pixels
# Colours of the files, which are to be small: of single pictures, and of the sheet.
_COLORS, _SHEET_COLORS = 256, 160
#: Those that are written by themselves too.
_SINGLE = ("features", "similarity", "matches", "reconstruction")


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Draw all kinds of pictures and a sheet of them."""

    data: Path
    """Folder of synthetic rooms, as `geo3d prepare synthetic` writes them (its scannet/)."""
    voxels: Path
    """Run of spark3d, for features, likeness and reconstruction."""
    windows: Path | None = None
    """Run of swin3d, for attention."""
    views: Path | None = None
    """Run of croco, for attention, matches and reconstruction."""
    objects: str | None = None
    """I2P-MAE: a run, a file, or the name of a model whose weights come with geo3d."""
    grids: Path | None = None
    """Run of nerf_mae."""
    grid_data: Path | None = None
    """Folder of radiance grids."""
    out: Path = Path("pictures")
    """Folder to write to: visualize.png is the sheet, the others are named after their kinds."""
    renderer: Renderer = "own"
    """What draws, as in `geo3d visualize`."""

    def wanted(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name of each picture -> its kind and options."""
        place = {"data": (self.data,)}
        by_voxels = place | {"checkpoint": str(self.voxels)}
        found: dict[str, tuple[str, dict[str, Any]]] = {
            "scene": ("scene", place | {"views": 0}),
            "features": ("features", by_voxels),
            "similarity": ("similarity", by_voxels),
            "reconstruction": ("reconstruction", {"run": self.voxels, "data": (self.data,)}),
            "matches": ("matches", by_voxels | {"pair": ("8", "12")}),
            "pairs": ("pairs", place | {"count": 3}),
        }
        if self.windows is not None:
            found["attention"] = ("attention", place | {"checkpoint": str(self.windows)})
        if self.views is not None:
            by_views = place | {"checkpoint": str(self.views)}
            found["attention_of_views"] = ("attention", by_views)
            found["matches_of_views"] = ("matches", by_views)
            found["similarity_of_views"] = ("similarity", by_views | {"views": 2})
        if self.objects is not None:
            found["features_of_objects"] = ("features", place | {"checkpoint": self.objects, "views": 2})
        if self.grid_data is not None:
            found["grid"] = ("grid", {"data": (self.grid_data,)})
            if self.grids is not None:
                found["features_of_grids"] = ("features", {"data": (self.grid_data,), "checkpoint": str(self.grids)})
        return found


def main(args: list[str], program: str) -> None:
    """Draw them all."""
    config = command_line.parse(Gallery, args, program)
    config.out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, np.ndarray] = {}
    for name, (kind, options) in config.wanted().items():
        picture = get_kind(kind).draw(get_kind(kind).options(**options))
        scratch = config.out / f"{name}.png"
        drawn[name] = render(picture, scratch, config.renderer).pixels
        scratch.unlink()
        if name in _SINGLE:
            _write(config.out / f"{name}.png", Image.fromarray(drawn[name]), _COLORS)
        print(f"{name} is drawn", flush=True)
    _write(config.out / "visualize.png", Image.fromarray(_sheet(drawn)), _SHEET_COLORS)


def _sheet(drawn: dict[str, np.ndarray]) -> np.ndarray:
    """All pictures in columns, each under its name, where there is most room."""
    columns: list[list[tuple[str, Image.Image]]] = [[] for _ in range(_COLUMNS)]
    heights = [0] * _COLUMNS
    for name, pixels in sorted(drawn.items(), key=lambda entry: -entry[1].shape[0] / entry[1].shape[1]):
        share = (_COLUMN - MARGIN) / pixels.shape[1]
        small = Image.fromarray(pixels).resize(
            (_COLUMN - MARGIN, round(share * pixels.shape[0])), Image.Resampling.LANCZOS
        )
        column = int(np.argmin(heights))
        columns[column].append((name.replace("_", " "), small))
        heights[column] += small.height + _CAPTION + MARGIN
    sheet = Sheet(_COLUMNS * _COLUMN + MARGIN, max(heights) + MARGIN)
    for number, column in enumerate(columns):
        top = MARGIN
        for name, small in column:
            sheet.write(name, number * _COLUMN + MARGIN, top - 2)
            sheet.put(small, number * _COLUMN + MARGIN, top + _CAPTION - 2)
            top += small.height + _CAPTION + MARGIN
    return sheet.pixels()


def _write(path: Path, image: Image.Image, colors: int) -> None:
    """As a PNG of so many colours."""
    with replacing(path) as unfinished:
        image.quantize(colors, dither=Image.Dither.NONE).save(unfinished, format="PNG", optimize=True)


if __name__ == "__main__":
    command_line.run(main, "visualize_gallery.py")
