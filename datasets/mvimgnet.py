"""MVImgNet and other captures of photos with a COLMAP model.

Layout of an instance::

    <class label>/<instance>/images/*.jpg
                             sparse/0/{cameras,images,points3D}.bin
                             masks/<image's stem>.png or <image's name>.png    where they were unpacked

The root holds class folders, or instances, or is one instance; any folder with ``images/`` and ``sparse/`` is one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from geo3d.datasets.colmap import ColmapModel, read_model
from geo3d.datasets.files import IMAGE_SUFFIXES, check_size, open_image, read_mask, subfolders
from geo3d.datasets.posed import PosedScene, ViewList
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset, Tracks
from geo3d.geometry import PointCloud
from geo3d.geometry.origin import find_origin, origin_rows

_LOOKED_AT = 8
_FEWEST_VIEWS = 2
_EXTENT_SHARE = 0.9


class ColmapScene(PosedScene):
    """Photos of one object or place, registered by COLMAP.

    The scale of such a model is arbitrary. It is normalised: the median of the sparse points has 90 % of them within
    distance 1. ``scale`` is the factor by which the file's lengths were multiplied; the file's coordinates are
    ``(xyz + origin) / scale``. The world's axes are the file's.

    Args:
        name: unique in the dataset.
        root: the instance's folder.

    Raises:
        BrokenScene: there are no images, or there is no model.
    """

    metric = False

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        if not (root / "images").is_dir():
            raise BrokenScene(name, root / "images", "no such folder: the instance has no images")
        candidates = (root / "sparse" / "0", root / "sparse")
        model = next((f for f in candidates for e in ("bin", "txt") if (f / f"cameras.{e}").is_file()), None)
        if model is None:
            raise BrokenScene(name, candidates[0], "no COLMAP model: cameras.bin is missing")
        self._model_folder = model
        self._present = _relative_images(root / "images")
        self._masks = self._find_masks()
        self._frame: tuple[float, np.ndarray] | None = None
        self.parts = frozenset({"views", "poses", "points", "tracks"} | ({"masks"} if self._masks_complete else set()))

    def _find_masks(self) -> dict[str, str]:
        """Mask file of each image that has one."""
        masks = _relative_images(self.root / "masks")
        named = {image: (f"{image}.png", f"{os.path.splitext(image)[0]}.png") for image in self._present}
        return {image: next(n for n in names if n in masks) for image, names in named.items() if masks & {*names}}

    @property
    def _masks_complete(self) -> bool:
        return bool(self._present) and len(self._masks) == len(self._present)

    @property
    def scale(self) -> float:
        """What the model's lengths are multiplied by; 1 for a model without points."""
        return self._scale_and_origin()[0]

    @property
    def origin(self) -> np.ndarray:
        return self._scale_and_origin()[1].copy()

    def _scale_and_origin(self) -> tuple[float, np.ndarray]:
        if self._frame is None:
            self._read_model(observations=False)
        return self._frame

    def _read_model(self, observations: bool = True) -> ColmapModel:
        """The model in normalised units, less the origin; points and poses alike."""
        model = read_model(self._model_folder, self.name, observations)
        self._frame = scale, origin = _scale_and_origin(model)
        poses = model.poses.copy()
        poses[:, :3, 3] = poses[:, :3, 3] * scale - origin
        return replace(model, xyz=model.xyz * scale - origin, poses=poses)

    def read_views(self) -> ViewList:
        model = self._read_model(observations=False)
        kept = [i for i, name in enumerate(model.names) if name in self._present]
        if len(kept) < _FEWEST_VIEWS:
            reason = (
                f"{len(kept)} of the model's {len(model.names)} registered images exist in images/; "
                f"at least {_FEWEST_VIEWS} are needed"
            )
            raise BrokenScene(self.name, self._model_folder, reason)
        cameras = [model.cameras[i] for i in kept]
        check_size(self.root / "images" / model.names[kept[0]], self.name, cameras[0])
        names, remarks = [model.names[i] for i in kept], self._remarks(model, len(kept))
        return ViewList(names, cameras, model.poses[kept], remarks, self.origin)

    def _remarks(self, model: ColmapModel, kept: int) -> tuple[Remark, ...]:
        unmasked = len(self._present) - len(self._masks) if self._masks else 0
        counts = (
            ("sparse", "registered images skipped: they are not in images/", len(model.names) - kept),
            ("images", "images skipped: the model has not registered them", len(self._present) - kept),
            ("masks", "images have no mask: the masks of the others are not used", unmasked),
        )
        return tuple(Remark(self.name, str(self.root / place), why, count) for place, why, count in counts if count)

    def image(self, index: int) -> Image.Image:
        return open_image(self.root / "images" / self.view_names[index], self.name)

    def mask(self, index: int) -> np.ndarray:
        self.require("masks")
        return read_mask(self.root / "masks" / self._masks[self.view_names[index]], self.name)

    def points(self) -> PointCloud:
        """The sparse points with their colours; normalised units."""
        model = self._read_model(observations=False)
        colors = torch.from_numpy(model.colors.astype(np.float32) / 255)
        return PointCloud(torch.from_numpy(model.xyz.astype(np.float32)), colors, origin=origin_rows(self.origin))

    def tracks(self) -> Tracks:
        """The sparse points and what the usable views observe of them; normalised units."""
        model = self._read_model()
        row = {name: i for i, name in enumerate(self.view_names)}
        view = np.array([row.get(name, -1) for name in model.names], dtype=np.int64)[model.image]
        kept = view >= 0
        return Tracks(model.xyz, model.error, view[kept], model.point[kept], model.uv[kept])


def _scale_and_origin(model: ColmapModel) -> tuple[float, np.ndarray]:
    """Factor that normalises a model's lengths, and its origin in normalised units; float32 must not round before."""
    if not len(model.xyz):
        return 1.0, find_origin(model.poses[:, :3, 3])
    distance = np.linalg.norm(model.xyz - np.median(model.xyz, axis=0), axis=1)
    radius = float(np.quantile(distance, _EXTENT_SHARE))
    scale = 1 / radius if radius > 0 else 1.0
    return scale, find_origin(model.xyz) * scale


def _relative_images(folder: Path) -> set[str]:
    """Image files under ``folder``, as COLMAP names them."""
    found = set()
    for place, _, files in os.walk(folder):
        prefix = Path(place).relative_to(folder)
        found |= {(prefix / f).as_posix() for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES}
    return found


def _is_capture(folder: Path) -> bool:
    return (folder / "sparse").is_dir() and (folder / "images").is_dir()


class MVImgNet(SceneDataset):
    """MVImgNet, one of its classes, one instance, or any capture with photos and a COLMAP model."""

    kind = "mvimgnet"

    @classmethod
    def detect(cls, root: Path) -> bool:
        children = [root / name for name in subfolders(root)[:_LOOKED_AT]]
        if any(map(_is_capture, [root, *children])):
            return True
        return any(_is_capture(child / name) for child in children for name in subfolders(child)[:_LOOKED_AT])

    def names(self) -> list[str]:
        self._alone = _is_capture(self.root)
        if self._alone:
            return [self.root.name]
        names = []
        for child in subfolders(self.root):
            inside = subfolders(self.root / child)
            instance = "images" in inside or "sparse" in inside
            names += [child] if instance else [f"{child}/{name}" for name in inside]
        return names

    def open(self, name: str) -> ColmapScene:
        return ColmapScene(name, self.root if self._alone else self.root / name)
