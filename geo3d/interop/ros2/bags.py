"""Recordings: bags of ROS 2 and ROS 1 in every storage that rosbags reads, without a ROS installation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo3d.errors import InputError, did_you_mean, require_extra


@dataclass(frozen=True)
class BagMessage:
    """A message of a bag.

    Args:
        topic: such as ``/camera/points``.
        type: full name, such as ``sensor_msgs/msg/PointCloud2``.
        time: when it was recorded, nanoseconds.
        message: of a class of rosbags.
    """

    topic: str
    type: str
    time: int
    message: Any


def read_bag(path: str | Path, topics: Collection[str] = (), types: Collection[str] = ()) -> Iterator[BagMessage]:
    """The messages of a bag in the order in which they were recorded.

    Args:
        path: the folder of a bag of ROS 2 (``.db3`` or ``.mcap``, compressed or not), or a ``.bag`` file of ROS 1.
        topics: those that are wanted; all when none is given.
        types: full names of messages that are wanted; all when none is given.

    Raises:
        MissingExtra: rosbags is not installed (extra ``ros``).
        InputError: there is no such bag, it is damaged, or it has no such topic or type; a damaged message, when it
            is reached.
    """
    require_extra("rosbags", "ros", "reading bags")
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such bag")
    try:
        # Bags of older versions do not tell the fields of their messages; those of sensors are the same in all.
        with AnyReader([path], default_typestore=get_typestore(Stores.LATEST)) as reader:
            wanted = [c for c in reader.connections if c.topic in (topics or (c.topic,))]
            missing = next((topic for topic in topics if all(c.topic != topic for c in wanted)), None)
            if missing is not None:
                known = sorted({c.topic for c in reader.connections})
                near = did_you_mean(missing, known)
                raise InputError(f"{path}: no topic {missing!r}, there are {', '.join(known) or 'none'}{near}")
            wanted = [c for c in wanted if c.msgtype in (types or (c.msgtype,))]
            if not wanted:
                present = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in reader.connections})) or "nothing"
                raise InputError(f"{path}: no messages of type {' or '.join(types) or 'any'}, it holds {present}")
            for connection, time, data in reader.messages(connections=wanted):
                yield BagMessage(
                    connection.topic, connection.msgtype, time, reader.deserialize(data, connection.msgtype)
                )
    except InputError:
        raise
    except Exception as error:  # what damaged bytes come to in the libraries that unpack them, of any type
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: this bag cannot be read: {type(error).__name__}: {reason}") from error
