"""Scene and SceneDataset: what every dataset on disk hands out."""

from __future__ import annotations

import itertools
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, overload

import numpy as np
import torch
from PIL import Image

from geo3d.datasets.files import entries, list_line, read_text, subfolders
from geo3d.datasets.image_files import decode
from geo3d.datasets.plain_text import split_lines
from geo3d.datasets.quarantine import BrokenScene, Quarantine, Remark
from geo3d.errors import InputError, did_you_mean
from geo3d.geometry import Camera, PointCloud, View, VolumeGrid
from geo3d.geometry.origin import origin_rows

#: Everything a scene can hold. A scene lists the parts it has in ``Scene.parts``.
PARTS = {
    "views": "images",
    "poses": "a camera and a world_from_camera pose for every view",
    "depth": "a depth map for every view",
    "masks": "an object mask for every view",
    "points": "a point cloud",
    "mesh": "a triangle mesh",
    "labels": "semantic and instance labels of the mesh or points",
    "tracks": "sparse points with the views and pixels that observe them",
    "pairs": "view pairs listed by the dataset itself",
    "grid": "a radiance grid",
    "disparity": "rectified pairs of views with disparity",
    "flow": "pairs of views with optical flow",
}

#: Classes of labelled scenes whose instances are surfaces of a room and not objects in it.
SURFACES = ("wall", "floor", "ceiling")

#: Parts that come with the list of views.
VIEW_PARTS = frozenset({"views", "poses", "depth", "masks", "tracks", "pairs", "disparity", "flow"})


class MissingPart(InputError):
    """A part was asked of a scene that does not list it in ``Scene.parts``."""


class SeveralDatasets(InputError):
    """A folder above several datasets was given for one; the message names them."""


