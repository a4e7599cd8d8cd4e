"""Dense radiance grids in files: those that NeRF-MAE published, and those that `geo3d prepare grids` writes.

Layout::

    <root>/features/<scene>.npz    rgbsigma (X, Y, Z, 4), z up: red, green, blue, density;
                                   or (X * Y * Z, 4), y up, with resolution (3,)
                                   bbox_min, bbox_max (3,) corners in metres; may be absent
                                   density: "exp", "relu" or "opacity"; may be absent
                                   labels, boxes: as VolumeGrid has them; may be absent
           obb/<scene>.npy         boxes (N, 7) in voxels: centre, sides w, l, h, yaw; or
           aabb/<scene>.npy        boxes (N, 6) in voxels: lowest and highest corner
           semantics/<scene>.npy   label volumes (X, Y, Z) of whole numbers, 0 where empty, else class + 1
           <any name>.npz          train_scenes, val_scenes, test_scenes: names of scenes
           classes.txt             names of the classes, one a line
           density.txt             "exp", "relu" or "opacity", for files that do not say it themselves

The folder `features` may itself be the root; what lies beside it is found all the same.

What the fourth channel holds differs between published files (NeRF-MAE, data preparation). Opacity is that of a step of
0.01 in the units of the network that was read out:

- ``exp``: 1 - exp(-exp(density) / 100), of grids read out of instant-ngp;
- ``relu``: 1 - exp(-max(density, 0) / 100), of ScanNet's, whose files have the key ``from_ddp_nerf``;
- ``opacity``: it is opacity already, of Hypersim's, and of all files of 8 bits.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Container, Iterable
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.files import looked_at, numeric_order, read_bytes, read_text
from geo3d.datasets.point_files import read_classes
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.read_points import NUMPY_ERRORS, require_room
from geo3d.datasets.scene import Scene, SceneDataset
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid

#: What the fourth channel of a file may hold.
CONVENTIONS = ("exp", "relu", "opacity")
#: Optical depth is a density divided by this: one step of 0.01 in the published read-out.
STEPS = 100.0
#: Opacities are held within these before the logarithm is taken: densities within -9.2 and 7.3.
LEAST, MOST = 1e-6, 1 - 1e-6

_FEATURES, _BOXES, _LABELS = "features", ("obb", "aabb"), ("semantics", "semantic", "labels")
_GRID, _DENSITY = "rgbsigma", "density.txt"
_LOOKED_AT = 8
_SUBSETS = {"train_scenes": "train", "val_scenes": "val", "test_scenes": "test"}
_FARTHEST = 1e15
# Colours that are averages of a network's overshoot a little; those that count to 255 are another thing.
_OVERSHOOT = 0.5


def opacity_of_density(density: Tensor, convention: str) -> Tensor:
    """Opacity in [0, 1] of what the fourth channel of a file holds.

    Args:
        density: any shape, floating point.
        convention: one of :data:`CONVENTIONS`.

    Raises:
        InputError: another convention.
    """
    if convention == "opacity":
        return density.clamp(0, 1)
    if convention not in CONVENTIONS:
        raise InputError(f"density {convention!r} is unknown; give one of {', '.join(CONVENTIONS)}")
    depth = density.exp() if convention == "exp" else density.clamp_min(0)
    return (1 - torch.exp(-depth / STEPS)).clamp(0, 1)


def density_of_opacity(opacity: Tensor) -> Tensor:
    """Inverse of :func:`opacity_of_density` for ``exp``: log(-100 log(1 - opacity)); held within LEAST and MOST."""
    return torch.log(-STEPS * torch.log1p(-opacity.double().clamp(LEAST, MOST))).to(opacity.dtype)


def read_grid(path: str | Path, density: str | None = None) -> VolumeGrid:
    """Read a radiance grid from a file in the published form, with labels and boxes where the file itself holds them.

    Nothing of a grid is cut off, whatever its sides are.

    Args:
        path: the ``.npz`` file.
        density: what the fourth channel holds, one of :data:`CONVENTIONS`; None goes by what the file says, or by what
            lies in it: the key ``from_ddp_nerf`` means ``relu``, numbers that all lie in [0, 1] are opacity, all else
            is ``exp``.

    Raises:
        BrokenScene: the file is missing or damaged.
        InputError: ``density`` is unknown.
    """
    path = Path(path)
    if density is not None and density not in CONVENTIONS:
        raise InputError(f"density {density!r} is unknown; give one of {', '.join(CONVENTIONS)}")
    arrays = _arrays(path, path.stem, {_GRID})
    try:
        with np.errstate(all="ignore"):  # what damaged numbers come to is looked at
            return _grid(arrays, density)
    except (ValueError, TypeError, OverflowError, RuntimeError, MemoryError) as error:
        raise BrokenScene(path.stem, path, f"no radiance grid: {' '.join(str(error).split())[:300]}") from error


def _arrays(path: Path, scene: str, needed: Container[str]) -> dict[str, np.ndarray]:
    """The arrays of an archive; nothing in it is executed. Python objects are left out where they are not ``needed``.

    Raises:
        BrokenScene: the file is missing or damaged.
    """
    data = read_bytes(path, scene)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            require_room(archive, [name.removesuffix(".npy") for name in archive.namelist()], path, scene)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError as error:
                    if name in needed or "allow_pickle" not in str(error):
                        raise
            return arrays
    except BrokenScene:
        raise
    except NUMPY_ERRORS as error:
        raise BrokenScene(scene, path, f"not a whole file of NumPy: {' '.join(str(error).split())[:200]}") from error


def _grid(arrays: dict[str, np.ndarray], density: str | None) -> VolumeGrid:
    values = arrays.get(_GRID)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.shape[-1:] != (4,):
        found = "nothing" if values is None else f"{values.shape} of {values.dtype}"
        raise ValueError(f"rgbsigma (X, Y, Z, 4) of numbers is expected, found {found}")
    if values.ndim == 2:
        values = _upright(values, arrays.get("resolution"))
    if values.ndim != 4 or 0 in values.shape:
        raise ValueError(f"rgbsigma (X, Y, Z, 4) or (N, 4) is expected, found {values.shape}")
    bytes_ = values.dtype == np.uint8
    if values.dtype.kind != "f" and not bytes_:
        raise ValueError(f"rgbsigma is of {values.dtype}; floats, or whole numbers of 8 bits, are expected")
    stored = torch.from_numpy(np.array(values, np.float32, order="C"))  # half precision has no range for exp
    if not bool(stored.isfinite().all()):
        raise ValueError(f"{int((~stored.isfinite()).sum())} of its numbers are none")
    if bytes_:
        stored, convention = stored / 255, "opacity"
    else:
        convention = density or _convention(arrays, stored[..., 3])
    rgb = stored[..., :3]
    if float(rgb.min()) < -_OVERSHOOT or float(rgb.max()) > 1 + _OVERSHOOT:
        raise ValueError(f"colours lie within {float(rgb.min()):.3g} and {float(rgb.max()):.3g}, 0 to 1 is expected")
    low, high = _corners(arrays)
    sides = values.shape[:3]
    labels, boxes = arrays.get("labels"), arrays.get("boxes")
    return VolumeGrid(
        rgb.clamp(0, 1).contiguous(),
        opacity_of_density(stored[..., 3], convention).contiguous(),
        low,
        high,
        None if labels is None else _labels(labels, sides),
        None if boxes is None else _boxes(boxes),
    )


def _upright(flat: np.ndarray, resolution: np.ndarray | None) -> np.ndarray:
    """A flat array of y-up voxels, x fastest, as (X, Y, Z, 4), z up: axes z, x, y of the file."""
    if resolution is None or resolution.size != 3 or resolution.dtype.kind not in "fiu":
        raise ValueError(f"rgbsigma is flat, {flat.shape}, and no resolution (3,) tells its sides")
    x, y, z = (int(side) for side in resolution.reshape(-1))
    if min(x, y, z) <= 0 or x * y * z != len(flat):
        raise ValueError(f"rgbsigma has {len(flat)} voxels, its resolution {x} x {y} x {z}")
    return flat.reshape(z, y, x, 4).transpose(2, 1, 0, 3).transpose(2, 0, 1, 3)


def _convention(arrays: dict[str, np.ndarray], density: Tensor) -> str:
    if "density" in arrays:
        told = str(arrays["density"].reshape(-1)[0]) if arrays["density"].size == 1 else "?"
        if told not in CONVENTIONS:
            raise ValueError(f"density is {told!r}, one of {', '.join(CONVENTIONS)} is expected")
        return told
    if "from_ddp_nerf" in arrays and bool(np.all(arrays["from_ddp_nerf"])):
        return "relu"
    return "opacity" if float(density.min()) >= 0 and float(density.max()) <= 1 else "exp"


def _corners(arrays: dict[str, np.ndarray]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Corners (3,) float64; none where the file does not tell them."""
    if "bbox_min" not in arrays or "bbox_max" not in arrays:
        return None, None
    low, high = (np.asarray(arrays[name], np.float64).reshape(-1) for name in ("bbox_min", "bbox_max"))
    if low.size != 3 or high.size != 3 or not (np.abs([low, high]) < _FARTHEST).all() or not (high > low).all():
        raise ValueError(f"bbox_min {low.tolist()[:3]} and bbox_max {high.tolist()[:3]} are no corners of a box")
    return torch.from_numpy(low.copy()), torch.from_numpy(high.copy())


