"""Columns of points as a file stores them, and what they are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

# Names, in lower case, under which files keep each column; CloudCompare writes "scalar_" before those that it added.
_NAMES = {
    "x": ("x",), "y": ("y",), "z": ("z",),
    "red": ("red", "r", "diffuse_red"), "green": ("green", "g", "diffuse_green"), "blue": ("blue", "b", "diffuse_blue"),
    "nx": ("nx", "normal_x"), "ny": ("ny", "normal_y"), "nz": ("nz", "normal_z"),
    "packed": ("rgb", "rgba"),
    "semantic": ("semantic", "label", "labels", "class", "classification"),
    "instance": ("instance", "instances", "instance_id"),
    # Arrays of three columns.
    "xyz": ("xyz", "points", "point", "coords", "coord", "positions", "position", "vertices"),
    "colors": ("colors", "color", "colours", "colour", "rgb"),
    "normals": ("normals", "normal"),
}  # fmt: skip
_TRIPLES = {"xyz": ("x", "y", "z"), "colors": ("red", "green", "blue"), "normals": ("nx", "ny", "nz")}
_ROUNDING = 1e-3  # by which colours between 0 and 1 may exceed 1
_UNIT_TOLERANCE = 0.01  # of the length of normals in columns without a name


@dataclass
class PointColumns:
    """What a file says of its points, in the file's own types.

    Args:
        xyz: (N, 3) coordinates.
        colors: (N, 3) of any type that :func:`unit_colors` reads.
        normals: (N, 3) of any length.
        semantic, instance: (N,) labels.
        faces: (F, 3) int64 rows of ``xyz``, for surfaces.
    """

    xyz: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    faces: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))


def column_of(names: Iterable[str], wanted: str) -> str | None:
    """The one of a file's column names that holds ``wanted``, a key of the table of names; None if none does."""
    plain = {name.strip().strip("\"'").lower().removeprefix("scalar_"): name for name in names}
    return next((plain[name] for name in _NAMES[wanted] if name in plain), None)


def is_known(name: str) -> bool:
    """Whether a column of that name, of one number a point, is read."""
    return any(column_of([name], wanted) for wanted in _NAMES if wanted not in (*_TRIPLES, "packed"))


def named_columns(columns: Mapping[str, np.ndarray]) -> PointColumns:
    """Points of columns that have names: (N,) each, or (N, 3) for coordinates, colours and normals.

    Raises:
        ValueError: there are no coordinates, or columns do not fit each other.
    """

    def find(wanted: str, width: int = 0) -> np.ndarray | None:
        name = column_of((n for n, c in columns.items() if c.shape[1:] == ((width,) if width else ())), wanted)
        return None if name is None else columns[name]

    def triple(wanted: str) -> np.ndarray | None:
        whole, parts = find(wanted, 3), [find(part) for part in _TRIPLES[wanted]]
        if whole is not None or any(part is None for part in parts):
            return whole
        return np.stack(parts, 1)

    xyz, colors, normals = map(triple, _TRIPLES)
    if xyz is None:
        raise ValueError(f"no coordinates x, y, z (or points, N x 3); it has {_described(columns)}")
    packed = find("packed")
    if colors is None and packed is not None and packed.dtype.itemsize == 4:
        word = np.ascontiguousarray(packed).view(np.uint32)  # a float's bits are such a word, too
        colors = np.stack([word >> 16 & 255, word >> 8 & 255, word & 255], 1).astype(np.uint8)
    found = PointColumns(xyz, colors, normals, find("semantic"), find("instance"))
    lengths = {len(c) for c in (xyz, colors, normals, found.semantic, found.instance) if c is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of different length: {_described(columns)}")
    return found


def _described(columns: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{n} {' x '.join(map(str, c.shape))}" for n, c in columns.items()) or "nothing"


def unnamed_columns(table: np.ndarray) -> PointColumns:
    """Points of columns (N, C) without names, as far as the numbers tell them apart.

    3 columns are xyz. 6 are xyz and three more; 7 have one other column before or after these; from 9 on a second three
    follow the first, and columns after the ninth are not read. Three columns are normals if every row has length 1 (or
    0) and one number is negative; colours if all lie within 0 to 255; if they could be either, nothing is assumed.
    Labels are read only where columns have names.

    Raises:
        ValueError: another number of columns, or what some of them are cannot be told.
    """
    width = table.shape[1]
    if width == 3:
        return PointColumns(table)
    if width == 6:
        choices = [(3,)]
    elif width == 7:
        choices = [(3,), (4,)]
    elif width >= 9:
        choices = [(3, 6)]
    else:
        raise ValueError(f"{width} columns without names; {_ADVICE}")
    told = [{_kind(table[:, start : start + 3]): start for start in starts} for starts in choices]
    complete = [kinds for kinds, starts in zip(told, choices) if None not in kinds and len(kinds) == len(starts)]
    if len(complete) != 1:
        raise ValueError(f"what the columns after x y z are cannot be told from their numbers; {_ADVICE}")
    return PointColumns(table[:, :3], **{kind: table[:, at : at + 3] for kind, at in complete[0].items()})


_ADVICE = "name them in a header line or by columns='x y z r g b', with 'nx ny nz', 'label' or any other names"


def _kind(triple: np.ndarray) -> str | None:
    """``colors`` or ``normals``; None where the numbers may be both, or neither."""
    if not np.isfinite(triple).all() or not len(triple):
        return None
    length = np.linalg.norm(triple, axis=1)
    unit = bool(((np.abs(length - 1) < _UNIT_TOLERANCE) | (length == 0)).all() and length.any())
    if triple.min() < 0:
        return "normals" if unit else None
    return "colors" if triple.max() <= 255 and not unit else None


def unit_colors(colors: np.ndarray) -> np.ndarray:
    """Colours (N, 3) as float32 in [0, 1], by their stored type.

    uint8 counts from 0 to 255 and uint16 from 0 to 65535; other whole numbers count to 255. Floats count to 1, or to
    255 where any of them is above 1.

    Raises:
        ValueError: a colour that is not a number, or outside of these.
    """
    if colors.dtype == np.uint8:
        return colors.astype(np.float32) / 255
    if colors.dtype == np.uint16:
        return colors.astype(np.float32) / 65535
    bad = ~np.isfinite(colors)
    if bad.any():
        raise ValueError(f"the colours of {int(bad.any(1).sum())} points are not numbers")
    low, high = float(colors.min(initial=0)), float(colors.max(initial=0))
    if low < 0 or high > 255:
        raise ValueError(f"colours of type {colors.dtype} must lie within 0 to 255, found {low:g} to {high:g}")
    if colors.dtype.kind == "f" and high <= 1 + _ROUNDING:
        return np.minimum(colors, 1).astype(np.float32)
    return (colors / 255).astype(np.float32)


def whole_labels(labels: np.ndarray) -> np.ndarray:
    """Labels (N,) as int64.

    Raises:
        ValueError: one is no whole number.
    """
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    bad = ~(np.isfinite(labels) & (labels == np.round(labels)))
    if bad.any():
        raise ValueError(f"a label must be a whole number; that of point {int(bad.argmax())} is {labels[bad][0]}")
    return labels.astype(np.int64)
