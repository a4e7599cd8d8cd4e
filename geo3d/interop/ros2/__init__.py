"""ROS 2: point clouds, images, cameras and transforms of messages, and back; bags without a ROS installation.

    >>> from geo3d.interop import ros2
    >>> cloud = ros2.from_pointcloud2(message)                            # rows as in the message, NaN ones too
    >>> out = encoder(cloud)
    >>> publisher.publish(ros2.with_fields(message, feature=out.points))  # the message with one more field

Nothing of ROS is imported to read messages: any object will do that has the message's fields, such as those of rclpy,
of rosbags (ROS 1 included) or a ``SimpleNamespace``. ``docs/ros2.md`` shows a node.
"""

from geo3d.interop.ros2.bags import BagMessage, read_bag
from geo3d.interop.ros2.images import from_camera_info, from_depth_image, from_image, to_view
from geo3d.interop.ros2.messages import seconds
from geo3d.interop.ros2.point_cloud2 import from_pointcloud2, read_fields, to_pointcloud2, with_fields
from geo3d.interop.ros2.transforms import from_transform

__all__ = [
    "BagMessage",
    "from_camera_info",
    "from_depth_image",
    "from_image",
    "from_pointcloud2",
    "from_transform",
    "read_bag",
    "read_fields",
    "seconds",
    "to_pointcloud2",
    "to_view",
    "with_fields",
]
