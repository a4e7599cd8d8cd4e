"""Points as sensors deliver them: which rows can be used, in which type, and what is filled in for what they lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud, View
from geo3d.geometry.origin import FAR, find_origin

_ROUNDING = 1e-3  # by which colours may leave [0, 1]


@dataclass
class UsableRows:
    """The rows of a cloud whose positions are finite.

    Args:
        xyz: (M, 3) float32, in the frame that was handed in less ``origin``.
        rows: (M,) int64 of what was handed in; None: all of them.
        count: N, rows that were handed in.
        colors: (N, 3) of all rows, as they were handed in, or None.
        normals: (N, 3), likewise.
        sensor: (3,) float32 where the points were seen from, in the frame of ``xyz``, or None.
        origin: (3,) float64, which leads back to the frame that was handed in.
    """

    xyz: Tensor
    rows: Tensor | None
    count: int
    colors: Tensor | None
    normals: Tensor | None
    sensor: Tensor | None
    origin: Tensor

    @property
    def dropped(self) -> int:
        """Rows that cannot be used."""
        return self.count - len(self.xyz)

    def of_all(self, index: Tensor) -> Tensor:
        """Numbers of usable rows -> those of the rows that were handed in."""
        return index if self.rows is None else self.rows[index]


def usable_rows(scene: Any, colors: Any, normals: Any, sensor: Any, device: torch.device) -> UsableRows:
    """The usable rows of a cloud in any of its forms.

    Args:
        scene: array or tensor (N, 3) of floats, metres; a ``PointCloud`` of one scene; or a ``View`` with depth, camera
            and pose, whose pixels are the rows.
        colors: (N, 3) uint8 of 0 to 255 or floats of 0 to 1, instead of those of the scene.
        normals: (N, 3) floats of any length, likewise.
        sensor: (3,) where the points were seen from, in their frame; of a view, its camera.
        device: of the result.

    Raises:
        InputError: something else, shapes that do not fit, or no row whose position is finite.
    """
    origin = torch.zeros(3, dtype=torch.float64)
    if isinstance(scene, View):
        scene, sensor = _of_view(scene, sensor)
    if isinstance(scene, PointCloud):
        if scene.batch_size != 1:
            raise InputError(
                f"encode: one scene at a time, got {scene.batch_size} in a PointCloud; take cloud.scene(n)"
            )
        colors = scene.colors if colors is None else colors
        normals = scene.normals if normals is None else normals
        if scene.origin is not None:
            origin = scene.origin[0].cpu()
        scene = scene.xyz
    xyz = as_tensor(scene, "positions")
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        hint = "; an organised cloud is handed in as cloud.reshape(-1, 3)" if xyz.ndim == 3 else ""
        raise InputError(f"encode: positions must be (N, 3), metres, got {tuple(xyz.shape)}{hint}")
    if not xyz.is_floating_point():
        raise InputError(f"encode: positions must be floats, metres, got {xyz.dtype}")
    count, xyz = len(xyz), xyz.to(device)
    finite = xyz.isfinite().all(1)
    rows = None if bool(finite.all()) else finite.nonzero().squeeze(1)
    if count == 0 or (rows is not None and len(rows) == 0):
        what = f"none of the {count} positions is finite" if count else "the cloud holds no point"
        raise InputError(f"encode: {what}; there is nothing to encode")
    if rows is not None:
        xyz = xyz[rows]
    if xyz.dtype == torch.float64 and float(xyz.abs().max()) > FAR:
        near = torch.from_numpy(find_origin(xyz.cpu().numpy()))
        xyz, origin = xyz - near.to(device), origin + near
    place = None
    if sensor is not None:
        place = as_tensor(sensor, "the sensor's position").double().cpu()
        if place.shape != (3,) or not place.isfinite().all():
            raise InputError(f"encode: sensor must be its position, 3 finite numbers in metres, got {sensor}")
        place = (place - origin).float().to(device)
    parts = {"colors": colors, "normals": normals}
    given = {name: None if part is None else as_tensor(part, name).to(device) for name, part in parts.items()}
    for name, part in given.items():
        if part is not None and tuple(part.shape) != (count, 3):
            raise InputError(f"encode: {name} must be ({count}, 3), a row a point, got {tuple(part.shape)}")
    return UsableRows(xyz.float(), rows, count, given["colors"], given["normals"], place, origin)


def known_colors(colors: Tensor) -> tuple[Tensor, Tensor]:
    """Colours as networks read them.

    Args:
        colors: (M, 3) uint8 of 0 to 255, or floats of 0 to 1; NaN where they are not known.

    Returns:
        (M, 3) float32 of 0 to 1, and (M,) bool which rows are known.

    Raises:
        InputError: another type, or values out of range.
    """
    if colors.dtype == torch.uint8:
        return colors.float() / 255, torch.ones_like(colors[:, 0], dtype=torch.bool)
    hint = "hand in uint8 of 0 to 255, or floats of 0 to 1"
    if not colors.is_floating_point():
        raise InputError(f"encode: colors must be uint8 or floats, got {colors.dtype}; {hint}")
    known = colors.isfinite().all(1)
    inside = torch.where(known.unsqueeze(1), colors, 0).float()
    if len(inside) and not (inside.min() >= -_ROUNDING and inside.max() <= 1 + _ROUNDING):
        raise InputError(f"encode: colors must lie in [0, 1], found {inside.min():g} to {inside.max():g}; {hint}")
    return inside.clamp(0, 1), known


def known_normals(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals.

    Args:
        normals: (M, 3) floats of any length; NaN or zero where they are not known.

    Returns:
        (M, 3) float32, and (M,) bool which rows are known.

    Raises:
        InputError: another type.
    """
    if not normals.is_floating_point():
        raise InputError(f"encode: normals must be floats, got {normals.dtype}")
    length = normals.double().norm(dim=1, keepdim=True)
    known = (length.isfinite() & (length > 0)).squeeze(1)
    return (normals / length).float(), known


def as_tensor(values: Any, what: str) -> Tensor:
    """An array, a tensor or a row of numbers as a tensor, which shares their memory where it may.

    Raises:
        InputError: nothing of the kind.
    """
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and all(isinstance(value, int | float | np.number) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uifb":
        found = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise InputError(f"encode: {what} must be an array or a tensor of numbers, not {found}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if not values.flags.writeable or not values.flags.c_contiguous:  # as buffers of messages are
        values = values.copy()
    return torch.from_numpy(values)


def _of_view(view: View, sensor: Any) -> tuple[PointCloud, Any]:
    """The pixels of a view as rows, NaN where depth is not known; and where its camera is."""
    try:
        world, pixel = view.world_points()
    except ValueError as error:
        raise InputError(f"encode: {error}") from error
    xyz = world.new_full((view.depth.numel(), 3), torch.nan).index_copy(0, pixel, world)
    colors = None
    if view.image is not None and view.camera is not None:
        uv = view.image_pixels(world)
        seen = uv[:, 0].isfinite()
        column, row = uv[seen].round().long().T
        colors = view.image.new_full((len(xyz), 3), torch.nan)
        colors[pixel[seen]] = view.image[row, column]
    return PointCloud(xyz, colors), view.world_from_camera[:3, 3] if sensor is None else sensor
