"""Disparity of a rectified pair of images by a trained network, and depth where the cameras are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from geo3d.errors import InputError
from geo3d.inference.stereo import match_stereo
from geo3d.predict.dense import (
    DenseOptions,
    as_network_reads,
    at_size,
    certainty,
    network_and_tiles,
    prepare_files,
    read_pair,
    shown,
    told,
    told_files,
    told_size,
    write_arrays,
    write_named,
)
from geo3d.viz.dense import with_legend
from geo3d.viz.sheet import write_picture


@dataclass(frozen=True, kw_only=True)
class StereoOptions(DenseOptions):
    """Find the disparity of every pixel of the left image of a rectified pair."""

    left: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LEFT")]
    """Left image."""
    right: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RIGHT")]
    """Right image, of the same size; rectified, so that what is in a row of one is in the same row of the other."""
    out: Path = Path("disparity.npz")
    """Where to write disparities: .npz, .pfm, or .png as KITTI has it (256ths of a pixel in 16 bits). An .npz with all
    that is found and a picture go beside it."""
    reach: float = 0.0
    """Largest disparity, pixels, up to which tiles of the right image are shifted along the rows, where disparities are
    larger than a part of a tile; 0: no shifts, as published."""
    tolerance: float | None = None
    """Match right to left too: pixels whose disparity and that of their match differ by more pixels than this count as
    not known, such as what the right image does not see. None: all count."""
    focal: float | None = None
    """Focal length of the rectified images, pixels; with the baseline, depth is written too."""
    baseline: float | None = None
    """Distance between the cameras, metres."""
    offset: float = 0.0
    """Column of the principal point in the right image less that in the left, pixels (Middlebury's doffs)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.focal is None) != (self.baseline is None):
            raise InputError("depth needs both the focal length (--focal) and the baseline (--baseline)")
        if self.focal is not None and not (self.focal > 0 and self.baseline > 0):
            raise InputError(f"focal and baseline must be positive, got {self.focal} and {self.baseline}")


def predict(config: StereoOptions) -> str:
    """Run the network and write what it finds.

    Returns:
        Lines that say what was found, and where it is.

    Raises:
        InputError: checkpoint or images cannot be read or do not fit; nothing can be written where it is to be.
    """
    files = prepare_files(config.out, (".npz", ".pfm", ".png"))
    images = read_pair(config.left, config.right)
    model = network_and_tiles(config, "stereo")
    size = images[0].shape[:2]
    left, right = (as_network_reads(image, config, model) for image in images)
    factor = size[1] / left.shape[3]
    found = match_stereo(
        model,
        left,
        right,
        config.tile or model.config.crop,
        model.config.tile_confidence.weight,
        config.overlap,
        config.reach / factor,
        None if config.tolerance is None else config.tolerance / factor,
    )
    disparity = at_size(found.disparity.unsqueeze(1), size)[0, 0].float().cpu().numpy() * factor
    known = np.ones(size, dtype=bool)
    if found.consistent is not None:
        known = at_size(found.consistent.unsqueeze(1).float(), size, "nearest")[0, 0].cpu().numpy() > 0
    disparity = np.where(known, disparity, np.float32(np.nan))
    confidence, deviation = certainty(model, found.confidence, size, factor)
    depth = None
    if config.focal is not None:
        apart = disparity + config.offset
        depth = np.where(apart > 0, config.focal * config.baseline / np.where(apart > 0, apart, 1), 0)
        depth = depth.astype(np.float32)

    arrays = {"disparity": disparity, "confidence": confidence, "deviation": deviation, "known": known, "depth": depth}
    write_arrays(files["arrays"], arrays)
    panels, legends = {"left image": images[0]}, {}
    lines = [*told_size(config, model), told(disparity, "disparity", "pixels")]
    for name, values, unit in (("disparity", disparity, "px"), ("expected error", deviation, "px")):
        if values is not None:
            panels[name], legends[name] = shown(values, unit)
    if depth is not None:
        metres = np.where(depth > 0, depth, np.float32(np.nan))
        panels["depth"], legends["depth"] = shown(metres, "m")
        lines.append(told(metres, "depth", "metres"))
    if deviation is not None:
        lines.append(f"expected error: {np.median(deviation):.3g} pixels in the median")
    write_picture(files["picture"], with_legend(panels, legends))
    write_named(config.out, disparity, "pixels")
    return "\n".join([*lines, *told_files(files, "disparity")])
