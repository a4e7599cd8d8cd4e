"""`geo3d encode`: features of scans, photos and grids, for those who write no Python."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from torch import Tensor

from geo3d.cli import command_line
from geo3d.errors import InputError
from geo3d.inference import EncodedCloud, EncodedScene, LoadedEncoder, load_encoder
from geo3d.models.encoder import layers_said
from geo3d.writing import prepare_place, replacing

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Features of every point of scans and objects, or maps of photos and radiance grids, as one .npz file."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Files of points (PLY, PCD, OBJ, ...), folders of one scene, images, folders of images, or radiance grids (.npz):
    what the encoder reads."""
    checkpoint: str
    """Run folder, file of weights, hf://owner/repository/file, or the name of a model whose weights come with geo3d."""
    model: str | None = None
    """Name of the model, where the file of its authors does not say."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("features.npz")
    """File to write."""
    layers: tuple[str, ...] = ()
    """Stages whose features are written, by name or number. None: of points all, side by side; of images and grids the
    last."""
    half: bool = False
    """Write in half precision, which takes half of the space."""
    pooled_only: bool = False
    """Write one vector an input alone."""
    device: str = "auto"
    """Where the encoder runs: auto, cpu, cuda."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("encode: name at least one file or folder")
        if self.out.suffix != ".npz":
            raise InputError(f"out: {self.out} must end in .npz")


def main(args: list[str], program: str) -> None:
    """Read the command line, encode one input after the other, print what was filled in."""
    encode_files(command_line.parse(Encode, args, program))


def encode_files(config: Encode) -> None:
    """Encode files and write their features.

    Of an input ``scan.ply`` the file holds ``scan.ply/points`` (N, C) and ``scan.ply/pooled`` (C,); of an image or a
    grid ``a.jpg/map`` (C, h, w), and further stages as ``a.jpg/map.stage1``; beside ``info``, JSON that says of each
    what was filled in and dropped, and of the encoder what it is.

    Raises:
        InputError: a checkpoint or an input that cannot be read or does not fit the encoder, two inputs of one name, or
            a place that cannot be written to.
    """
    out = prepare_place(config.out)
    source = (config.checkpoint,) if config.model is None else (config.model, config.checkpoint)
    encoder = load_encoder(*source, device=config.device)
    stages = _stages(encoder, config.layers)
    names = [encoder.model.feature_info[n].name for n in stages]
    info: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "model": encoder.model.name or encoder.model.family,
        "kind": encoder.kind,
        "stages": names,
        "inputs": {},
    }
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, read in _listed(encoder, config.inputs):
            try:
                encoded = encoder(read(), layers=stages)
            except InputError as error:
                raise error if name in str(error) else InputError(f"{name}: {error}") from error
            arrays = _arrays(encoded, names, config.pooled_only)
            for key, value in arrays.items():
                _write(archive, f"{name}/{key}", value, config.half)
            told = _told(encoded)
            info["inputs"][name] = told
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in arrays.items())
            filled = "; ".join(f"{part}: {how}" for part, how in told.get("filled", {}).items())
            dropped = f"{told['dropped']} rows without a position" if told.get("dropped") else ""
            print("; ".join(part for part in (f"{name}: {shapes}", filled, dropped) if part), flush=True)
        with archive.open("info.npy", "w") as file:
            np.lib.format.write_array(file, np.array(json.dumps(info)))
    print(f"features: {out}")


def _stages(encoder: LoadedEncoder, layers: tuple[str, ...]) -> list[int]:
    """Numbers of the stages that are written."""
    if not layers:
        count = len(encoder.model.feature_info)
        return list(range(count)) if encoder.kind in ("voxels", "points") else [count - 1]
    return encoder.model.stage_numbers(layers_said(layers))


def _listed(encoder: LoadedEncoder, inputs: tuple[Path, ...]) -> Iterator[tuple[str, Any]]:
    """Name of every input, and a function that reads it."""
    found: dict[str, Any] = {}
    for path in inputs:
        for name, read in _readers(encoder, path):
            if name in found:
                raise InputError(f"encode: there are two inputs called {name}; call the command once for each")
            found[name] = read
    return iter(found.items())


def _readers(encoder: LoadedEncoder, path: Path) -> Iterator[tuple[str, Any]]:
    from geo3d import datasets
    from geo3d.datasets.image_files import image_names, read_photo

    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    name = "/".join(part for part in path.parts if part not in (path.anchor, ".", ".."))
    if encoder.kind in ("voxels", "points"):
        yield name, lambda: datasets.read_cloud(path)[0]
    elif encoder.kind == "grid":
        yield name, lambda: datasets.read_grid(path)
    else:
        files = [path / file for file in image_names(path)] if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: holds no image")
        for file in files:
            own = f"{name}/{file.name}" if path.is_dir() else name
            yield own, lambda file=file: read_photo(file)


def _arrays(encoded: Any, names: list[str], pooled_only: bool) -> dict[str, Tensor]:
    if pooled_only:
        return {"pooled": encoded.pooled}
    if isinstance(encoded, EncodedScene | EncodedCloud):
        return {"points": encoded.points, "pooled": encoded.pooled}
    maps = {f"map.{name}": values for name, values in zip(names[:-1], encoded.maps)}
    return {"map": encoded.map, **maps, "pooled": encoded.pooled}


def _told(encoded: Any) -> dict[str, Any]:
    if isinstance(encoded, EncodedScene | EncodedCloud):
        return {"filled": encoded.filled, "dropped": encoded.dropped}
    return {"strides": encoded.strides}


def _write(archive: zipfile.ZipFile, name: str, values: Tensor, half: bool) -> None:
    array = values.cpu().numpy()
    if half:
        largest = float(np.nanmax(np.abs(array), initial=0))
        if largest > _LARGEST_HALF:
            raise InputError(f"{name}: features of {largest:g} are too large for half precision; leave out --half")
        array = array.astype(np.float16)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array)
