"""`.sens` streams: written and read back, laid out as ScanNet documents, cut and damaged at every place."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import COLOR, DEPTH, depth_map, jpeg, lost_pose, orbit, picture, sens_frames
from PIL import Image

from geo3d.datasets import BrokenScene, ScanNet
from geo3d.datasets.sens import SensFile, SensFrame, write_sens
from geo3d.errors import InputError
from geo3d.geometry import Camera

HEADER = 4 + 8 + len(b"geo3d") + 4 * 64 + 4 + 4 + 4 * 4 + 4 + 8
FRAME = 64 + 8 * 4
_STREAM_AT = HEADER - 36


def written(path: Path, poses: list[np.ndarray]) -> SensFile:
    write_sens(path, color_camera=COLOR, depth_camera=DEPTH, frames=sens_frames(poses))
    return SensFile(path, "scene")


def handmade(color: bytes, depth: bytes, codes: tuple[int, int], shift: float = 1000.0) -> bytes:
    """A stream of one frame, by the format's description and without the writer."""
    intrinsics = []
    for camera in (COLOR, DEPTH):
        matrix = np.eye(4, dtype="<f4")
        matrix[:3, :3] = camera.matrix.numpy()
        intrinsics += [matrix, np.eye(4, dtype="<f4")]
    data = struct.pack("<I", 4) + struct.pack("<Q", 9) + b"Structure" + b"".join(m.tobytes() for m in intrinsics)
    data += struct.pack("<ii", *codes) + struct.pack("<IIII", COLOR.width, COLOR.height, DEPTH.width, DEPTH.height)
    data += struct.pack("<f", shift) + struct.pack("<Q", 1)
    data += orbit(1)[0].astype("<f4").tobytes() + struct.pack("<QQQQ", 11, 12, len(color), len(depth))
    return data + color + depth


def test_round_trip(tmp_path):
    poses = [*orbit(3)]
    stream = written(tmp_path / "a.sens", poses)
    assert len(stream) == 3
    assert stream.header.sensor_name == "geo3d"
    for camera, ours in ((stream.header.color_camera, COLOR), (stream.depth_camera, DEPTH)):
        assert (camera.width, camera.height, camera.model) == (ours.width, ours.height, "PINHOLE")
        # Intrinsics are float32 in the file.
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(
            (ours.fx, ours.fy, ours.cx, ours.cy), rel=1e-7
        )
    assert stream.index.color_time.tolist() == [0, 10, 20]
    assert stream.index.depth_time.tolist() == [1, 11, 21]
    for i, pose in enumerate(poses):
        np.testing.assert_allclose(stream.index.world_from_camera[i], pose, atol=1e-6)  # float32
        np.testing.assert_allclose(stream.depth(i), depth_map(i), atol=5e-4 + 1e-6)  # whole millimetres
        assert (stream.depth(i) == 0).sum() == 1
        image = stream.image(i)
        assert image.format == "JPEG", "decoded lazily, so that draft() can shrink it"
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(jpeg(picture(seed=i))))))


def test_the_layout_is_scannets(tmp_path):
    """Every field of the writer's file where the format puts it."""
    path = tmp_path / "a.sens"
    written(path, [*orbit(1)])
    data = path.read_bytes()
    assert struct.unpack_from("<IQ5s", data) == (4, 5, b"geo3d")
    matrices = np.frombuffer(data, "<f4", 64, 17).reshape(4, 4, 4)
    np.testing.assert_allclose(matrices[0][:3, :3], COLOR.matrix, rtol=1e-6)
    np.testing.assert_allclose(matrices[2][:3, :3], DEPTH.matrix, rtol=1e-6)
    assert np.array_equal(matrices[1::2], np.stack([np.eye(4)] * 2))
    assert struct.unpack_from("<iiIIIIfQ", data, 273) == (2, 1, 32, 24, 16, 12, 1000.0, 1)
    assert HEADER == 273 + 36
    np.testing.assert_allclose(np.frombuffer(data, "<f4", 16, HEADER).reshape(4, 4), orbit(1)[0], rtol=1e-6)
    color_time, depth_time, color_bytes, depth_bytes = struct.unpack_from("<QQQQ", data, HEADER + 64)
    assert (color_time, depth_time) == (0, 1)
    start = HEADER + FRAME
    assert data[start : start + 3] == b"\xff\xd8\xff"
    depth = zlib.decompress(data[start + color_bytes : start + color_bytes + depth_bytes])
    assert np.frombuffer(depth, "<u2")[0] == 2500
    assert start + color_bytes + depth_bytes == len(data)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("depth_code", [0, 1], ids=["raw depth", "zlib depth"])