def _labels(labels: np.ndarray, sides: tuple[int, ...]) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.shape != tuple(sides):
        raise ValueError(f"labels are {labels.shape} of {labels.dtype}, whole numbers {tuple(sides)} are expected")
    return torch.from_numpy(labels.astype(np.int64)).clamp_min(-1)


def _boxes(boxes: np.ndarray) -> Tensor:
    """Boxes (N, 7) or, along the axes, (N, 6) lowest and highest corners, as (N, 7) float32."""
    if boxes.size == 0:
        return torch.zeros(0, 7)
    if boxes.ndim != 2 or boxes.shape[1] not in (6, 7) or boxes.dtype.kind not in "fiu":
        raise ValueError(f"boxes are {boxes.shape} of {boxes.dtype}, (N, 7) or (N, 6) numbers are expected")
    rows = boxes.astype(np.float64)
    if not (np.abs(rows) < _FARTHEST).all():
        raise ValueError("boxes hold what is no number")
    if rows.shape[1] == 6:
        low, high = rows[:, :3], rows[:, 3:]
        rows = np.concatenate([(low + high) / 2, high - low, np.zeros((len(rows), 1))], 1)
    if (rows[:, 3:6] < 0).any():
        raise ValueError(f"box {int((rows[:, 3:6] < 0).any(1).argmax())} has a side below zero")
    return torch.from_numpy(rows.astype(np.float32))


