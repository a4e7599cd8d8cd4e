"""Meshes in files: OFF and STL, and what trimesh reads."""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets.files import read_bytes, read_plain, require_finite
from geo3d.datasets.plain_text import decode_plain, split_lines, to_count, to_number, to_numbers, to_whole
from geo3d.datasets.point_columns import PointColumns, unit_colors
from geo3d.datasets.quarantine import BrokenScene
from geo3d.geometry.surface import unit_normals, vertex_normals

_STORED = "_COLOR_0"  # names with an underscore are free for any use in glTF
_FLOAT32, _UINT32 = 5126, 5125
_POINTS, _TRIANGLES = 0, 4
_COMPRESSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "MESHOPT_compression")
_MOST_ZEROS = 1 << 24
# Other white space, comments after numbers, relative indices, numbers that are none.
_UNUSUAL_OBJ = re.compile(
    r"^[^\S\n]+\S|^(?:v|vn|vt|f)[^\S\n ]|^f .*[-#]|^vt \S+ *$|^v[nt]? .*[^-+.eE0-9 \n]", re.MULTILINE
)
_STL_HEAD = 84
_STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_off(path: Path, scene: str) -> PointColumns:
    """Vertices and faces of an OFF file, with the vertices' colours (COFF) and normals (NOFF) where it has them.

    Raises:
        BrokenScene: the file is missing, cut or damaged.
    """
    lines = [line.partition("#")[0].split() for line in split_lines(decode_plain(read_plain(path, scene)))]
    lines = [words for words in lines if words]
    title = lines[0][0].upper() if lines else ""
    flags, found, glued = title.partition("OFF")
    if not found or flags not in ("", "C", "N", "CN", "ST", "STC", "STN", "STCN"):
        raise BrokenScene(scene, path, "not an OFF file: it does not start with OFF, COFF or NOFF", 0)
    # Some files of ModelNet have the counts in the first line, without a space.
    head = [glued, *lines[0][1:]] if glued else lines[0][1:]
    if head[:1] == ["BINARY"]:
        raise BrokenScene(scene, path, "binary OFF files are not read; save it as text, or as PLY", 0)
    counts, body = (head, lines[1:]) if head else (lines[1] if len(lines) > 1 else [], lines[2:])
    try:
        if len(counts) < 2:
            raise ValueError("the numbers of vertices and faces are missing")
        vertices, faces = to_count(counts[0]), to_count(counts[1])
        if len(body) < vertices + faces:
            raise BrokenScene(scene, path, f"the file ends inside its {vertices} vertices and {faces} faces")
        table = _table(body[:vertices])
        normals = table[:, 3:6] if "N" in flags else None
        first = 6 if "N" in flags else 3
        colors = table[:, first : first + 3] if "C" in flags else None
        if table.shape[1] < first + (3 if "C" in flags else 0):
            raise ValueError(f"the vertices have {table.shape[1]} columns")
        triangles = _triangle_fans([_polygon(words) for words in body[vertices:][:faces]])
    except ValueError as error:
        if isinstance(error, BrokenScene):
            raise
        raise BrokenScene(scene, path, f"the OFF file cannot be understood: {error}") from error
    _check_faces(triangles, vertices, path, scene)
    return PointColumns(table[:, :3], colors, normals, faces=triangles)


def _table(rows: list[list[str]]) -> np.ndarray:
    """Rows of words as numbers, (N, C) float64; (0, 9) without rows.

    Raises:
        ValueError: a word is no number, or rows differ in length.
    """
    widths = {len(row) for row in rows} or {9}
    if len(widths) > 1:
        raise ValueError(f"the vertices have {min(widths)} to {max(widths)} columns")
    return to_numbers([word for row in rows for word in row]).reshape(len(rows), widths.pop())


def _polygon(words: list[str]) -> list[int]:
    """The corners of a face, whose number comes first."""
    corners = [to_whole(word) for word in words[1 : 1 + to_count(words[0])]]
    if len(corners) < to_count(words[0]):
        raise ValueError(f"a face of {words[0]} corners names {len(corners)}")
    return corners


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
    whole = _STL_HEAD + count * _STL_FACE.itemsize
    text = data if len(data) == whole else read_plain(path, scene)
    if len(data) != whole and text[:256].lstrip().lower().startswith(b"solid") and b"\0" not in text:
        corners = _text_corners(text, path, scene)
    elif len(data) >= max(whole, _STL_HEAD):  # some programs write more after the faces
        corners = np.frombuffer(data[_STL_HEAD:whole], _STL_FACE)["corners"].reshape(-1, 3)
    else:
        reason = f"the file ends inside its {count} faces" if len(data) >= _STL_HEAD else "not an STL file, or cut"
        raise BrokenScene(scene, path, reason, len(data))
    require_finite(corners, path, scene)  # before equal ones become one
    _, first, row = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)  # in the order of the file
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    return PointColumns(corners[np.sort(first)], faces=place[row.reshape(-1)].reshape(-1, 3))


