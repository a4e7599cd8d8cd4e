"""Columns of points as a file stores them, and what they are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

# Names, in lower case, under which files keep each column; CloudCompare writes "scalar_" before those that it added,
# and "Rf" for red as a float.
_NAMES = {
    "x": ("x",), "y": ("y",), "z": ("z",),
    "red": ("red", "r", "diffuse_red", "rf"),
    "green": ("green", "g", "diffuse_green", "gf"),
    "blue": ("blue", "b", "diffuse_blue", "bf"),
    "nx": ("nx", "normal_x", "normalx"), "ny": ("ny", "normal_y", "normaly"), "nz": ("nz", "normal_z", "normalz"),
    "packed": ("rgb", "rgba"),
    "semantic": ("semantic", "label", "labels", "class", "classification", "semantic_label", "sem_class", "class_id"),
    "instance": ("instance", "instances", "instance_id", "instance_label", "ins_class"),
    # Arrays of three columns.
    "xyz": ("xyz", "points", "point", "coords", "coord", "positions", "position", "vertices"),
    "colors": ("colors", "color", "colours", "colour", "rgb"),
    "normals": ("normals", "normal"),
}  # fmt: skip
_TRIPLES = {"xyz": ("x", "y", "z"), "colors": ("red", "green", "blue"), "normals": ("nx", "ny", "nz")}
_ROUNDING = 1e-3  # share of their range by which colours may leave it
_UNITS = re.compile(r"[\[(].*?[\])]")  # as in "x [m]"
_WIDEST = 16  # points have fewer columns without names, images more
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
        left_out: how many points were left out, because the format marks them as invalid.
    """

    xyz: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    faces: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    left_out: int = 0


def column_of(names: Iterable[str], wanted: str) -> str | None:
    """The one of a file's column names that holds ``wanted``, a key of the table of names; None if none does."""
    plain = {_UNITS.sub("", name).strip(" \t\"'").lower().removeprefix("scalar_"): name for name in names}
    return next((plain[name] for name in _NAMES[wanted] if name in plain), None)


def is_known(name: str) -> bool:
    """Whether a column of that name, of one number a point, is read."""
    return any(column_of([name], wanted) for wanted in _NAMES if wanted not in _TRIPLES)


def is_array(name: str) -> bool:
    """Whether an array of that name, of one or three numbers a point, is read."""
    return any(column_of([name], wanted) for wanted in _NAMES)


def is_packed(name: str) -> bool:
    """Whether a column of that name holds red, green and blue in the bits of one number."""
    return column_of([name], "packed") is not None


