"""PCD files of the Point Cloud Library: text, binary and compressed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_plain
from geo3d.datasets.plain_text import read_header, to_count, to_numbers
from geo3d.datasets.point_columns import PointColumns, column_of, named_columns, stored_as
from geo3d.datasets.quarantine import BrokenScene

_TYPES = {
    f"{k.upper()}{n}": f"<{k}{n}"
    for k, sizes in (("f", (4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)))
    for n in sizes
}
_KINDS = ("ascii", "binary", "binary_compressed")


@dataclass(frozen=True)
class PcdHeader:
    """What the header of a PCD file says.

    Args:
        record: type of one point.
        count: number of points.
        kind: ``ascii``, ``binary`` or ``binary_compressed``.
        start: byte at which the points begin.
    """

    record: np.dtype
    count: int
    kind: str
    start: int


def parse_header(data: bytes, path: Path, scene: str) -> PcdHeader:
    """Read the header of a file's ``data``.

    Raises:
        BrokenScene: there is none, or it contradicts itself.
    """
    found = read_header(data, "DATA")
    if found is None:
        raise BrokenScene(scene, path, "the file ends inside the PCD header, or is no PCD file", len(data))
    lines = [line.split() for line in found[0] if line and not line.startswith("#")]
    words = {line[0].upper(): line[1:] for line in lines}
    words.setdefault("FIELDS", words.pop("COLUMNS", []))  # as the oldest version called them
    missing = [key for key in ("FIELDS", "SIZE", "TYPE") if not words.get(key)]
    if missing:
        raise BrokenScene(scene, path, f"the PCD header has no {missing[0]}", 0)
    try:
        names, sizes, types = words["FIELDS"], words["SIZE"], words["TYPE"]
        counts = [to_count(c) for c in words.get("COUNT", ["1"] * len(names))]
        if not len(names) == len(sizes) == len(types) == len(counts):
            raise ValueError("FIELDS, SIZE, TYPE and COUNT differ in length")
        # Padding is called "_", as often as there is any.
        titles = [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        codes = [_TYPES[f"{kind.upper()}{size}"] for kind, size in zip(types, sizes)]
        record = np.dtype([(n, c) if k == 1 else (n, c, (k,)) for n, c, k in zip(titles, codes, counts)])
        sides = ("POINTS",) if "POINTS" in words else ("WIDTH", "HEIGHT")
        count = math.prod(to_count(words[side][0]) for side in sides)
        kind = words["DATA"][0].lower()
        if kind not in _KINDS or not record.itemsize:
            raise ValueError(f"{len(names)} fields as {kind}")
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise BrokenScene(scene, path, f"the PCD header cannot be understood: {error}", 0) from error
    return PcdHeader(record, count, kind, found[1])


def read_pcd(path: Path, scene: str) -> PointColumns:
    """The fields of a PCD file that are read, in its types; points whose coordinates are not finite, which PCL calls
    invalid, are left out and counted.

    Args:
        path: the file.
        scene: name for messages.

    Raises:
        BrokenScene: the file is missing, cut or damaged, or all its points are invalid.
        ValueError: it has no coordinates, or a text holds what the stated types do not.
    """
    data = read_plain(path, scene)
    header = parse_header(data, path, scene)
    body = memoryview(data)[header.start :]
    if header.kind == "ascii":
        columns = _text_columns(bytes(body), header, path, scene)
    elif header.kind == "binary":
        if len(body) < header.count * header.record.itemsize:
            raise _cut(header, path, scene, len(data))
        table = np.frombuffer(body[: header.count * header.record.itemsize], header.record)
        columns = {name: table[name] for name in header.record.names}
    else:
        columns = _columns(_decompressed(bytes(body), header, path, scene), header)
    axes = [columns[name] for name in (column_of(columns, axis) for axis in "xyz") if name is not None]
    valid = np.isfinite([axis for axis in axes if axis.ndim == 1]).all(0) if axes else np.ones(header.count, bool)
    if header.count and not valid.any():
        raise BrokenScene(scene, path, f"the coordinates of all its {header.count} points are not numbers")
    if not valid.all():
        columns = {name: column[valid] for name, column in columns.items()}
    if header.kind == "ascii":
        kinds = {name: header.record[name].base for name in columns}
        columns = {name: stored_as(column, kinds[name], name) for name, column in columns.items()}
    return replace(named_columns(columns), left_out=int((~valid).sum()))


def _cut(header: PcdHeader, path: Path, scene: str, offset: int) -> BrokenScene:
    return BrokenScene(scene, path, f"the file ends inside its {header.count} points", offset)


def _text_columns(body: bytes, header: PcdHeader, path: Path, scene: str) -> dict[str, np.ndarray]:
    """The fields as float64."""
    words = body.split()
    widths = [int(np.prod(header.record[name].shape, dtype=int)) for name in header.record.names]
    if len(words) < header.count * sum(widths):
        raise _cut(header, path, scene, header.start + len(body))
    columns, left = {}, 0
    try:
        table = to_numbers(words[: header.count * sum(widths)]).reshape(header.count, sum(widths))
    except ValueError as error:
        raise BrokenScene(scene, path, str(error), header.start) from error
    for name, width in zip(header.record.names, widths):
        columns[name] = table[:, left : left + width].reshape(header.count, *header.record[name].shape)
        left += width
    return columns


def _columns(data: bytes, header: PcdHeader) -> dict[str, np.ndarray]:
    """Fields of data that holds one field after the other."""
    columns, position = {}, 0
    for name in header.record.names:
        columns[name] = np.frombuffer(data, header.record[name], header.count, position)
        position += header.count * header.record[name].itemsize
    return columns


def _decompressed(body: bytes, header: PcdHeader, path: Path, scene: str) -> bytes:
    size = header.count * header.record.itemsize
    if len(body) < 8:
        raise _cut(header, path, scene, header.start + len(body))
    packed, whole = (int(n) for n in np.frombuffer(body, "<u4", 2))
    if len(body) < 8 + packed:
        raise _cut(header, path, scene, header.start + len(body))
    if whole != size:
        raise BrokenScene(scene, path, f"holds {whole} bytes of points, its header says {size}", header.start)
    try:
        return unpack_lzf(body[8 : 8 + packed], size)
    except ValueError as error:
        raise BrokenScene(scene, path, f"the compressed points are damaged: {error}", header.start) from error


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """Undo LZF compression: runs of bytes as they are, and repetitions of what came before.

    Args:
        packed: the compressed data.
        size: how many bytes it holds.

    Raises:
        ValueError: it is damaged.
    """
    out, position = bytearray(), 0
    try:
        while position < len(packed) and len(out) <= size:
            control = packed[position]
            position += 1
            if control < 32:
                out += packed[position : position + control + 1]
                position += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[position]
                position += 1
            start = len(out) - ((control & 31) << 8) - packed[position] - 1
            position += 1
            if start < 0:
                raise ValueError("it repeats bytes before its beginning")
            length += 2
            while length > 0:  # what is repeated may reach into the repetition itself
                piece = out[start : start + length]
                out += piece
                start, length = start + len(piece), length - len(piece)
    except IndexError:
        raise ValueError("it ends inside a repetition") from None
    if len(out) != size or position != len(packed):
        raise ValueError(f"it holds {len(out)} bytes instead of {size}")
    return bytes(out)
