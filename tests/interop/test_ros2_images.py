"""Images, cameras and transforms of ROS 2: pixels packed by hand, and formulas of the documentation of CameraInfo."""

from __future__ import annotations

import io
import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d.errors import InputError
from geo3d.interop import ros2

EXACT = 1e-9  # float64 arithmetic on pixel-sized numbers
HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=5, nanosec=42), frame_id="camera_optical_frame")


def image_of(encoding: str, rows: list[bytes], width: int, fill: int = 3, big: int = 0) -> SimpleNamespace:
    step = len(rows[0]) + fill
    return SimpleNamespace(
        header=HEADER, height=len(rows), width=width, encoding=encoding, is_bigendian=big, step=step,
        data=b"".join(row + b"\x77" * fill for row in rows),
    )  # fmt: skip


def info_of(
    width=640, height=480, model="plumb_bob", d=(), r=(1, 0, 0, 0, 1, 0, 0, 0, 1), p=None, **more
) -> SimpleNamespace:
    k = [500.0, 0, 320.5, 0, 510.0, 239.0, 0, 0, 1]
    p = [480.0, 0, 300.0, -48.0, 0, 480.0, 230.0, 0, 0, 0, 1, 0] if p is None else p
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    given = {"binning_x": 0, "binning_y": 0, "roi": roi} | more
    return SimpleNamespace(
        header=HEADER, height=height, width=width, distortion_model=model, d=np.array(d, float), k=np.array(k),
        r=np.array(r, float).reshape(-1), p=np.array(p), **given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [
        ("rgb8", (10, 20, 30)),
        ("bgr8", (30, 20, 10)),
        ("rgba8", (10, 20, 30, 99)),
        ("bgra8", (30, 20, 10, 99)),
    ],
)
def test_colours_of_every_order(encoding, pixel):
    message = image_of(encoding, [bytes(pixel) * 2, bytes(len(pixel)) * 2, bytes(pixel) * 2], 2)
    image = ros2.from_image(message)
    assert (image.shape, image.dtype) == ((3, 2, 3), torch.float32)
    assert (image[[0, 2]] * 255).round().tolist() == [[[10, 20, 30]] * 2] * 2
    assert not image[1].any()


@pytest.mark.parametrize("big", [0, 1])
def test_grey_of_8_and_16_bits(big):
    small = ros2.from_image(image_of("mono8", [bytes([0, 51, 255])], 3, big=big))
    large = ros2.from_image(image_of("mono16", [struct.pack("><"[1 - big] + "3H", 0, 13107, 65535)], 3, big=big))
    for image in (small, large):
        np.testing.assert_allclose(image, np.repeat([[[0.0], [0.2], [1.0]]], 3, 2), atol=1e-7)


@pytest.mark.parametrize("big", [0, 1])
def test_depth_in_millimetres_and_in_metres(big):
    order = "><"[1 - big]
    whole = ros2.from_depth_image(image_of("16UC1", [struct.pack(order + "3H", 0, 1500, 65535)], 3, big=big))
    np.testing.assert_allclose(whole, [[0, 1.5, 65.535]], rtol=1e-6)
    numbers = (math.nan, 1.25, math.inf, -1.0)
    floats = ros2.from_depth_image(image_of("32FC1", [struct.pack(order + "4f", *numbers)], 4, 0, big))
    assert floats.tolist() == [[0, 1.25, 0, 0]]


@pytest.mark.parametrize(("form", "tolerance"), [("PNG", 0), ("JPEG", 0.05)])
def test_compressed_images(form, tolerance):
    pixels = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    message = SimpleNamespace(header=HEADER, format=f"rgb8; {form.lower()} compressed bgr8", data=data.getvalue())
    np.testing.assert_allclose(ros2.from_image(message), pixels / 255, atol=tolerance + 1e-6)
    message.data = b"\x01" + message.data
    with pytest.raises(InputError, match="data is no JPEG or PNG"):
        ros2.from_image(message)


