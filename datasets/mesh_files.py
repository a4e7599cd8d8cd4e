"""Meshes in files: OFF and STL, and what trimesh reads."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets.files import read_bytes
from geo3d.datasets.point_columns import PointColumns
from geo3d.datasets.quarantine import BrokenScene
from geo3d.geometry.surface import unit_normals, vertex_normals

_STORED = "_COLOR_0"  # names with an underscore are free for any use in glTF
_UINT16 = 5123
_STL_HEAD = 84
_STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_off(path: Path, scene: str) -> PointColumns:
    """Vertices and faces of an OFF file, with the vertices' colours (COFF) and normals (NOFF) where it has them.

    Raises:
        BrokenScene: the file is missing, cut or damaged.
    """
    lines = [line.partition("#")[0].split() for line in read_bytes(path, scene).decode("utf-8", "replace").splitlines()]
    lines = [words for words in lines if words]
    title = lines[0][0] if lines else ""
    flags, found, glued = title.partition("OFF")
    if not found or flags not in ("", "C", "N", "CN", "ST", "STC", "STN", "STCN"):
        raise BrokenScene(scene, path, "not an OFF file: it does not start with OFF, COFF or NOFF", 0)
    # Some files of ModelNet have the counts in the first line, without a space.
    head = [glued, *lines[0][1:]] if glued else lines[0][1:]
    counts, body = (head, lines[1:]) if head else (lines[1] if len(lines) > 1 else [], lines[2:])
    try:
        vertices, faces = int(counts[0]), int(counts[1])
        if len(body) < vertices + faces or min(vertices, faces) < 0:
            raise BrokenScene(scene, path, f"the file ends inside its {vertices} vertices and {faces} faces")
        table = np.array(body[:vertices], dtype=np.float64).reshape(vertices, -1)
        normals = table[:, 3:6] if "N" in flags else None
        first = 6 if "N" in flags else 3
        colors = table[:, first : first + 3] if "C" in flags else None
        if table.shape[1] < first + (3 if "C" in flags else 0):
            raise ValueError(f"the vertices have {table.shape[1]} columns")
        triangles = _triangle_fans(
            [[int(w) for w in words[1 : 1 + int(words[0])]] for words in body[vertices:][:faces]]
        )
    except (IndexError, ValueError) as error:
        if isinstance(error, BrokenScene):
            raise
        raise BrokenScene(scene, path, f"the OFF file cannot be understood: {error}") from error
    _check_faces(triangles, vertices, path, scene)
    return PointColumns(table[:, :3], colors, normals, faces=triangles)


def _triangle_fans(polygons: list[list[int]]) -> np.ndarray:
    fans = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def _check_faces(faces: np.ndarray, count: int, path: Path, scene: str) -> None:
    if faces.size and not (faces.min() >= 0 and faces.max() < count):
        raise BrokenScene(scene, path, f"a face names a vertex outside 0 to {count - 1}")


def read_stl(path: Path, scene: str) -> PointColumns:
    """Vertices and faces of a binary or text STL file; corners at the same place are one vertex.

    Raises:
        BrokenScene: the file is missing, cut or damaged.
    """
    data = read_bytes(path, scene)
    count = int.from_bytes(data[80:_STL_HEAD], "little")
    if len(data) >= _STL_HEAD and len(data) == _STL_HEAD + count * _STL_FACE.itemsize:
        corners = np.frombuffer(data, _STL_FACE, count, _STL_HEAD)["corners"].reshape(-1, 3)
    elif data[:256].lstrip().startswith(b"solid") and b"\0" not in data:
        corners = _text_corners(data, path, scene)
    else:
        reason = f"the file ends inside its {count} faces" if len(data) >= _STL_HEAD else "not an STL file, or cut"
        raise BrokenScene(scene, path, reason, len(data))
    _, first, row = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)  # in the order of the file
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    return PointColumns(corners[np.sort(first)], faces=place[row.reshape(-1)].reshape(-1, 3))


def _text_corners(data: bytes, path: Path, scene: str) -> np.ndarray:
    lines = [line.split() for line in data.splitlines()]
    corners = [words[1:] for words in lines if words[:1] == [b"vertex"]]
    if not any(words[:1] == [b"endsolid"] for words in lines):
        raise BrokenScene(scene, path, "the file ends before its endsolid", len(data))
    try:
        table = np.array(corners, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise BrokenScene(scene, path, f"a vertex has no three numbers: {error}") from error
    if len(table) % 3:
        raise BrokenScene(scene, path, f"holds {len(table)} corners, three for each face are expected")
    return table


def read_with_trimesh(path: Path, scene: str) -> PointColumns:
    """Vertices and faces of all meshes and points of a file, placed as it says; colours also from its textures.

    Raises:
        BrokenScene: trimesh cannot read the file.
    """
    data, ending = read_bytes(path, scene), path.suffix.lower().removeprefix(".")
    import trimesh

    try:
        if ending in ("glb", "gltf"):
            data = _keep_stored_colors(data)
        beside = trimesh.resolvers.FilePathResolver(str(path))
        loaded = trimesh.load(io.BytesIO(data), file_type=ending, process=False, resolver=beside)
        if isinstance(loaded, trimesh.Scene):
            placed = [loaded.graph.get(node) for node in sorted(loaded.graph.nodes_geometry)]
            parts = [_part(loaded.geometry[name], matrix) for matrix, name in placed]
        else:
            parts = [_part(loaded, np.eye(4))]
    except Exception as error:  # trimesh raises whatever its parsers run into
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BrokenScene(scene, path, f"trimesh cannot read it, it is damaged or cut: {why}") from error
    joined = _joined(parts)
    _check_faces(joined.faces, len(joined.xyz), path, scene)
    return joined


def _keep_stored_colors(data: bytes) -> bytes:
    """A glTF file whose vertex colours stand under a second name, which trimesh leaves in the type that is stored."""
    binary = data.startswith(b"glTF")
    start, length = (20, int.from_bytes(data[12:16], "little")) if binary else (0, len(data))
    document = json.loads(data[start : start + length])
    for mesh in document.get("meshes", []):
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            if "COLOR_0" in attributes and primitive.get("mode", 4) != 0:
                attributes[_STORED] = attributes["COLOR_0"]
            elif "COLOR_0" in attributes and document["accessors"][attributes["COLOR_0"]]["componentType"] == _UINT16:
                raise ValueError("points (not triangles) with colours of 16 bits are not read; store 8 bits")
    text = json.dumps(document).encode()
    if not binary:
        return text
    text += b" " * (-len(text) % 4)
    rest = data[start + length :]
    size = struct.pack("<II", start + len(text) + len(rest), len(text))
    return data[:8] + size + data[16:20] + text + rest


def _part(geometry: Any, matrix: np.ndarray) -> PointColumns:
    """One mesh or set of points of a scene."""
    vertices = np.asarray(geometry.vertices, dtype=np.float64).reshape(-1, 3)
    xyz = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    faces = np.asarray(getattr(geometry, "faces", np.zeros((0, 3))), dtype=np.int64).reshape(-1, 3)
    normals = None
    # Trimesh makes up normals where a file has none; those of the file stand in its cache from the beginning.
    if len(faces) and "vertex_normals" in geometry._cache:
        normals = np.asarray(geometry.vertex_normals) @ np.linalg.inv(matrix[:3, :3])
    return PointColumns(xyz, _colors(geometry, len(xyz)), normals, faces=faces)


def _colors(geometry: Any, count: int) -> np.ndarray | None:
    """(count, 3) colours of vertices, their texture or their material; None where the file states none."""
    stored = getattr(geometry, "vertex_attributes", {}).get(_STORED)
    if stored is not None:
        return np.asarray(stored)[:, :3]
    visual = getattr(geometry, "visual", None)
    kind = None if visual is None else visual.kind
    if kind == "texture":
        material = visual.material
        pictured = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if visual.uv is not None and pictured is not None:
            stated = visual.to_color().vertex_colors
        else:
            stated = getattr(material, "baseColorFactor", getattr(material, "diffuse", None))
    else:
        stated = visual.vertex_colors if kind == "vertex" else None
    if stated is None or not np.size(stated):
        return None
    return np.broadcast_to(np.asarray(stated)[..., :3], (count, 3))


def _joined(parts: list[PointColumns]) -> PointColumns:
    """Parts one after the other, with what all of them have; meshes without normals beside others get the faces'."""
    if not parts:
        return PointColumns(np.zeros((0, 3)))
    starts = np.cumsum([0, *(len(part.xyz) for part in parts)])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts)])
    normals = None
    if any(part.normals is not None for part in parts) and all(len(p.faces) or p.normals is not None for p in parts):
        found = (vertex_normals(p.xyz, p.faces) if p.normals is None else unit_normals(p.normals) for p in parts)
        normals = np.concatenate(list(found))
    colored = all(part.colors is not None for part in parts)
    colors = np.concatenate([part.colors for part in parts]) if colored else None
    return PointColumns(np.concatenate([part.xyz for part in parts]), colors, normals, faces=faces)