class RadianceGridScene(Scene):
    """A scene of which the radiance grid is known.

    Args:
        name: unique in the dataset.
        file: its ``.npz``.
        boxes, labels: files of them beside it; None where there are none.
        density: what the fourth channel holds where the file does not say so; None where nothing tells.
        classes: how many classes labels count in; None where that is not known.
        subset: ``train``, ``val``, ``test`` or empty.
    """

    parts = frozenset({"grid"})

    def __init__(
        self,
        name: str,
        file: Path,
        boxes: Path | None = None,
        labels: Path | None = None,
        density: str | None = None,
        classes: int | None = None,
        subset: str = "",
    ) -> None:
        self.name, self.root, self.file, self.subset = name, file.parent, file, subset
        self._boxes, self._labels, self._density, self._classes = boxes, labels, density, classes

    @cached_property
    def metric(self) -> bool:
        """Whether its corners are in metres: of files that do not say otherwise, and have corners."""
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                return "bbox_min" in arrays and bool(np.all(arrays["metric"]) if "metric" in arrays else True)
        except NUMPY_ERRORS as error:
            raise BrokenScene(self.name, self.file, f"not a whole file of NumPy: {error}") from error

    def grid(self) -> VolumeGrid:
        """The grid, with labels and boxes of the file or of those beside it.

        Raises:
            BrokenScene: a file is damaged, or does not fit the grid.
        """
        try:
            grid = read_grid(self.file, self._own_density())
        except BrokenScene as broken:
            raise BrokenScene(self.name, broken.file, broken.reason, broken.offset) from broken
        for file, field in ((self._labels, "labels"), (self._boxes, "boxes")):
            if file is None or getattr(grid, field) is not None:
                continue
            data = read_bytes(file, self.name)
            try:
                array = np.load(io.BytesIO(data), allow_pickle=False)
                if not isinstance(array, np.ndarray):
                    raise ValueError("one array is expected")
                if field == "labels":
                    grid.labels = _labels(array.astype(np.int64) - 1 if array.dtype.kind in "iu" else array, grid.sides)
                else:
                    grid.boxes = _boxes(array)
            except NUMPY_ERRORS as error:
                reason = f"no {field} of a grid: {' '.join(str(error).split())[:300]}"
                raise BrokenScene(self.name, file, reason) from error
        if grid.labels is not None and self._classes is not None and int(grid.labels.max()) >= self._classes:
            reason = f"labels reach {int(grid.labels.max())}; classes.txt names classes 0 to {self._classes - 1}"
            raise BrokenScene(self.name, self._labels or self.file, reason)
        return grid

    def _own_density(self) -> str | None:
        """What ``density.txt`` says, unless the file says it itself."""
        if self._density is None:
            return None
        try:
            with zipfile.ZipFile(self.file) as archive:
                return None if "density.npy" in archive.namelist() else self._density
        except NUMPY_ERRORS:
            return None  # missing or damaged, of which the reader of grids tells


