"""HDF5 files of many clouds of one size: ``data`` (N, P, 3 or more) and ``label`` (N,) or (N, 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.datasets.objects import RowDataset
from geo3d.datasets.quarantine import BrokenScene
from geo3d.errors import require_extra

# What h5py raises on damaged files.
_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, MemoryError)


@contextmanager
def _opened(file: Path, scene: str) -> Iterator[Any]:
    """A file, open for reading.

    Raises:
        MissingExtra: h5py is not installed.
        BrokenScene: it is missing, damaged or lacks what is looked for.
    """
    h5py = require_extra("h5py", "h5", "reading HDF5 files of clouds")
    try:
        with h5py.File(file, "r") as opened:
            yield opened
    except BrokenScene:
        raise
    except _ERRORS as error:
        why = " ".join(str(error).split())[:200]
        raise BrokenScene(scene, file, f"cannot be read as HDF5, it is missing, damaged or cut: {why}") from error


def _data(opened: Any, file: Path, scene: str) -> Any:
    data = opened["data"]
    shape = getattr(data, "shape", ())
    if len(shape) != 3 or shape[2] < 3 or data.dtype.kind not in "fiu":
        raise BrokenScene(scene, file, f"data (N, P, 3) of numbers is expected, it is {shape}")
    return data


class HDF5Rows(RowDataset):
    """Objects that are the rows of HDF5 files, which the extra ``h5`` reads."""

    @classmethod
    def labels(cls, file: Path) -> np.ndarray:
        with _opened(file, file.stem) as opened:
            count = len(_data(opened, file, file.stem))
            stored = np.asarray(opened["label"])
        if stored.size != count or stored.dtype.kind not in "iuf":
            raise BrokenScene(file.stem, file, f"{count} labels are expected, it has {stored.size}")
        labels = stored.reshape(count)
        if not (np.abs(labels.astype(np.float64)) < 1 << 31).all() or (labels != np.rint(labels)).any():
            raise BrokenScene(file.stem, file, "its labels are no whole numbers of a sensible size")
        return np.maximum(labels.astype(np.int64), -1)

    @classmethod
    def read_row(cls, file: Path, row: int, scene: str) -> np.ndarray:
        with _opened(file, scene) as opened:
            return np.asarray(_data(opened, file, scene)[row, :, :3])
