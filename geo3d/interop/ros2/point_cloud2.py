"""``sensor_msgs/PointCloud2``: points of sensors, and back with features as further fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from geo3d.datasets.point_columns import PointColumns, named_columns, unit_colors, whole_labels
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.geometry.byte_colors import byte_colors
from geo3d.geometry.origin import find_origin, origin_rows
from geo3d.geometry.surface import unit_normals
from geo3d.interop.ros2.messages import MessageTypes, bytes_of, count_of, field_of
from geo3d.interop.ros2.transforms import as_matrix

_KIND = "PointCloud2"
_NAME, _FIELD = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/PointField"
#: Numbers of PointField.datatype and what they stand for.
_DATATYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_CODES = {code: number for number, code in _DATATYPES.items()}


def from_pointcloud2(message: Any, transform: Any = None) -> PointCloud:
    """The points of a message, a row each as in the message.

    Rows whose coordinates are not numbers, which stand for pixels and beams without an echo, stay: what an encoder says
    of the rows is then aligned with the message's, and :func:`with_fields` can add it. An organised cloud (``height``
    above 1) comes row by row.

    - Colours: ``rgb`` or ``rgba`` in the bits of a float32 or an integer, or ``r``, ``g``, ``b``.
    - Normals: ``normal_x``, ``normal_y``, ``normal_z`` (or ``nx``, ``ny``, ``nz``), of any length; NaN where one is
      zero or not a number, which encoders estimate.
    - Labels: ``label`` (or ``class``, ``semantic``) and ``instance``, -1 where they are not numbers.

    All other fields, such as ``intensity``, ``ring`` and ``time``, are in :func:`read_fields`.

    Args:
        message: a ``sensor_msgs/PointCloud2``, or any object with its fields.
        transform: from the message's frame to the one that is wanted, with z up and metres: a ``TransformStamped`` or a
            matrix (4, 4). Encoders expect it of clouds of depth cameras, whose frames look along z.

    Returns:
        One scene: xyz, colors and normals float32; far from zero with an origin, see ``PointCloud.origin``.

    Raises:
        InputError: a field of the message is missing or does not fit the others; it has no coordinates, or colours or
            labels that are none.
    """
    columns = read_fields(message)
    try:
        with np.errstate(invalid="ignore"):  # NaN of any bits; those of packed colours may be NaN as a float
            found = named_columns(columns)
            xyz = found.xyz.astype(np.float64)
        normals = None if found.normals is None else _normals(found.normals)
        labels = [None if column is None else _labels(column) for column in (found.semantic, found.instance)]
        colors = _colors(found)
    except ValueError as error:
        raise InputError(f"{_KIND}: {error}") from error
    if transform is not None:
        matrix = as_matrix(transform)
        xyz = xyz @ matrix[:3, :3].T + matrix[:3, 3]
        normals = None if normals is None else (normals @ matrix[:3, :3].T).astype(np.float32)
    origin = find_origin(xyz)
    arrays = ((xyz - origin).astype(np.float32), colors, normals, *labels)
    tensors = (None if array is None else torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return PointCloud(*tensors, origin=origin_rows(origin))


def read_fields(message: Any) -> dict[str, np.ndarray]:
    """All fields of the points of a message, as they are stored, in the byte order of this machine.

    Args:
        message: a ``sensor_msgs/PointCloud2``, or any object with its fields.

    Returns:
        Name -> (N,) of the field's type, (N, count) where it holds several numbers; N is ``height * width``.

    Raises:
        InputError: a field of the message is missing or does not fit the others.
    """
    record = _record(message)
    rows = _rows(message)
    points = rows.reshape(-1).view(record) if rows.size else np.zeros(len(rows), record)
    # Copied: one's own memory, in one piece, aligned.
    return {name: points[name].astype(points[name].dtype.newbyteorder("=")) for name in record.names or ()}


def _record(message: Any) -> np.dtype:
    """The type of one point."""
    fields = field_of(message, "fields", _KIND)
    step = count_of(message, "point_step", _KIND)
    order = ">" if field_of(message, "is_bigendian", _KIND) else "<"
    names, formats, offsets = [], [], []
    for field in fields:
        name = str(field_of(field, "name", "PointField"))
        offset, code, count = (count_of(field, part, "PointField") for part in ("offset", "datatype", "count"))
        if code not in _DATATYPES:
            raise InputError(f"{_KIND}: field {name!r} has datatype {code}, known are 1 (INT8) to 8 (FLOAT64)")
        if name in names:
            raise InputError(f"{_KIND}: fields has {name!r} twice")
        count = max(count, 1)  # PCL takes 0 for 1 as well
        kind = np.dtype(order + _DATATYPES[code])
        if offset + count * kind.itemsize > step:
            raise InputError(
                f"{_KIND}: field {name!r} ends at byte {offset + count * kind.itemsize} of a point, but point_step is "
                f"{step}"
            )
        names.append(name)
        formats.append(kind if count == 1 else (kind, (count,)))
        offsets.append(offset)
    if not names:
        raise InputError(f"{_KIND}: fields is empty, so points have no coordinates")
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})


def _rows(message: Any) -> np.ndarray:
    """The points as (height * width, point_step) uint8, without what fills up rows."""
    height, width, step, pitch = (
        count_of(message, name, _KIND) for name in ("height", "width", "point_step", "row_step")
    )
    data = bytes_of(message, _KIND)
    if height == 1:  # drivers that have a single row do not all say how long it is
        pitch = width * step
    if pitch < width * step:
        raise InputError(f"{_KIND}: row_step is {pitch}, but {width} points of point_step {step} take {width * step}")
    if len(data) < height * pitch:
        raise InputError(
            f"{_KIND}: data holds {len(data)} bytes, but height {height} and row_step {pitch} make {height * pitch}; "
            "the message was cut"
        )
    rows = data[: height * pitch].reshape(height, pitch)[:, : width * step]
    return rows.reshape(height * width, step)


def _colors(found: PointColumns) -> np.ndarray | None:
    """(N, 3) float32 in [0, 1], NaN where they are not numbers."""
    if found.colors is None:
        return None
    known = np.isfinite(found.colors).all(1)
    colors = np.full(found.colors.shape, np.nan, np.float32)
    colors[known] = unit_colors(found.colors[known])
    return colors


def _normals(normals: np.ndarray) -> np.ndarray:
    """(N, 3) float32 unit vectors, NaN where they are not known."""
    known = np.isfinite(normals).all(1) & normals.any(1)
    return np.where(known[:, None], unit_normals(normals), np.float32(np.nan))


def _labels(column: np.ndarray) -> np.ndarray:
    return whole_labels(np.where(np.isfinite(column), column, -1))


def to_pointcloud2(
    cloud: PointCloud,
    features: Any = None,
    *,
    like: Any = None,
    types: Mapping[str, Any] | None = None,
    header: Any = None,
    stamp: Any = None,
    frame_id: str | None = None,
) -> Any:
    """A message of a cloud.

    Coordinates are FLOAT32 ``x``, ``y``, ``z``, or FLOAT64 where the cloud has an origin, which is put back, or is
    float64; colours are ``rgb`` in the bits of a float32, as PCL and RViz have them; normals ``normal_x`` and so on;
    labels INT32 ``label`` and ``instance``.

    Args:
        cloud: one scene.
        features: (N,) or (N, C) array or tensor, written as field ``feature``; or names and several of them. A field of
            C channels is one ``PointField`` of count C. 16-bit floats become FLOAT32, whole numbers of 64 bits INT32.
        like: a message whose classes are used, and whose header where none is given; where it has as many points as the
            cloud, the message is organised (``height``, ``width``) as it is.
        types: full names and classes, such as the ``types`` of a type store of rosbags. Without ``like`` and
            ``types``, those of the ROS 2 that is sourced.
        header: a ``std_msgs/Header`` to use.
        stamp: a ``builtin_interfaces/Time``, or nanoseconds, instead of the header's.
        frame_id: instead of the header's.

    Returns:
        A ``sensor_msgs/PointCloud2``, little endian.

    Raises:
        InputError: more than one scene; features of another number of rows, of a type that a message cannot hold or of
            a name that is taken; or the classes of messages are not known.
    """
    if cloud.batch_size != 1:
        raise InputError(f"to_pointcloud2: a message holds one scene, got {cloud.batch_size}; take cloud.scene(0)")
    exact = cloud.origin is not None or cloud.xyz.dtype == torch.float64
    xyz = _array(cloud.world()) if exact else _array(cloud.xyz)
    columns = {axis: xyz[:, i] for i, axis in enumerate("xyz")}
    if cloud.normals is not None:
        columns |= {f"normal_{axis}": _array(cloud.normals)[:, i] for i, axis in enumerate("xyz")}
    if cloud.colors is not None:
        red, green, blue = byte_colors(np.nan_to_num(_array(cloud.colors))).astype(np.uint32).T
        columns["rgb"] = (red << 16 | green << 8 | blue).view(np.float32)
    for name, labels in (("label", cloud.semantic), ("instance", cloud.instance)):
        if labels is not None:
            columns[name] = _array(labels)
    classes = MessageTypes(types, like)
    if header is None and like is not None:
        header = like.header
    height, width = 1, len(cloud)
    if like is not None and like.height * like.width == len(cloud):
        height, width = int(like.height), int(like.width)
    blank = classes.make(
        _NAME,
        header=classes.header(header, stamp, frame_id),
        height=height,
        width=width,
        fields=[],
        is_bigendian=False,
        point_step=0,
        row_step=0,
        data=classes.data(_NAME, np.zeros(0, np.uint8)),
        is_dense=bool(np.isfinite(xyz).all()),
    )
    rows = np.zeros((len(cloud), 0), np.uint8)
    return _with_columns(blank, rows, _checked(columns, len(cloud)) | _checked(features, len(cloud), columns), classes)


def with_fields(message: Any, /, *, types: Mapping[str, Any] | None = None, **features: Any) -> Any:
    """The message with more fields; all that it holds stays as it is, byte by byte.

    Args:
        message: a ``sensor_msgs/PointCloud2``, or any object with its fields; it is not changed.
        types: full names and classes, where those of the message will not do.
        features: name -> (N,) or (N, C) array or tensor, a row a point as :func:`from_pointcloud2` has them; as in
            :func:`to_pointcloud2`.

    Returns:
        A message of the same class and byte order, rows without fill.

    Raises:
        InputError: as :func:`read_fields` and :func:`to_pointcloud2`.
    """
    taken = _record(message).names or ()
    rows = _rows(message)
    return _with_columns(message, rows, _checked(features, len(rows), taken), MessageTypes(types, message))


def _with_columns(message: Any, rows: np.ndarray, columns: dict[str, np.ndarray], classes: MessageTypes) -> Any:
    """A copy of a message whose points are ``rows`` (N, B) uint8 with columns behind them."""
    order = ">" if message.is_bigendian else "<"
    fields, parts, step = list(message.fields), [rows], rows.shape[1]
    for name, column in columns.items():
        size = column.dtype.itemsize
        fill = -step % size  # a number begins at a multiple of its size
        parts += [np.zeros((len(rows), fill), np.uint8)] if fill else []
        count = column.shape[1] if column.ndim == 2 else 1
        stored = np.ascontiguousarray(column.astype(column.dtype.newbyteorder(order)).reshape(len(rows), count))
        code = _CODES[column.dtype.str[1:]]
        fields.append(classes.make(_FIELD, name=name, offset=step + fill, datatype=code, count=count))
        parts.append(stored.view(np.uint8).reshape(len(rows), count * size))
        step += fill + count * size
    made = copy.copy(message)
    made.fields, made.point_step, made.row_step = fields, step, step * int(message.width)
    made.data = classes.data(_NAME, np.concatenate(parts, axis=1).reshape(-1))
    return made


def _checked(features: Any, count: int, taken: Any = ()) -> dict[str, np.ndarray]:
    """Columns by name, of types that a message holds."""
    if features is None:
        return {}
    if not isinstance(features, Mapping):
        features = {"feature": features}
    columns = {}
    for name, values in features.items():
        column = _array(values)
        if column.ndim not in (1, 2) or len(column) != count or 0 in column.shape[1:]:
            raise InputError(
                f"field {name!r}: features must be ({count},) or ({count}, C), a row a point, got {column.shape}"
            )
        if name in taken:
            raise InputError(f"field {name!r} is there already; give the features another name")
        columns[name] = _storable(column, name)
    return columns


def _storable(column: np.ndarray, name: str) -> np.ndarray:
    """A column in a type that a message holds."""
    if column.dtype == np.float16:
        return column.astype(np.float32)
    if column.dtype == bool:
        return column.astype(np.uint8)
    if column.dtype.str[1:] in _CODES:
        return column
    if column.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if column.size == 0 or (column.min() >= limits.min and column.max() <= limits.max):
            return column.astype(np.int32)
        raise InputError(f"field {name!r}: {column.dtype} numbers beyond 32 bits have no type in a message")
    raise InputError(f"field {name!r}: a message holds numbers of at most 64 bits, not {column.dtype}")


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
