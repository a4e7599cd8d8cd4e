"""Scene and SceneDataset: what every dataset on disk hands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from geo3d.errors import InputError
from geo3d.geometry import Camera, PointCloud, View

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
}


class BrokenScene(InputError):
    """A scene that cannot be read: says which, in which file, at which byte and why."""

    def __init__(self, scene: str, file: Path | str, reason: str, offset: int | None = None) -> None:
        self.scene, self.file, self.reason, self.offset = scene, str(file), reason, offset
        at = "" if offset is None else f" at byte {offset}"
        super().__init__(f"scene {scene}: {file}{at}: {reason}")

    def __reduce__(self):  # exceptions travel from loader workers by pickling
        return type(self), (self.scene, self.file, self.reason, self.offset)


@dataclass(frozen=True)
class Remark:
    """Something in a scene was left out and the rest is used; not an error.

    Args:
        scene: name of the scene.
        file: where it was noticed.
        reason: what was left out and why.
        count: how many of them.
        offset: byte of ``file``, where it makes sense.
    """

    scene: str
    file: str
    reason: str
    count: int
    offset: int | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        return f"scene {self.scene}: {self.file}{at}: {self.count} {self.reason}"


class MissingPart(InputError):
    """A part was asked of a scene that does not list it in ``Scene.parts``."""


@dataclass
class Mesh:
    """Triangle mesh with what is known per vertex.

    Args:
        vertices: (V, 3) float32 metres.
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


@dataclass
class Tracks:
    """Sparse points of a structure-from-motion model and who sees them.

    Args:
        xyz: (P, 3) float64 world points.
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

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What the reader left out of the scene's views, such as listed images that do not exist."""
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
        """``world_from_camera`` (4, 4) float64 of view ``index``."""
        raise MissingPart(f"scene {self.name} has no poses")

    def image(self, index: int) -> Image.Image:
        """RGB image of view ``index``; decoded lazily by Pillow, so that ``draft`` can still shrink a JPEG."""
        raise MissingPart(f"scene {self.name} has no views")

    def depth(self, index: int) -> np.ndarray:
        """Depth (H, W) float32 of view ``index``, metres along z, 0 where unknown."""
        raise MissingPart(f"scene {self.name} has no depth")

    def depth_camera(self, index: int) -> Camera:
        """Intrinsics of the depth map; the pose is that of the view."""
        return self.camera(index)

    def mask(self, index: int) -> np.ndarray:
        """Object mask (H, W) bool of view ``index``."""
        raise MissingPart(f"scene {self.name} has no masks")

    def points(self) -> PointCloud:
        """The scene's points, with colours, normals and labels where known."""
        raise MissingPart(f"scene {self.name} has no points")

    def mesh(self) -> Mesh:
        """The scene's mesh, with labels where known."""
        raise MissingPart(f"scene {self.name} has no mesh")

    def tracks(self) -> Tracks:
        """The scene's sparse points and their observations."""
        raise MissingPart(f"scene {self.name} has no tracks")

    def pairs(self) -> np.ndarray:
        """(P, 2) int64 view indices of the pairs that the dataset lists."""
        raise MissingPart(f"scene {self.name} has no pairs")

    def view(self, index: int) -> View:
        """View ``index`` with everything the scene has of it, as tensors."""
        self.require("views")
        image = torch.from_numpy(np.array(self.image(index).convert("RGB"))).float() / 255
        posed, deep = "poses" in self.parts, "depth" in self.parts
        return View(
            self.view_names[index],
            camera=self.camera(index) if posed else None,
            world_from_camera=torch.from_numpy(self.pose(index)) if posed else None,
            image=image,
            depth=torch.from_numpy(self.depth(index)) if deep else None,
            depth_camera=self.depth_camera(index) if deep else None,
            mask=torch.from_numpy(self.mask(index)) if "masks" in self.parts else None,
        )


