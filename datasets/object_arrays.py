"""Labelled clouds in ``.npz`` files, such as the synthetic objects.

Layout::

    <root>/<any name>.npz    points (N, P, 3) numbers
                             label (N,) whole numbers, -1 where unknown; may be absent
                             classes (C,) names, in the order of the labels; may be absent
                             fname (N,) names of the objects; may be absent

Arrays that are stored as ``np.savez`` does, uncompressed, are mapped and not read whole.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from geo3d.datasets.files import looked_at, numeric_order, unreadable
from geo3d.datasets.objects import RowDataset
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.read_points import NUMPY_ERRORS, require_room
from geo3d.errors import InputError

_LOOKED_AT = 8
_LOCAL_HEADER = 30  # bytes of a zip file's member before its name
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _npz_files(root: Path) -> list[Path]:
    names = (entry.name for entry in looked_at(root) if entry.name.lower().endswith(".npz") and entry.is_file())
    return [root / name for name in sorted(names, key=numeric_order)]


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Shape, type, order (whether by columns) and length of the header of an array."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of version {version} of NumPy's format")
        shape, by_columns, dtype = _HEADERS[version](member)
        return shape, dtype, by_columns, member.tell()


def _are_clouds(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return len(shape) == 3 and shape[2] == 3 and dtype.kind in "fiu"


def _holds_clouds(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return _are_clouds(*_header(archive, "points")[:2])
    except NUMPY_ERRORS:
        return False  # no such array, or damage, of which the reader of points tells


def _read(file: Path, scene: str, name: str) -> np.ndarray | None:
    """An array of a file, mapped where it is stored as it is; None where there is none of that name.

    Raises:
        BrokenScene: the file is missing or damaged.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise unreadable(file, scene, error) from error
    try:
        return _kept(file, name, stat.st_mtime_ns, stat.st_size)
    except NUMPY_ERRORS as error:
        raise BrokenScene(scene, file, f"not a whole file of NumPy: {' '.join(str(error).split())[:200]}") from error


@lru_cache(maxsize=32)
def _kept(file: Path, name: str, changed: int, size: int) -> np.ndarray | None:
    """As :func:`_read`; kept in the process while the file is as it was."""
    with zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        shape, dtype, by_columns, start = _header(archive, name)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not read")
        if info.compress_type != zipfile.ZIP_STORED or name != "points":
            require_room(archive, [name], file, file.stem)
            with archive.open(info) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
    with file.open("rb") as opened:
        opened.seek(info.header_offset)
        local = opened.read(_LOCAL_HEADER)
    start += info.header_offset + _LOCAL_HEADER
    start += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if start + dtype.itemsize * int(np.prod(shape, dtype=object)) > size:
        raise ValueError(f"{name} is cut")
    return np.memmap(file, dtype, "r", start, shape, "F" if by_columns else "C")


class ObjectArrays(RowDataset):
    """Labelled clouds in NumPy's archives."""

    kind = "object_arrays"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return any(map(_holds_clouds, _npz_files(root)[:_LOOKED_AT]))

    def files(self) -> list[Path]:
        files, named, most = [], {}, 0
        for file in _npz_files(self.root):
            if not _holds_clouds(file):
                continue
            try:
                classes, labels = _read(file, file.stem, "classes"), self.labels(file)
            except BrokenScene as broken:
                self.quarantine.add(broken)
                continue
            files.append(file)
            most = max(most, int(labels.max(initial=-1)) + 1)
            if classes is not None and classes.dtype.kind == "U":
                named.setdefault(tuple(map(str, classes.ravel())), file)
        if len(named) > 1:
            first, second, *_ = named.values()
            raise InputError(f"{first} and {second.name} name different classes; put them into folders of their own")
        self._alone = len(files) == 1
        self.categories = next(iter(named), tuple(map(str, range(most))))
        return files

    @classmethod
    def labels(cls, file: Path) -> np.ndarray:
        clouds, labels = cls._clouds(file, file.stem), _read(file, file.stem, "label")
        if labels is None:
            return np.full(len(clouds), -1, np.int64)
        if labels.size != len(clouds) or labels.dtype.kind not in "iu":
            reason = f"label is {labels.shape} of {labels.dtype}, {len(clouds)} whole numbers are expected"
            raise BrokenScene(file.stem, file, reason)
        return np.maximum(labels.reshape(-1).astype(np.int64), -1)

    def row_names(self, file: Path, count: int) -> Iterable[str]:
        """The names that the file gives, where they are one each and no other file has names."""
        given = _read(file, file.stem, "fname") if self._alone else None
        if given is None or given.shape != (count,) or given.dtype.kind != "U" or len(np.unique(given)) < count:
            return super().row_names(file, count)
        return map(str, given)

    @classmethod
    def _clouds(cls, file: Path, scene: str) -> np.ndarray:
        clouds = _read(file, scene, "points")
        if clouds is None or not _are_clouds(clouds.shape, clouds.dtype):
            found = "nothing" if clouds is None else f"{clouds.shape} of {clouds.dtype}"
            raise BrokenScene(scene, file, f"points (N, P, 3) of numbers are expected, found {found}")
        return clouds

    @classmethod
    def read_row(cls, file: Path, row: int, scene: str) -> np.ndarray:
        clouds = cls._clouds(file, scene)
        if row >= len(clouds):
            raise BrokenScene(scene, file, f"has {len(clouds)} objects by now, row {row} is gone")
        return np.asarray(clouds[row])
