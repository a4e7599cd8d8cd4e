"""Files of disparities and flow: round trips, bytes written by hand and by others' libraries, damage."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo3d import InputError
from geo3d.datasets.disparity_files import read_disparity, read_flow, write_disparity, write_flow, write_pfm
from geo3d.datasets.png16 import read_png16, write_png16
from geo3d.datasets.scene import BrokenScene

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits_comes_back(channels: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (7, 11, channels), dtype=np.uint16)
    write_png16(tmp_path / "a.png", values)
    assert np.array_equal(read_png16(tmp_path / "a.png", "a"), values)
    with Image.open(tmp_path / "a.png") as image:  # others read it too; with 8 bits but for one channel
        assert image.size == (11, 7)
        shown = np.array(image).reshape(7, 11, -1).astype(int)
    told = values if channels == 1 else values // 256
    assert np.abs(shown[..., [0, -1]] - told[..., [0, -1]]).max() <= (channels > 1)


def _filtered(values: np.ndarray, methods: list[int]) -> bytes:
    """Rows of bytes as the PNG specification filters them, one byte after the other."""
    height, width, channels = values.shape
    step, raw = 2 * channels, values.astype(">u2").tobytes()
    rows = [raw[y * width * step : (y + 1) * width * step] for y in range(height)]
    out = bytearray()
    for y, row in enumerate(rows):
        out.append(methods[y])
        for x, byte in enumerate(row):
            a = row[x - step] if x >= step else 0
            b = rows[y - 1][x] if y else 0
            c = rows[y - 1][x - step] if y and x >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((byte - (0, a, b, (a + b) // 2, paeth)[methods[y]]) & 255)
    return bytes(out)


def _png(values: np.ndarray, methods: list[int], interlaced: int = 0, pieces: int = 1) -> bytes:
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, interlaced)
    packed = zlib.compress(_filtered(values, methods))
    parts = [packed[n * len(packed) // pieces : (n + 1) * len(packed) // pieces] for n in range(pieces)]
    chunks = [(b"IHDR", header), (b"tEXt", b"a\0b"), *((b"IDAT", part) for part in parts), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_every_filter_of_png(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(10) * 3000, np.arange(6) * 700)[..., None] + np.array([0, 30000, 5])
    for values in (smooth.astype(np.uint16), RNG.integers(0, 65536, (10, 6, 3), dtype=np.uint16)):
        (tmp_path / "a.png").write_bytes(_png(values, [4, 3, 2, 1, 0, 1, 2, 3, 4, 4], pieces=3))
        assert np.array_equal(read_png16(tmp_path / "a.png", "a"), values)


def test_damaged_png(tmp_path: Path) -> None:
    values, path = RNG.integers(0, 65536, (10, 6, 3), dtype=np.uint16), tmp_path / "a.png"
    whole = _png(values, [0] * 10)
    wrong = bytearray(whole)
    wrong[90] ^= 1
    cases = [
        (whole[:100], "is cut"),
        (bytes(wrong), "another checksum"),
        (_png(values, [0] * 10, interlaced=1), "interlaced"),
        (b"GIF89a", "no PNG of 16 bits"),
    ]
    for data, reason in cases:
        path.write_bytes(data)
        with pytest.raises(BrokenScene, match=f"a.png.*{reason}"):
            read_png16(path, "a")
    with pytest.raises(BrokenScene, match="cannot be read"):
        read_png16(tmp_path / "none.png", "a")
    with pytest.raises(InputError, match=r"\(H, W, 1 to 4\) uint16"):
        write_png16(path, np.zeros((3, 3), np.uint8))


@pytest.mark.parametrize(("ending", "unit"), [(".pfm", 0.0), (".npz", 0.0), (".png", 1 / 512)])
def test_disparities_come_back(ending: str, unit: float, tmp_path: Path) -> None:
    disparity = RNG.uniform(0.01, 250, (9, 13)).astype(np.float32)
    disparity[2, 3:6] = np.nan
    write_disparity(tmp_path / f"d{ending}", disparity)
    np.testing.assert_allclose(read_disparity(tmp_path / f"d{ending}"), disparity, rtol=0, atol=unit)


@pytest.mark.parametrize(("ending", "unit"), [(".flo", 0.0), (".npz", 0.0), (".png", 1 / 128)])
def test_flow_comes_back(ending: str, unit: float, tmp_path: Path) -> None:
    flow = RNG.uniform(-300, 300, (9, 13, 2)).astype(np.float32)
    flow[2, 3:6] = np.nan
    write_flow(tmp_path / f"f{ending}", flow)
    np.testing.assert_allclose(read_flow(tmp_path / f"f{ending}"), flow, rtol=0, atol=unit)


def test_what_kitti_cannot_hold_is_unknown(tmp_path: Path) -> None:
    write_disparity(tmp_path / "d.png", np.array([[300.0, 0.001, -4, 1]]))
    assert np.isnan(read_disparity(tmp_path / "d.png")).tolist() == [[True, True, True, False]]
    write_flow(tmp_path / "f.png", np.array([[[600.0, 0], [0, -600], [511, -512]]]))
    assert np.isnan(read_flow(tmp_path / "f.png")).all(2).tolist() == [[True, True, False]]


def test_bytes_of_published_formats(tmp_path: Path) -> None:
    """KITTI: u = (R - 2^15) / 64, v of G, valid of B; disparity / 256. PFM from below, big-endian too; .flo."""
    stored = np.array([[[32768 + 64, 32768 - 96, 1], [0, 0, 0]]], np.uint16)
    write_png16(tmp_path / "f.png", stored)
    np.testing.assert_array_equal(read_flow(tmp_path / "f.png"), [[[1, -1.5], [np.nan, np.nan]]])
    Image.fromarray(np.array([[512, 0, 128]], np.uint16)).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.png"), [[2, np.nan, 0.5]])
    Image.fromarray(np.array([[64, 0, 10]], np.uint8)).save(tmp_path / "middlebury.png")
    np.testing.assert_array_equal(read_disparity(tmp_path / "middlebury.png", scale=4), [[16, np.nan, 2.5]])
    (tmp_path / "d.pfm").write_bytes(b"Pf\n2 2\n1.0\n" + struct.pack(">4f", 3, 4, 1, float("inf")))
    np.testing.assert_array_equal(read_disparity(tmp_path / "d.pfm"), [[1, np.nan], [3, 4]])
    flow = np.zeros((2, 1, 3), np.float32)
    flow[0, 0], flow[1, 0] = (1, 2, 0), (3, 4, 0)
    write_pfm(tmp_path / "f.pfm", flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "f.pfm"), flow[..., :2])
    data = b"PIEH" + struct.pack("<ii", 2, 1) + struct.pack("<4f", 1, 2, 1e10, 1e10)
    (tmp_path / "f.flo").write_bytes(data)
    np.testing.assert_array_equal(read_flow(tmp_path / "f.flo"), [[[1, 2], [np.nan, np.nan]]])
    with Image.open(tmp_path / "d.pfm") as image:  # Pillow's reader agrees on the order of rows
        np.testing.assert_array_equal(np.array(image), [[1, np.inf], [3, 4]])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    cases = {
        "a.pfm": (b"Pf\n2 2\n", "is damaged: a PFM begins"),
        "b.pfm": (b"Pf\n2 2\n-1\n1234", "is cut: 16 bytes"),
        "c.flo": (b"PIEH" + struct.pack("<ii", -1, 5), "header says -1 x 5"),
        "d.npy": (b"\x93NUMPY...", "is not an array"),
        "e.txt": (b"disparity", "is not an image"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        for read in (read_flow,) if name.endswith("flo") else (read_disparity, read_flow):
            with pytest.raises(BrokenScene, match=f"{name}.*{reason}"):
                read(tmp_path / name)
    Image.fromarray(RNG.integers(0, 255, (3, 3, 3), dtype=np.uint8)).save(tmp_path / "colours.png")
    with pytest.raises(BrokenScene, match="has colours"):
        read_disparity(tmp_path / "colours.png")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(BrokenScene, match="holds no flow, but a, b"):
        read_flow(tmp_path / "two.npz")
    with pytest.raises(InputError, match=r"end in .npz, .pfm, .png"):
        write_disparity(tmp_path / "d.jpg", np.zeros((2, 2)))
    with pytest.raises(InputError, match="scale of disparities must be positive"):
        read_disparity(tmp_path / "d.pfm", scale=0)


@pytest.mark.skipif("GEO3D_TEST_DATA" not in os.environ, reason="GEO3D_TEST_DATA does not name a folder of real data")
def test_a_real_disparity_map(tmp_path: Path) -> None:
    path = Path(os.environ["GEO3D_TEST_DATA"], "stereo_cones", "cones_gt.png")
    disparity = read_disparity(path)
    assert disparity.shape == (375, 450)
    assert 0.5 < np.isfinite(disparity).mean() < 1
    assert 1 <= np.nanmin(disparity) < np.nanmax(disparity) == 55
    write_disparity(tmp_path / "kitti.png", disparity)
    np.testing.assert_array_equal(read_disparity(tmp_path / "kitti.png"), disparity)
