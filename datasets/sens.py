"""ScanNet's `.sens` streams: an RGB-D video with a pose for every frame, in one file of up to some gigabytes.

Little-endian, no padding: a header, then the frames one after the other, each a fixed record (pose, time stamps,
payload sizes) and two compressed payloads. :class:`SensFile` hops from record to record to learn where the payloads
lie and reads a payload only when its frame is asked for; :func:`write_sens` writes the same format.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from geo3d.datasets.files import PILLOW_ERRORS, are_rigid
from geo3d.datasets.posed import ViewList
from geo3d.datasets.scene import BrokenScene, Remark
from geo3d.errors import InputError
from geo3d.geometry import Camera

_VERSION = 4
_COLOR_RAW, _COLOR_PNG, _COLOR_JPEG = 0, 1, 2
_DEPTH_RAW, _DEPTH_ZLIB, _DEPTH_OCCI = 0, 1, 2
_LONGEST_SENSOR_NAME = 4096
_LONGEST_SIDE = 1 << 16  # pixels
# colour and depth compression, colour width and height, depth width and height, depth shift, frame count
_STREAM = struct.Struct("<iiIIIIfQ")
# world_from_camera, colour and depth time stamp, bytes of the colour and of the depth payload
_FRAME = struct.Struct("<16fQQQQ")
_FRAME_RECORD = np.dtype(
    [
        ("world_from_camera", "<f4", (4, 4)),
        ("color_time", "<u8"),
        ("depth_time", "<u8"),
        ("color_bytes", "<u8"),
        ("depth_bytes", "<u8"),
    ]
)
_ZLIB_LEVEL = 4  # on noisy 640 x 480 depth no larger than at level 6, and 1.5 times as fast
_LEAST_DEPTH_SHIFT = 1e-3  # units per metre; real streams have 1000
_LARGEST_DEPTH = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class SensFrame:
    """One frame to write.

    Args:
        color: the image as a JPEG file's bytes, of the colour camera's size.
        depth: (H, W) float32 metres along z, 0 where unknown, of the depth camera's size.
        world_from_camera: (4, 4) pose; -inf throughout for a lost frame.
        color_time, depth_time: time stamps, microseconds.
    """

    color: bytes
    depth: np.ndarray
    world_from_camera: np.ndarray
    color_time: int = 0
    depth_time: int = 0


@dataclass(frozen=True)
class SensHeader:
    """What a `.sens` file says of all its frames.

    Args:
        sensor_name: the recording device.
        color_camera, depth_camera: intrinsics.
        color_extrinsic, depth_extrinsic: (4, 4) as stored; the frames' pose serves for both, as in ScanNet's exporter.
        color_compression, depth_compression: codes of the payloads.
        depth_shift: depth units per metre.
        frame_count: frames that the header promises.
        size: bytes of the header.
    """

    sensor_name: str
    color_camera: Camera
    depth_camera: Camera
    color_extrinsic: np.ndarray
    depth_extrinsic: np.ndarray
    color_compression: int
    depth_compression: int
    depth_shift: float
    frame_count: int
    size: int


@dataclass(frozen=True)
class SensIndex:
    """Where the complete frames with a pose lie in a `.sens` file.

    Args:
        number: (N,) int64 frame number in the stream.
        world_from_camera: (N, 4, 4) float64.
        color_time, depth_time: (N,) uint64 microseconds.
        color_offset, depth_offset: (N,) int64 first byte of each payload.
        color_bytes, depth_bytes: (N,) int64 length of each payload.
        remarks: what was left out: frames that lost their pose, and frames that the file does not hold.
    """

    number: np.ndarray
    world_from_camera: np.ndarray
    color_time: np.ndarray
    depth_time: np.ndarray
    color_offset: np.ndarray
    depth_offset: np.ndarray
    color_bytes: np.ndarray
    depth_bytes: np.ndarray
    remarks: tuple[Remark, ...]

    def __len__(self) -> int:
        return len(self.number)


class SensFile:
    """Reads a `.sens` file frame by frame; frames without a valid pose are left out.

    Holds no open file, so that it can be pickled and shared by forked workers.

    Args:
        path: the file.
        scene: name for messages.

    Raises:
        BrokenScene: when a part is read that is damaged; names the byte.
    """

    def __init__(self, path: Path, scene: str) -> None:
        self.path = path
        self.scene = scene

    def __len__(self) -> int:
        return len(self.index)

    def _broken(self, reason: str, offset: int | None = None) -> BrokenScene:
        return BrokenScene(self.scene, self.path, reason, offset)

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise self._broken(f"cannot be opened: {error.strerror}") from error

    @cached_property
    def header(self) -> SensHeader:
        """The header; reads a few hundred bytes."""
        with self._open() as file:
            return self._read_header(file)

    def _read_header(self, file: BinaryIO) -> SensHeader:
        position = 0

        def take(size: int, what: str) -> bytes:
            nonlocal position
            data = file.read(size)
            if len(data) != size:
                raise self._broken(f"the file ends inside the header ({what})", position + len(data))
            position += size
            return data

        (version,) = struct.unpack("<I", take(4, "version"))
        if version != _VERSION:
            raise self._broken(f"not a .sens file of version {_VERSION}: the version reads {version}", 0)
        (name_length,) = struct.unpack("<Q", take(8, "length of the sensor's name"))
        if name_length > _LONGEST_SENSOR_NAME:
            raise self._broken(f"damaged header: a sensor name of {name_length} bytes", 4)
        sensor_name = take(name_length, "sensor's name").decode("utf-8", "replace")
        matrices_at = position
        with np.errstate(invalid="ignore"):  # the cameras look at their numbers
            matrices = np.frombuffer(take(4 * 64, "calibration"), "<f4").reshape(4, 4, 4).astype(np.float64)
        stream_at = position
        color_code, depth_code, color_w, color_h, depth_w, depth_h, shift, count = _STREAM.unpack(
            take(_STREAM.size, "description of the streams")
        )
        if color_code not in (_COLOR_RAW, _COLOR_PNG, _COLOR_JPEG):
            raise self._broken(f"unknown colour compression {color_code}", stream_at)
        if depth_code not in (_DEPTH_RAW, _DEPTH_ZLIB):
            known = "occi, which no public library decodes" if depth_code == _DEPTH_OCCI else "unknown"
            raise self._broken(
                f"depth compression {depth_code} is {known}; raw (0) and zlib (1) can be read", stream_at + 4
            )
        if not _LEAST_DEPTH_SHIFT <= shift < np.inf:
            raise self._broken(f"the depth shift makes no sense: {shift} units per metre", stream_at + 24)
        if max(color_w, color_h, depth_w, depth_h) > _LONGEST_SIDE:
            sizes = f"{color_w} x {color_h} and {depth_w} x {depth_h}"
            raise self._broken(f"damaged header: images of {sizes} pixels", stream_at + 8)
        color_intrinsic, color_extrinsic, depth_intrinsic, depth_extrinsic = matrices
        try:
            color_camera = _camera_from_matrix(color_intrinsic, color_w, color_h)
            depth_camera = _camera_from_matrix(depth_intrinsic, depth_w, depth_h)
        except ValueError as error:
            raise self._broken(f"damaged calibration: {error}", matrices_at) from error
        return SensHeader(
            sensor_name=sensor_name,
            color_camera=color_camera,
            depth_camera=depth_camera,
            color_extrinsic=color_extrinsic,
            depth_extrinsic=depth_extrinsic,
            color_compression=color_code,
            depth_compression=depth_code,
            depth_shift=float(shift),
            frame_count=count,
            size=position,
        )

    @cached_property
    def index(self) -> SensIndex:
        """Offsets, poses and time stamps of all usable frames; hops through the file and reads 96 bytes a frame.

        Raises:
            BrokenScene: a damaged header, or not one complete frame with a pose.
        """
        header = self.header
        records, offsets = self._read_records(header)
        remarks = []
        end = offsets[-1] if offsets else header.size
        if len(records) < header.frame_count:
            missing = header.frame_count - len(records)
            reason = f"frames are missing: the header promises {header.frame_count}, the file holds {len(records)}"
            remarks.append(Remark(self.scene, str(self.path), reason, missing, end))
        frames = np.frombuffer(b"".join(records), _FRAME_RECORD)
        usable = are_rigid(frames["world_from_camera"])
        if not usable.all():
            lost = int((~usable).sum())
            remarks.append(Remark(self.scene, str(self.path), "frames skipped: their pose was lost", lost))
        if not usable.any():
            why = "; ".join(f"{r.count} {r.reason}" for r in remarks) or "it lists none"
            raise self._broken(f"no usable frame: {why}", header.size)
        frames = frames[usable]
        color_offset = np.array(offsets[: len(records)], dtype=np.int64)[usable] + _FRAME.size
        color_bytes = frames["color_bytes"].astype(np.int64)
        return SensIndex(
            number=np.flatnonzero(usable),
            world_from_camera=frames["world_from_camera"].astype(np.float64),
            color_time=frames["color_time"].copy(),
            depth_time=frames["depth_time"].copy(),
            color_offset=color_offset,
            depth_offset=color_offset + color_bytes,
            color_bytes=color_bytes,
            depth_bytes=frames["depth_bytes"].astype(np.int64),
            remarks=tuple(remarks),
        )

    @property
    def views(self) -> ViewList:
        """The usable frames, named by their number as ScanNet's exporter does."""
        names = [str(number) for number in self.index.number]
        cameras = [self.header.color_camera] * len(names)
        return ViewList(names, cameras, self.index.world_from_camera, self.index.remarks)

    @property
    def depth_camera(self) -> Camera:
        """Intrinsics of the depth maps."""
        return self.header.depth_camera

    def _read_records(self, header: SensHeader) -> tuple[list[bytes], list[int]]:
        """Records of all complete frames, their offsets, and the offset after the last of them."""
        records: list[bytes] = []
        offsets = [header.size]
        with self._open() as file:
            size = os.fstat(file.fileno()).st_size
            while len(records) < header.frame_count:
                start = offsets[-1]
                if start + _FRAME.size > size:
                    break
                file.seek(start)
                record = file.read(_FRAME.size)
                *_, color_bytes, depth_bytes = _FRAME.unpack(record)
                stop = start + _FRAME.size + color_bytes + depth_bytes
                if stop > size:
                    break
                records.append(record)
                offsets.append(stop)
        return records, offsets

    def _read(self, offset: int, size: int) -> bytes:
        with self._open() as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise self._broken(f"the file became shorter: {size} bytes expected, {len(data)} found", offset)
        return data

    def _inflate(self, data: bytes) -> bytes:
        """The whole of a compressed depth map, or as much of a longer one as shows that it is none."""
        camera = self.header.depth_camera
        stream = zlib.decompressobj()
        found = stream.decompress(data, 2 * camera.width * camera.height + 1)
        if not stream.eof and len(found) <= 2 * camera.width * camera.height:
            raise zlib.error("it ends early")
        return found

    def image(self, row: int) -> Image.Image:
        """Colour image of row ``row`` of the index; a JPEG is decoded when its pixels are asked for."""
        offset = int(self.index.color_offset[row])
        data = self._read(offset, int(self.index.color_bytes[row]))
        camera = self.header.color_camera
        raw = self.header.color_compression == _COLOR_RAW
        if raw and len(data) != 3 * camera.width * camera.height:
            reason = f"colour image of frame {self.index.number[row]} holds {len(data)} bytes"
            raise self._broken(f"{reason}, {camera.width} x {camera.height} RGB expected", offset)
        try:
            if raw:
                return Image.frombytes("RGB", (camera.width, camera.height), data)
            return Image.open(io.BytesIO(data))
        except PILLOW_ERRORS as error:
            why = "no kind of image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise self._broken(
                f"colour image of frame {self.index.number[row]} cannot be decoded: {why}", offset
            ) from error

    def depth(self, row: int) -> np.ndarray:
        """Depth (H, W) float32 metres of row ``row`` of the index, 0 where unknown."""
        offset = int(self.index.depth_offset[row])
        data = self._read(offset, int(self.index.depth_bytes[row]))
        frame = f"depth map of frame {self.index.number[row]}"
        if self.header.depth_compression == _DEPTH_ZLIB:
            try:
                data = self._inflate(data)
            except zlib.error as error:
                raise self._broken(f"{frame} cannot be decompressed: {error}", offset) from error
        camera = self.header.depth_camera
        if len(data) != 2 * camera.width * camera.height:
            raise self._broken(
                f"{frame} holds {len(data)} bytes, {camera.width} x {camera.height} uint16 expected", offset
            )
        units = np.frombuffer(data, "<u2").reshape(camera.height, camera.width)
        return units.astype(np.float32) / np.float32(self.header.depth_shift)