@pytest.mark.parametrize("color_code", [0, 1, 2], ids=["raw colour", "png", "jpeg"])
def test_every_compression(tmp_path, color_code, depth_code):
    color = {0: picture().tobytes(), 1: png(picture()), 2: jpeg(picture())}[color_code]
    units = np.rint(depth_map() * 4000).astype("<u2").tobytes()
    depth = zlib.compress(units) if depth_code else units
    (tmp_path / "a.sens").write_bytes(handmade(color, depth, (color_code, depth_code), shift=4000.0))
    stream = SensFile(tmp_path / "a.sens", "scene")
    assert stream.header.sensor_name == "Structure"
    assert np.array_equal(stream.depth(0), depth_map())
    expected = Image.open(io.BytesIO(color)) if color_code == 2 else picture()
    assert np.array_equal(np.asarray(stream.image(0)), np.asarray(expected))


def test_lost_poses_are_skipped_and_counted(tmp_path):
    first, second = orbit(2)
    nan = np.full((4, 4), np.nan)
    stream = written(tmp_path / "a.sens", [lost_pose(), first, nan, np.zeros((4, 4)), second])
    assert stream.index.number.tolist() == [1, 4]
    assert stream.views.names == ["1", "4"]
    np.testing.assert_allclose(stream.depth(1), depth_map(4), atol=5e-4 + 1e-6)
    (remark,) = stream.index.remarks
    assert (remark.count, remark.scene) == (3, "scene")
    assert "pose was lost" in str(remark)


def test_no_usable_frame_is_broken(tmp_path):
    with pytest.raises(BrokenScene, match=r"no usable frame: 2 frames skipped: their pose was lost"):
        len(written(tmp_path / "a.sens", [lost_pose(), lost_pose()]))
    with pytest.raises(BrokenScene, match="no usable frame: it lists none"):
        len(written(tmp_path / "b.sens", []))


def test_more_frames_promised_than_held(tmp_path):
    path = tmp_path / "a.sens"
    written(path, [*orbit(3)])
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, HEADER - 8, 10)
    path.write_bytes(data)
    stream = SensFile(path, "scene")
    assert len(stream) == 3
    (remark,) = stream.index.remarks
    assert (remark.count, remark.offset) == (7, len(data))
    assert "promises 10, the file holds 3" in str(remark)


def test_imu_data_after_the_frames_is_left_alone(tmp_path):
    path = tmp_path / "a.sens"
    written(path, [*orbit(2)])
    rng = np.random.default_rng(0)
    path.write_bytes(path.read_bytes() + struct.pack("<Q", 500) + rng.standard_normal(5000).tobytes())
    assert len(SensFile(path, "scene")) == 2
    assert SensFile(path, "scene").index.remarks == ()


def test_cut_anywhere(tmp_path):
    """In the header the scene is broken there; later the complete frames remain and the others are counted."""
    path = tmp_path / "a.sens"
    whole_stream = written(path, [*orbit(3)])
    whole = path.read_bytes()
    ends = [HEADER, *(whole_stream.index.depth_offset + whole_stream.index.depth_bytes).tolist()]
    assert ends[-1] == len(whole)
    for size in [*range(HEADER + 2 * FRAME), *range(HEADER, len(whole), 97), ends[1], ends[1] + 50, ends[2] - 1]:
        path.write_bytes(whole[:size])
        stream = SensFile(path, "scene")
        complete = sum(size >= end for end in ends) - 1
        if complete < 1:
            with pytest.raises(BrokenScene) as error:
                len(stream)
            assert error.value.offset == min(size, HEADER)
            assert error.value.file == str(path)
            assert ("inside the header" if size < HEADER else "promises 3, the file holds 0") in error.value.reason
        else:
            assert len(stream) == complete
            assert [(r.count, r.offset) for r in stream.index.remarks] == [(3 - complete, ends[complete])]
            np.testing.assert_allclose(stream.depth(complete - 1), depth_map(complete - 1), atol=5e-4 + 1e-6)


