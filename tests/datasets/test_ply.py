"""PLY files in every form that scans come in, written here byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from geo3d.datasets import BrokenScene
from geo3d.datasets.ply import read_ply
from geo3d.errors import InputError
from geo3d.viz.ply import write_ply

XYZ = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.5), (1.0, 1.0, 0.0), (0.0, 1.0, -0.25), (2.0, 2.0, 2.0)]
LABELS = [1, 2, 40, 1191, 65535]
TRIANGLES = [(0, 1, 2), (0, 2, 3)]


def header(form: str, faces: int, face_property: str = "list uchar int vertex_indices", ending: str = "\n") -> bytes:
    lines = ["ply", f"format {form} 1.0", "comment made by hand", f"element vertex {len(XYZ)}"]
    lines += ["property float x", "property float y", "property double z", "property ushort label"]
    lines += [f"element face {faces}", f"property {face_property}", "end_header", ""]
    return ending.join(lines).encode()


def binary(order: str, polygons: list[tuple[int, ...]], length: str = "B", index: str = "i") -> bytes:
    body = b"".join(struct.pack(f"{order}ffdH", *xyz, label) for xyz, label in zip(XYZ, LABELS))
    for polygon in polygons:
        body += struct.pack(f"{order}{length}{len(polygon)}{index}", len(polygon), *polygon)
    return body


def ascii_body(polygons: list[tuple[int, ...]]) -> bytes:
    lines = [f"{x} {y} {z} {label}" for (x, y, z), label in zip(XYZ, LABELS)]
    return "\n".join(lines + [" ".join(map(str, (len(p), *p))) for p in polygons] + [""]).encode()


def check(path: Path, triangles: list[tuple[int, int, int]]) -> None:
    ply = read_ply(path, "scene")
    assert ply.stacked("x", "y", "z").tolist() == [list(v) for v in XYZ]
    assert ply.vertex["label"].tolist() == LABELS
    assert ply.vertex["label"].dtype.kind == "u"
    assert ply.faces.tolist() == [list(t) for t in triangles]
    assert ply.faces.dtype == np.int64


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_formats(tmp_path, form, ending):
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    body = binary(order, TRIANGLES) if order else ascii_body(TRIANGLES)
    (tmp_path / "mesh.ply").write_bytes(header(form, len(TRIANGLES), ending=ending) + body)
    check(tmp_path / "mesh.ply", TRIANGLES)


@pytest.mark.parametrize(
    ("types", "length", "index"),
    [("uchar uint", "B", "I"), ("int int", "i", "i"), ("uint8 uint16", "B", "H"), ("ushort int32", "H", "i")],
)
def test_types_of_face_lists(tmp_path, types, length, index):
    head = header("binary_little_endian", len(TRIANGLES), f"list {types} vertex_index")
    (tmp_path / "mesh.ply").write_bytes(head + binary("<", TRIANGLES, length, index))
    check(tmp_path / "mesh.ply", TRIANGLES)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize(
    ("polygons", "triangles"),
    [
        ([(0, 1, 2, 3)], [(0, 1, 2), (0, 2, 3)]),
        ([(0, 1, 2, 3), (1, 2, 3, 4)], [(0, 1, 2), (0, 2, 3), (1, 2, 3), (1, 3, 4)]),
        ([(0, 1, 2), (0, 1, 2, 3), (4, 3, 2)], [(0, 1, 2), (0, 1, 2), (0, 2, 3), (4, 3, 2)]),
        ([], []),
    ],
    ids=["quad", "quads", "mixed", "none"],
)
def test_polygons_become_triangle_fans(tmp_path, form, polygons, triangles):
    body = ascii_body(polygons) if form == "ascii" else binary("<", polygons)
    (tmp_path / "mesh.ply").write_bytes(header(form, len(polygons)) + body)
    check(tmp_path / "mesh.ply", triangles)


def test_a_header_with_old_line_ends_before_a_byte_like_a_new_one(tmp_path):
    first = struct.pack("<I", 0x3C23D70A)  # about 0.01, whose first byte is that of a new line
    head = "ply\rformat binary_little_endian 1.0\relement vertex 1\rproperty float x\rend_header\r"
    (tmp_path / "a.ply").write_bytes(head.encode() + first)
    assert read_ply(tmp_path / "a.ply", "a").vertex["x"].tolist() == [np.float32(0.01)]


def test_headers_of_any_length_and_vertices_with_lists(tmp_path):
    remarks = "comment a long history, with an end_header inside\n" * 3000
    properties = "element vertex 2\nproperty list uchar int near\nproperty float x\nend_header\n"
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\n{remarks}{properties}2 5 6 0.5\n0 1.5\n")
    ply = read_ply(tmp_path / "a.ply", "a")
    assert {name: column.tolist() for name, column in ply.vertex.items()} == {"x": [0.5, 1.5]}


def test_vertices_alone(tmp_path):
    (tmp_path / "mesh.ply").write_bytes(header("binary_little_endian", 2) + binary("<", TRIANGLES)[:-5])
    ply = read_ply(tmp_path / "mesh.ply", "scene", faces=False)
    assert ply.vertex["label"].tolist() == LABELS
    assert ply.faces.shape == (0, 3)


def test_missing_properties_are_none(tmp_path):
    (tmp_path / "mesh.ply").write_bytes(header("ascii", 0) + ascii_body([]))
    assert read_ply(tmp_path / "mesh.ply", "scene").stacked("red", "green", "blue") is None


def test_write_and_read(tmp_path):
    columns = {name: np.array(XYZ, dtype=np.float32)[:, i] for i, name in enumerate("xyz")}
    columns |= {"red": np.arange(5, dtype=np.uint8), "label": np.array(LABELS, dtype=np.uint16)}
    write_ply(tmp_path / "mesh.ply", columns, np.array(TRIANGLES))
    back = read_ply(tmp_path / "mesh.ply", "scene")
    assert list(back.vertex) == list(columns)
    for name, column in columns.items():
        assert back.vertex[name].dtype == column.dtype
        assert np.array_equal(back.vertex[name], column)
    assert back.faces.tolist() == [list(t) for t in TRIANGLES]
    write_ply(tmp_path / "points.ply", columns)
    assert b"element face" not in (tmp_path / "points.ply").read_bytes()
    assert read_ply(tmp_path / "points.ply", "scene").faces.shape == (0, 3)


@pytest.mark.parametrize("stored", [np.int64, np.uint64, np.float16, bool, np.complex64])
def test_types_that_ply_has_not(tmp_path, stored):
    with pytest.raises(InputError, match=rf"a.ply: property label is {np.dtype(stored).name}; PLY holds int8, uint8,"):
        write_ply(tmp_path / "a.ply", {"label": np.zeros(3, stored)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_cut_anywhere(tmp_path, form):
    """Every shorter file is refused, and the message says where it ends."""
    polygons = [(0, 1, 2), (0, 1, 2, 3)]
    whole = header(form, 2) + (ascii_body(polygons) if form == "ascii" else binary("<", polygons))
    path = tmp_path / "mesh.ply"
    # The last number of an ASCII file may lose digits unseen, and with them the newline.
    shortest_whole = len(whole.rstrip()) if form == "ascii" else len(whole)
    for size in range(shortest_whole):
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenScene, match=r"ends inside|does not start") as error:
            read_ply(path, "scene_7")
        assert (error.value.scene, error.value.file) == ("scene_7", str(path))
        assert error.value.offset in (0, size)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"solid cube\n", "not a PLY file"),
        (b"ply\nelement vertex 1\nproperty float x\nend_header\n", "names no format"),
        (b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n", "cannot be understood: 'element vertex many'"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty half x\nend_header\n1\n", "'property half x'"),
        (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no vertex element"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "'element vertex -1'"),
        (b"ply\nformat ascii 1.0\nelement vertex \xb2\nend_header\n", "cannot be understood: 'element vertex"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproprety float x\nend_header\n1\n", "'proprety float x'"),
        (header("ascii", 0).replace(b"float y", b"float x"), "cannot be understood: 'property float x'"),
        (header("ascii", 0).replace(b"face", b"vertex"), "cannot be understood: 'element vertex 0'"),
        (header("ascii", 1, "list float int vertex_indices"), "'property list float int vertex_indices'"),
        (header("ascii", 0) + ascii_body([]).replace(b"1191", b"a"), "'a' is not a number"),
        (header("ascii", 1) + ascii_body([]) + b"-1 0\n", "a list vertex_indices has -1 entries"),
        (header("ascii", 1) + ascii_body([]) + b"nan 0\n", "a list vertex_indices has nan entries"),
        (header("ascii", 1) + ascii_body([]) + b"3 0 1 1.5\n", "vertex_indices: its type holds whole numbers"),
        (
            header("binary_little_endian", 1, "list char int vertex_indices") + binary("<", []) + b"\xff\0\0\0\0",
            "a list vertex_indices has -1 entries",
        ),
        (header("binary_little_endian", 1) + binary("<", [(0, 1, 5)]), "a face names a vertex outside 0 to 4"),
        (header("binary_little_endian", 1) + binary("<", [(0, 1, -1)]), "a face names a vertex outside 0 to 4"),
    ],
)
def test_damage_is_named(tmp_path, content, reason):
    (tmp_path / "mesh.ply").write_bytes(content)
    with pytest.raises(BrokenScene, match=reason):
        read_ply(tmp_path / "mesh.ply", "scene")


def test_absurd_list_length(tmp_path):
    head = header("binary_little_endian", 1, "list uint int vertex_indices")
    (tmp_path / "mesh.ply").write_bytes(head + binary("<", []) + struct.pack("<I3i", 0xFFFFFFFF, 0, 1, 2))
    with pytest.raises(BrokenScene, match="ends inside its 1 face records"):
        read_ply(tmp_path / "mesh.ply", "scene")


def test_missing_file(tmp_path):
    with pytest.raises(BrokenScene, match="No such file"):
        read_ply(tmp_path / "mesh.ply", "scene")
