"""Real recordings and message classes, by rosbags: written, read, encoded, and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.interop import ros2

rosbags = pytest.importorskip("rosbags.rosbag2", reason="needs rosbags")
typesys = pytest.importorskip("rosbags.typesys", reason="needs rosbags")

POINTS = "sensor_msgs/msg/PointCloud2"
HUMBLE = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)


def cloud_of(seed: int, count: int = 60) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (count, 3), generator=generator) / 255
    return PointCloud(torch.randn(count, 3, generator=generator), colors)


def write_bag(path: Path, storage: str, clouds: list[PointCloud], **more) -> None:
    with rosbags.Writer(path, version=9, storage_plugin=rosbags.StoragePlugin[storage]) as writer:
        connection = writer.add_connection("/points", POINTS, typestore=HUMBLE)
        other = writer.add_connection("/name", "std_msgs/msg/String", typestore=HUMBLE)
        for second, cloud in enumerate(clouds):
            stamp = second * 10**9 + 7
            message = ros2.to_pointcloud2(cloud, types=HUMBLE.types, stamp=stamp, frame_id="lidar", **more)
            writer.write(connection, stamp, HUMBLE.serialize_cdr(message, POINTS))
            text = HUMBLE.types["std_msgs/msg/String"](data=str(second))
            writer.write(other, stamp + 1, HUMBLE.serialize_cdr(text, "std_msgs/msg/String"))


@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_points_of_a_recording(tmp_path, storage):
    clouds = [cloud_of(seed) for seed in range(3)]
    write_bag(tmp_path / "bag", storage, clouds, features={"ring": np.arange(60, dtype=np.uint16)})
    found = list(ros2.read_bag(tmp_path / "bag", types=[POINTS]))
    assert [(f.topic, f.type, f.time) for f in found] == [("/points", POINTS, s * 10**9 + 7) for s in range(3)]
    for one, cloud in zip(found, clouds):
        assert ros2.seconds(one.message) == pytest.approx(one.time * 1e-9, abs=1e-9)
        assert one.message.header.frame_id == "lidar"
        back = ros2.from_pointcloud2(one.message)
        assert torch.equal(back.xyz, cloud.xyz)
        torch.testing.assert_close(back.colors, cloud.colors, atol=1e-7, rtol=0)
        assert ros2.read_fields(one.message)["ring"].tolist() == list(range(60))
    assert [f.message.data for f in ros2.read_bag(tmp_path / "bag", ["/name"])] == ["0", "1", "2"]
    assert len(list(ros2.read_bag(tmp_path / "bag"))) == 6


def test_messages_survive_serialisation_with_more_fields():
    message = ros2.to_pointcloud2(cloud_of(0), types=HUMBLE.types, stamp=5, frame_id="map")
    values = torch.randn(60, 12)
    made = ros2.with_fields(message, feature=values)
    assert type(made) is HUMBLE.types[POINTS]
    back = HUMBLE.deserialize_cdr(HUMBLE.serialize_cdr(made, POINTS), POINTS)
    np.testing.assert_array_equal(ros2.read_fields(back)["feature"], values)
    assert torch.equal(ros2.from_pointcloud2(back).xyz, cloud_of(0).xyz)


def test_ros_1_messages_and_images():
    noetic = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
    types = noetic.types
    time = types["builtin_interfaces/msg/Time"](sec=3, nanosec=4)
    header = types["std_msgs/msg/Header"](seq=0, stamp=time, frame_id="camera")
    roi = types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    info = types["sensor_msgs/msg/CameraInfo"](
        header=header, height=4, width=6, distortion_model="plumb_bob", D=np.array([0.1, 0.2, 0.0, 0.0, 0.0]),
        K=np.array([5.0, 0, 2.5, 0, 5, 1.5, 0, 0, 1]), R=np.eye(3).ravel(), P=np.eye(3, 4).ravel(), binning_x=0,
        binning_y=0, roi=roi,
    )  # fmt: skip
    kind = "sensor_msgs/msg/CameraInfo"
    camera = ros2.from_camera_info(noetic.deserialize_ros1(noetic.serialize_ros1(info, kind), kind))
    assert (camera.fx, camera.cx, camera.model, camera.distortion) == (5, 2.5, "OPENCV", (0.1, 0.2, 0, 0))
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8)
    image = types["sensor_msgs/msg/Image"](header, 4, 6, "bgr8", 0, 18, pixels)
    view = ros2.to_view(image, info)
    np.testing.assert_array_equal((view.image * 255).round(), pixels.reshape(4, 6, 3)[..., ::-1])
    message = ros2.to_pointcloud2(cloud_of(0), types=types, header=header)
    raw = noetic.serialize_ros1(message, POINTS)
    assert torch.equal(ros2.from_pointcloud2(noetic.deserialize_ros1(raw, POINTS)).xyz, cloud_of(0).xyz)


def test_recordings_that_are_none(tmp_path):
    write_bag(tmp_path / "bag", "MCAP", [cloud_of(0)])
    with pytest.raises(InputError, match="there is no such bag"):
        next(ros2.read_bag(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no topic '/point', there are /name, /points; did you mean '/points'"):
        next(ros2.read_bag(tmp_path / "bag", ["/point"]))
    with pytest.raises(InputError, match=r"no messages of type sensor_msgs/msg/Image, it holds /name \(std_msgs"):
        next(ros2.read_bag(tmp_path / "bag", types=["sensor_msgs/msg/Image"]))
    (file,) = (tmp_path / "bag").glob("*.mcap")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match="this bag cannot be read"):
        list(ros2.read_bag(tmp_path / "bag"))
    with pytest.raises(InputError, match="this bag cannot be read"):
        list(ros2.read_bag(file))