@pytest.mark.parametrize(
    ("offset", "value", "reason", "where"),
    [
        (0, struct.pack("<I", 3), "version 4: the version reads 3", 0),
        (0, b"ply\n", "not a .sens file", 0),
        (4, struct.pack("<Q", 1 << 60), "damaged header: a sensor name of", 4),
        (17, struct.pack("<f", -5.0), "damaged calibration: .*focal lengths", 17),
        (17, struct.pack("<f", np.nan), "damaged calibration", 17),
        (_STREAM_AT, struct.pack("<i", 7), "unknown colour compression 7", _STREAM_AT),
        (_STREAM_AT + 4, struct.pack("<i", 2), "occi", _STREAM_AT + 4),
        (_STREAM_AT + 4, struct.pack("<i", 9), "depth compression 9 is unknown", _STREAM_AT + 4),
        (_STREAM_AT + 8, struct.pack("<I", 0), "image size must be positive", 17),
        (_STREAM_AT + 12, struct.pack("<I", 1 << 31), "images of 32 x 2147483648 and 16 x 12 pixels", _STREAM_AT + 8),
        (_STREAM_AT + 24, struct.pack("<f", 0.0), "depth shift makes no sense: 0.0 units", _STREAM_AT + 24),
        (_STREAM_AT + 24, struct.pack("<f", np.nan), "depth shift makes no sense: nan", _STREAM_AT + 24),
    ],
)
def test_damaged_headers(tmp_path, offset, value, reason, where):
    path = tmp_path / "a.sens"
    written(path, [*orbit(2)])
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(BrokenScene, match=reason) as error:
        len(SensFile(path, "scene"))
    assert error.value.offset == where


def test_damaged_payloads(tmp_path):
    path = tmp_path / "a.sens"
    index = written(path, [*orbit(2)]).index
    data = bytearray(path.read_bytes())
    color, depth = int(index.color_offset[1]), int(index.depth_offset[1])
    data[color : color + 4] = data[depth : depth + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    stream = SensFile(path, "scene")
    stream.image(0), stream.depth(0)
    with pytest.raises(BrokenScene, match="colour image of frame 1 cannot be decoded") as error:
        stream.image(1)
    assert error.value.offset == color
    with pytest.raises(BrokenScene, match="depth map of frame 1 cannot be decompressed") as error:
        stream.depth(1)
    assert error.value.offset == depth


def test_depth_of_another_size(tmp_path):
    depth = zlib.compress(bytes(2 * DEPTH.width * DEPTH.height - 2))
    (tmp_path / "a.sens").write_bytes(handmade(jpeg(picture()), depth, (2, 1)))
    with pytest.raises(BrokenScene, match="holds 382 bytes, 16 x 12 uint16 expected"):
        SensFile(tmp_path / "a.sens", "scene").depth(0)


def test_payloads_that_do_not_fit(tmp_path):
    """Raw colours of another size; a depth map that would fill the memory, and one that ends early."""
    units = bytes(2 * DEPTH.width * DEPTH.height)
    endless, early = zlib.compress(bytes(1 << 24)), zlib.compress(units)[:-6]
    for number, (depth, reason) in enumerate(((endless, "holds 385 bytes"), (early, "cannot be decompressed"))):
        (tmp_path / f"{number}.sens").write_bytes(handmade(b"short", depth, (0, 1)))
        stream = SensFile(tmp_path / f"{number}.sens", "scene")
        with pytest.raises(BrokenScene, match=f"depth map of frame 0 {reason}"):
            stream.depth(0)
        with pytest.raises(BrokenScene, match="colour image of frame 0 holds 5 bytes, 32 x 24 RGB expected"):
            stream.image(0)


def test_a_file_that_shrinks_while_it_is_used(tmp_path):
    path = tmp_path / "a.sens"
    stream = written(path, [*orbit(2)])
    assert len(stream) == 2
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BrokenScene, match="became shorter"):
        stream.depth(1)