class RadianceGrids(SceneDataset):
    """A folder of radiance grids, with boxes, labels and a split where they lie beside them."""

    kind = "radiance_grids"
    folder_scenes = False
    part_folders: ClassVar[frozenset[str]] = frozenset({_FEATURES, *_BOXES, *_LABELS})

    @classmethod
    def detect(cls, root: Path) -> bool:
        files = grid_files(root)[:_LOOKED_AT]
        # What a folder of this name holds are grids, be they all damaged.
        return any(_holds_grid(file, damaged=file.parent.name == _FEATURES) for file in files)

    def names(self) -> list[str]:
        files = grid_files(self.root)
        within = bool(files) and files[0].parent != self.root
        self._beside = self.root if within or self.root.name != _FEATURES else self.root.parent
        # One that cannot be read is told of when it is opened, and not passed over as no grid.
        self._found = {file.stem: file for file in files if within or _holds_grid(file, damaged=True)}
        self.classes = read_classes([self._beside])
        self._density = _read_density(self._beside / _DENSITY)
        self._subsets = self._read_subsets()
        return list(self._found)

    def _read_subsets(self) -> dict[str, str]:
        """Scene -> the subset that a split beside the grids tells.

        Raises:
            InputError: a split cannot be read.
        """
        subsets: dict[str, str] = {}
        for file in _npz_files(self._beside):
            if file in self._found.values() or not (_names_in(file) or set()) & _SUBSETS.keys():
                continue
            try:
                arrays = _arrays(file, file.stem, _SUBSETS)
            except BrokenScene as broken:
                raise InputError(broken.detail) from broken
            for key in filter(arrays.__contains__, _SUBSETS):  # a scene that several name is of the last of them
                listed = arrays[key]
                if listed.dtype.kind not in "US":
                    raise InputError(f"{file}: {key} holds {listed.dtype}; names of scenes as text are expected")
                names = (name.decode() if isinstance(name, bytes) else str(name) for name in listed.reshape(-1))
                subsets |= dict.fromkeys(names, _SUBSETS[key])
        return subsets

    def open(self, name: str) -> RadianceGridScene:
        boxes, labels = self._find(name, _BOXES), self._find(name, _LABELS)
        count = None if self.classes is None else len(self.classes)
        subset = self._subsets.get(name, "")
        return RadianceGridScene(name, self._found[name], boxes, labels, self._density, count, subset)

    def _find(self, name: str, folders: Iterable[str]) -> Path | None:
        """The file of a scene in the first of some folders that has one."""
        files = (self._beside / folder / f"{name}.npy" for folder in folders)
        return next((file for file in files if file.is_file()), None)


def _npz_files(folder: Path) -> list[Path]:
    names = (entry.name for entry in looked_at(folder) if entry.name.lower().endswith(".npz") and entry.is_file())
    return [folder / name for name in sorted(names, key=numeric_order)]


def grid_files(root: Path) -> list[Path]:
    """The files of grids of a root: those in its folder of features, or else its own."""
    return _npz_files(root / _FEATURES) or _npz_files(root)


def _names_in(file: Path) -> set[str] | None:
    """Names of the arrays in an archive; None of one that is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except NUMPY_ERRORS:
        return None


def _holds_grid(file: Path, damaged: bool = False) -> bool:
    """Whether a file is a grid; ``damaged`` is the answer for one that cannot be read."""
    names = _names_in(file)
    return damaged if names is None else _GRID in names


def _read_density(file: Path) -> str | None:
    """The convention that a folder states; None where it states none.

    Raises:
        InputError: it states an unknown one.
    """
    if not file.is_file():
        return None
    try:
        told = read_text(file, file.parent.name).strip()
    except BrokenScene as broken:
        raise InputError(broken.detail) from broken
    if told not in CONVENTIONS:
        raise InputError(f"{file}: says {told[:40]!r}, one of {', '.join(CONVENTIONS)} is expected")
    return told
