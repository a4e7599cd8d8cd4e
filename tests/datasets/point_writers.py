"""Files of points in every format that read_points reads, written here by hand."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from geo3d.viz.ply import write_ply

Columns = dict[str, np.ndarray]


def pcd(path: Path, columns: Columns, kind: str) -> Path:
    """``columns`` (N,) in their own types as a PCD file of some ``kind``."""
    count = len(next(iter(columns.values())))
    types = {"f": "F", "i": "I", "u": "U"}
    lines = ["# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {' '.join(columns)}"]
    lines += [f"SIZE {' '.join(str(c.dtype.itemsize) for c in columns.values())}"]
    lines += [f"TYPE {' '.join(types[c.dtype.kind] for c in columns.values())}"]
    lines += [f"COUNT {' '.join('1' for _ in columns)}", f"WIDTH {count}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0"]
    head = "\n".join([*lines, f"POINTS {count}", f"DATA {kind}", ""]).encode()
    if kind == "ascii":
        body = "\n".join(" ".join(repr(v.item()) for v in row) for row in zip(*columns.values())).encode()
    elif kind == "binary":
        table = np.empty(count, [(n, c.dtype) for n, c in columns.items()])
        for name, column in columns.items():
            table[name] = column
        body = table.tobytes()
    else:
        whole = b"".join(column.tobytes() for column in columns.values())
        packed = pack_lzf(whole)
        body = struct.pack("<II", len(packed), len(whole)) + packed
    path.write_bytes(head + body)
    return path


def pack_lzf(data: bytes) -> bytes:
    """LZF, greedily: the longest repetition among the last places where the next three bytes stood."""
    out, literal, last, place = bytearray(), bytearray(), {}, 0

    def flush() -> None:
        for start in range(0, len(literal), 32):
            out.extend([len(literal[start : start + 32]) - 1, *literal[start : start + 32]])
        literal.clear()

    while place < len(data):
        key = data[place : place + 3]
        at = last.get(key) if len(key) == 3 else None
        last[key] = place
        if at is None or place - at > 8191:
            literal.append(data[place])
            place += 1
            continue
        length = 3
        while length < 264 and place + length < len(data) and data[at + length] == data[place + length]:
            length += 1
        flush()
        back = place - at - 1
        head = [(min(length - 2, 7) << 5) | back >> 8]
        out.extend([*head, length - 9, back & 255] if length - 2 >= 7 else [*head, back & 255])
        place += length
    flush()
    return bytes(out)


def ply_of(form: str) -> Callable:
    """A writer of ``columns`` (N,) in their own types as a PLY file, ``ascii`` or binary of some order."""
    types = {"u1": "uchar", "u2": "ushort", "u4": "uint", "i4": "int", "f4": "float", "f8": "double"}

    def write(path: Path, columns: Columns) -> Path:
        count = len(next(iter(columns.values())))
        lines = ["ply", f"format {form} 1.0", f"element vertex {count}"]
        lines += [f"property {types[c.dtype.str[1:]]} {name}" for name, c in columns.items()]
        table = np.empty(count, [(n, c.dtype.newbyteorder(">" if "big" in form else "<")) for n, c in columns.items()])
        for name, column in columns.items():
            table[name] = column
        rows = "".join(" ".join(map(repr, row)) + "\n" for row in table.tolist())
        path.write_bytes(
            "\n".join([*lines, "end_header", ""]).encode() + (rows.encode() if form == "ascii" else table.tobytes())
        )
        return path

    return write


def table_of(separator: str = " ", head: str = "", before: str = "", extra: str = "", after: str = "") -> Callable:
    """A writer of ``columns`` (N,) as lines of text, whole numbers without a point."""

    def write(path: Path, columns: Columns) -> Path:
        rows = [[repr(v) for v in row] for row in zip(*(c.tolist() for c in columns.values()))]
        if extra:
            rows = [[*row[:3], extra, *row[3:]] for row in rows]
        title = head.format(count=len(rows), names=separator.join(columns))
        path.write_text(title + "".join(before + separator.join(row) + after + "\n" for row in rows))
        return path

    return write


def saved_columns(path: Path, columns: Columns) -> Path:
    """``columns`` (N,) as a structured array."""
    table = np.empty(len(next(iter(columns.values()))), [(n, c.dtype) for n, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return _saved(path, np.save, table)


def _saved_triples(path: Path, columns: Columns) -> Path:
    rows = list(columns.values())
    return _saved(path, np.savez, coords=np.stack(rows[:3], 1), rgb=np.stack(rows[3:], 1))


def _glb_of(mode: int) -> Callable:
    def write(path: Path, columns: Columns) -> Path:
        rows = list(columns.values())
        full = 1 if rows[3].dtype.kind == "f" else np.iinfo(rows[3].dtype).max
        colors = np.stack([*rows[3:], np.full_like(rows[3], full)], 1)
        faces = np.arange(len(rows[0])).reshape(-1, 3)
        return glb(path, np.stack(rows[:3], 1), faces, np.zeros(3), mode, COLOR_0=colors)

    return write


#: Name -> ending and writer of the columns x, y, z, red, green, blue in their own types.
COLORED: dict[str, tuple[str, Callable[[Path, Columns], Path]]] = {
    "ply": (".ply", ply_of("binary_little_endian")),
    "ply big": (".ply", ply_of("binary_big_endian")),
    "ply text": (".ply", ply_of("ascii")),
    "pcd": (".pcd", lambda path, columns: pcd(path, columns, "binary")),
    "pcd text": (".pcd", lambda path, columns: pcd(path, columns, "ascii")),
    "pcd compressed": (".pcd", lambda path, columns: pcd(path, columns, "binary_compressed")),
    "npy": (".npy", saved_columns),
    "npz": (".npz", _saved_triples),
    "xyz": (".xyz", table_of()),
    "txt": (".txt", table_of("\t", "# {names}\n")),
    "csv": (".csv", table_of(",", "X,Y,Z,R,G,B\n")),
    "asc": (".asc", table_of(";", "//X;Y;Z;Rf;Gf;Bf\n")),
    "pts": (".pts", table_of(" ", "{count}\n", extra="-1200")),
    "off": (".off", table_of(" ", "COFF\n{count} 0 0\n", after=" 1")),
    "obj": (".obj", table_of(" ", before="v ")),
    "glb": (".glb", _glb_of(4)),
    "glb points": (".glb", _glb_of(0)),
}


def axes(xyz: np.ndarray) -> Columns:
    return {axis: xyz[:, i] for i, axis in enumerate("xyz")}


def _lines(
    path: Path, rows: np.ndarray, separator: str = " ", head: str = "", before: str = "", after: str = ""
) -> Path:
    path.write_text(head + "".join(before + separator.join(f"{v:.6f}" for v in row) + f"{after}\n" for row in rows))
    return path


def _ply_text(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    head = f"ply\nformat ascii 1.0\nelement vertex {len(xyz)}\n" + "".join(f"property double {a}\n" for a in "xyz")
    return _lines(path, xyz, head=f"{head}end_header\n")


def _ply_binary(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    write_ply(path, axes(xyz), faces)
    return path


def _obj(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    _lines(path, xyz, before="v ")
    path.write_text(path.read_text() + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in faces))
    return path


def _off(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    _lines(path, xyz, head=f"OFF\n{len(xyz)} {len(faces)} 0\n")
    path.write_text(path.read_text() + "".join(f"3 {a} {b} {c}\n" for a, b, c in faces))
    return path


def _stl_text(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    corners = ["".join(f"vertex {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in xyz[face]) for face in faces]
    loops = "".join(f"facet normal 0 0 1\nouter loop\n{c}endloop\nendfacet\n" for c in corners)
    path.write_text(f"solid a\n{loops}endsolid a\n")
    return path


def glb(
    path: Path, xyz: np.ndarray, faces: np.ndarray, shift: np.ndarray, mode: int = 4, **attributes: np.ndarray
) -> Path:
    """A binary glTF file whose only node moves the mesh by ``shift``; ``attributes`` such as NORMAL float32.

    ``mode`` is 4 for triangles and 0 for points.
    """
    content, views, accessors, blob = {}, [], [], b""
    arrays = {"POSITION": xyz.astype(np.float32), **attributes, "indices": faces.astype(np.uint32).reshape(-1)}
    codes = {"f4": 5126, "u4": 5125, "u2": 5123, "u1": 5121}
    for number, (name, array) in enumerate(arrays.items()):
        content[name] = number
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes})
        accessor = {"bufferView": number, "componentType": codes[array.dtype.str[1:]], "count": len(array)}
        shape = {1: "SCALAR"} if array.ndim == 1 else {3: "VEC3", 4: "VEC4"}
        accessor["type"] = shape[1 if array.ndim == 1 else array.shape[1]]
        if array.dtype.kind == "u" and array.ndim == 2:
            accessor["normalized"] = True
        if name == "POSITION":
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(accessor)
        blob += array.tobytes() + b"\0" * (-array.nbytes % 4)
    indices = content.pop("indices")
    primitive = {"attributes": content, "mode": mode} | ({"indices": indices} if mode else {})
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "buffers": [{"byteLength": len(blob)}],
    }
    document |= {"nodes": [{"mesh": 0, "translation": shift.tolist()}], "meshes": [{"primitives": [primitive]}]}
    text = json.dumps(document | {"bufferViews": views, "accessors": accessors}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


def _glb_placed(path: Path, xyz: np.ndarray, faces: np.ndarray) -> Path:
    """Positions are float32 in such files: what is far lies in the node."""
    shift = np.round(xyz.mean(0))
    return glb(path, xyz - shift, faces, shift)


def _saved(path: Path, write: Callable, *args, **kwargs) -> Path:
    with path.open("wb") as file:  # or else NumPy adds endings of its own
        write(file, *args, **kwargs)
    return path


def _pcd_of(kind: str) -> Callable:
    return lambda path, xyz, faces: pcd(path, axes(xyz), kind)


#: Name -> ending and writer of points (N, 3) float64 with faces (F, 3), to a micrometre, in an order that stays.
WRITERS: dict[str, tuple[str, Callable[[Path, np.ndarray, np.ndarray], Path]]] = {
    "ply": (".ply", _ply_binary),
    "ply text": (".ply", _ply_text),
    "pcd": (".pcd", _pcd_of("binary")),
    "pcd text": (".pcd", _pcd_of("ascii")),
    "pcd compressed": (".pcd", _pcd_of("binary_compressed")),
    "xyz": (".xyz", lambda path, xyz, faces: _lines(path, xyz)),
    "txt": (".txt", lambda path, xyz, faces: _lines(path, xyz, "\t", f"{len(xyz)}\n")),
    "csv": (".csv", lambda path, xyz, faces: _lines(path, xyz, ",", "X,Y,Z\n")),
    "asc": (".asc", lambda path, xyz, faces: _lines(path, xyz, "; ", "// X Y Z\n")),
    "pts": (".pts", lambda path, xyz, faces: _lines(path, xyz, "  ", f"{len(xyz)}\n", after=" ")),
    "npy": (".npy", lambda path, xyz, faces: _saved(path, np.save, xyz)),
    "npz": (".npz", lambda path, xyz, faces: _saved(path, np.savez, points=xyz)),
    "off": (".off", _off),
    "obj": (".obj", _obj),
    "stl text": (".stl", _stl_text),
    "glb": (".glb", _glb_placed),
}


# What takes the place of words of a file.
_WORDS = (
    "-1", "0", "99999999999999999999", "4294967295", "nan", "-nan(ind)", "1.#IND", "inf", "²", "٣", "1e400", "", "abc",
    "\0", "1_0", "list", "float", "x", "\r", "\n", "#", ",", ";", "0.5", "10000000000", "{", "null", "[]", "1" * 5000,
    "property double x\n", "element vertex 1000000000\n",
)  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one to three damages: words, bytes and lines that are replaced, lost, doubled or cut off."""
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(max(1, len(data) if rng.random() < 0.5 else min(len(data), 200))))
        kind = rng.integers(6)
        if kind == 0:  # a word, of the head
            words = [m.span() for m in re.finditer(rb"[^\s,;:{}\[\]]+", data[:2000])] or [(0, 0)]
            start, stop = words[rng.integers(len(words))]
            data = data[:start] + _WORDS[rng.integers(len(_WORDS))].encode() + data[stop:]
        elif kind == 1:
            data = data[:place] + rng.bytes(2) + data[place + int(rng.integers(3)) :]
        elif kind == 2:
            data = data[:place] + data[place + int(rng.integers(1, 50)) :]
        elif kind == 3:
            odd = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x7f")
            data = data[:place] + odd[rng.integers(len(odd))] + data[place + 4 :]
        elif kind == 4:
            data = data[:place] + data[max(0, place - 40) :]
        else:
            data = data[:place]
    return data
