"""PCD files of the Point Cloud Library: text, binary and compressed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_bytes
from geo3d.datasets.quarantine import BrokenScene

_LONGEST_HEADER = 1 << 16
_TYPES = {"F": "f", "I": "i", "U": "u"}
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
    words: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in words:
        end = data.find(b"\n", position, _LONGEST_HEADER)
        if end < 0:
            raise BrokenScene(scene, path, "the file ends inside the PCD header, or is no PCD file", position)
        line = data[position:end].decode("ascii", "replace").split()
        if line and not line[0].startswith("#"):
            words[line[0].upper()] = line[1:]
        position = end + 1
    try:
        names, sizes, types = words["FIELDS"], words["SIZE"], words["TYPE"]
        counts = [int(c) for c in words.get("COUNT", ["1"] * len(names))]
        if not len(names) == len(sizes) == len(types) == len(counts):
            raise ValueError("FIELDS, SIZE, TYPE and COUNT differ in length")
        # Padding is called "_", as often as there is any.
        titles = [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        codes = [f"<{_TYPES[t]}{size}" for t, size in zip(types, sizes)]
        record = np.dtype([(n, c) if k == 1 else (n, c, (k,)) for n, c, k in zip(titles, codes, counts)])
        count = int(words["POINTS"][0]) if "POINTS" in words else int(words["WIDTH"][0]) * int(words["HEIGHT"][0])
        kind = words["DATA"][0].lower()
        if kind not in _KINDS or count < 0:
            raise ValueError(f"{count} points as {kind}")
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise BrokenScene(scene, path, f"the PCD header cannot be understood: {error!r}", 0) from error
    return PcdHeader(record, count, kind, position)


def read_pcd(path: Path, scene: str) -> dict[str, np.ndarray]:
    """The fields of a PCD file, in its types; points whose coordinates are not finite, which PCL calls invalid, are
    left out.

    Args:
        path: the file.
        scene: name for messages.

    Raises:
        BrokenScene: the file is missing, cut or damaged.
    """
    data = read_bytes(path, scene)
    header = parse_header(data, path, scene)
    body = memoryview(data)[header.start :]
    if header.kind == "ascii":
        columns = _text_columns(bytes(body), header, path, scene)
    elif header.kind == "binary":
        if len(body) < header.count * header.record.itemsize:
            raise _cut(header, path, scene, len(data))
        table = np.frombuffer(body, header.record, header.count)
        columns = {name: table[name] for name in header.record.names}
    else:
        columns = _columns(_decompressed(bytes(body), header, path, scene), header)
    xyz = [columns[axis] for axis in "xyz" if axis in columns]
    valid = np.isfinite(xyz).all(0) if xyz else np.ones(header.count, dtype=bool)
    return columns if valid.all() else {name: column[valid] for name, column in columns.items()}


def _cut(header: PcdHeader, path: Path, scene: str, offset: int) -> BrokenScene:
    return BrokenScene(scene, path, f"the file ends inside its {header.count} points", offset)


def _text_columns(body: bytes, header: PcdHeader, path: Path, scene: str) -> dict[str, np.ndarray]:
    words = body.split()
    widths = [int(np.prod(header.record[name].shape, dtype=int)) for name in header.record.names]
    if len(words) < header.count * sum(widths):
        raise _cut(header, path, scene, header.start + len(body))
    try:
        table = np.array(words[: header.count * sum(widths)], dtype=np.float64).reshape(header.count, sum(widths))
    except ValueError as error:
        raise BrokenScene(scene, path, f"a value is not a number: {error}", header.start) from error
    columns, left = {}, 0
    for name, width in zip(header.record.names, widths):
        numbers, kind = table[:, left : left + width], header.record[name].base
        if kind.kind in "iu" and not np.isfinite(numbers).all():
            raise BrokenScene(scene, path, f"field {name}: a whole number is expected, found NaN", header.start)
        columns[name] = numbers.astype(kind).reshape(header.count, *header.record[name].shape)
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
