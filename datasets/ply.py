"""PLY files: vertex properties by name, and faces as triangles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_plain, unreadable
from geo3d.datasets.plain_text import read_header, to_count, to_numbers
from geo3d.datasets.point_columns import stored_as
from geo3d.datasets.quarantine import BrokenScene
from geo3d.viz.ply import write_ply

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_FACE_LISTS = ("vertex_indices", "vertex_index")
_REMARKS = ("comment", "obj_info", "ply")
_LONGEST_HEADER = 1 << 16  # bytes that are looked at for faces
_FACES = re.compile(rb"^element[ \t]+face[ \t]+([0-9]+)", re.MULTILINE)


@dataclass(frozen=True)
class Ply:
    """What a PLY file holds.

    Args:
        vertex: (V,) array for each vertex property that is no list, in the file's type; floats of a text in float64, so
            that they keep its digits.
        faces: (F, 3) int64 vertex indices, polygons cut into triangle fans; (0, 3) when the file has none.
    """

    vertex: dict[str, np.ndarray]
    faces: np.ndarray

    def stacked(self, *names: str) -> np.ndarray | None:
        """Vertex properties ``names`` side by side (V, n), or None unless the file has all of them."""
        if not all(name in self.vertex for name in names):
            return None
        return np.stack([self.vertex[name] for name in names], 1)


@dataclass(frozen=True)
class _Property:
    name: str
    type: str  # numpy type code without byte order
    length_type: str = ""  # type of a list's length; empty for a scalar


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property]

    @property
    def lists(self) -> list[_Property]:
        return [p for p in self.properties if p.length_type]

    @property
    def scalars(self) -> list[_Property]:
        return [p for p in self.properties if not p.length_type]

    def record(self, order: str, lengths: dict[str, int]) -> np.dtype:
        """Type of one record whose lists have ``lengths``."""
        fields: list[tuple] = []
        for p in self.properties:
            if p.length_type:
                fields.append((f"length of {p.name}", order + p.length_type))
                fields.append((p.name, order + p.type, (lengths[p.name],)))
            else:
                fields.append((p.name, order + p.type))
        return np.dtype(fields)


class _Reader:
    """Walks the elements of one file; ``position`` is a byte (binary) or a word (ASCII) after the header."""

    def __init__(self, path: Path, scene: str) -> None:
        self.path, self.scene = path, scene
        self.data = read_plain(path, scene)
        self.order, self.elements, self.start = self._header()

    def _broken(self, reason: str, offset: int | None = None) -> BrokenScene:
        return BrokenScene(self.scene, self.path, reason, offset)

    def _header(self) -> tuple[str, list[_Element], int]:
        if self.data.split(None, 1)[:1] != [b"ply"] or not self.data.startswith(b"ply"):
            raise self._broken("not a PLY file: it does not start with 'ply'", 0)
        found = read_header(self.data, "end_header")
        if found is None:
            raise self._broken("the file ends inside the PLY header", len(self.data))
        order, elements = None, []
        for line in found[0][:-1]:
            words = line.split()
            try:
                if words[:1] == ["format"]:
                    order = _FORMATS[words[1]]
                elif words[:1] == ["element"]:
                    if words[1] in (e.name for e in elements):
                        raise ValueError("an element that is there already")
                    elements.append(_Element(words[1], to_count(words[2]), []))
                elif words[:1] == ["property"]:
                    self._add_property(elements[-1], words)
                elif words and words[0] not in _REMARKS:
                    raise ValueError("unknown keyword")
            except (KeyError, IndexError, ValueError) as error:
                raise self._broken(f"the PLY header has a line that cannot be understood: {line[:80]!r}", 0) from error
        if order is None:
            raise self._broken("the PLY header names no format", 0)
        return order, elements, found[1]

    def _add_property(self, element: _Element, words: list[str]) -> None:
        length = _TYPES[words[2]] if words[1] == "list" else ""
        if length.startswith("f"):
            raise ValueError("a length is a whole number")
        kind, *name = words[3:] if length else words[1:]
        name = " ".join(name)
        if not name or name in (p.name for p in element.properties):
            raise ValueError("no name, or one that is there already")
        element.properties.append(_Property(name, _TYPES[kind], length))

    def read(self, wanted: set[str]) -> dict[str, dict[str, np.ndarray | list[np.ndarray]]]:
        """Properties of the elements in ``wanted``; elements before them are walked over, those after are not read."""
        found = {}
        if self.order:
            position, step = self.start, self._binary
        else:
            self.words = self.data[self.start :].split()
            position, step = 0, self._ascii
        for element in self.elements:
            if wanted <= found.keys():
                break
            found[element.name], position = step(element, position)
        return found

    def _ends_inside(self, element: _Element) -> BrokenScene:
        return self._broken(f"the file ends inside its {element.count} {element.name} records", len(self.data))

    def _binary(self, element: _Element, position: int) -> tuple[dict, int]:
        if not element.count or not element.properties:
            return {p.name: [] for p in element.properties}, position
        try:
            lengths = self._lengths(element, position)
            record = element.record(self.order, lengths)
        except ValueError as error:
            raise error if isinstance(error, BrokenScene) else self._ends_inside(element) from error
        stop = position + element.count * record.itemsize
        if stop <= len(self.data):
            table = np.frombuffer(self.data, record, element.count, position)
            if all((table[f"length of {p.name}"] == lengths[p.name]).all() for p in element.lists):
                return {p.name: table[p.name] for p in element.properties}, stop
        if not element.lists:
            raise self._ends_inside(element)
        return self._binary_uneven(element, position)

    def _lengths(self, element: _Element, position: int) -> dict[str, int]:
        """Lengths of the lists of the record at ``position``."""
        lengths = {}
        for p in element.properties:
            size = np.dtype(p.type).itemsize
            if p.length_type:
                length = np.frombuffer(self.data, self.order + p.length_type, 1, position)
                if length[0] < 0:
                    raise self._broken(f"a list {p.name} has {length[0]} entries", position)
                lengths[p.name] = int(length[0])
                position += length.itemsize + size * lengths[p.name]
            else:
                position += size
        return lengths

    def _binary_uneven(self, element: _Element, position: int) -> tuple[dict, int]:
        """Records whose lists differ in length, one by one."""
        columns: dict[str, list[np.ndarray]] = {p.name: [] for p in element.properties}
        try:
            for _ in range(element.count):
                record = element.record(self.order, self._lengths(element, position))
                row = np.frombuffer(self.data, record, 1, position)[0]
                position += record.itemsize
                for name, column in columns.items():
                    column.append(row[name])
        except ValueError as error:
            raise error if isinstance(error, BrokenScene) else self._ends_inside(element) from error
        return columns, position

    def _ascii(self, element: _Element, position: int) -> tuple[dict, int]:
        try:
            if element.lists:
                return self._ascii_lists(element, position)
            width = len(element.properties)
            stop = position + element.count * width
            if stop > len(self.words):
                raise self._ends_inside(element)
            table = to_numbers(self.words[position:stop]).reshape(-1, max(width, 1))
            stored = [stored_as(table[:, i], np.dtype(p.type), p.name) for i, p in enumerate(element.properties)]
            return {p.name: column for p, column in zip(element.properties, stored)}, stop
        except ValueError as error:
            raise error if isinstance(error, BrokenScene) else self._broken(str(error)) from error

    def _ascii_lists(self, element: _Element, position: int) -> tuple[dict, int]:
        numbers = to_numbers(self.words[position:])
        columns: dict[str, list] = {p.name: [] for p in element.properties}
        place = 0
        for _ in range(element.count):
            for p in element.properties:
                length = 1.0
                if p.length_type:
                    length = float(numbers[place]) if place < len(numbers) else 0.0
                    place += 1
                    if not (length >= 0 and length.is_integer()):
                        raise self._broken(f"a list {p.name} has {length:g} entries")
                stop = place + int(length)
                if stop > len(numbers):
                    raise self._ends_inside(element)
                columns[p.name].append(numbers[place:stop] if p.length_type else numbers[place])
                place = stop
        for p in element.properties:
            flat = np.concatenate([*columns[p.name], []]) if p.length_type else np.array(columns[p.name], np.float64)
            stored = stored_as(flat, np.dtype(p.type), p.name)
            columns[p.name] = columns[p.name] if p.length_type else stored
        return columns, position + place


def _triangles(polygons: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Polygons as rows of vertex indices -> (F, 3) int64 triangle fans."""
    if isinstance(polygons, np.ndarray):
        # A number that is no index stays none: the check of the faces finds it.
        corners = np.where(np.abs(polygons) < 1 << 40, polygons, -1).astype(np.int64)
        fans = [corners[:, [0, i, i + 1]] for i in range(1, corners.shape[1] - 1)]
        return np.stack(fans, 1).reshape(-1, 3) if fans else np.zeros((0, 3), np.int64)
    sides = np.array([len(polygon) for polygon in polygons], np.int64)
    fans, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for length in np.unique(sides):
        members = np.flatnonzero(sides == length)
        fans.append(_triangles(np.stack([polygons[i] for i in members])))
        owners.append(np.repeat(members, max(length - 2, 0)))
    return np.concatenate(fans)[np.argsort(np.concatenate(owners), kind="stable")]


