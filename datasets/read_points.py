"""Points from a file of any usual format."""

from __future__ import annotations

import io
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo3d.datasets.files import read_bytes, read_plain, require_finite
from geo3d.datasets.mesh_files import read_off, read_stl, read_with_trimesh
from geo3d.datasets.pcd import parse_header, read_pcd
from geo3d.datasets.ply import ply_has_faces, ply_names, read_ply
from geo3d.datasets.point_columns import (
    PointColumns,
    column_of,
    is_array,
    named_columns,
    unit_colors,
    unnamed_columns,
    whole_labels,
)
from geo3d.datasets.point_text import read_text_points, split_names, text_names
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Mesh, open_dataset
from geo3d.errors import InputError, did_you_mean
from geo3d.geometry import PointCloud
from geo3d.geometry.origin import find_origin, origin_rows
from geo3d.geometry.surface import sample_surface, unit_normals, vertex_normals
from geo3d.random import Stream, stream_generator


@dataclass(frozen=True)
class _Format:
    """How files of one ending are read: all of it, and the names of its columns."""

    read: Callable[..., PointColumns]
    names: Callable[[Path, str], Iterable[str]] = lambda path, scene: ()


def _read_ply(path: Path, scene: str) -> PointColumns:
    ply = read_ply(path, scene)
    return replace(named_columns(ply.vertex), faces=ply.faces)


