"""Files of radiance fields, and of fits that are under way: safetensors, described by JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from geo3d.config import to_plain, typed_value
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.reconstruction.field_box import FieldBox
from geo3d.reconstruction.radiance_config import RadianceFieldConfig
from geo3d.reconstruction.radiance_grid import RadianceGrid
from geo3d.writing import prepare_place, replacing, write_tensors

_KEY, _VERSION = "geo3d_radiance_field", 1


def write_field(
    path: Path, grid: RadianceGrid, config: RadianceFieldConfig, described: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a grid with its config, and more: JSON values and tensors.

    Raises:
        InputError: the file cannot be written.
    """
    path = prepare_place(Path(path))
    told = {"version": _VERSION, "box": to_plain(grid.box), "config": to_plain(config)} | {
        name: to_plain(value) for name, value in described.items()
    }
    found = {"values": grid.values} | tensors
    if grid.occupancy is not None:
        found["occupancy"] = grid.occupancy
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    with replacing(path) as unfinished:
        write_tensors(unfinished, packed, {_KEY: json.dumps(told)})


def read_field(path: Path) -> tuple[RadianceGrid, RadianceFieldConfig, dict[str, Any], dict[str, Tensor]]:
    """Inverse of :func:`write_field`.

    Raises:
        InputError: no such file, a damaged one, or one of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file of a radiance field")
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        described = None if told is None else json.loads(told)
    except Exception as error:  # of damaged headers, and of types that torch does not know
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not a safetensors file ({reason}); fit it again") from error
    if not isinstance(described, dict) or described.get("version") != _VERSION or "values" not in tensors:
        raise InputError(f"{path}: is no radiance field of this version of geo3d; fit it again")
    try:
        box = typed_value(FieldBox, described["box"], f"{path}: box")
        config = typed_value(RadianceFieldConfig, described["config"], f"{path}: config")
    except KeyError as error:
        raise InputError(f"{path}: its description lacks {error}; fit it again") from error
    grid = RadianceGrid(box, tensors.pop("values"))
    grid.occupancy = tensors.pop("occupancy", None)
    return grid, config, described, tensors


def camera_of(fields: Any, path: Path) -> Camera:
    """A camera from its plain fields."""
    return typed_value(Camera, fields, f"{path}: camera")


__all__ = ["camera_of", "read_field", "write_field"]
