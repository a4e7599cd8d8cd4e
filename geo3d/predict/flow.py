"""Optical flow from one image to another by a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from geo3d.datasets.disparity_files import write_flow, write_flow_png
from geo3d.inference.tiling import tiled_prediction
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
)
from geo3d.viz.dense import flow_colours, with_legend
from geo3d.viz.sheet import write_picture

#: Quantile of the lengths that is fully coloured.
_LONGEST = 0.99


@dataclass(frozen=True, kw_only=True)
class FlowOptions(DenseOptions):
    """Find where every pixel of an image has moved to in another."""

    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FIRST")]
    """First image."""
    second: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SECOND")]
    """Second image, of the same size."""
    out: Path = Path("flow.npz")
    """Where to write the flow: .npz, .flo, or .png as KITTI has it (three channels of 16 bits). An .npz with all that
    is found and a picture go beside it."""


def predict(config: FlowOptions) -> str:
    """Run the network and write what it finds.

    Returns:
        Lines that say what was found, and where it is.

    Raises:
        InputError: checkpoint or images cannot be read or do not fit; nothing can be written where it is to be.
    """
    files = prepare_files(config.out, (".npz", ".flo", ".png"))
    images = read_pair(config.first, config.second)
    model = network_and_tiles(config, "flow")
    size = images[0].shape[:2]
    first, second = (as_network_reads(image, config, model) for image in images)
    factors = np.array([size[1] / first.shape[3], size[0] / first.shape[2]], np.float32)
    tile, weigh = config.tile or model.config.crop, model.config.tile_confidence.weight
    found = tiled_prediction(model, first, second, tile, weigh, config.overlap)
    flow = at_size(found.values, size)[0].float().permute(1, 2, 0).cpu().numpy() * factors
    confidence, deviation = certainty(model, found.confidence, size, float(factors.mean()))

    write_arrays(files["arrays"], {"flow": flow, "confidence": confidence, "deviation": deviation})
    length = np.linalg.norm(flow, axis=2)
    longest = float(np.quantile(length, _LONGEST))
    panels = {"first image": images[0], "second image": images[1], "flow": flow_colours(flow, longest)}
    legends: dict[str, tuple[str, str] | str] = {"flow": f"full colour: {longest:.3g} px or more"}
    lines = [*told_size(config, model), told(length, "flow of lengths", "pixels")]
    if deviation is not None:
        panels["expected error"], legends["expected error"] = shown(deviation, "px")
        lines.append(f"expected error: {np.median(deviation):.3g} pixels in the median")
    write_picture(files["picture"], with_legend(panels, legends))
    # Last: a PNG does not hold all flow.
    if config.out.suffix.lower() == ".flo":
        write_flow(config.out, flow)
    elif config.out.suffix.lower() == ".png":
        write_flow_png(config.out, flow)
    return "\n".join([*lines, *told_files(files, "flow")])