def ply_names(path: Path, scene: str) -> list[str]:
    """Names of the vertex properties of a PLY file; raises as :func:`read_ply` where its header is damaged."""
    elements = _Reader(path, scene).elements
    return [p.name for element in elements if element.name == "vertex" for p in element.scalars]


def ply_has_faces(path: Path, scene: str) -> bool:
    """Whether the header of a PLY file tells of faces; no more than that is read.

    Raises:
        BrokenScene: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LONGEST_HEADER)
    except (OSError, ValueError) as error:
        raise unreadable(path, scene, error) from error
    found = _FACES.search(head.partition(b"end_header")[0])
    return found is not None and int(found[1]) > 0


def read_ply(path: Path, scene: str, faces: bool = True) -> Ply:
    """Read an ASCII or binary PLY file.

    Args:
        path: the file.
        scene: name for messages.
        faces: read the faces too.

    Raises:
        BrokenScene: the file is missing, cut or damaged, or a face names a vertex that does not exist.
    """
    reader = _Reader(path, scene)
    found = reader.read({"vertex", "face"} if faces else {"vertex"})
    if "vertex" not in found:
        raise BrokenScene(scene, path, "the PLY file has no vertex element")
    element = next(e for e in reader.elements if e.name == "vertex")
    vertex = {p.name: np.asarray(found["vertex"][p.name]) for p in element.scalars}
    polygons = next((found["face"][name] for name in _FACE_LISTS if faces and name in found.get("face", ())), [])
    triangles = _triangles(polygons)
    count = len(next(iter(vertex.values()), ()))
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < count):
        raise BrokenScene(scene, path, f"a face names a vertex outside 0 to {count - 1}")
    return Ply(vertex, triangles)


__all__ = ["Ply", "read_ply", "write_ply"]
