"""Point clouds of ROS 2: messages packed byte by byte, of several classes, there and back."""

from __future__ import annotations

import array
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.interop import ros2

_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}


def message_of(fields, points, *, step=None, fill=0, big=False, height=1, dense=True) -> SimpleNamespace:
    """A message of points, tuples of numbers, packed by struct: fields are (name, datatype) one behind the other, or
    (name, datatype, offset, count); each row of an organised cloud has ``fill`` bytes behind it."""
    listed, end = [], 0
    for name, code, *rest in fields:
        offset, count = rest or (end, 1)
        end = offset + struct.calcsize(_FORMATS[code]) * count
        listed.append(SimpleNamespace(name=name, offset=offset, datatype=code, count=count))
    step = step or end
    width = len(points) // height
    data = bytearray()
    for row in range(height):
        for point in points[row * width : (row + 1) * width]:
            packed = bytearray(b"\xa5" * step)  # what lies between fields is not to be read
            for field, value in zip(listed, point):
                values = value if isinstance(value, tuple) else (value,)
                form = f"{'>' if big else '<'}{len(values)}{_FORMATS[field.datatype]}"
                struct.pack_into(form, packed, field.offset, *values)
            data += packed
        data += b"\x5a" * fill
    stamp = SimpleNamespace(sec=12, nanosec=34)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp, frame_id="lidar"), height=height, width=width, fields=listed,
        is_bigendian=big, point_step=step, row_step=width * step + fill, data=bytes(data), is_dense=dense,
    )  # fmt: skip


XYZ = [("x", 7), ("y", 7), ("z", 7)]