def _camera_from_matrix(matrix: np.ndarray, width: int, height: int) -> Camera:
    return Camera(width, height, *(float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])))


def _matrix_from_camera(camera: Camera) -> np.ndarray:
    if camera.model != "PINHOLE":
        raise InputError(f"a .sens file holds pinhole cameras only, got {camera.model}; undistort the images first")
    matrix = np.eye(4)
    matrix[:3, :3] = camera.matrix.numpy()
    return matrix


def write_sens(
    path: str | Path,
    *,
    color_camera: Camera,
    depth_camera: Camera,
    frames: Iterable[SensFrame],
    sensor_name: str = "geo3d",
    depth_shift: float = 1000.0,
) -> None:
    """Write a `.sens` file (version 4, JPEG colour, zlib uint16 depth, identity extrinsics).

    The frames are taken one by one and not kept. The file appears under its name only when it is complete.

    Args:
        path: the file to write.
        color_camera, depth_camera: pinhole intrinsics of all frames.
        frames: what to write, in order.
        sensor_name: the recording device, for the header.
        depth_shift: depth units per metre; with 1000 depth is stored in millimetres, up to 65.535 m.

    Raises:
        InputError: a camera that is not a pinhole, or a frame whose depth does not fit the camera or the unit.
    """
    path = Path(path)
    name = sensor_name.encode()
    calibration = (_matrix_from_camera(color_camera), np.eye(4), _matrix_from_camera(depth_camera), np.eye(4))
    sizes = (color_camera.width, color_camera.height, depth_camera.width, depth_camera.height)
    unfinished = path.with_name(path.name + ".part")
    try:
        with open(unfinished, "wb") as file:
            file.write(struct.pack("<IQ", _VERSION, len(name)) + name)
            file.write(np.stack(calibration).astype("<f4").tobytes())
            stream_at = file.tell()
            file.write(bytes(_STREAM.size))
            count = 0
            for frame in frames:
                file.write(_encode_frame(frame, depth_camera, depth_shift, f"{path}: frame {count}"))
                count += 1
            file.seek(stream_at)
            file.write(_STREAM.pack(_COLOR_JPEG, _DEPTH_ZLIB, *sizes, depth_shift, count))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _encode_frame(frame: SensFrame, depth_camera: Camera, depth_shift: float, where: str) -> bytes:
    expected = (depth_camera.height, depth_camera.width)
    if frame.depth.shape != expected:
        raise InputError(f"{where}: depth is {frame.depth.shape}, the depth camera says {expected}")
    units = np.rint(frame.depth * depth_shift)
    if not ((units >= 0) & (units <= _LARGEST_DEPTH)).all():
        farthest = _LARGEST_DEPTH / depth_shift
        raise InputError(f"{where}: depth must lie in 0 to {farthest:g} m at {depth_shift:g} units a metre; clip it")
    depth = zlib.compress(units.astype("<u2").tobytes(), _ZLIB_LEVEL)
    pose = np.asarray(frame.world_from_camera, dtype=np.float64).reshape(16)
    head = _FRAME.pack(*pose, frame.color_time, frame.depth_time, len(frame.color), len(depth))
    return head + frame.color + depth