@dataclass
class Mesh:
    """Triangle mesh with what is known per vertex.

    Args:
        vertices: (V, 3) float32 metres, less the origin of the scene.
        faces: (F, 3) int64 vertex indices.
        colors: (V, 3) float32 in [0, 1].
        normals: (V, 3) float32 unit vectors.
        semantic: (V,) int64 dataset class, -1 where ignored.
        instance: (V,) int64, -1 where there is none.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None

    def to_points(self, origin: np.ndarray) -> PointCloud:
        """The vertices with what is known of them.

        Args:
            origin: (3,) of the scene, see :attr:`Scene.origin`.
        """
        columns = (self.vertices, self.colors, self.normals, self.semantic, self.instance)
        tensors = (None if c is None else torch.from_numpy(np.ascontiguousarray(c)) for c in columns)
        return PointCloud(*tensors, origin=origin_rows(origin))


@dataclass
class Tracks:
    """Sparse points of a structure-from-motion model and the views that observe them.

    Args:
        xyz: (P, 3) float64 world points, less the origin of the scene.
        error: (P,) float64 mean reprojection error, pixels.
        view: (O,) int64 view index of each observation.
        point: (O,) int64 row of ``xyz`` of each observation.
        uv: (O, 2) float64 observed pixel (upper-left pixel centre is (0, 0)).
    """

    xyz: np.ndarray
    error: np.ndarray
    view: np.ndarray
    point: np.ndarray
    uv: np.ndarray


class Scene:
    """One place or object. Construction is cheap; every part is read when asked for.

    Subclasses set ``name`` (unique in the dataset), ``root``, ``parts`` and override the readers of the
    parts they list. ``metric`` says whether lengths are metres or of arbitrary scale.

    A reader raises :class:`BrokenScene` when a file is damaged, and :class:`MissingPart` for a part not listed.
    """

    name: str
    root: Path
    parts: frozenset[str] = frozenset()
    metric: bool = True
    #: Whether it is a single object rather than a place.
    is_object: bool = False
    #: Whether its views are of places that have nothing to do with each other, so that pairs of them may be parted.
    of_many_places: bool = False
    #: Row of the dataset's ``categories``: what the object is; -1 where that is not known.
    category: int = -1
    #: ``train`` or ``test`` where the dataset says to which of them an object belongs; else empty.
    subset: str = ""

    @property
    def origin(self) -> np.ndarray:
        """(3,) float64: what was taken off points, mesh, poses and tracks alike, so that float32 keeps millimetres.

        World coordinates are those of the parts plus this. Zeros unless the scene lies far from zero, see
        :func:`geo3d.geometry.origin.find_origin`.
        """
        return np.zeros(3)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What the reader left out of the scene's views, such as listed images that do not exist; reads their list."""
        return ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, parts={sorted(self.parts)})"

    def require(self, *parts: str) -> None:
        """Raise :class:`MissingPart` unless the scene lists all ``parts``."""
        missing = [p for p in parts if p not in self.parts]
        if missing:
            raise MissingPart(
                f"scene {self.name} ({self.root}) has no {', '.join(missing)}; it has {sorted(self.parts)}"
            )

    @property
    def view_names(self) -> Sequence[str]:
        """Name of every view, in a fixed order; index i of the methods below counts in it."""
        raise MissingPart(f"scene {self.name} has no views")

    def camera(self, index: int) -> Camera:
        """Intrinsics of image ``index``."""
        raise MissingPart(f"scene {self.name} has no poses")

    def pose(self, index: int) -> np.ndarray:
        """``world_from_camera`` (4, 4) float64 of view ``index``; the world's origin is that of the scene."""
        raise MissingPart(f"scene {self.name} has no poses")

    def image(self, index: int) -> Image.Image:
        """RGB image of view ``index``; decoded lazily by Pillow, so that ``draft`` can still shrink a JPEG."""
        raise MissingPart(f"scene {self.name} has no views")

    def depth(self, index: int) -> np.ndarray:
        """Depth (H, W) float32 of view ``index``, metres along z, 0 where unknown."""
        raise MissingPart(f"scene {self.name} has no depth")

    def depth_camera(self, index: int) -> Camera:
        """Intrinsics of the depth map; the pose is that of the view."""
        self.require("depth")
        return self.camera(index)

    def mask(self, index: int) -> np.ndarray:
        """Object mask (H, W) bool of view ``index``."""
        raise MissingPart(f"scene {self.name} has no masks")

    def points(self) -> PointCloud:
        """The scene's points, with colours, normals and labels where known."""
        raise MissingPart(f"scene {self.name} has no points")

    def cloud(self) -> PointCloud:
        """The scene's points, or else the vertices of its mesh, with what is known of them.

        Raises:
            MissingPart: the scene has neither.
            BrokenScene: its files are damaged.
        """
        if "mesh" in self.parts and "points" not in self.parts:
            mesh = self.mesh()
            return mesh.to_points(self.origin)
        self.require("points")
        return self.points()

    def mesh(self) -> Mesh:
        """The scene's mesh, with labels where known."""
        raise MissingPart(f"scene {self.name} has no mesh")

    def tracks(self) -> Tracks:
        """The scene's sparse points and their observations."""
        raise MissingPart(f"scene {self.name} has no tracks")

    def pairs(self) -> np.ndarray:
        """(P, 2) int64 view indices of the pairs that the dataset lists."""
        raise MissingPart(f"scene {self.name} has no pairs")

    def stereo_pairs(self) -> np.ndarray:
        """(P, 2) int64 view indices, left and right, of the rectified pairs with disparity."""
        raise MissingPart(f"scene {self.name} has no disparity")

    def disparity(self, number: int) -> np.ndarray:
        """Disparity (H, W) float32 of the left view of stereo pair ``number``, pixels, NaN where unknown.

        What the left view shows at x is at x - disparity in the right one.
        """
        raise MissingPart(f"scene {self.name} has no disparity")

    def flow_pairs(self) -> np.ndarray:
        """(P, 2) int64 view indices, first and second, of the pairs with optical flow."""
        raise MissingPart(f"scene {self.name} has no flow")

    def flow(self, number: int) -> np.ndarray:
        """Optical flow (H, W, 2) float32 of the first view of flow pair ``number``, pixels to the right and down.

        NaN where unknown. What the first view shows at (x, y) is at (x, y) + flow in the second one.
        """
        raise MissingPart(f"scene {self.name} has no flow")

    def grid(self) -> VolumeGrid:
        """The scene's radiance grid, with labels and boxes where known."""
        raise MissingPart(f"scene {self.name} has no grid")

    def view(self, index: int) -> View:
        """View ``index`` with everything the scene has of it, as tensors.

        Raises:
            BrokenScene: a file is damaged, or an image is not of its camera's size.
        """
        self.require("views")
        name = self.view_names[index]
        where = f"{self.root}: view {name}"
        with self.image(index) as picture:
            image = torch.from_numpy(decode(picture, where, self.name)).float() / 255
        posed, deep = "poses" in self.parts, "depth" in self.parts
        known = {
            "camera": self.camera(index) if posed else None,
            "world_from_camera": torch.from_numpy(self.pose(index)) if posed else None,
            "depth": torch.from_numpy(self.depth(index)) if deep else None,
            "depth_camera": self.depth_camera(index) if deep else None,
            "mask": torch.from_numpy(self.mask(index)) if "masks" in self.parts else None,
        }
        try:
            return View(name, image=image, **known)
        except ValueError as error:
            raise BrokenScene(self.name, where, str(error)) from error