@pytest.mark.parametrize("big", [False, True])
def test_every_type_of_field_in_both_byte_orders(big):
    fields = [*XYZ, ("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 6), ("g", 7), ("h", 8)]
    numbers = (-7, 250, -30000, 60000, -(2**31), 2**32 - 1, 0.1, 0.1)
    points = [(1.0, 2.0, 3.0, *numbers), (4.0, 5.0, 6.0, *numbers)]
    columns = ros2.read_fields(message_of(fields, points, big=big))
    kinds = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
    for name, kind, number in zip("abcdefgh", kinds, numbers):
        assert columns[name].dtype == np.dtype(kind)
        assert columns[name].dtype.isnative
        np.testing.assert_array_equal(columns[name], np.full(2, number, kind))


def test_places_between_fields_and_rows_are_skipped():
    fields = [("intensity", 7, 20, 1), ("z", 7, 12, 1), ("x", 7, 4, 1), ("y", 7, 8, 1)]  # out of order, from byte 4
    points = [(10.0 * n, 3.0 * n, 1.0 * n, 2.0 * n) for n in range(6)]
    message = message_of(fields, points, step=32, fill=7, height=2)
    cloud = ros2.from_pointcloud2(message)
    assert cloud.xyz.tolist() == [[1.0 * n, 2.0 * n, 3.0 * n] for n in range(6)]
    assert ros2.read_fields(message)["intensity"].tolist() == [10.0 * n for n in range(6)]


def test_a_field_of_several_numbers_and_of_count_0():
    message = message_of([*XYZ, ("hist", 4, 12, 3)], [(0.0, 0.0, 0.0, (1, 2, 3)), (0.0, 0.0, 1.0, (4, 5, 6))])
    message.fields[0].count = 0  # which PCL takes for 1
    assert ros2.read_fields(message)["hist"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert ros2.from_pointcloud2(message).xyz[1].tolist() == [0, 0, 1]


def test_points_without_an_echo_keep_their_rows():
    nan = float("nan")
    points = [(1.0, 2.0, 3.0), (nan, nan, nan), (4.0, 5.0, float("inf")), (7.0, 8.0, 9.0)]
    cloud = ros2.from_pointcloud2(message_of(XYZ, points, height=2, dense=False))
    assert cloud.xyz.isfinite().all(1).tolist() == [True, False, False, True]
    assert cloud.xyz[3].tolist() == [7, 8, 9]
    assert cloud.origin is None


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("rgb", 6, 0x0A64FF),
        ("rgb", 5, 0x0A64FF),
        ("rgba", 6, 0xFF0A64FF),
        ("rgb", 7, 0x000A64FF),
        ("rgb", 7, 0xFF8A64FF),  # whose bits are NaN as a float
    ],
)
def test_packed_colours(name, code, word, big):
    message = message_of([*XYZ, (name, 6)], [(0.0, 0.0, 0.0, word)], big=big)
    message.fields[3].datatype = code
    red = word >> 16 & 255
    assert (ros2.from_pointcloud2(message).colors * 255).round().tolist() == [[red, 0x64, 0xFF]]


def test_separate_colours_of_bytes_and_of_floats():
    bytes_ = message_of([*XYZ, ("b", 2), ("g", 2), ("r", 2)], [(0.0, 0.0, 0.0, 3, 2, 255)])
    assert torch.equal(ros2.from_pointcloud2(bytes_).colors, torch.tensor([[255, 2, 3]]) / 255)
    nan = float("nan")
    points = [(0.0, 0.0, 0.0, 0.25, 0.5, 1.0), (nan, nan, nan, nan, nan, nan)]
    floats = message_of([*XYZ, ("r", 7), ("g", 7), ("b", 7)], points)
    colors = ros2.from_pointcloud2(floats).colors
    assert colors[0].tolist() == [0.25, 0.5, 1.0]
    assert colors[1].isnan().all()


def test_normals_labels_and_the_rest():
    fields = [*XYZ, ("normal_x", 7), ("normal_y", 7), ("normal_z", 7), ("label", 6), ("ring", 4), ("time", 8)]
    nan = float("nan")
    points = [(0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 7, 15, 0.125), (0.0, 0.0, 0.0, nan, nan, nan, 2, 16, 0.25)]
    message = message_of(fields, points)
    cloud = ros2.from_pointcloud2(message)
    np.testing.assert_allclose(cloud.normals, [[0, 0.6, 0.8], [nan, nan, nan]], atol=1e-7)
    assert cloud.semantic.tolist() == [7, 2]
    columns = ros2.read_fields(message)
    assert columns["ring"].tolist() == [15, 16]
    assert columns["time"].tolist() == [0.125, 0.25]


def test_float64_positions_far_away_keep_millimetres():
    points = [(431000.0 + n * 1e-3, 5120000.0, 3.0) for n in range(5)]
    cloud = ros2.from_pointcloud2(message_of([("x", 8), ("y", 8), ("z", 8)], points))
    # Of float32 near 0, rounded to 1e-9 m.
    np.testing.assert_allclose(cloud.world(), points, rtol=0, atol=1e-8)
    back = ros2.read_fields(ros2.to_pointcloud2(cloud, types=plain_types()))
    assert back["x"].dtype == np.float64
    np.testing.assert_allclose(np.stack([back[axis] for axis in "xyz"], 1), points, rtol=0, atol=1e-8)


def test_a_transform_turns_positions_and_normals():
    fields = [*XYZ, ("normal_x", 7), ("normal_y", 7), ("normal_z", 7)]
    message = message_of(fields, [(0.5, -1.0, 2.0, 0.0, -1.0, 0.0)])
    # An optical frame: x right, y down, z forward, 1.2 m above the floor of a world that looks along x.
    matrix = torch.tensor([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]], dtype=torch.float64)
    cloud = ros2.from_pointcloud2(message, matrix)
    np.testing.assert_allclose(cloud.xyz, [[2.0, -0.5, 2.2]], atol=1e-6)
    np.testing.assert_allclose(cloud.normals, [[0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, list, "array.array", "ndarray"])
def test_bytes_in_every_form(kind):
    message = message_of(XYZ, [(1.0, 2.0, 3.0)])
    special = {"array.array": lambda data: array.array("B", data), "ndarray": lambda data: np.frombuffer(data, "u1")}
    message.data = special.get(kind, kind)(message.data)
    assert ros2.from_pointcloud2(message).xyz.tolist() == [[1, 2, 3]]


def test_no_points_at_all():
    message = message_of(XYZ, [])
    assert len(ros2.from_pointcloud2(message)) == 0
    assert ros2.with_fields(message, feature=np.zeros((0, 4), np.float32)).point_step == 28


# Faults ------------------------------------------------------------------------------------------------------------


def _set(message, path, value):
    *owners, name = path
    for owner in owners:
        message = message.fields[owner] if isinstance(owner, int) else getattr(message, owner)
    setattr(message, name, value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("point_step",), 8, r"field 'z' ends at byte 12 of a point, but point_step is 8"),
        (("point_step",), -1, "point_step must be a whole number of 0 or more, got -1"),
        (("row_step",), 20, "row_step is 20, but 2 points of point_step 12 take 24"),
        (("data",), b"123", "data holds 3 bytes, but height 2 and row_step 24 make 48; the message was cut"),
        (("data",), None, "data must hold bytes, got NoneType"),
        (("fields",), [], "fields is empty"),
        ((2, "datatype"), 9, "field 'z' has datatype 9, known are 1"),
        ((2, "name"), "x", "fields has 'x' twice"),
        ((2, "name"), "w", "no coordinates x, y, z"),
        ((2, "count"), 2, "field 'z' ends at byte 16"),
        (("width",), "two", "width must be a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path, value, told):
    message = message_of(XYZ, [(0.0, 0.0, 0.0)] * 4, height=2)
    _set(message, path, value)
    with pytest.raises(InputError, match=told) as caught:
        ros2.from_pointcloud2(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["height", "width", "fields", "is_bigendian", "point_step", "row_step", "data"])
def test_a_missing_field_is_named(name):
    message = message_of(XYZ, [(0.0, 0.0, 0.0)])
    delattr(message, name)
    with pytest.raises(InputError, match=f"PointCloud2: there is no field '{name}' in a SimpleNamespace"):
        ros2.from_pointcloud2(message)


def test_a_single_row_may_not_say_how_long_it_is():
    message = message_of(XYZ, [(1.0, 2.0, 3.0)])
    message.row_step = 0
    assert len(ros2.from_pointcloud2(message)) == 1


# Writing -----------------------------------------------------------------------------------------------------------


def plain_types() -> dict[str, type]:
    names = ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/PointField", "std_msgs/msg/Header")
    return dict.fromkeys((*names, "builtin_interfaces/msg/Time"), SimpleNamespace)


def random_cloud(count: int = 50) -> PointCloud:
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    colors = torch.randint(0, 256, (count, 3), generator=generator) / 255
    labels = torch.randint(-1, 9, (count,), generator=generator)
    return PointCloud(torch.randn(count, 3, generator=generator), colors, normals, labels, labels + 1)


def test_a_cloud_there_and_back():
    cloud = random_cloud()
    cloud.xyz[3] = float("nan")
    features = {"feature": torch.randn(50, 7), "score": torch.randn(50).half(), "ring": np.arange(50, dtype=np.uint16)}
    message = ros2.to_pointcloud2(cloud, features, types=plain_types(), stamp=12_000_000_034, frame_id="map")
    back, columns = ros2.from_pointcloud2(message), ros2.read_fields(message)
    for name in ("xyz", "semantic", "instance"):
        assert torch.equal(getattr(back, name).nan_to_num(), getattr(cloud, name).nan_to_num())
    torch.testing.assert_close(back.colors, cloud.colors, atol=1e-7, rtol=0)
    torch.testing.assert_close(back.normals, cloud.normals, atol=1e-6, rtol=0)  # made of length 1 once more
    np.testing.assert_array_equal(columns["feature"], features["feature"])
    np.testing.assert_array_equal(columns["score"], features["score"].float())
    assert columns["ring"].dtype == np.uint16
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (12, 34, "map")
    assert message.is_dense is False
    assert (message.height, message.width, message.row_step) == (1, 50, 50 * message.point_step)
    assert ros2.seconds(message) == pytest.approx(12.000000034, abs=1e-9)


@pytest.mark.parametrize("big", [False, True])
def test_with_fields_leaves_the_message_as_it_is(big):
    fields = [*XYZ, ("ring", 2), ("time", 8, 16, 1)]
    points = [(1.0 * n, 2.0, 3.0, n, 0.5 * n) for n in range(6)]
    message = message_of(fields, points, step=25, fill=3, big=big, height=2)
    before = message.data
    values = np.arange(12, dtype=np.float32).reshape(6, 2) / 7
    made = ros2.with_fields(message, feature=values, known=np.array([1, 0, 1, 0, 1, 1], bool))
    assert (message.data, len(message.fields), message.point_step) == (before, 5, 25)
    assert (made.height, made.width, made.is_bigendian) == (2, 3, big)
    added = [(f.name, f.offset, f.datatype, f.count) for f in made.fields[5:]]
    assert added == [("feature", 28, 7, 2), ("known", 36, 2, 1)]
    columns, old = ros2.read_fields(made), ros2.read_fields(message)
    assert list(columns) == ["x", "y", "z", "ring", "time", "feature", "known"]
    for name, column in old.items():
        np.testing.assert_array_equal(columns[name], column)
    np.testing.assert_array_equal(columns["feature"], values)
    assert columns["known"].tolist() == [1, 0, 1, 0, 1, 1]
    again = ros2.with_fields(made, more=np.zeros(6))  # and so on
    np.testing.assert_array_equal(ros2.read_fields(again)["feature"], values)


def test_a_message_alike_keeps_the_shape_and_the_header():
    like = message_of(XYZ, [(0.0, 0.0, 0.0)] * 6, height=2)
    cloud = random_cloud(6)
    made = ros2.to_pointcloud2(cloud, like=like)
    assert (made.height, made.width, made.header) == (2, 3, like.header)
    moved = ros2.to_pointcloud2(cloud, like=like, frame_id="map")
    assert (moved.header.frame_id, moved.header.stamp, like.header.frame_id) == ("map", like.header.stamp, "lidar")
    assert ros2.to_pointcloud2(random_cloud(5), like=like).height == 1


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ({"f": np.zeros((4, 2))}, r"field 'f': features must be \(6,\) or \(6, C\), a row a point, got \(4, 2\)"),
        ({"f": np.zeros((6, 0))}, r"got \(6, 0\)"),
        ({"x": np.zeros(6)}, "field 'x' is there already"),
        ({"f": np.full(6, 2**40)}, "field 'f': int64 numbers beyond 32 bits have no type"),
        ({"f": np.zeros(6, complex)}, "field 'f': .* not complex128"),
    ],
)
def test_features_that_a_message_cannot_hold(features, told):
    message = message_of(XYZ, [(0.0, 0.0, 0.0)] * 6)
    with pytest.raises(InputError, match=told):
        ros2.with_fields(message, **features)
    with pytest.raises(InputError, match=told):
        ros2.to_pointcloud2(random_cloud(6), features, like=message)


def test_classes_that_are_not_known():
    with pytest.raises(InputError, match="is not installed; source the set-up file of ROS 2, or hand in types="):
        ros2.to_pointcloud2(random_cloud(6))
    types = {"builtin_interfaces/msg/Time": SimpleNamespace, "sensor_msgs/msg/PointCloud2": SimpleNamespace}
    with pytest.raises(InputError, match="types= has no std_msgs/msg/Header"):
        ros2.to_pointcloud2(random_cloud(6), types=types)
    with pytest.raises(InputError, match="a message holds one scene, got 2"):
        ros2.to_pointcloud2(PointCloud.pack([random_cloud(3)] * 2), types=plain_types())