def test_distortion_follows_the_documented_polynomials():
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    point = torch.tensor([2 * x, 2 * y, 2.0], dtype=torch.float64)

    def pixel(radial: float, p1: float, p2: float) -> list[float]:
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return [500 * u + 320.5, 510 * v + 239]

    def project(model: str, *d: float) -> list[float]:
        return pytest.approx(ros2.from_camera_info(info_of(model=model, d=d)).project(point).tolist(), abs=EXACT)

    k1, k2, p1, p2, k3 = 0.1, -0.05, 2e-3, -3e-3, 0.07
    for plain in (project("plumb_bob", 0, 0, 0, 0, 0), project("plumb_bob"), project("")):
        assert pixel(1, 0, 0) == plain
    assert pixel(1 + k1 * r2 + k2 * r2**2, p1, p2) == project("plumb_bob", k1, k2, p1, p2)
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    assert pixel(radial, p1, p2) == project("plumb_bob", k1, k2, p1, p2, k3)
    k4, k5, k6 = 0.3, -0.2, 0.1
    ratio = radial / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    assert pixel(ratio, p1, p2) == project("rational_polynomial", k1, k2, p1, p2, k3, k4, k5, k6)
    angle = math.atan(math.sqrt(r2))
    scale = angle * (1 + 0.05 * angle**2 - 0.01 * angle**4 + 2e-3 * angle**6 - 4e-4 * angle**8) / math.sqrt(r2)
    assert [500 * x * scale + 320.5, 510 * y * scale + 239] == project("equidistant", 0.05, -0.01, 2e-3, -4e-4)


def test_a_rectified_image_has_the_camera_of_p():
    camera = ros2.from_camera_info(info_of(d=[0.1, 0, 0, 0, 0]), rectified=True)
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.model) == (480, 480, 300, 230, "PINHOLE")


def test_rectifying_turns_the_pose():
    """A point's rectified pixel by the documentation: x = R X, then P."""
    c, s = math.cos(0.1), math.sin(0.1)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    image = image_of("mono8", [bytes(640)] * 480, 640)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    view = ros2.to_view(image, info_of(d=[0.1, 0, 0, 0, 0], r=turn), transform=pose, rectified=True)
    world = np.array([1.4, 1.9, 6.0])
    x, y, z = turn @ (world - [1, 2, 3])
    camera_from_world = torch.linalg.inv(view.world_from_camera)
    seen = view.camera.project(camera_from_world[:3, :3] @ torch.from_numpy(world) + camera_from_world[:3, 3])
    assert seen.tolist() == pytest.approx([480 * x / z + 300, 480 * y / z + 230], abs=EXACT)


def test_a_region_of_the_sensor_in_larger_pixels():
    roi = SimpleNamespace(x_offset=100, y_offset=40, width=400, height=200, do_rectify=False)
    camera = ros2.from_camera_info(info_of(roi=roi, binning_x=2, binning_y=4))
    assert (camera.width, camera.height, camera.fx, camera.fy) == (200, 50, 250, 127.5)
    # A binned pixel's centre is the middle of those that it is made of.
    assert camera.cx == pytest.approx((320.5 - 100 + 0.5) / 2 - 0.5)
    assert camera.cy == pytest.approx((239 - 40 + 0.5) / 4 - 0.5)


def transform_of(translation, rotation) -> SimpleNamespace:
    vector = SimpleNamespace(**dict(zip("xyz", translation)))
    quaternion = SimpleNamespace(**dict(zip("xyzw", rotation)))
    inner = SimpleNamespace(translation=vector, rotation=quaternion)
    return SimpleNamespace(header=HEADER, child_frame_id="camera", transform=inner)


