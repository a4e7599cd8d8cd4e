"""Radiance grids to files in the form that NeRF-MAE published, with more in them of our own.

``rgbsigma`` (X, Y, Z, 4) holds red, green, blue in [0, 1] and a density in the convention of instant-ngp, from which a
published loader that normalises gets back the opacity of the voxel: ``density = log(-100 log(1 - opacity))``.
Opacity is that of the voxel's whole side, ``1 - exp(-density per metre * side)``, whatever its size; the published
files hold that of a step of a hundredth of their network's unit instead. It is held within 1e-6 and 1 - 1e-6, so that
an empty voxel has the density -9.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geo3d.datasets.radiance_grids import density_of_opacity
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.writing import replacing, write_text, writing

#: Raised whenever older readers would misread what is written.
VERSION = 1
#: Types that colours and densities are written in.
PRECISIONS = {"float16": np.float16, "float32": np.float32}


def write_grid(
    path: str | Path,
    grid: VolumeGrid,
    *,
    precision: str = "float16",
    metric: bool = True,
    made_by: str = "",
) -> Path:
    """Write a radiance grid; the old file or the new one is whole at any moment.

    Beside the published keys (``rgbsigma``, ``resolution``, ``bbox_min``, ``bbox_max``, ``scale``, ``offset``,
    ``from_mitsuba``) lie ``density`` (``exp``), ``metric``, ``made_by``, ``version``, and ``labels`` (int16, -1 where
    there is none) and ``boxes`` where the grid has them. :func:`geo3d.datasets.read_grid` reads all of it. The archive
    is compressed.

    Args:
        path: ends in ``.npz``; folders above it are made.
        grid: what is written.
        precision: ``float16``, which keeps colours to 1/2000 and opacity to 1/600, or ``float32``.
        metric: whether the corners are metres.
        made_by: the route that made it, for people.

    Raises:
        InputError: another ending or precision, labels beyond int16, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: a radiance grid is written to a .npz file; give such a name")
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; give one of {', '.join(PRECISIONS)}")
    density = density_of_opacity(grid.opacity.detach().cpu().float())
    rgb = grid.rgb.detach().cpu().float().clamp(0, 1)
    rgbsigma = np.concatenate([rgb.numpy(), density.numpy()[..., None]], -1).astype(PRECISIONS[precision])
    arrays = {
        "rgbsigma": rgbsigma,
        "resolution": np.array(grid.sides, np.int64),
        "scale": np.float64(1),
        "offset": np.zeros(3),
        "from_mitsuba": np.bool_(False),
        "density": np.array("exp"),
        "metric": np.bool_(metric),
        "made_by": np.array(made_by),
        "version": np.int64(VERSION),
    }
    if grid.low is not None and grid.high is not None:
        arrays |= {"bbox_min": grid.low.double().cpu().numpy(), "bbox_max": grid.high.double().cpu().numpy()}
    if grid.labels is not None:
        labels = grid.labels.cpu().numpy()
        if labels.size and (labels.max() > np.iinfo(np.int16).max or labels.min() < -1):
            raise InputError(f"{path}: labels must lie in -1 to 32767, got {labels.min()} to {labels.max()}")
        arrays["labels"] = labels.astype(np.int16)
    if grid.boxes is not None:
        arrays["boxes"] = grid.boxes.float().cpu().numpy()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def grid_path(root: str | Path, scene: str) -> Path:
    """Where the grid of a scene lies in a folder of grids; a name with slashes becomes one without."""
    return Path(root) / "features" / f"{scene.replace('/', '_')}.npz"


def write_classes(root: str | Path, classes: Sequence[str]) -> None:
    """Write the names that the labels of a folder of grids count in.

    Raises:
        InputError: the folder has a list of other names, or the file cannot be written.
    """
    path, text = Path(root) / "classes.txt", "".join(f"{name}\n" for name in classes)
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path}: names other classes than those of the scenes; give another folder as output")
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


__all__ = ["VERSION", "grid_path", "write_classes", "write_grid"]
