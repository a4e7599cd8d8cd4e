"""PLY files as viewers read them: vertex properties in their own types, and triangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geo3d.errors import InputError
from geo3d.writing import replacing

_NAMES = {
    "i1": "char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
    "f4": "float",
    "f8": "double",
}


def write_ply(path: str | Path, vertex: dict[str, np.ndarray], faces: np.ndarray | None = None) -> None:
    """Write a binary little-endian PLY file.

    Args:
        path: the file to write.
        vertex: (V,) array for each vertex property, written in its own type, such as
            ``x, y, z`` float32, ``red, green, blue, alpha`` uint8, ``label`` uint16.
        faces: (F, 3) vertex indices, or None to write no face element.

    Raises:
        InputError: a property is of a type that PLY has not, or the file cannot be written.
    """
    columns = {name: np.asarray(column) for name, column in vertex.items()}
    for name, column in columns.items():
        if column.dtype.str[1:] not in _NAMES:
            known = ", ".join(np.dtype(code).name for code in _NAMES)
            raise InputError(f"{path}: property {name} is {column.dtype}; PLY holds {known}")
    table = np.empty(len(next(iter(columns.values()))), [(n, "<" + c.dtype.str[1:]) for n, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property {_NAMES[column.dtype.str[1:]]} {name}" for name, column in columns.items()]
    body = table.tobytes()
    if faces is not None:
        polygons = np.empty(len(faces), [("length", "u1"), ("corners", "<i4", (3,))])
        polygons["length"], polygons["corners"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body += polygons.tobytes()
    with replacing(Path(path)) as unfinished:
        unfinished.write_bytes("\n".join([*header, "end_header", ""]).encode() + body)