def test_transforms():
    half = math.sqrt(0.5)
    matrix = ros2.from_transform(transform_of((1.0, 2.0, 3.0), (0.0, 0.0, half, half)))  # a quarter turn about z
    assert matrix.dtype == torch.float64
    np.testing.assert_allclose(matrix, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-15)
    # The usual optical frame in a body that looks along x.
    body = ros2.from_transform(transform_of((0.0, 0.0, 0.0), (-0.5, 0.5, -0.5, 0.5)).transform)
    np.testing.assert_allclose(body[:3, :3] @ torch.tensor([0, 0, 1.0]).double(), [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(body[:3, :3] @ torch.tensor([0, 1.0, 0]).double(), [0, 0, -1], atol=1e-15)
    with pytest.raises(InputError, match="rotation is a quaternion of zeros"):
        ros2.from_transform(transform_of((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)))
    with pytest.raises(InputError, match=r"Transform.translation: y holds NaN"):
        ros2.from_transform(transform_of((0.0, math.nan, 0.0), (0.0, 0.0, 0.0, 1.0)))


def test_a_view_lifts_its_depth_into_the_world():
    image = image_of("rgb8", [bytes([255, 0, 0] * 8)] * 6, 8)
    depth = image_of("16UC1", [struct.pack("<4H", 0, 2000, 0, 0)] + [bytes(8)] * 2, 4)
    small = info_of(4, 3)
    small.k = np.array([10.0, 0, 1.5, 0, 10.0, 1.0, 0, 0, 1])
    pose = transform_of((0.0, 0.0, 1.0), (-0.5, 0.5, -0.5, 0.5))
    view = ros2.to_view(image, info_of(8, 6), depth=depth, depth_camera_info=small, transform=pose)
    assert view.name == "5.000000042"
    xyz, pixel = view.world_points()
    assert pixel.tolist() == [1]
    # x right by (1 - 1.5) / 10 * 2 m and y down by (0 - 1) / 10 * 2 m, in front by 2 m.
    np.testing.assert_allclose(xyz, [[2.0, 0.1, 1.2]], atol=1e-6)
    assert view.image.shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoding": "bayer_rggb8"}, "encoding 'bayer_rggb8' is not read here, only rgb8, bgr8"),
        ({"encoding": "rgb"}, "; did you mean 'rgb8'"),
        ({"encoding": "16UC1"}, "hand in depth as depth="),
        ({"step": 5}, "step is 5, but 2 pixels of rgb8 take 6 bytes"),
        ({"height": 9}, "data holds 18 bytes, but height 9 and step 9 make 81"),
        ({"width": 0}, "width 0 and height 2 make an empty image"),
    ],
)
def test_a_wrong_field_of_an_image_is_named(change, told):
    message = image_of("rgb8", [bytes(6)] * 2, 2)
    vars(message).update(change)
    with pytest.raises(InputError, match=told):
        ros2.from_image(message)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": np.zeros(9)}, "k is all zeros, so the camera was never calibrated"),
        ({"k": np.zeros(8)}, "k must hold 9 numbers, got 8"),
        ({"k": np.array([500.0, 3.0, 320, 0, 500, 240, 0, 0, 1])}, "k holds skew"),
        ({"k": np.array([-500.0, 0, 320, 0, 500, 240, 0, 0, 1])}, "width, height or k: Camera: focal lengths"),
        ({"d": np.array([math.nan])}, "d holds NaN"),
        ({"d": np.array([0.1, 0.2])}, "d has 2 numbers, plumb_bob takes 5"),
        ({"d": np.full(8, 0.1)}, "d has 8 numbers, plumb_bob takes 5"),
        ({"d": np.full(5, 0.1), "distortion_model": "plumbob"}, "'plumbob' is not known, .*did you mean 'plumb_bob'"),
        ({"width": 0}, "image size must be positive"),
        ({"roi": SimpleNamespace(x_offset=600, y_offset=0, width=100, height=10)}, "roi reaches beyond width 640"),
    ],
)
def test_a_wrong_field_of_a_camera_is_named(change, told):
    message = info_of()
    vars(message).update(change)
    with pytest.raises(InputError, match=told):
        ros2.from_camera_info(message)


def test_what_does_not_go_together():
    with pytest.raises(InputError, match="neither image nor depth"):
        ros2.to_view(camera_info=info_of())
    with pytest.raises(InputError, match="width and height of camera_info"):
        ros2.to_view(image_of("rgb8", [bytes(6)] * 2, 2), info_of())
    with pytest.raises(InputError, match="Image: there is no field 'encoding'"):
        ros2.from_image(SimpleNamespace(header=HEADER))
    with pytest.raises(InputError, match=r"a transform is a message or a matrix \(4, 4\), got \(3, 4\)"):
        ros2.to_view(image_of("rgb8", [bytes(6)] * 2, 2), transform=np.zeros((3, 4)))
