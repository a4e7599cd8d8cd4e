"""Fields of messages, whoever's classes they are of."""

from __future__ import annotations

import array
import copy
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from geo3d.errors import InputError


def field_of(message: Any, name: str, kind: str) -> Any:
    """A field of a message; in ROS 1 the matrices of a camera have capital letters.

    Args:
        message: any object.
        name: of the field, such as ``point_step``.
        kind: of the message that is expected, for the error, such as ``PointCloud2``.

    Raises:
        InputError: there is none.
    """
    for spelling in (name, name.upper()):
        if hasattr(message, spelling):
            return getattr(message, spelling)
    raise InputError(
        f"{kind}: there is no field {name!r} in a {type(message).__name__}; hand in a message, or an object with its "
        "fields"
    )


def count_of(message: Any, name: str, kind: str) -> int:
    """A field that holds a whole number of 0 or more.

    Raises:
        InputError: there is none, or it holds something else.
    """
    value = field_of(message, name, kind)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or number != value:
        raise InputError(f"{kind}: {name} must be a whole number of 0 or more, got {value!r}")
    return number


def bytes_of(message: Any, kind: str) -> np.ndarray:
    """The field ``data`` as (B,) uint8, without a copy where it lies in one piece of memory.

    Raises:
        InputError: there is none, or it holds no bytes.
    """
    data = field_of(message, "data", kind)
    try:
        if isinstance(data, list | tuple):
            data = bytes(data)
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise InputError(f"{kind}: data must hold bytes, got {type(data).__name__}: {error}") from error


def numbers_of(message: Any, name: str, kind: str, count: int | None = None) -> np.ndarray:
    """A field of finite numbers as (count,) float64.

    Raises:
        InputError: there is none, or it holds something else or another number of them.
    """
    value = field_of(message, name, kind)
    try:
        numbers = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind}: {name} must hold numbers: {error}") from error
    if count is not None and len(numbers) != count:
        raise InputError(f"{kind}: {name} must hold {count} numbers, got {len(numbers)}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{kind}: {name} holds NaN or infinite numbers: {numbers.tolist()}")
    return numbers


def seconds(stamp: Any) -> float:
    """A stamp, or that of a message's header, as seconds since 1970 or since the start of a simulation.

    Args:
        stamp: an object with ``sec`` and ``nanosec``, or one with a ``header`` that holds such a ``stamp``.

    Raises:
        InputError: it is neither.
    """
    return nanoseconds(stamp) * 1e-9


def nanoseconds(stamp: Any) -> int:
    """As :func:`seconds`, exactly."""
    stamp = getattr(getattr(stamp, "header", stamp), "stamp", stamp)
    return int(field_of(stamp, "sec", "Time")) * 10**9 + count_of(stamp, "nanosec", "Time")


class MessageTypes:
    """The classes that a message is made of.

    Args:
        types: full name, such as ``sensor_msgs/msg/PointCloud2``, to class, as ``types`` of rosbags' type stores are.
        like: a message whose classes are taken, and those of the messages in it.
    """

    def __init__(self, types: Mapping[str, Any] | None, like: Any = None) -> None:
        self._types = types
        self._like: dict[str, Any] = {}
        if like is not None:
            self._like["sensor_msgs/msg/PointCloud2"] = type(like)
            self._like["std_msgs/msg/Header"] = type(field_of(like, "header", "PointCloud2"))
            self._like["builtin_interfaces/msg/Time"] = type(field_of(like.header, "stamp", "Header"))
            fields = field_of(like, "fields", "PointCloud2")
            if len(fields):
                self._like["sensor_msgs/msg/PointField"] = type(fields[0])

    def make(self, name: str, /, **values: Any) -> Any:
        """A message of a full name with its fields' values.

        Raises:
            InputError: the class is not known.
        """
        return self._class(name)(**values)

    def _class(self, name: str) -> Any:
        if self._types is not None:
            if name not in self._types:
                raise InputError(f"types= has no {name}; it maps full names to classes")
            return self._types[name]
        if name in self._like:
            return self._like[name]
        package, _, title = name.split("/")
        try:
            return getattr(importlib.import_module(f"{package}.msg"), title)
        except ModuleNotFoundError as error:
            raise InputError(
                f"the class of {name} is not known: {package} is not installed; source the set-up file of ROS 2, or "
                "hand in types=, such as the types of a type store of rosbags"
            ) from error

    def data(self, name: str, values: np.ndarray) -> Any:
        """Bytes (B,) in the form that the class of a message keeps them in."""
        if hasattr(self._class(name), "get_fields_and_field_types"):  # rclpy's looks at every number of other types
            return array.array("B", values.tobytes())
        return values

    def header(self, header: Any, stamp: Any, frame_id: str | None) -> Any:
        """A header: ``header``'s, with the stamp and the frame that are given.

        Args:
            header: a message, or None: of stamp 0 and no frame.
            stamp: a message, or nanoseconds; None for the header's.
            frame_id: None for the header's.
        """
        if header is None:
            header = self.make("std_msgs/msg/Header", stamp=self._time(0), frame_id="")
        header = copy.copy(header)
        if stamp is not None:
            header.stamp = self._time(stamp) if isinstance(stamp, int) else stamp
        if frame_id is not None:
            header.frame_id = frame_id
        return header

    def _time(self, count: int) -> Any:
        sec, nanosec = divmod(count, 10**9)
        return self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
