"""The example of a node for a robot: playing recordings, and under stand-ins for rclpy with messages of rosbags."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import geo3d
from geo3d.interop import ros2

rosbags = pytest.importorskip("rosbags.rosbag2", reason="needs rosbags")
typesys = pytest.importorskip("rosbags.typesys", reason="needs rosbags")

EXAMPLE = Path(__file__).parents[2] / "examples" / "robot_node.py"
POINTS = "sensor_msgs/msg/PointCloud2"
STORE = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)


def scan(seed: int) -> geo3d.PointCloud:
    """A floor and a wall, seen by a sensor that gets no echo from some directions."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(600, 3, generator=generator) * torch.tensor([1.5, 1.5, 0.0])
    xyz[300:] = xyz[300:, [0, 2, 1]] + torch.tensor([0.0, 1.5, 0.0])
    xyz[::50] = float("nan")
    return geo3d.PointCloud(xyz, torch.rand(600, 3, generator=generator))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    geo3d.save_model(geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0)), file)
    return file


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_recording_goes_through_and_back(tmp_path, monkeypatch, capsys, encoder_file, storage):
    clouds = [scan(0), scan(1)]
    with rosbags.Writer(tmp_path / "in", version=9, storage_plugin=rosbags.StoragePlugin[storage.upper()]) as writer:
        connection = writer.add_connection("/lidar", POINTS, typestore=STORE)
        for second, cloud in enumerate(clouds):
            ring = {"ring": np.arange(600, dtype=np.uint16) % 16}
            message = ros2.to_pointcloud2(cloud, ring, types=STORE.types, stamp=second * 10**9, frame_id="lidar")
            writer.write(connection, second * 10**9, STORE.serialize_cdr(message, POINTS))
    paths = ["--bag", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "--encoder", str(encoder_file), "--storage", storage, *paths])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("/lidar: 600 points, 12 dropped, 128 channels, ") == 2

    encoder = geo3d.load_encoder(encoder_file)
    features = list(ros2.read_bag(tmp_path / "out", ["/lidar/features"]))
    colors = list(ros2.read_bag(tmp_path / "out", ["/lidar/colors"]))
    assert [f.time for f in features] == [c.time for c in colors] == [0, 10**9]
    for cloud, feature, color in zip(clouds, features, colors):
        columns = ros2.read_fields(feature.message)
        assert list(columns) == ["x", "y", "z", "rgb", "ring", "feature"]
        assert columns["ring"].tolist() == [n % 16 for n in range(600)]
        unknown = cloud.xyz.isnan().any(1).numpy()
        np.testing.assert_array_equal(np.isnan(columns["feature"]).all(1), unknown)
        # What the encoder says of the same numbers, colours having been rounded to 8 bits.
        cloud.colors = (cloud.colors * 255).round() / 255
        expected = encoder(cloud, sensor=(0.0, 0.0, 0.0), layers=[-1]).points
        np.testing.assert_allclose(columns["feature"], expected, atol=1e-5 * float(expected[~unknown].abs().max()))
        shown = ros2.from_pointcloud2(color.message)
        assert (shown.colors.std(0) > 0.1).all()
        assert torch.equal(shown.xyz.nan_to_num(), cloud.xyz.nan_to_num())


class _Node:
    """Stands in for a node of rclpy: keeps what is published, and hands messages in when it is spun."""

    def __init__(self, now: float, arriving: list) -> None:
        self.now, self.arriving, self.published, self.warnings = now, arriving, {}, []

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=int(self.now * 1e9)))

    def get_logger(self):
        return SimpleNamespace(warning=lambda text, throttle_duration_sec: self.warnings.append(text))

    def create_publisher(self, kind, topic, depth):
        assert (kind, depth) == (STORE.types[POINTS], 1)
        return SimpleNamespace(publish=self.published.setdefault(topic, []).append)

    def create_subscription(self, kind, topic, callback, profile):
        assert (kind, topic, profile.depth, profile.reliability) == (STORE.types[POINTS], "/points", 1, "best effort")
        self.callback = callback


def _stand_in(monkeypatch, node: _Node, transform) -> None:
    class NoTransform(Exception):
        pass

    def lookup(target, source, at, timeout):
        assert (target, source) == ("base_link", "camera")
        if at.sec == 99:
            raise NoTransform("no transform yet")
        return transform

    class Executor:
        def __init__(self, num_threads):
            assert num_threads == 2

        def add_node(self, added):
            assert added is node

        def spin(self):
            for message in node.arriving:
                node.callback(message)

    modules = {
        "rclpy": {"init": lambda: None, "create_node": lambda name: node, "try_shutdown": lambda: None},
        "rclpy.duration": {"Duration": SimpleNamespace},
        "rclpy.executors": {"MultiThreadedExecutor": Executor},
        "rclpy.qos": {
            "QoSProfile": SimpleNamespace,
            "ReliabilityPolicy": SimpleNamespace(BEST_EFFORT="best effort"),
        },
        "rclpy.time": {"Time": SimpleNamespace(from_msg=lambda stamp: stamp)},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"PointCloud2": STORE.types[POINTS]},
        "tf2_ros": {
            "Buffer": lambda: SimpleNamespace(lookup_transform=lookup),
            "TransformException": NoTransform,
            "TransformListener": lambda frames, node: SimpleNamespace(unregister=lambda: None),
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # by which one sees that it is there
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_without_ros_and_without_a_recording(monkeypatch, capsys):
    if importlib.util.find_spec("rclpy") is not None:
        pytest.skip("ROS 2 is here")
    monkeypatch.setattr("sys.argv", [str(EXAMPLE)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert (
        "rclpy is not there: source the set-up file of ROS 2, or play a recording by --bag" in capsys.readouterr().err
    )


def test_the_node(monkeypatch, encoder_file):
    types = STORE.types
    vector = types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=1.2)
    turn = types["geometry_msgs/msg/Quaternion"](x=-0.5, y=0.5, z=-0.5, w=0.5)  # an optical frame in a body's
    header = ros2.to_pointcloud2(scan(0), types=types).header
    inner = types["geometry_msgs/msg/Transform"](translation=vector, rotation=turn)
    transform = types["geometry_msgs/msg/TransformStamped"](header=header, child_frame_id="camera", transform=inner)

    def message(cloud, seconds: int):
        return ros2.to_pointcloud2(cloud, types=types, stamp=seconds * 10**9, frame_id="camera")

    empty = scan(0)
    empty.xyz[:] = float("nan")
    arriving = [message(scan(0), 98), message(scan(0), 99), message(empty, 100), message(scan(1), 100)]
    node = _Node(100.2, arriving)
    _stand_in(monkeypatch, node, transform)
    options = ["--encoder", str(encoder_file), "--frame", "base_link", "--oldest", "1.5"]
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")

    old, unplaced, unseen = node.warnings
    assert old == "points are 2.20 s old, left out"
    assert unplaced == "no transform yet"
    assert "none of the 600 positions is finite" in unseen
    ((features,), (colors,)) = node.published["~/points"], node.published["~/colors"]
    assert features.header.frame_id == colors.header.frame_id == "camera"
    # Encoded as the body sees the points, but published as the camera does.
    seen = ros2.from_pointcloud2(arriving[3], transform)
    expected = geo3d.load_encoder(encoder_file)(seen, sensor=(0.0, 0.0, 1.2), layers=[-1]).points
    found = ros2.read_fields(features)["feature"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.nan_to_num().abs().max()))
    np.testing.assert_array_equal(ros2.read_fields(features)["x"], scan(1).xyz[:, 0])