class SceneDataset(Sequence):
    """The scenes under one folder, in a fixed order; found by number, by slice and by name.

    Subclasses set ``kind`` and implement :meth:`detect`, :meth:`names` and :meth:`open`. Those whose scenes are
    labelled set ``classes``, for the class or for the instance; those whose scenes are objects of known categories set
    ``categories``.

    Args:
        root: the folder.
        quarantine: where broken scenes are noted; a new one when not given.
        split: text file with one scene name a line, such as ScanNet's official lists; only those scenes are used,
            in the file's order. Blank lines and comments (``#``) do not count. A listed scene that is not under
            ``root`` is a broken scene.

    Raises:
        InputError: ``split`` cannot be read, or lists nothing that is there.
    """

    kind: ClassVar[str]
    #: Whether the layout is so general that it is tried only after all others.
    last_resort: ClassVar[bool] = False
    #: Names of the classes that labels count in; None where the dataset is not labelled.
    classes: tuple[str, ...] | None = None
    #: Names of what ``Scene.category`` counts in, for datasets of objects; empty where it is not known.
    categories: tuple[str, ...] = ()
    #: Whether each scene is a folder, which may itself be a root; many objects may share a folder or a file.
    folder_scenes: ClassVar[bool] = True
    #: Names of folders of a root that hold parts of its scenes, and are never datasets of their own.
    part_folders: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, root: str | Path, quarantine: Quarantine | None = None, split: str | Path | None = None) -> None:
        # Absolute, because the name of a scene that is the root itself is the folder's name.
        self.root = Path(root).absolute()
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.scene_names = self.names()
        if split is not None:
            self._restrict(Path(split))

    def _restrict(self, split: Path) -> None:
        """Keep the scenes that ``split`` lists."""
        try:
            lines = split_lines(read_text(split, split.name))
        except BrokenScene as error:
            raise InputError(f"{split}: the split list {error.reason}") from error
        known = set(self.scene_names)
        listed = dict.fromkeys(name for line in lines for name in _listed_names(line, known))
        if not listed:
            raise InputError(f"{split}: the split list is empty; give a text file with one scene name a line")
        self.scene_names = [name for name in listed if name in known]
        if known and not self.scene_names:
            first, near = next(iter(listed)), did_you_mean(next(iter(listed)), known)
            raise InputError(
                f"{split}: none of the {len(listed)} scenes that it lists is in {self.root}, the first: {first!r}{near}"
            )
        for name in listed:
            if name not in known:
                self.quarantine.add(BrokenScene(name, self.root, f"listed in {split}, but there is no such scene"))

    @classmethod
    @abstractmethod
    def detect(cls, root: Path) -> bool:
        """Whether ``root`` looks like this dataset; looks at few names and opens no data."""

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        """Whether ``root`` is itself one scene of this dataset, whatever else lies in it."""
        return False

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all scenes under ``root``, sorted."""

    @abstractmethod
    def open(self, name: str) -> Scene:
        """Open one scene; raises :class:`BrokenScene` when it cannot be read."""

    def __len__(self) -> int:
        return len(self.scene_names)

    def __repr__(self) -> str:
        count = len(self)
        return f"{type(self).__name__}({self.kind}: {count} scene{'' if count == 1 else 's'} in {str(self.root)!r})"

    def __contains__(self, name: object) -> bool:
        """Whether there is a scene of a name."""
        return name in self.scene_names

    @overload
    def __getitem__(self, index: int | str) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...

    def __getitem__(self, index: int | str | slice) -> Scene | list[Scene]:
        """Open the scene of a number or a name, or the scenes of a slice.

        Raises:
            InputError: no scene has that name.
            IndexError: no scene has that number.
            BrokenScene: the scene cannot be read.
        """
        if isinstance(index, slice):
            return [self.open(name) for name in self.scene_names[index]]
        if not isinstance(index, str):
            return self.open(self.scene_names[index])
        if index not in self.scene_names:
            near = did_you_mean(index, self.scene_names)
            raise InputError(f"{self.root}: none of its {len(self)} scenes is named {index!r}{near}")
        return self.open(index)

    def readable(self, *parts: str) -> Iterator[Scene]:
        """Scenes that open and hold all ``parts``; broken ones go to the quarantine.

        Where parts of views are asked for, the list of views is read, so that damage to it shows here and not in the
        middle of a run, and what it leaves out is noted in the quarantine. Images and meshes are not read.
        """
        for name in self.scene_names:
            try:
                scene = self.open(name)
                if not all(part in scene.parts for part in parts):
                    continue
                if VIEW_PARTS.intersection(parts):
                    len(scene.view_names)
                    self.quarantine.note(scene.remarks)
            except BrokenScene as broken:
                self.quarantine.add(broken)
                continue
            yield scene


_REGISTRY: dict[str, type[SceneDataset]] = {}
# How deep datasets are looked for below a folder that is none, among how many folders of a level, for the message that
# names them; and how many of a kind it names.
_DEEPEST_DATASET, _MOST_FOLDERS, _MOST_NAMES = 3, 200, 12


def register_dataset(cls: type[SceneDataset]) -> type[SceneDataset]:
    """Class decorator: make a dataset known to :func:`open_dataset` under ``cls.kind``."""
    if cls.kind in _REGISTRY:
        raise ValueError(f"dataset kind {cls.kind!r} is registered twice")
    _REGISTRY[cls.kind] = cls
    for general in [kind for kind, reader in _REGISTRY.items() if reader.last_resort]:
        _REGISTRY[general] = _REGISTRY.pop(general)
    return cls


def list_datasets() -> list[str]:
    """Kinds that :func:`open_dataset` knows, in the order in which it tries them."""
    return list(_REGISTRY)


def recognised_by(root: Path, before: str = "") -> str | None:
    """The first kind whose layout a folder has, of those that are tried ``before`` one; None when it has none."""
    tried = itertools.takewhile(lambda entry: entry[0] != before, _REGISTRY.items())
    return next((kind for kind, reader in tried if reader.detect(root)), None)


def _listed_names(line: str, known: set[str]) -> list[str]:
    """The scenes that a line of a split list names: one, whose name may hold spaces, or several parted by spaces."""
    name = list_line(line)
    choices = (line.strip(), name, name.replace("\\", "/").rstrip("/"), list_line(name.partition(" #")[0]))
    exact = next((choice for choice in choices if choice in known), None)
    if exact is not None:
        return [exact]
    words = name.split()
    return words if len(words) > 1 and known.issuperset(words) else [name] * bool(name)


def recognise(root: Path) -> str:
    """The kind of a folder; never that of only some of the folders in it.

    Raises:
        SeveralDatasets: folders in it are laid out as kinds that no single one reads.
        InputError: it is laid out as none.
    """
    kinds = [kind for kind, reader in _REGISTRY.items() if reader.detect(root)]
    alone = (kind for kind in kinds if _REGISTRY[kind].is_scene(root))
    kind = next(alone, None) or next((kind for kind in kinds if not _read_by_others(root, kind)), None)
    if kind is not None:
        return kind
    found = _datasets_below(root)
    if len(found) < 2:
        below = "".join(f" {folder} is one ({kind})." for folder, kind in found)
        raise InputError(
            f"{root}: not recognised as any of {', '.join(_REGISTRY)}; give one dataset's own folder, "
            f"laid out as in docs/datasets.md.{below}"
        )
    by_kind: dict[str, list[str]] = {}
    for folder, kind in found:
        by_kind.setdefault(kind, []).append(folder.relative_to(root).as_posix())
    named = "; ".join(f"{kind}: {_enumerated(names)}" for kind, names in by_kind.items())
    kinds = ", or say by `kind` which to read" if len(by_kind) > 1 else ""
    raise SeveralDatasets(f"{root}: holds several datasets ({named}); give one of these folders{kinds}")


def _read_by_others(root: Path, kind: str) -> bool:
    """Whether ``root`` is of a kind because of some of its folders, while others of them are of other kinds alone."""
    children = [root / name for name in subfolders(root) if name not in _REGISTRY[kind].part_folders]
    strange = [child for child in children if not _REGISTRY[kind].detect(child)]
    return len(strange) < len(children) and any(recognised_by(child) for child in strange)


def _datasets_below(root: Path) -> list[tuple[Path, str]]:
    """The folders in ``root`` that are datasets, and their kinds; where a folder is none, those below it."""
    found = []
    level = [root]
    for _ in range(_DEEPEST_DATASET):
        below = [folder / name for folder in level for name in subfolders(folder)][:_MOST_FOLDERS]
        kinds = [recognised_by(folder) for folder in below]
        found += [(folder, kind) for folder, kind in zip(below, kinds) if kind]
        level = [folder for folder, kind in zip(below, kinds) if not kind]
    return sorted(found)


def _enumerated(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def open_dataset(
    root: str | Path, kind: str = "auto", quarantine: Quarantine | None = None, split: str | Path | None = None
) -> SceneDataset:
    """Open a folder as a dataset.

    Args:
        root: the folder.
        kind: one of :func:`list_datasets`, or ``auto`` to recognise the layout.
        quarantine: where broken scenes are noted; a new one when not given.
        split: text file with one scene name a line; only those scenes are used.

    Raises:
        SeveralDatasets: ``root`` holds datasets of several kinds and none was asked for.
        InputError: ``root`` does not exist, the kind is unknown, the layout is not recognised, it holds no scene, or
            ``split`` cannot be read.
    """
    root = Path(root).absolute()
    if os.path.isfile(root):  # Path's own raises on names that are too long for a file
        raise InputError(f"{root}: is a file; give the root of a dataset, or read points with geo3d.read_points")
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder; give the root of a dataset")
    entries(root)  # one that cannot be listed is said to be that, not to be of no layout
    if kind == "auto":
        kind = recognise(root)
    if kind not in _REGISTRY:
        known = ", ".join(_REGISTRY)
        raise InputError(f"unknown dataset kind {kind!r}; known: {known}{did_you_mean(kind, _REGISTRY)}")
    dataset = _REGISTRY[kind](root, quarantine, split)
    if len(dataset) == 0:
        raise InputError(f"{root}: no scene found in the {kind} layout; see docs/datasets.md")
    return dataset