def are_rigid(poses: np.ndarray) -> np.ndarray:
    """Which of ``poses`` (N, 4, 4) are finite rotations with a translation; those of lost frames are not."""
    finite = np.isfinite(poses).all((1, 2))
    rotation = np.where(finite[:, None, None], poses, 0)[:, :3, :3].astype(np.float64)
    gram = rotation @ rotation.transpose(0, 2, 1)
    # Text files carry six decimals and float32 chains drift: 1e-2 tells those from zeros, scalings and noise.
    orthonormal = np.abs(gram - np.eye(3)).max((1, 2), initial=0) < 1e-2
    return finite & orthonormal & (np.linalg.det(rotation) > 0)


@dataclass
class Quarantine:
    """Scenes that could not be read, with file, offset and reason; and what was left out of the others."""

    entries: list[BrokenScene] = field(default_factory=list)
    strict: bool = False
    remarks: list[Remark] = field(default_factory=list)

    def add(self, broken: BrokenScene) -> None:
        """Note a broken scene once, or raise it when strict."""
        if self.strict:
            raise broken
        if str(broken) not in {str(entry) for entry in self.entries}:
            self.entries.append(broken)

    def note(self, remarks: Iterable[Remark]) -> None:
        """Note what was left out of a readable scene, each remark once."""
        self.remarks.extend(r for r in remarks if r not in self.remarks)

    def __len__(self) -> int:
        """Number of broken scenes' entries; remarks do not count."""
        return len(self.entries)

    def report(self) -> str:
        """One line for each broken scene, then one for each remark; empty when all is well."""
        return "\n".join(map(str, [*self.entries, *self.remarks]))


class SceneDataset(Sequence):
    """The scenes under one folder, in a fixed order.

    Subclasses set ``kind`` and implement :meth:`detect`, :meth:`names` and :meth:`open`.
    """

    kind: ClassVar[str]

    def __init__(self, root: str | Path, quarantine: Quarantine | None = None) -> None:
        self.root = Path(root)
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.scene_names = self.names()

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Whether ``root`` looks like this dataset; looks at few names and opens no data."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Names of all scenes under ``root``, sorted."""
        raise NotImplementedError

    def open(self, name: str) -> Scene:
        """Open one scene; raises :class:`BrokenScene` when it cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.scene_names)

    def __getitem__(self, index):
        return self.open(self.scene_names[index])

    def readable(self, *parts: str) -> Iterator[Scene]:
        """Scenes that open and hold all ``parts``; broken ones go to the quarantine."""
        for name in self.scene_names:
            try:
                scene = self.open(name)
            except BrokenScene as broken:
                self.quarantine.add(broken)
                continue
            if all(part in scene.parts for part in parts):
                yield scene


_REGISTRY: dict[str, type[SceneDataset]] = {}


def register_dataset(cls: type[SceneDataset]) -> type[SceneDataset]:
    """Class decorator: make a dataset known to :func:`open_dataset` under ``cls.kind``."""
    if cls.kind in _REGISTRY:
        raise ValueError(f"dataset kind {cls.kind!r} is registered twice")
    _REGISTRY[cls.kind] = cls
    return cls


def list_datasets() -> list[str]:
    """Kinds that :func:`open_dataset` knows, in the order in which it tries them."""
    return list(_REGISTRY)


def open_dataset(root: str | Path, kind: str = "auto", quarantine: Quarantine | None = None) -> SceneDataset:
    """Open a folder as a dataset.

    Args:
        root: the folder.
        kind: one of :func:`list_datasets`, or ``auto`` to recognise the layout.
        quarantine: where broken scenes are noted; a new one when not given.

    Raises:
        InputError: ``root`` does not exist, the kind is unknown, the layout is not recognised, or it holds no scene.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the root of a dataset")
    if kind == "auto":
        kind = next((k for k, cls in _REGISTRY.items() if cls.detect(root)), "")
        if not kind:
            raise InputError(
                f"{root}: not recognised as any of {', '.join(_REGISTRY)}; see docs/datasets.md for the layouts"
            )
    if kind not in _REGISTRY:
        raise InputError(f"unknown dataset kind {kind!r}; known: {', '.join(_REGISTRY)}")
    dataset = _REGISTRY[kind](root, quarantine)
    if len(dataset) == 0:
        raise InputError(f"{root}: no scene found in the {kind} layout; see docs/datasets.md")
    return dataset