def test_missing_file(tmp_path):
    with pytest.raises(BrokenScene, match="cannot be opened: No such file"):
        len(SensFile(tmp_path / "a.sens", "scene"))


def _depths(stream: SensFile) -> list[np.ndarray]:
    return [stream.depth(i) for _ in range(20) for i in range(len(stream))]


def test_forked_and_pickled_workers_read_at_once(tmp_path):
    stream = written(tmp_path / "a.sens", [*orbit(4)])
    assert "index" not in vars(stream)
    assert len(pickle.loads(pickle.dumps(stream))) == len(stream) == 4
    expected = _depths(stream)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map(_depths, [stream] * 4):
            assert all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_the_index_reads_records_only(tmp_path, monkeypatch):
    """A stream as long as ScanNet's longest is indexed by its frame records; payloads are not read."""
    frames, payload = 5578, 20_000
    path = tmp_path / "a.sens"
    record = handmade(b"", b"", (2, 1))[-FRAME:-16] + struct.pack("<QQ", payload - 1000, 1000)
    with open(path, "wb") as file:
        header = bytearray(handmade(b"", b"", (2, 1))[:-FRAME])
        struct.pack_into("<Q", header, len(header) - 8, frames)
        file.write(header)
        for _ in range(frames):  # sparse: the payloads are holes, which take no disk
            file.write(record)
            file.seek(payload, 1)
        file.truncate()
    assert path.stat().st_size > 100e6
    read = 0
    real_open = open

    class Counting:
        def __init__(self, *arguments, **options):
            self.file = real_open(*arguments, **options)

        def read(self, size: int) -> bytes:
            nonlocal read
            read += size
            return self.file.read(size)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr("geo3d.datasets.sens.open", Counting, raising=False)
    start = time.perf_counter()
    stream = SensFile(path, "scene")
    assert len(stream) == frames
    assert read == len(header) + frames * FRAME
    assert time.perf_counter() - start < 2  # takes 0.03 s; hundreds of megabytes through a decoder would not
    assert len(pickle.dumps(stream)) < 2e6


@pytest.mark.parametrize(
    ("depth", "reason"),
    [
        (np.zeros((3, 3), np.float32), r"depth is \(3, 3\), the depth camera says \(12, 16\)"),
        (np.full((12, 16), 66, np.float32), r"depth must lie in 0 to 65.535 m at 1000 units"),
        (np.full((12, 16), -1, np.float32), "depth must lie in 0 to"),
        (np.full((12, 16), np.nan, np.float32), "depth must lie in 0 to"),
    ],
)
def test_writing_what_the_format_cannot_hold(tmp_path, depth, reason):
    frame = SensFrame(b"", depth, np.eye(4))
    path = tmp_path / "a.sens"
    with pytest.raises(InputError, match=reason):
        write_sens(path, color_camera=COLOR, depth_camera=DEPTH, frames=[*sens_frames([*orbit(1)]), frame])
    assert list(tmp_path.iterdir()) == [], "no half-written file remains"


def test_writing_a_distorted_camera(tmp_path):
    distorted = Camera(32, 24, 20, 20, 15, 11, "OPENCV", (0.1, 0, 0, 0))
    with pytest.raises(InputError, match="pinhole cameras only, got OPENCV"):
        write_sens(tmp_path / "a.sens", color_camera=distorted, depth_camera=DEPTH, frames=[])


def test_a_scan_of_a_stream_alone(tmp_path):
    folder = tmp_path / "scene0000_00"
    folder.mkdir()
    written(folder / "scene0000_00.sens", [*orbit(2)])
    (scene,) = ScanNet(tmp_path)
    assert scene.parts == {"views", "poses", "depth"}
    np.testing.assert_allclose(scene.pose(1), orbit(2)[1], atol=1e-6)  # float32; no axisAlignment