#: What NumPy and zipfile raise on damaged files, absurd sizes included; NotImplementedError where damaged bytes name a
#: compression that zipfile does not know.
NUMPY_ERRORS = (
    ValueError, TypeError, KeyError, OSError, EOFError, SyntaxError, RuntimeError, MemoryError, OverflowError,
    NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
# Archives that unpack to more bytes than this, and than so many times their own size, hold no points.
_LARGE, _DENSEST = 1 << 30, 100


def _open_numpy(path: Path, scene: str, kind: type) -> Any:
    """The array, or the archive of arrays, of a file that must be of that ``kind``."""
    data = read_bytes(path, scene)
    try:
        content = np.load(io.BytesIO(data), allow_pickle=False)
    except NUMPY_ERRORS as error:
        raise BrokenScene(scene, path, f"not a whole file of NumPy: {' '.join(str(error).split())}") from error
    if not isinstance(content, kind):
        raise BrokenScene(scene, path, f"holds {type(content).__name__}, which does not go with its ending")
    return content


def _read_npy(path: Path, scene: str, columns: str | None = None) -> PointColumns:
    table = _open_numpy(path, scene, np.ndarray)
    if table.dtype.names and table.ndim == 1 and columns is None:
        return named_columns({name: table[name] for name in table.dtype.names})
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        images = table.ndim in (3, 4) and table.shape[-1] in (3, 4)
        advice = "; an image is no cloud, points in rows and columns must be reshaped" if images else ""
        raise ValueError(f"an array (N, 3) of numbers is expected, this is {table.shape} of {table.dtype}{advice}")
    if columns is None:
        return unnamed_columns(table)
    names = split_names(columns)
    if len(names) != table.shape[1]:
        raise ValueError(f"{len(names)} names are given for {table.shape[1]} columns")
    return named_columns({name: table[:, i] for i, name in enumerate(names)})


def _npy_names(path: Path, scene: str) -> Iterable[str]:
    return _open_numpy(path, scene, np.ndarray).dtype.names or ()


def _read_npz(path: Path, scene: str) -> PointColumns:
    with _open_numpy(path, scene, np.lib.npyio.NpzFile) as file:
        # Files of PointCloud.to_numpy say how the points are packed, and what was taken off them.
        wanted = [name for name in file.files if is_array(name) or name in ("offsets", "origin")]
        require_room(file.zip, wanted, path, scene)
        try:
            arrays = {name: file[name] for name in wanted}
        except NUMPY_ERRORS as error:
            raise BrokenScene(scene, path, f"not a whole file of NumPy: {' '.join(str(error).split())}") from error
        others = [name for name in file.files if name not in wanted]
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
    offsets, origin = arrays.pop("offsets", None), arrays.pop("origin", None)
    if offsets is not None and offsets.size != 2:
        raise ValueError(f"holds {offsets.size - 1} scenes, one is expected; write each scene into a file of its own")
    if not arrays:
        raise ValueError(f"no coordinates x, y, z (or points, N x 3); it has {', '.join(others) or 'nothing'}"[:300])
    found = named_columns(arrays)
    return found if origin is None else replace(found, xyz=found.xyz + origin.reshape(3))


def require_room(archive: zipfile.ZipFile, names: list[str], path: Path, scene: str) -> None:
    """Look whether arrays unpack to a sensible size.

    Raises:
        BrokenScene: they do not: a small file made to fill the memory.
    """
    members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") in names]
    whole, packed = (sum(getattr(member, size) for member in members) for size in ("file_size", "compress_size"))
    if whole > _LARGE and whole > _DENSEST * packed:
        raise BrokenScene(scene, path, f"its {packed} bytes unpack to {whole}, which points do not do; it is damaged")


def _npz_names(path: Path, scene: str) -> Iterable[str]:
    with _open_numpy(path, scene, np.lib.npyio.NpzFile) as file:
        return file.files


_TEXT = _Format(read_text_points, text_names)
_TRIMESH = _Format(read_with_trimesh)
#: Ending -> how such files are read.
_FORMATS = {
    ".ply": _Format(_read_ply, ply_names),
    ".pcd": _Format(
        read_pcd,
        lambda path, scene: parse_header(read_plain(path, scene), path, scene).record.names,
    ),
    ".npy": _Format(_read_npy, _npy_names),
    ".npz": _Format(_read_npz, _npz_names),
    ".off": _Format(read_off),
    ".stl": _Format(read_stl),
    ".obj": _TRIMESH,
    ".glb": _TRIMESH,
    ".gltf": _TRIMESH,
    ".xyz": _TEXT,
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".asc": _TEXT,
    ".pts": _TEXT,
}
#: Endings of the files that :func:`read_points` reads.
POINT_ENDINGS = tuple(_FORMATS)
# Files whose columns may lack names.
_NAMELESS = frozenset({".npy", *(ending for ending, form in _FORMATS.items() if form is _TEXT)})


def read_points(
    path: str | Path, *, samples: int | None = None, seed: int = 0, columns: str | None = None
) -> PointCloud:
    """Read points, or the vertices of a mesh, with their colours, normals and labels where the file has them.

    The ending tells the format; ``docs/datasets.md`` lists them and what is read of each. Axes and lengths stay the
    file's. Points far from zero come with an origin, so that float32 keeps millimetres: see ``PointCloud.origin``.

    - Colours count by their stored type: uint8 to 255, uint16 to 65535, floats to 1, 255 or 65535 by the range of all
      of them, see :func:`~geo3d.datasets.point_columns.unit_colors`.
    - Normals of any length become unit vectors, (0, 0, 1) where one is zero or not a number. A mesh without normals
      gets those of its faces, averaged at the vertices by area.
    - Columns without names are told by their numbers, see :func:`~geo3d.datasets.point_columns.unnamed_columns`.

    Args:
        path: the file.
        samples: of a mesh, take so many points spread evenly over its surface instead of its vertices: one from each
            share of equal area. Colours and normals are interpolated, labels are those of the nearest corner.
        seed: of the samples; the same seed draws the same points.
        columns: names of the columns of a text file or plain array, such as ``"x y z r g b label"``. Columns of any
            other name are left out.

    Returns:
        One scene: xyz, colors and normals float32, semantic and instance int64.

    Raises:
        InputError: the ending is unknown; the file is missing, empty, cut or damaged, holds no point, or colours or
            labels that are none; what its columns are cannot be told; or it has no faces to sample.
    """
    path = Path(path)
    try:
        return read_scene_points(path, path.stem, samples=samples, seed=seed, columns=columns)[0]
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken


def read_scene_points(
    path: Path, scene: str, *, samples: int | None = None, seed: int = 0, columns: str | None = None
) -> tuple[PointCloud, int]:
    """As :func:`read_points`, as the points of a scene of some name.

    Returns:
        The points, and how many the file marks as invalid, which were left out.

    Raises:
        BrokenScene: the file is missing, damaged or cannot be understood.
        InputError: the ending is unknown, or an argument does not fit.
    """
    form = _format(path)
    if samples is not None and samples < 1:
        raise InputError(f"samples must be 1 or more, got {samples}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    if columns is not None and path.suffix.lower() not in _NAMELESS:
        raise InputError(f"{path}: columns= names those of text files and .npy arrays; this file names its own")
    _require_content(path, scene)
    with _one_line(path, scene):
        found = _read_columns(form, path, scene, columns)
        return _cloud(found, samples, seed), found.left_out


def _read_columns(form: _Format, path: Path, scene: str, columns: str | None = None) -> PointColumns:
    """What a file holds, of which there is some; ``xyz`` finite and float64.

    Raises:
        BrokenScene, ValueError: the file is damaged, or holds no point.
    """
    found = form.read(path, scene) if columns is None else form.read(path, scene, columns)
    xyz = found.xyz.astype(np.float64)
    if not len(xyz):
        raise ValueError("holds no point")
    require_finite(xyz, path, scene)
    return replace(found, xyz=xyz)


def read_scene_mesh(path: Path, scene: str) -> tuple[Mesh, np.ndarray]:
    """The mesh of a file; one of points alone has no faces.

    Returns:
        The mesh, whose normals are those of its faces where the file has none, and the origin (3,) that was taken off.

    Raises:
        BrokenScene: the file is missing, damaged or holds no point.
        InputError: the ending is unknown.
    """
    form = _format(path)
    _require_content(path, scene)
    with _one_line(path, scene):
        found, origin = _columns(_read_columns(form, path, scene))
        normals = vertex_normals(found.xyz, found.faces) if found.normals is None else found.normals
        vertices = found.xyz.astype(np.float32)
        return Mesh(vertices, found.faces, found.colors, normals, found.semantic, found.instance), origin


def has_faces(path: Path, scene: str) -> bool:
    """Whether a file is one of a mesh: by its ending, and of a PLY file, which may be either, by its header.

    Raises:
        BrokenScene: the header is damaged.
        InputError: the ending is unknown.
    """
    form = _format(path)
    if form.read is not _read_ply:
        return form in (_TRIMESH, _FORMATS[".off"], _FORMATS[".stl"])
    _require_content(path, scene)
    return ply_has_faces(path, scene)


def holds_labels(path: Path, scene: str) -> bool:
    """Whether the columns of a file include labels; reads as little as that takes.

    Raises:
        BrokenScene: the file is missing or damaged.
        InputError: the ending is unknown.
    """
    form = _format(path)
    _require_content(path, scene)
    with _one_line(path, scene):
        return column_of(form.names(path, scene), "semantic") is not None


@contextmanager
def _one_line(path: Path, scene: str) -> Iterator[None]:
    """Turns what damaged files make readers raise into a :class:`BrokenScene` that names the file."""
    try:
        with np.errstate(all="ignore"):  # what damaged numbers come to is looked at afterwards
            yield
    except BrokenScene:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenScene(scene, path, " ".join(str(error).split())) from error
    except MemoryError as error:
        raise BrokenScene(scene, path, "there is not enough memory for what it says to hold") from error


def _format(path: Path) -> _Format:
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        near = did_you_mean(ending, _FORMATS)
        raise InputError(f"{path}: points are not read from {ending or 'no'!r} files, only {' '.join(_FORMATS)}{near}")
    return _FORMATS[ending]


def _require_content(path: Path, scene: str) -> None:
    try:
        mode, size = path.stat()[stat.ST_MODE], path.stat().st_size
    except (OSError, ValueError) as error:
        raise BrokenScene(scene, path, f"cannot be read: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(mode):
        raise BrokenScene(scene, path, "is a folder, not a file; open_dataset opens folders")
    if not stat.S_ISREG(mode):
        raise BrokenScene(scene, path, "is a device, not a file")
    if size == 0:
        raise BrokenScene(scene, path, "the file is empty", 0)


def _columns(found: PointColumns) -> tuple[PointColumns, np.ndarray]:
    """Columns in the units of scenes, and the origin (3,) that was taken off; ``found.xyz`` is float64."""
    origin = find_origin(found.xyz)
    labels = (found.semantic, found.instance)
    plain = PointColumns(
        found.xyz - origin,
        None if found.colors is None else unit_colors(found.colors),
        None if found.normals is None else unit_normals(found.normals),
        *(None if column is None else whole_labels(column) for column in labels),
        faces=found.faces,
    )
    return plain, origin


def _cloud(found: PointColumns, samples: int | None, seed: int) -> PointCloud:
    """Columns as one scene; ``found.xyz`` is float64."""
    found, origin = _columns(found)
    if samples is not None:
        found = _sampled(found, samples, stream_generator(seed, Stream.SURFACE_SAMPLES))
    elif found.normals is None and len(found.faces):
        found.normals = vertex_normals(found.xyz, found.faces)
    columns = (found.xyz.astype(np.float32), found.colors, found.normals, found.semantic, found.instance)
    tensors = (None if column is None else torch.from_numpy(np.ascontiguousarray(column)) for column in columns)
    return PointCloud(*tensors, origin=origin_rows(origin))


def _sampled(mesh: PointColumns, count: int, rng: np.random.Generator) -> PointColumns:
    """Points spread evenly over a mesh."""
    if not len(mesh.faces):
        raise ValueError("holds points without faces, which have no surface to sample; leave out samples=")
    face, weights = sample_surface(mesh.xyz, mesh.faces, count, rng)
    corners = mesh.faces[face]
    nearest = corners[np.arange(count), weights.argmax(1)]

    def blend(values: np.ndarray) -> np.ndarray:
        return (values[corners] * weights[:, :, None]).sum(1)

    if mesh.normals is None:
        a, b, c = (mesh.xyz[corners[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
    else:
        normals = blend(mesh.normals)
    return PointColumns(
        blend(mesh.xyz),
        None if mesh.colors is None else blend(mesh.colors).astype(np.float32),
        unit_normals(normals),
        None if mesh.semantic is None else mesh.semantic[nearest],
        None if mesh.instance is None else mesh.instance[nearest],
    )


def read_cloud(path: str | Path) -> tuple[PointCloud, tuple[str, ...] | None]:
    """The points of a scene's folder, or of a file that :func:`read_points` reads.

    Returns:
        The points, and the names of the classes that their labels count in; None where these are not known.

    Raises:
        InputError: neither of them, more than one scene, or no points.
    """
    path = Path(path)
    if path.is_file() or (path.suffix.lower() in _FORMATS and not path.is_dir()):
        return read_points(path), None
    scenes = open_dataset(path)
    if len(scenes) != 1:
        raise InputError(f"{path}: holds {len(scenes)} scenes; give the folder of one, or a file of points")
    return scenes[0].cloud(), scenes.classes
