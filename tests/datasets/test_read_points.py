"""read_points: every format, colours by their stored type, normals, labels, columns that tell what they are, damage."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from point_writers import COLORED, WRITERS, axes, glb, mutated, pack_lzf, pcd, ply_of, saved_columns

import geo3d
from geo3d.datasets import read_cloud, read_points
from geo3d.datasets.pcd import unpack_lzf
from geo3d.datasets.point_columns import unit_colors
from geo3d.datasets.read_points import POINT_ENDINGS, holds_labels
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.viz.ply import write_ply
from geo3d.viz.points import write_points

RNG = np.random.default_rng(3)
COUNT = 24
XYZ = RNG.uniform(-3, 3, (COUNT, 3))
RGB = RNG.uniform(0, 1, (COUNT, 3))
NORMALS = RNG.normal(size=(COUNT, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
LABELS = RNG.integers(-1, 9, COUNT)
BYTES = np.round(RGB * 255).astype(np.uint8)
FACES = np.arange(COUNT).reshape(-1, 3)


def colors_of(path: Path) -> np.ndarray:
    return read_points(path).colors.numpy()


def write_lines(path: Path, *columns: np.ndarray, head: str = "", separator: str = " ") -> Path:
    table = [[f"{v:g}" if float(v).is_integer() else f"{v:.6f}" for v in row] for row in np.concatenate(columns, 1)]
    path.write_text(head + "".join(separator.join(row) + "\n" for row in table))
    return path


def test_every_ending_is_written_by_some_test():
    assert {ending for ending, _ in WRITERS.values()} | {".gltf"} == set(POINT_ENDINGS)
    assert geo3d.read_points is read_points


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_its_points(tmp_path, form):
    ending, write = WRITERS[form]
    cloud = read_points(write(tmp_path / f"a{ending.upper()}", XYZ, FACES))
    assert cloud.xyz.dtype == torch.float32
    np.testing.assert_allclose(cloud.xyz.numpy(), XYZ, atol=1e-6)  # written to a micrometre
    assert (cloud.origin, cloud.colors, cloud.semantic) == (None, None, None)
    assert (cloud.normals is None) == (
        form in ("ply text", "xyz", "txt", "csv", "asc", "pts") or form[:2] in ("pc", "np")
    )


COLOR_FILES = {
    "uint8": BYTES,
    "uint16": np.round(RGB * 65535).astype(np.uint16),
    "uint16 of bytes": BYTES.astype(np.uint16),
    "int32": BYTES.astype(np.int32),
    "int32 of 16 bits": np.round(RGB * 65535).astype(np.int32),
    "float 0 to 1": RGB.astype(np.float32),
    "float 0 to 255": (RGB * 255).astype(np.float32),
    "float of bytes": BYTES.astype(np.float32),
    "float of 16 bits": np.round(RGB * 65535).astype(np.float32),
    "double 0 to 1": RGB,
    "float rounded above 1": np.where(RGB.max() <= RGB, 1.0001, RGB),
}


IN_GLTF = ("uint8", "uint16", "float 0 to 1")


@pytest.mark.parametrize(
    ("form", "stored"), [(f, s) for f in COLORED for s in COLOR_FILES if s in IN_GLTF or not f.startswith("glb")]
)
def test_colors_by_their_stored_type(tmp_path, form, stored):
    colors = COLOR_FILES[stored]
    columns = axes(XYZ.astype(np.float32)) | {name: colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    if form.startswith("pcd"):
        columns = dict(zip(("x", "y", "z", "r", "g", "b"), columns.values()))
    ending, write = COLORED[form]
    cloud = read_points(write(tmp_path / f"a{ending}", columns))
    np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-6)
    found = cloud.colors.numpy()
    assert found.dtype == np.float32
    expected = np.where(RGB.max() <= RGB, 1, RGB) if "rounded" in stored else RGB
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (np.array([[1.0, 0, 0], [0, 1, 0]]), [[1, 0, 0], [0, 1, 0]]),
        (np.array([[1, 0, 0], [0, 1, 0]], np.uint8), [[1 / 255, 0, 0], [0, 1 / 255, 0]]),
        (np.array([[1, 0, 0], [0, 1, 0]], bool), [[1, 0, 0], [0, 1, 0]]),
        (np.array([[-1e-7, 0.5, 1.0005]]), [[0, 0.5, 1]]),
        (np.array([[0, 51.0, 1], [2, 1, 1]]), [[0, 0.2, 1 / 255], [2 / 255, 1 / 255, 1 / 255]]),
        (np.array([[257, 65535, 0]], ">u2"), [[1 / 255, 1, 0]]),
    ],
    ids=["pure", "nearly black", "booleans", "rounded", "dark", "other byte order"],
)
def test_colors_by_their_range(colors, expected):
    np.testing.assert_allclose(unit_colors(colors), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("colors", "reason"),
    [
        (RGB - 0.9, "must lie within 0 to 255, found -"),
        (RGB * 70000, "must lie within 0 to 255, or to 65535 as 16 bits, found 0 to 6"),
        (np.where(RGB.max() <= RGB, np.nan, RGB), "the colours of 1 points are not numbers"),
        (np.where(RGB.max() <= RGB, 1.5, RGB), "most colours lie within 0 to 1, but 1 numbers exceed it, up to 1.5"),
        (
            np.where(RGB.max() <= RGB, 300, BYTES.astype(np.int32)),
            "within 0 to 255, but 1 numbers exceed it, up to 300",
        ),
    ],
)
def test_colors_that_are_none(tmp_path, colors, reason):
    np.savez(tmp_path / "a.npz", xyz=XYZ, colors=colors)
    with pytest.raises(InputError, match=reason):
        read_points(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("stored", ["f4", "u4"])
@pytest.mark.parametrize("name", ["rgb", "rgba"])
def test_pcd_with_packed_colors(tmp_path, kind, stored, name):
    word = BYTES.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    columns = axes(XYZ.astype(np.float32)) | {name: word.astype(np.uint32).view(stored), "intensity": XYZ[:, 0]}
    columns |= {f"normal_{axis}": 2 * NORMALS[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    cloud = read_points(pcd(tmp_path / "a.pcd", columns | {"label": LABELS.astype(np.int32)}, kind))
    np.testing.assert_array_equal(cloud.xyz, XYZ.astype(np.float32))
    np.testing.assert_array_equal(np.round(cloud.colors.numpy() * 255), BYTES)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    assert cloud.semantic.tolist() == LABELS.tolist()


@pytest.mark.parametrize("stored", ["f4", "u4", "i4", ">f4"])
@pytest.mark.parametrize("form", ["ply", "ply big", "ply text", "npy", "txt"])
def test_packed_colors_in_other_files(tmp_path, form, stored):
    word = (BYTES.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)).astype(np.uint32)
    ending, write = COLORED[form]
    packed = word.view(stored[-2:]).astype(stored)
    cloud = read_points(write(tmp_path / f"a{ending}", axes(XYZ) | {"rgb": packed}))
    np.testing.assert_array_equal(np.round(cloud.colors.numpy() * 255), BYTES)


def test_packed_colors_that_are_lost(tmp_path):
    lost = (BYTES.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)).astype(np.uint32) | 0xFF800000
    columns = axes(XYZ) | {"rgb": lost.view(np.float32)}
    assert read_points(pcd(tmp_path / "a.pcd", columns, "binary")).colors is not None
    for path in (pcd(tmp_path / "a.pcd", columns, "ascii"), ply_of("ascii")(tmp_path / "a.ply", columns)):
        with pytest.raises(InputError, match=f"rgb: {COUNT} colours are printed as nan, which loses their bits"):
            read_points(path)
    invalid = {axis: np.full(COUNT - 1, np.nan) for axis in "xyz"} | {"rgb": lost.view(np.float32)[1:]}
    word = np.array([0x00336699], np.uint32).view(np.float32)
    both = {name: np.concatenate([[columns[name][0]], invalid[name]]) for name in columns} | {"label": np.arange(COUNT)}
    path = pcd(tmp_path / "a.pcd", both | {"rgb": np.concatenate([word, invalid["rgb"]])}, "ascii")
    np.testing.assert_allclose(read_points(path).colors, [[0.2, 0.4, 0.6]], atol=1e-6)  # of the only valid point
    saved_columns(tmp_path / "a.npy", axes(XYZ) | {"rgb": BYTES[:, 0]})
    with pytest.raises(InputError, match="colours packed into one number cannot be read: they are uint8"):
        read_points(tmp_path / "a.npy")


def test_pcd_fields_of_several_numbers_padding_and_invalid_points(tmp_path):
    record = np.dtype(
        [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("p", "<u1", (4,)), ("h", "<f4", (3,)), ("q", "<u1", (2,))]
    )
    table = np.zeros(4, record)
    table["x"], table["h"] = [1, np.nan, 3, 4], 7
    head = "VERSION 0.7\nFIELDS x y z _ histogram _\nSIZE 4 4 4 1 4 1\nTYPE F F F U F U\nCOUNT 1 1 1 4 3 2\n"
    (tmp_path / "a.pcd").write_bytes(f"{head}WIDTH 2\nHEIGHT 2\nDATA binary\n".encode() + table.tobytes())
    assert read_points(tmp_path / "a.pcd").xyz.tolist() == [[1, 0, 0], [3, 0, 0], [4, 0, 0]]


def test_lzf():
    # Four bytes as they are; ten of one byte before; 300 of four bytes before, in two steps.
    packed = b"\x03abcd" + b"\xe0\x01\x00" + b"\xe0\xff\x03" + b"\x40\x03"
    expected = bytearray(b"abcd" + b"d" * 10)
    for _ in range(264 + 4):
        expected.append(expected[-4])
    assert unpack_lzf(packed, len(expected)) == expected
    for data in (b"", b"x", b"ab" * 5000, RNG.bytes(3000), bytes(20000), b"abc" * 200 + RNG.bytes(9000) + b"abc" * 99):
        assert unpack_lzf(pack_lzf(data), len(data)) == data
    for broken, size in ((packed[:-1], 282), (packed, 281), (b"\x20\x00", 3), (b"\x05ab", 6)):
        with pytest.raises(ValueError, match=r"ends inside|instead of|before its beginning"):
            unpack_lzf(broken, size)


def test_normals_of_any_length(tmp_path):
    columns = axes(XYZ) | {f"n{axis}": 1000 * NORMALS[:, i] for i, axis in enumerate("xyz")}
    columns["nx"][:2], columns["ny"][1], columns["nz"][1] = [np.nan, 0], 0, 0
    for row, scale in ((2, 1e-200), (3, 1e200), (4, 1e-320)):
        for axis in "xyz":
            columns[f"n{axis}"][row] *= scale
    write_ply(tmp_path / "a.ply", columns)
    normals = read_points(tmp_path / "a.ply").normals.numpy()
    assert normals[:2].tolist() == [[0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(normals[2:], NORMALS[2:], atol=1e-2)  # the smallest have few digits left
    np.testing.assert_allclose(np.delete(normals, [0, 1, 4], 0), np.delete(NORMALS, [0, 1, 4], 0), atol=1e-6)
    columns = axes(XYZ) | {
        f"normal_{axis}": np.round(127 * NORMALS[:, i]).astype(np.int8) for i, axis in enumerate("xyz")
    }
    np.testing.assert_allclose(read_points(saved_columns(tmp_path / "a.npy", columns)).normals, NORMALS, atol=0.01)


@pytest.mark.parametrize(
    ("columns", "head", "separator", "has"),
    [
        ((XYZ,), "", " ", ""),
        ((XYZ, BYTES), "", ",", "c"),
        ((XYZ, RGB), "", "\t", "c"),
        ((XYZ, NORMALS), "", ";", "n"),
        ((XYZ, BYTES, NORMALS), f"{COUNT}\n", " ", "cn"),
        ((XYZ, NORMALS, RGB, LABELS[:, None]), "# a comment\n\n", ", ", "cn"),
        ((XYZ, -LABELS[:, None] - 2, BYTES), "", " ", "c"),
        ((XYZ, NORMALS, LABELS[:, None]), "", " ", "n"),
        ((XYZ, BYTES, LABELS[:, None]), "x y z red green blue label\n", " ", "cl"),
        ((XYZ, BYTES, LABELS[:, None]), '"X","Y","Z","R","G","B","Classification"\n', ",", "cl"),
        ((XYZ, LABELS[:, None], NORMALS), f"//X Y Z scalar_Label Nx Ny Nz\n{COUNT}\n", " ", "ln"),
        ((XYZ, LABELS[:, None], XYZ[:, :1]), f"{COUNT}\n#x;y;z;label;temperature\n", ";", "l"),
        ((XYZ, LABELS[:, None]), "\ufeffx\ty\tz\tinstance\n", "\t", "i"),
    ],
)
def test_text_columns(tmp_path, columns, head, separator, has):
    cloud = read_points(write_lines(tmp_path / "a.txt", *columns, head=head, separator=separator))
    np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-6)
    assert [
        k for k, v in zip("cnli", (cloud.colors, cloud.normals, cloud.semantic, cloud.instance)) if v is not None
    ] == [k for k in "cnli" if k in has]
    if "c" in has:
        np.testing.assert_allclose(cloud.colors, RGB, atol=0.5 / 255 + 1e-6)
    if "n" in has:
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-5)
    if "l" in has:
        assert cloud.semantic.tolist() == LABELS.tolist()
    if "i" in has:
        assert cloud.instance.tolist() == LABELS.tolist()


UPRIGHT = np.tile([0, 0, 1], (COUNT, 1))


@pytest.mark.parametrize(
    "columns",
    [(XYZ, UPRIGHT), (XYZ, BYTES, abs(LABELS[:, None])), (XYZ, RGB, BYTES), (XYZ, XYZ), (XYZ, LABELS[:, None])],
    ids=["normals or blue", "label or intensity", "colours twice", "neither", "four columns"],
)
def test_columns_that_may_be_several_things_are_refused_unless_named(tmp_path, columns):
    path = write_lines(tmp_path / "a.xyz", *columns)
    with pytest.raises(InputError, match=r"a.xyz: .*name them in a header line or by columns="):
        read_points(path)
    width = sum(c.shape[1] for c in columns)
    named = read_points(path, columns="x y z " + " ".join(f"other{i}" for i in range(width - 3)))
    np.testing.assert_allclose(named.xyz, XYZ, atol=1e-6)
    np.save(tmp_path / "a.npy", np.concatenate(columns, 1))
    with pytest.raises(InputError, match="by columns="):
        read_points(tmp_path / "a.npy")
    assert read_points(tmp_path / "a.npy", columns=",".join("xyzuvwabc"[:width])).xyz.shape == (COUNT, 3)


def test_named_columns_say_what_the_numbers_leave_open(tmp_path):
    path = write_lines(tmp_path / "a.xyz", XYZ, UPRIGHT)
    assert read_points(path, columns="x y z nx ny nz").normals.tolist() == UPRIGHT.tolist()
    assert read_points(path, columns="x, y, z, r, g, b").colors.tolist() == UPRIGHT.tolist()
    with pytest.raises(InputError, match="line 1 has 6 columns instead of 3"):
        read_points(path, columns="x y z")
    with pytest.raises(InputError, match="no coordinates x, y, z"):
        read_points(path, columns="a b c nx ny nz")
    np.savez(tmp_path / "a.npz", xyz=XYZ)
    with pytest.raises(InputError, match="this file names its own"):
        read_points(tmp_path / "a.npz", columns="x y z")
    np.save(tmp_path / "a.npy", XYZ)
    with pytest.raises(InputError, match="4 names are given for 3 columns"):
        read_points(tmp_path / "a.npy", columns="x y z label")


ROWS = [[1.5, -2.0, 30.0], [4.0, 5.0, 6.25]]
SPELT = {
    "CR": b"1.5 -2 30\r4 5 6.25\r",
    "CRLF and empty lines": b"\r\n1.5 -2 30\r\n\r\n4 5 6.25\r\n \r\n",
    "BOM": b"\xef\xbb\xbf1.5 -2 30\n4 5 6.25",
    "UTF-16": "x y z\r\n1.5 -2 30\r\n4 5 6.25\r\n".encode("utf-16"),
    "signs and exponents": b"+1.5 -2. 3e+01\n4 +.5E1 6.25\n",
    "Fortran": b"1.5D+00 -2.0D0 0.3d2\n4 5 6.25\n",
    "Latin-1": "# Größe in Metern\n1.5 -2 30\n4 5 6.25\n".encode("latin-1"),
    "a comment with x, y and z": b"// axes x y z turned\n1.5 -2 30\n4 5 6.25\n",
    "last comments": b"1.5 -2 30 # first\n4 5 6.25 // second\n",
    "commas after the last": b"x,y,z,\n1.5,-2,30,\n4,5,6.25,\n",
    "quotes": b'"X","Y","Z"\r\n"1.5","-2","30"\r\n"4","5","6.25"\r\n',
    "names with spaces and units": b"Point ID,X [m],Y (m),Z[m]\n7,1.5,-2,30\n8,4,5,6.25\n",
    "MSVC's NaN in a column that is not read": b"x y z t\n1.5 -2 30 -nan(ind)\n4 5 6.25 1.#QNAN\n",
}


@pytest.mark.parametrize("spelt", SPELT)
def test_text_spelt_otherwise(tmp_path, spelt):
    (tmp_path / "a.txt").write_bytes(SPELT[spelt])
    assert read_points(tmp_path / "a.txt").xyz.tolist() == ROWS


def test_other_formats_spelt_otherwise(tmp_path):
    """Line ends, marks, cases and white space of every text format."""
    triangle = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    texts = {
        "off": "off # by hand\n3 1 0\n0 0 0\n1 0 0\n 0 1 0\n\n3  0 1 2\n",
        "obj": "# by hand\nv\t0 0 0\nv 1 0 \\\n0\n  v  0 1.0D+00 0 # last\nf -3 -2 -1\n",
        "stl": "SOLID\nFACET NORMAL 0 0 1\nOUTER LOOP\n"
        + "".join(f"VERTEX {x} {y} {z}\n" for x, y, z in triangle)
        + "ENDLOOP\nENDFACET\nENDSOLID\n",
        "ply": "ply \nformat  ascii 1.0\ncomment not the end_header\nobj_info x\nelement vertex 3\n"
        "property  float x\nproperty float y\ncomment z\nproperty float z\nproperty float my name\nend_header \n"
        + "".join(f"{x} {y} {z} -nan(ind)\n" for x, y, z in triangle),
        "pcd": "# .PCD v.5\nVERSION .5\nCOLUMNS x y z t\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 3\nHEIGHT 1\nDATA ascii\n"
        + "".join(f"{x} {y} {z} -1.#IND\n" for x, y, z in triangle),
    }
    for ending, text in texts.items():
        for end in ("\n", "\r\n", "\r"):
            for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                path = tmp_path / f"a.{ending.upper()}"
                path.write_bytes(text.replace("\n", end).encode(encoding))
                assert read_points(path).xyz.tolist() == triangle, (ending, end, encoding)


def test_pts_files_are_laid_out_as_leicas(tmp_path):
    path = tmp_path / "a.pts"
    path.write_text("2\n1 2 3 100\n4 5 6 200\n")
    assert read_points(path).colors is None
    path.write_text("2\n1 2 3 100 255 0 51\n4 5 6 200 0 0 0\n")
    np.testing.assert_allclose(read_points(path).colors, [[1, 0, 0.2], [0, 0, 0]], atol=1e-7)


TEXT_DAMAGE = {
    "words": ("1 2 3\n4 five 6\n", "line 2: 'five' is not a number"),
    "decimal commas": ("1,5;2,5;3,5\n", "line 1: '1,5' is not a number; write decimal points"),
    "decimal commas and spaces": (
        "1,5 2,5 3,5\n",
        "'5 2' is not a number; if its commas are decimal ones, write points",
    ),
    "digits that are no decimals": ("x y z\n1 2 ²\n", "line 2: '²' is not a number"),
    "a count that is none": ("²\n1 2 3\n", "line 1 names no columns x, y, z and holds no numbers: '²'"),
    "a count of thousands of digits": (f"{'9' * 5000}\n1 2 3\n", "line 2 has 3 columns instead of 1"),
    "a count alone": ("5\n", "the file promises 5 points and holds 0"),
    "MSVC's NaN": ("1 2 3\n1 -nan(ind) 1.#QNAN\n1.#INF 2 3\n", "2 points are damaged; number 1 is [1.0, nan, nan]"),
    "binary": ("1 2 3\n\0", "is not text"),
    "a depth map": (("1 2 3 4 5 6 7 8 9 " * 4 + "\n") * 4, "look like a depth map or an image"),
    "cut line": ("1 2 3\n4 5 6\n7 8\n", "line 3 has 2 columns instead of 3"),
    "cut file": ("3\n1 2 3\n4 5 6\n", "promises 3 points and holds 2"),
    "title": ("My scan of a room\n1 2 3\n", "line 1 names no columns x, y, z and holds no numbers"),
    "header alone": ("x y z\n", "holds no point"),
    "comments alone": ("# nothing\n\n", "holds no point"),
    "not a number": ("1 2 nan\n1 2 3\n", "1 points are damaged; number 0 is"),
    "uneven label": ("x y z label\n1 2 3 0.5\n", "a label must be a whole number; that of point 0 is 0.5"),
    "column of text": ("x y z label\n1 2 3 wall\n", "line 2: 'wall' is not a number"),
}


@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_damaged_text(tmp_path, damage):
    content, reason = TEXT_DAMAGE[damage]
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        read_points(tmp_path / "a.txt")
    assert str(error.value).startswith(f"{tmp_path / 'a.txt'}")
    assert "\n" not in str(error.value)


def test_other_columns_of_text_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("name,x,y,z\nchair,1,2,3\ntable,4,5,6\n")
    assert read_points(tmp_path / "a.csv").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("form", WRITERS)
def test_cut_and_empty_files_are_one_line(tmp_path, form):
    ending, write = WRITERS[form]
    whole = write(tmp_path / f"whole{ending}", XYZ, FACES).read_bytes()
    path = tmp_path / f"a{ending}"
    # Points without a count or an end may lack their last lines unseen, unless the cut goes through one.
    unseen = form in ("xyz", "csv", "asc", "obj")
    for share in (0, 0.02, 0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        found, message = None, ""
        try:
            found = read_points(path)
        except InputError as error:
            message = str(error)
        if found is not None:
            assert unseen
            assert 0 < len(found) < COUNT or form == "obj"
        else:
            assert message.startswith(str(path))
            assert "\n" not in message
            assert share or message == f"{path} at byte 0: the file is empty"
    path.write_bytes(b"\xff\x00\xfe" * 100)
    with pytest.raises(InputError) as error:
        read_points(path)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"a.plyy: points are not read from '.plyy' files, .*did you mean '.ply'"):
        read_points(tmp_path / "a.plyy")
    with pytest.raises(InputError, match="points are not read from 'no' files"):
        read_points(tmp_path / "a")
    for ending in POINT_ENDINGS:
        with pytest.raises(InputError, match=f"a{ending}: cannot be read: No such file"):
            read_points(tmp_path / f"a{ending}")
    (tmp_path / "b.ply").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_points(tmp_path / "b.ply")
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a whole file of NumPy"):
        read_points(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", xyz=XYZ)
    (tmp_path / "a.npy").write_bytes((tmp_path / "b.npz").read_bytes())
    with pytest.raises(InputError, match="holds NpzFile, which does not go with its ending"):
        read_points(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 3)))
    with pytest.raises(InputError, match=r"\(N, 3\) of numbers is expected, this is \(2, 5, 3\)"):
        read_points(tmp_path / "a.npy")
    for array, reason in (
        (np.ones((48, 64), np.float32), "48 x 64 numbers look like a depth map or an image"),
        (np.full((4, 64), 1500, np.uint16), "4 x 64 numbers look like a depth map or an image"),
        (np.ones((3, 64)), "3 rows of 64 numbers; a row for each point is expected, transpose them"),
        (np.zeros((0, 6)), "holds no point"),
        (np.zeros((4, 3), complex), "of complex128"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=reason):
            read_points(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", xyz=XYZ, colors=RGB[1:])
    with pytest.raises(InputError, match="columns of different length: xyz 24 x 3, colors 23 x 3"):
        read_points(tmp_path / "a.npz")
    for arrays, reason in (
        ({"depth": XYZ}, r"no coordinates x, y, z .*; it has depth"),
        ({"xyz": XYZ, "labels": LABELS.astype(str)}, "labels holds <U21, numbers are expected"),
        ({"xyz": XYZ, "labels": LABELS + 1e300}, "a label must be a whole number"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=reason):
            read_points(tmp_path / "a.npz")
    for name in ("a" * 300, "null\0"):
        with pytest.raises(InputError, match="cannot be read"):
            read_points(tmp_path / f"{name}.ply")
    (tmp_path / "endless.ply").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"endless.ply: is a device"):
        read_points(tmp_path / "endless.ply")


def test_an_archive_that_unpacks_to_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[read_points.__module__], "_LARGE", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", xyz=np.zeros((1 << 17, 3)))
    with pytest.raises(InputError, match=r"a.npz: its \d+ bytes unpack to \d+"):
        read_points(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "a.npz", xyz=XYZ, other=np.zeros((1 << 17, 3)))
    assert len(read_points(tmp_path / "a.npz")) == COUNT, "what is not read does not count"


def test_files_without_points_say_so(tmp_path):
    none, no_faces = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    for form, (ending, write) in WRITERS.items():
        if form != "glb" and ending not in (".xyz", ".txt", ".csv", ".asc", ".pts"):
            with pytest.raises(InputError, match=r"a\.\w+: (holds no point|the file is empty)"):
                read_points(write(tmp_path / f"a{ending}", none, no_faces) if form != "obj" else _empty_obj(tmp_path))
    for kind in ("ascii", "binary", "binary_compressed"):
        lost = pcd(tmp_path / "a.pcd", axes(np.full((5, 3), np.nan, np.float32)), kind)
        with pytest.raises(InputError, match="the coordinates of all its 5 points are not numbers"):
            read_points(lost)


def _empty_obj(folder: Path) -> Path:
    (folder / "a.obj").write_text("# nothing\n")
    return folder / "a.obj"


@pytest.mark.parametrize(("value", "kind"), [("0.5", "uchar"), ("300", "uchar"), ("-1", "uint"), ("nan", "int")])
def test_types_that_a_text_file_states_and_does_not_keep(tmp_path, value, kind):
    path = ply_of("ascii")(tmp_path / "a.ply", axes(XYZ) | {"label": np.full(COUNT, 7, np.uint8)})
    path.write_text(path.read_text().replace("uchar label", f"{kind} label").replace(" 7\n", f" {value}\n", 1))
    with pytest.raises(InputError, match=f"label: its type holds whole numbers of .*; the first is {value}"):
        read_points(path)


MUTATIONS = 25  # of each format


@pytest.mark.parametrize("form", [*WRITERS, *(f"coloured {form}" for form in COLORED)])
def test_mutated_files_give_points_or_one_line(tmp_path, form):
    columns = axes(XYZ.astype(np.float32)) | {name: BYTES[:, i] for i, name in enumerate(("red", "green", "blue"))}
    ending, write = COLORED[form.removeprefix("coloured ")] if form.startswith("coloured") else WRITERS[form]
    path = tmp_path / f"a{ending}"
    whole = (write(path, columns) if form.startswith("coloured") else write(path, XYZ, FACES)).read_bytes()
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, np.random.default_rng(seed)))
        for read in (read_points, lambda path: holds_labels(path, "a")):
            message = str(path)
            try:
                read(path)
            except InputError as error:
                message = str(error)
            assert str(path) in message, seed
            assert "\n" not in message, seed
            assert len(message) < 2100, seed


def test_off_with_colors_normals_polygons_and_counts_in_the_first_line(tmp_path):
    (tmp_path / "a.off").write_text("OFF4 1 0 # of ModelNet\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n4 0 1 2 3 255 0 0\n")
    cloud = read_points(tmp_path / "a.off", samples=400)
    assert cloud.xyz[:, :2].mean(0).sub(1).abs().max() < 0.1, "both halves of the square"
    rows = "".join(f"{i} 0 1 0 0 2 {40 * i} 0 255 255\n" for i in range(3))
    (tmp_path / "a.off").write_text(f"CNOFF\n3 0 0\n{rows}")
    cloud = read_points(tmp_path / "a.off")
    assert cloud.normals.tolist() == [[0, 0, 1]] * 3
    np.testing.assert_allclose(cloud.colors[:, 0] * 255, [0, 40, 80], atol=1e-4)
    (tmp_path / "a.off").write_text("OFF\n3 1 0\n0 0 0\n2 0 0\n2 2 0\n3 0 1 3\n")
    with pytest.raises(InputError, match="a face names a vertex outside 0 to 2"):
        read_points(tmp_path / "a.off")


def test_binary_stl_shares_its_corners(tmp_path):
    corners = np.array([[[5, 0, 0], [1, 0, 0], [1, 1, 0]], [[5, 0, 0], [1, 1, 0], [0, 1, 1]]], np.float32)
    faces = b"".join(struct.pack("<3f", 0, 0, 0) + c.tobytes() + b"\0\0" for c in corners)
    (tmp_path / "a.stl").write_bytes(b"solid but binary".ljust(80, b" ") + struct.pack("<I", 2) + faces)
    cloud = read_points(tmp_path / "a.stl")
    assert cloud.xyz.tolist() == [[5, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]], "in the order of the file"
    assert cloud.normals[1].tolist() == [0, 0, -1]
    (tmp_path / "a.stl").write_bytes((tmp_path / "a.stl").read_bytes()[:-1])
    with pytest.raises(InputError, match="ends inside its 2 faces"):
        read_points(tmp_path / "a.stl")


def test_obj_with_colors_normals_and_materials(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\nf 1 2 3\n")
    cloud = read_points(path)
    assert cloud.colors.tolist() == np.eye(3).tolist()
    assert cloud.normals.tolist() == [[0, 0, 1]] * 3
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert len(read_points(path)) == 3, "points without faces"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvn 0 3 0\nf 1//1 2//1 3//1\n")
    assert read_points(path).normals.tolist() == [[0, 1, 0]] * 3
    (tmp_path / "a.mtl").write_text("newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n")
    path.write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nusemtl red\nf 1 2 3\nusemtl blue\nf 2 4 3\n")
    cloud = read_points(path, samples=50)
    assert (cloud.colors[:, 0] > 0.99).tolist() == (cloud.xyz[:, :2].sum(1) < 1).tolist()
    head = "mtllib a.mtl\nv 0 0 0 255 0 0\nv 1 0 0 0 255 0\nv 0 1 0 0 0 255\nvt 0 0\nvt 0.5\nvn 0 1 0\nusemtl blue\n"
    for face in ("f 1 2 3", "f 1/1 2/2 3/1", "f 1/1/1 2/2/1 3/1/1", "f -3/-2/-1 -2/-1/-1 -1/-1/-1"):
        path.write_text(f"{head}{face}\n")
        assert read_points(path).colors.tolist() == np.eye(3).tolist(), "of the vertices, not of the material"
        assert read_points(path).normals.tolist() == ([[0, 1, 0]] * 3 if face.count("/") > 3 else [[0, 0, 1]] * 3)
    path.write_text("mtllib a.mtl\n" + "v 0 0 0 1 1 1\nv 1 0 0 1 1 1\nv 0 1 0 1 1 1\nusemtl blue\nf 1 2 3\n")
    assert read_points(path).colors.tolist() == [[0, 0, 1]] * 3, "white vertices say less than a material"


def test_glb_with_colors_normals_and_two_places(tmp_path):
    colors = np.concatenate([np.round(RGB * 65535), np.full((COUNT, 1), 65535)], 1).astype(np.uint16)
    normals = NORMALS.astype(np.float32)
    path = glb(tmp_path / "a.glb", XYZ, FACES, np.array([1.0, 2, 3]), NORMAL=normals, COLOR_0=colors)
    cloud = read_points(path)
    np.testing.assert_allclose(cloud.xyz, XYZ + np.array([1, 2, 3]), atol=1e-6)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    np.testing.assert_allclose(cloud.colors, RGB, atol=1 / 255)


def test_textured_meshes_are_coloured(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    from PIL import Image

    texture = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8))
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [0, 1]]), image=texture)
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], visual=visual, process=False)
    mesh.export(tmp_path / "a.glb")
    assert colors_of(tmp_path / "a.glb").tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 0]]


def test_samples_of_a_mesh(tmp_path):
    # Two squares of area 1 and 8, red and blue at the far ends of each.
    xyz = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 0, 0], [7, 0, 0], [7, 4, 0], [5, 4, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    red = np.array([0, 255, 255, 0, 0, 255, 255, 0], np.uint8)
    columns = axes(xyz) | {
        "red": red,
        "green": 0 * red,
        "blue": 255 - red,
        "label": np.repeat([3, 4], 4).astype(np.uint8),
    }
    write_ply(tmp_path / "a.ply", columns, faces)
    cloud = read_points(tmp_path / "a.ply", samples=900)
    large = cloud.xyz[:, 0] > 3
    assert abs(int(large.sum()) - 800) <= 1
    assert (cloud.semantic == torch.where(large, 4, 3)).all()
    across = torch.where(large, (cloud.xyz[:, 0] - 5) / 2, cloud.xyz[:, 0])
    torch.testing.assert_close(cloud.colors, torch.stack([across, 0 * across, 1 - across], 1), atol=1e-6, rtol=0)
    assert cloud.normals.tolist() == [[0, 0, 1]] * 900
    again, other = (read_points(tmp_path / "a.ply", samples=900, seed=seed) for seed in (0, 1))
    assert torch.equal(cloud.xyz, again.xyz)
    assert not torch.equal(cloud.xyz, other.xyz)
    for options, reason in (({"samples": 0}, "samples must be 1"), ({"samples": 3, "seed": -1}, "seed must be 0")):
        with pytest.raises(InputError, match=reason):
            read_points(tmp_path / "a.ply", **options)
    write_ply(tmp_path / "b.ply", axes(xyz))
    with pytest.raises(InputError, match="points without faces, which have no surface to sample"):
        read_points(tmp_path / "b.ply", samples=10)


def test_normals_of_samples_are_interpolated(tmp_path):
    xyz = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    columns = axes(xyz) | {"nx": np.array([0, 5, 0.0]), "ny": np.zeros(3), "nz": np.array([1, 0, 1.0])}
    write_ply(tmp_path / "a.ply", columns, np.array([[0, 1, 2]]))
    cloud = read_points(tmp_path / "a.ply", samples=64)
    expected = torch.nn.functional.normalize(
        torch.stack([cloud.xyz[:, 0], 0 * cloud.xyz[:, 0], 1 - cloud.xyz[:, 0]], 1)
    )
    torch.testing.assert_close(cloud.normals, expected, atol=1e-6, rtol=0)


def test_a_cloud_of_ours_comes_back_from_npz(tmp_path):
    tensors = (XYZ.astype(np.float32), RGB.astype(np.float32), NORMALS.astype(np.float32), LABELS, LABELS)
    cloud = PointCloud(*map(torch.from_numpy, tensors), origin=torch.tensor([[7e5, 5e6, 300.25]], dtype=torch.float64))
    np.savez(tmp_path / "a.npz", **cloud.to_numpy())
    back = read_points(tmp_path / "a.npz")
    for field in ("colors", "semantic", "instance"):
        assert torch.equal(getattr(back, field), getattr(cloud, field)), field
    torch.testing.assert_close(back.world(), cloud.world(), atol=1e-6, rtol=0)
    np.savez(tmp_path / "a.npz", **PointCloud.pack([cloud, cloud]).to_numpy())
    with pytest.raises(InputError, match="holds 2 scenes, one is expected"):
        read_points(tmp_path / "a.npz")


def test_a_cloud_of_ours_comes_back_from_ply(tmp_path):
    cloud = PointCloud(torch.from_numpy(XYZ).float(), torch.from_numpy(BYTES.astype(np.float32) / 255))
    write_points(tmp_path / "a.ply", cloud, label=LABELS.astype(np.int16))
    back = read_points(tmp_path / "a.ply")
    assert torch.equal(back.xyz, cloud.xyz)
    assert torch.equal(back.colors, cloud.colors)
    assert back.semantic.tolist() == LABELS.tolist()


def test_a_scene_or_a_file(tmp_path):
    write_lines(tmp_path / "a.xyz", XYZ, BYTES)
    cloud, classes = read_cloud(tmp_path / "a.xyz")
    assert (len(cloud), classes) == (COUNT, None)
    assert len(read_cloud(tmp_path)[0]) == COUNT
    write_lines(tmp_path / "b.xyz", XYZ)
    with pytest.raises(InputError, match="holds 2 scenes; give the folder of one, or a file of points"):
        read_cloud(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_cloud(tmp_path / "absent")


def test_genuine_meshes(data_folder):
    for path in sorted((data_folder / "objects19" / "raw_meshes").glob("*/*.off")):
        words = path.read_text().split()
        cloud = read_points(path)
        assert len(cloud) == int(words[1])
        assert cloud.xyz[0].tolist() == [np.float32(word) for word in words[4:7]]
        assert len(read_points(path, samples=2048)) == 2048
    scan = data_folder / "scannet" / "scans" / "scene0000_00"
    mesh = geo3d.open_dataset(scan)[0].points()
    cloud = read_points(scan / "scene0000_00_vh_clean_2.ply")
    assert torch.equal(cloud.xyz, mesh.xyz)
    assert torch.equal(cloud.colors, mesh.colors)
    assert torch.equal(cloud.normals, mesh.normals)
