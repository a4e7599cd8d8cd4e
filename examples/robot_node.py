"""A ROS 2 node that adds an encoder's features to the points of a sensor, and shows them as colours in RViz.

    python examples/robot_node.py --encoder runs/spark3d-001 --topic /camera/depth/points --frame base_link

Without ROS 2 it plays a recording through the same code, into another one:

    python examples/robot_node.py --encoder runs/spark3d-001 --bag recording/ --out features/
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import geo3d
from geo3d.interop import ros2
from geo3d.viz.feature_colors import Projection

POINTS = "sensor_msgs/msg/PointCloud2"


class AddFeatures:
    """Takes a message and returns it with a field ``feature``, and one whose colours show the features."""

    def __init__(self, encoder, layers) -> None:
        self.encoder, self.layers, self.projection = encoder, layers, None

    def __call__(self, message, transform=None):
        """`transform`: from the sensor's frame to one with z up, where they differ; encoders expect that."""
        cloud = ros2.from_pointcloud2(message, transform)
        sensor = (0.0, 0.0, 0.0) if transform is None else ros2.from_transform(transform)[:3, 3]
        self.out = self.encoder(cloud, sensor=sensor, layers=self.layers)  # points without an echo: NaN
        features = self.out.points.cpu()
        if self.projection is None:  # fitted once, so that a colour means the same in every message
            self.projection = Projection.fit(features)
        here = ros2.from_pointcloud2(message)
        here.colors = features.new_tensor(self.projection.colors(features)) / 255
        return ros2.with_fields(message, feature=features), ros2.to_pointcloud2(here, like=message)


def run_node(add: AddFeatures, topic: str, frame: str | None, oldest: float) -> None:
    """Encode the newest message each time; those that come meanwhile are dropped, not queued."""
    import rclpy
    from rclpy.duration import Duration
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rclpy.time import Time
    from sensor_msgs.msg import PointCloud2
    from tf2_ros import Buffer, TransformException, TransformListener

    add.encoder.warm_up()
    rclpy.init()
    node = rclpy.create_node("geo3d_features")
    with_features = node.create_publisher(PointCloud2, "~/points", 1)
    with_colors = node.create_publisher(PointCloud2, "~/colors", 1)
    frames = Buffer()
    listener = TransformListener(frames, node)  # in a callback group of its own: it listens while points are encoded

    def on_points(message) -> None:
        age = 1e-9 * node.get_clock().now().nanoseconds - ros2.seconds(message)
        if age > oldest:
            node.get_logger().warning(f"points are {age:.2f} s old, left out", throttle_duration_sec=5.0)
            return
        try:
            at, pose = Time.from_msg(message.header.stamp), None
            if frame is not None:
                pose = frames.lookup_transform(frame, message.header.frame_id, at, Duration(seconds=0.1))
            features, colors = add(message, pose)
        except (TransformException, geo3d.InputError) as error:  # no transform yet; a message without any echo
            node.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        with_features.publish(features)
        with_colors.publish(colors)

    newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # as sensors publish
    node.create_subscription(PointCloud2, topic, on_points, newest)
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(node)
    try:
        executor.spin()
    finally:
        listener.unregister()
        rclpy.try_shutdown()


def play_bag(add: AddFeatures, bag: Path, topics: list[str], out: Path, storage: str) -> None:
    """All points of a recording, in another recording."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store, connections = get_typestore(Stores.LATEST), {}
    with Writer(out, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        for found in ros2.read_bag(bag, topics, [POINTS]):
            start = time.perf_counter()
            made = dict(zip(("features", "colors"), add(found.message)))
            took = 1e3 * (time.perf_counter() - start)
            count, channels = add.out.points.shape
            print(f"{found.topic}: {count} points, {add.out.dropped} dropped, {channels} channels, {took:.0f} ms")
            for name, message in made.items():
                topic = f"{found.topic}/{name}"
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, POINTS, typestore=store)
                writer.write(connections[topic], found.time, store.serialize_cdr(message, POINTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", default="sparse_resnet_tiny", help="run folder, file, or model with weights in geo3d"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="stages whose features are written")
    parser.add_argument("--topic", help="of the points; of a bag, all topics of points when not given")
    parser.add_argument(
        "--frame", help="frame with z up, which the encoder sees the points in; the sensor's when not given"
    )
    parser.add_argument("--oldest", type=float, default=0.5, help="leave out older points (seconds)")
    parser.add_argument("--bag", type=Path, help="play this recording instead of listening")
    parser.add_argument("--out", type=Path, default=Path("features"), help="recording to write")
    parser.add_argument("--storage", choices=("sqlite3", "mcap"), default="mcap", help="of the recording")
    args = parser.parse_args()
    if args.bag is None and importlib.util.find_spec("rclpy") is None:
        parser.error("rclpy is not there: source the set-up file of ROS 2, or play a recording by --bag")
    if args.bag and args.frame:
        parser.error("--frame is looked up while listening; the points of a recording are taken as they are, z up")
    add = AddFeatures(geo3d.load_encoder(args.encoder), args.layers)
    if args.bag:
        play_bag(add, args.bag, [args.topic] if args.topic else [], args.out, args.storage)
    else:
        run_node(add, args.topic or "/points", args.frame, args.oldest)


if __name__ == "__main__":
    main()