def _text_corners(data: bytes, path: Path, scene: str) -> np.ndarray:
    lines = [line.lower().split() for line in data.splitlines()]
    corners = [words[1:] for words in lines if words[:1] == [b"vertex"]]
    if not any(words[:1] == [b"endsolid"] for words in lines):
        raise BrokenScene(scene, path, "the file ends before its endsolid", len(data))
    try:
        if any(len(words) != 3 for words in corners):
            raise ValueError("some have more or less")
        table = to_numbers([word for words in corners for word in words]).reshape(-1, 3)
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
    ending = path.suffix.lower().removeprefix(".")
    data = _plain_obj(path, scene) if ending == "obj" else read_plain(path, scene)
    import trimesh

    try:
        if ending in ("glb", "gltf"):
            data = _plain_gltf(data)
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


def _plain_obj(path: Path, scene: str) -> bytes:
    """An OBJ file as trimesh expects it: numbers spelt plainly, faces without relative indices, colours of 0 to 1.

    Raises:
        BrokenScene: the file is missing, has no vertex, or one that is damaged.
    """
    text = decode_plain(read_plain(path, scene)).replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ")
    if _is_plain_obj(text):
        return text.encode()
    lines, vertices = [], []
    counts = {"v": 0, "vt": 0, "vn": 0}
    for number, line in enumerate(text.split("\n"), 1):
        key, *words = line.partition("#")[0].split() or [""]
        if key in counts:
            counts[key] += 1
            try:
                values = [to_number(word) for word in words]
            except ValueError as error:
                raise BrokenScene(scene, path, f"line {number}: {error}") from error
            if len(values) < (1 if key == "vt" else 3):
                raise BrokenScene(scene, path, f"line {number}: {key} has {len(values)} numbers")
            if key == "v":
                vertices.append(values)
            lines.append((key, [*values, 0.0] if len(values) == 1 else values))
        elif key == "f":
            lines.append((key, [_absolute(word, counts) for word in words]))
        else:
            lines.append((key, [part.strip() for part in line.split(None, 1)[1:]]))
    if not vertices:
        raise BrokenScene(scene, path, "holds no point")
    require_finite(np.array([v[:3] for v in vertices]), path, scene)
    colors = None
    if all(len(v) >= 6 for v in vertices):
        try:
            colors = unit_colors(np.array([v[3:6] for v in vertices]))
        except ValueError as error:
            raise BrokenScene(scene, path, str(error)) from error
    own = [()] * len(vertices) if colors is None else colors.tolist()
    for vertex, color in zip(vertices, own):
        vertex[3:] = color
    if colors is not None and (colors != colors[0]).any():
        # They say more than materials and textures, which trimesh would take instead.
        bare = ((key, words) for key, words in lines if key not in ("vt", "mtllib", "usemtl"))
        lines = [(key, [_untextured(w) for w in words] if key == "f" else words) for key, words in bare]
    return "\n".join(" ".join((key, *map(str, words))) for key, words in lines).encode()


def _is_plain_obj(text: str) -> bool:
    """Whether an OBJ file is spelt as trimesh expects it, which most are: saves reading it line by line."""
    rows = [line[2:] for line in text.split("\n") if line.startswith("v ")]
    if not rows or _UNUSUAL_OBJ.search(text):
        return False
    try:
        table = np.array(" ".join(rows).split(), dtype=np.float64)
    except ValueError:
        return False
    return table.size == 3 * len(rows) and all(len(row.split()) == 3 for row in rows) and bool(np.isfinite(table).all())


def _untextured(corner: str) -> str:
    """A corner of a face such as ``1/2/3`` without its second number, that of a texture."""
    place, *others = corner.split("/")
    return f"{place}//{others[1]}" if len(others) > 1 else place


def _absolute(corner: str, counts: dict[str, int]) -> str:
    """A corner of a face such as ``-1/-1/-1``, which counts back from the last vertex, as one that counts from 1."""
    if "-" not in corner:
        return corner
    parts = zip(corner.split("/"), counts.values())
    return "/".join(str(int(word) + count + 1) if word.startswith("-") else word for word, count in parts)


def _plain_gltf(data: bytes) -> bytes:
    """A glTF file as trimesh reads it: vertex colours also under a name whose type it leaves as it is stored, and
    points as a mesh without faces.

    Raises:
        ValueError: it is compressed, or its lengths make no sense.
    """
    binary = data.startswith(b"glTF")
    start, length = (20, int.from_bytes(data[12:16], "little")) if binary else (0, len(data))
    document = json.loads(data[start : start + length])
    accessors = document.get("accessors", [])
    for extension in document.get("extensionsRequired", []):
        if extension in _COMPRESSIONS:
            raise ValueError(f"it is compressed by {extension}, which is not read; save it without")
    if any("bufferView" not in accessor and accessor["count"] > _MOST_ZEROS for accessor in accessors):
        raise ValueError("an accessor without data is absurdly long")
    for mesh in document.get("meshes", []):
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            place = accessors[attributes["POSITION"]]
            if place["componentType"] != _FLOAT32 and place.get("normalized"):
                raise ValueError("its coordinates are quantised, which is not read; save it without")
            if "COLOR_0" in attributes:
                attributes[_STORED] = attributes["COLOR_0"]
            if primitive.get("mode", _TRIANGLES) == _POINTS:
                primitive |= {"mode": _TRIANGLES, "indices": len(accessors)}
    document["accessors"] = [*accessors, {"componentType": _UINT32, "count": 0, "type": "SCALAR"}]
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