def named_columns(columns: Mapping[str, np.ndarray]) -> PointColumns:
    """Points of columns that have names: (N,) each, or (N, 3) for coordinates, colours and normals.

    Raises:
        ValueError: there are no coordinates, or columns do not fit each other.
    """

    def find(wanted: str, width: int = 0) -> np.ndarray | None:
        name = column_of((n for n, c in columns.items() if c.shape[1:] == ((width,) if width else ())), wanted)
        if name is not None and columns[name].dtype.kind not in "fiub":
            raise ValueError(f"{name} holds {columns[name].dtype}, numbers are expected")
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
    if colors is None and packed is not None:
        colors = _unpacked(packed)
    found = PointColumns(xyz, colors, normals, find("semantic"), find("instance"))
    lengths = {len(c) for c in (xyz, colors, normals, found.semantic, found.instance) if c is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of different length: {_described(columns)}")
    return found


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Colours (N, 3) uint8 in the bits of one number a point: of an integer, or of a float32 as PCL keeps them.

    A text without types gives float64: whole numbers are such integers, others the value of such a float32.

    Raises:
        ValueError: the number is of another kind.
    """
    kind = packed.dtype.kind
    whole = (packed == np.round(packed)) & (packed >= -(1 << 31)) & (packed < 1 << 32) if kind in "if" else packed >= 0
    if kind == "f" and packed.dtype.itemsize == 4:
        word = np.ascontiguousarray(packed).view(packed.dtype.str.replace("f", "u"))
    elif kind in "iuf" and packed.dtype.itemsize >= 4 and whole.all():
        word = packed.astype(np.int64)
    elif kind == "f" and np.isfinite(packed).all():
        word = packed.astype(np.float32).view(np.uint32)
    else:
        lost = int((~np.isfinite(packed)).sum()) if kind == "f" else 0
        reason = f"{lost} of them were printed as nan, which loses their bits" if lost else f"they are {packed.dtype}"
        raise ValueError(f"colours packed into one number cannot be read: {reason}; store r g b")
    return np.stack([word >> 16 & 255, word >> 8 & 255, word & 255], 1).astype(np.uint8)


def _described(columns: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{n} {' x '.join(map(str, c.shape))}" for n, c in columns.items()) or "nothing"


def unnamed_columns(table: np.ndarray) -> PointColumns:
    """Points of columns (N, C) without names, as far as the numbers tell them apart.

    3 columns are xyz. 6 are xyz and three more; 7 have one other column before or after these; from 9 on a second three
    follow the first, and columns after the ninth are not read. Three columns are normals if every row has length 1 (or
    0) and one number is negative; colours if all lie within 0 to 255, or are whole, most above 255 and none above
    65535; if they could be either, nothing is assumed. Labels are read only where columns have names.

    Raises:
        ValueError: another number of columns, or what some of them are cannot be told.
    """
    count, width = table.shape
    if not count:
        return PointColumns(table[:, :3]) if width >= 3 else PointColumns(np.zeros((0, 3)))
    if count <= 3 < _WIDEST < width:
        raise ValueError(f"{count} rows of {width} numbers; a row for each point is expected, transpose them")
    if width > _WIDEST:
        raise ValueError(
            f"{count} x {width} numbers look like a depth map or an image; columns of points would need names"
        )
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
    """``colors`` or ``normals``; None where the numbers may be both, or neither. Rows that hold NaN do not count."""
    triple = triple[np.isfinite(triple).all(1)]
    if not len(triple):
        return None
    length = np.linalg.norm(triple, axis=1)
    unit = bool(((np.abs(length - 1) < _UNIT_TOLERANCE) | (length == 0)).all() and length.any())
    if triple.min() < 0:
        return "normals" if unit else None
    if unit or triple.max() > 65535:
        return None
    return "colors" if triple.max() <= 255 or (_is_whole(triple) and mostly_above(triple, 255)) else None


def _is_whole(numbers: np.ndarray) -> bool:
    return numbers.dtype.kind in "iu" or bool((numbers == np.round(numbers)).all())


def mostly_above(numbers: np.ndarray, limit: float) -> bool:
    """Whether of those that are not zero at least half lie above ``limit``."""
    return 2 * np.count_nonzero(numbers > limit) >= np.count_nonzero(numbers)


def unit_colors(colors: np.ndarray) -> np.ndarray:
    """Colours (N, 3) as float32 in [0, 1], by their stored type and by the range of all of them.

    uint8 counts from 0 to 255 and uint16 from 0 to 65535, unless none exceeds 255: those are bytes in a wider type.
    Other whole numbers count to 255, or to 65535 where most exceed 255; floats to 1 where none exceeds it, else as
    whole numbers do. A text column of nothing but 0 and 1 counts to 1.

    Raises:
        ValueError: a colour that is not a number, or outside of these; or few exceed the range of most.
    """
    if colors.dtype == np.uint8:
        return colors.astype(np.float32) / 255
    bad = ~np.isfinite(colors)
    if bad.any():
        raise ValueError(f"the colours of {int(bad.any(1).sum())} points are not numbers")
    scale = _color_scale(colors)
    if colors.dtype.kind == "u" and colors.dtype.itemsize == 2:
        return colors.astype(np.float32) / scale
    return np.clip(colors if scale == 1 else colors / scale, 0, 1).astype(np.float32)


def _color_scale(colors: np.ndarray) -> int:
    """The number that stands for full brightness."""
    low, high = float(colors.min(initial=0)), float(colors.max(initial=0))
    kind, size = colors.dtype.kind, colors.dtype.itemsize
    scales = (1,) if kind == "b" else (1, 255, 65535) if kind == "f" else (255, 65535)
    scale = next((s for s in scales if high <= s * (1 + _ROUNDING)), None)
    if scale is None or low < -_ROUNDING * scale:
        limits = "0 to 255, or to 65535 as 16 bits" if scale is None else f"0 to {255 if kind == 'f' else scale}"
        raise ValueError(f"colours of type {colors.dtype} must lie within {limits}, found {low:g} to {high:g}")
    usual = 1 if scale == 255 else 255
    by_type = scale == scales[0] or (kind == "u" and size == 2) or (scale == 255 and _is_whole(colors))
    if not by_type and not mostly_above(colors, usual * (1 + _ROUNDING)):
        above = np.count_nonzero(colors > usual * (1 + _ROUNDING))
        reason = f"most colours lie within 0 to {usual}, but {above} numbers exceed it, up to {high:g}"
        raise ValueError(f"{reason}; which range is meant cannot be told, clip or scale them")
    return scale


def whole_labels(labels: np.ndarray) -> np.ndarray:
    """Labels (N,) as int64.

    Raises:
        ValueError: one is no whole number, or too large.
    """
    numbers = labels.astype(np.float64)
    bad = ~((np.abs(numbers) < 1 << 53) & (numbers == np.round(numbers)))
    if bad.any():
        raise ValueError(f"a label must be a whole number; that of point {int(bad.argmax())} is {labels[bad][0]}")
    return labels.astype(np.int64)


def stored_as(numbers: np.ndarray, kind: np.dtype, name: str) -> np.ndarray:
    """Numbers of a text file in the type that its header states; floats stay float64, with all digits.

    Args:
        numbers: float64.
        kind: the stated type.
        name: of the column, for messages.

    Raises:
        ValueError: one is not a whole number of a whole type, or does not fit it.
    """
    if kind.kind == "f" and not is_packed(name):
        return numbers
    if kind.kind == "f":  # of colours in the bits of a float the text has the value
        if np.isnan(numbers).any():
            raise ValueError(f"{name}: {np.isnan(numbers).sum()} colours are printed as nan, which loses their bits")
        return numbers.astype(kind)
    limits = np.iinfo(kind)
    bad = ~((numbers >= limits.min) & (numbers <= limits.max) & (numbers == np.round(numbers)))
    if bad.any():
        reason = f"{name}: its type holds whole numbers of {limits.min} to {limits.max}, {bad.sum()} values are none"
        raise ValueError(f"{reason}; the first is {numbers[bad][0]:g}")
    return numbers.astype(kind)
