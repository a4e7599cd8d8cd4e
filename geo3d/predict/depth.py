"""Depth of single images by a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.inference.tiling import tiled_prediction
from geo3d.models.croco_downstream import CroCoDownstream
from geo3d.predict.dense import (
    DenseOptions,
    as_network_reads,
    at_size,
    certainty,
    network_and_tiles,
    prepare_files,
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
class DepthOptions(DenseOptions):
    """Find the depth of every pixel of images."""

    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Images."""
    out: Path = Path("depth.npz")
    """Where to write depth: .npz, .pfm (both metres), or .png as KITTI has it (256ths of a metre in 16 bits). An .npz
    with all that is found and a picture go beside it. Of several images each one's name is put behind the file's."""


def predict(config: DepthOptions) -> str:
    """Run the network and write what it finds.

    Returns:
        Lines that say what was found, and where it is.

    Raises:
        InputError: checkpoint or images cannot be read or do not fit; nothing can be written where it is to be.
    """
    if not config.images:
        raise InputError("predict depth: name one image or more")
    places = {path: _place(config.out, path, len(config.images)) for path in config.images}
    if len(set(places.values())) < len(config.images):
        raise InputError("predict depth: two images are called alike; call the command once for each")
    files = {path: prepare_files(place, (".npz", ".pfm", ".png")) for path, place in places.items()}
    model = network_and_tiles(config, "depth")
    if model.config.views != 1:
        raise InputError(f"{config.checkpoint}: its network looks at two images; depth is predicted of one")
    lines, errors = told_size(config, model), []
    for path in config.images:
        try:
            lines += _one(config, model, path, files[path])
        except InputError as error:  # is told once the other images are done
            errors.append(error)
    if errors:
        raise errors[0]
    return "\n".join(lines)


def _place(out: Path, image: Path, count: int) -> Path:
    return out if count == 1 else out.with_name(f"{out.stem}_{image.stem}{out.suffix}")


def _one(config: DepthOptions, model: CroCoDownstream, path: Path, files: dict[str, Path]) -> list[str]:
    """Predict an image's depth and write it; lines that say so."""
    image = read_photo(path)
    size = image.shape[:2]
    tile, weigh = config.tile or model.config.crop, model.config.tile_confidence.weight
    read = as_network_reads(image, config, model)
    found = tiled_prediction(model, read, None, tile, weigh, config.overlap, moves=False)
    depth = at_size(found.values, size)[0, 0].float().cpu().numpy()
    confidence, deviation = certainty(model, found.confidence, size, 1.0)
    depth = np.where(depth > 0, depth, np.float32(0))  # as everywhere in memory, 0 where there is none
    known = np.where(depth > 0, depth, np.float32(np.nan))

    write_arrays(files["arrays"], {"depth": depth, "confidence": confidence, "deviation": deviation})
    panels, legends = {"image": image}, {}
    panels["depth"], legends["depth"] = shown(known, "m")
    if deviation is not None:
        panels["expected error"], legends["expected error"] = shown(deviation, "m")
    write_picture(files["picture"], with_legend(panels, legends))
    write_named(files["out"], known, "metres")
    return [f"{path}: {told(known, 'depth', 'metres')}", *told_files(files, "depth")]
