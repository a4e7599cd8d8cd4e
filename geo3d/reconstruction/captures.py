"""Radiance grids of what a user hands in: grids as they are, or posed captures of which they are made first."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.radiance_grids import grid_files, read_grid
from geo3d.datasets.scene import open_dataset
from geo3d.errors import InputError
from geo3d.progress import Log
from geo3d.reconstruction.make_grids import GridsConfig, prepare_grids
from geo3d.reconstruction.routes import get_route

#: Where grids of captures are put.
CAPTURES = Path("data") / "grids"
#: Scenes of a dataset that are opened to see what it holds, at most.
_LOOKED_AT = 16


def capture_route(root: Path, route: str = "auto") -> str | None:
    """How grids of a dataset's scenes are made: of depth maps where it has any, else of photos; None: it has grids.

    Args:
        root: of the dataset.
        route: one of the routes, for scenes without grids; ``auto``: as the scenes are.

    Raises:
        InputError: no dataset, or nothing that a grid can be made of.
    """
    dataset = open_dataset(root)
    parts: set[str] = set()
    for name in dataset.scene_names[:_LOOKED_AT]:
        try:
            parts |= dataset.open(name).parts
        except BrokenScene:
            continue
    if "grid" in parts:
        return None
    if route != "auto":
        return route
    for known in ("depth_fusion", "radiance_field"):
        if parts.issuperset(get_route(known).parts):
            return known
    for file in grid_files(root)[:1]:  # the only sign of grids; it tells what is wrong with it
        try:
            read_grid(file)
        except BrokenScene as broken:
            raise InputError(f"{root}: holds no radiance grid; {broken.detail}") from broken
    raise InputError(
        f"{root}: its scenes have neither radiance grids nor posed photos to make them of, but {sorted(parts)}"
    )


def capture_grids(root: Path, longest_side: int, route: str, log: Log, strict: bool = False) -> Path:
    """The folder of a dataset's radiance grids: itself, or those that are made of its posed photos, or were before.

    Args:
        root: of a dataset of grids, or of posed captures.
        longest_side: voxels along the longest side of those that are made.
        route: one of the routes, or ``auto``.
        log: takes lines.
        strict: whether the first broken scene is an error.

    Raises:
        InputError: nothing that a grid can be made of.
    """
    chosen = capture_route(root, route)
    if chosen is None:
        return root
    out = capture_grids_folder(root, longest_side, chosen)
    log(f"making radiance grids of {root} in {out} ({chosen})")
    options = dataclasses.replace(get_route(chosen).config_type()(), longest_side=longest_side)
    log(prepare_grids(GridsConfig((root,), out, chosen, strict=strict), options, log).report())
    return out


def capture_grids_folder(root: Path, longest_side: int, route: str) -> Path:
    """Where :func:`capture_grids` puts the grids that it makes; ``route`` is not ``auto``."""
    place = root.resolve()
    return CAPTURES / f"{place.name}_{zlib.crc32(str(place).encode()):08x}_{route}_{longest_side}"


__all__ = ["CAPTURES", "capture_grids", "capture_grids_folder", "capture_route"]
