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

from geo3d.datasets.colmap import ColmapModel, model_ending, read_model, registered_count
from geo3d.datasets.files import folders_below, subfolders
from geo3d.datasets.image_files import check_size, count_renamed, find_images, image_names, open_image, read_mask
from geo3d.datasets.object_folders import category_names
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
    ``(xyz + origin) / scale``. The world's axes are the file's. Of several models that with the most images is read.

    Args:
        name: unique in the dataset.
        root: the instance's folder.
        category: row of the dataset's ``categories``.

    Raises:
        BrokenScene: there are no images, or there is no model.
    """

    metric = False
    is_object = True

    def __init__(self, name: str, root: Path, category: int = -1) -> None:
        self.name, self.root, self.category = name, root, category
        if not (root / "images").is_dir():
            raise BrokenScene(name, root / "images", "no such folder: the instance has no images")
        self._model_folder, self._notes = self._find_model()
        self._present = _relative_images(root / "images")
        self._masks = self._find_masks()
        self._frame: tuple[float, np.ndarray] | None = None
        self.parts = frozenset({"views", "poses", "points", "tracks"} | ({"masks"} if self._masks_complete else set()))

    def _find_model(self) -> tuple[Path, tuple[Remark, ...]]:
        """Folder of the model with the most registered images, the first of these, and what was not taken."""
        sparse = self.root / "sparse"
        numbered = [sparse / name for name in subfolders(sparse)] if sparse.is_dir() else []
        models = [folder for folder in (*numbered, sparse) if model_ending(folder)]
        if not models:
            raise BrokenScene(self.name, sparse / "0", "no COLMAP model: cameras.bin is missing")
        if len(models) == 1:
            return models[0], ()
        counts = [registered_count(folder, self.name) for folder in models]
        best = models[counts.index(max(counts))]
        place = best.relative_to(self.root).as_posix()
        reason = (
            f"models with fewer registered images, or damaged ones, are not used: {place} has the most, {max(counts)}"
        )
        return best, (Remark(self.name, str(sparse), reason, len(models) - 1),)

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
        files = [self._inside(file) for file in find_images(self.root / "images", model.names)]
        kept = [i for i, file in enumerate(files) if file is not None]
        if len(kept) < _FEWEST_VIEWS:
            reason = (
                f"{len(kept)} of the model's {len(model.names)} registered images exist in images/; "
                f"at least {_FEWEST_VIEWS} are needed"
            )
            raise BrokenScene(self.name, self._model_folder, reason)
        cameras = [model.cameras[i] for i in kept]
        check_size(files[kept[0]], self.name, cameras[0])
        names = [model.names[i] for i in kept]
        self._files = {name: files[i] for name, i in zip(names, kept)}
        remarks = self._remarks(model)
        return ViewList(names, cameras, model.poses[kept], remarks, self.origin)

    def _remarks(self, model: ColmapModel) -> tuple[Remark, ...]:
        names, files = list(self._files), list(self._files.values())
        used = self._present & set(map(self._relative, files))
        unmasked = len(self._present) - len(self._masks) if self._masks else 0
        counts = (
            ("sparse", "registered images skipped: they are not in images/", len(model.names) - len(files)),
            ("images", "images have another ending than the model says, and are used", count_renamed(files, names)),
            ("images", "images skipped: the model has not registered them", len(self._present - used)),
            ("masks", "images have no mask: the masks of the others are not used", unmasked),
        )
        remarks = tuple(Remark(self.name, str(self.root / place), why, count) for place, why, count in counts if count)
        return remarks + self._notes

    def _inside(self, file: Path | None) -> Path | None:
        """The file itself where it lies in ``images/``."""
        return None if file is None or self._relative(file).startswith("../") else file

    def _relative(self, file: Path) -> str:
        return Path(os.path.relpath(file, self.root / "images")).as_posix()

    def _file(self, index: int) -> Path:
        name = self.view_names[index]  # reading them finds the files
        return self._files[name]

    def image(self, index: int) -> Image.Image:
        return open_image(self._file(index), self.name)

    def mask(self, index: int) -> np.ndarray:
        self.require("masks")
        image = self._relative(self._file(index))
        if image not in self._masks:
            raise BrokenScene(self.name, self.root / "masks", f"image {image} has no mask")
        return read_mask(self.root / "masks" / self._masks[image], self.name)

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
    places = folders_below(folder) if folder.is_dir() else ()
    return {(place / name).relative_to(folder).as_posix() for place in places for name in image_names(place)}


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

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        return _is_capture(root)

    def names(self) -> list[str]:
        self._alone = self.is_scene(self.root)
        if self._alone:
            return [self.root.name]
        names, labels = [], []
        for child in subfolders(self.root):
            inside = subfolders(self.root / child)
            instance = "images" in inside or "sparse" in inside
            names += [child] if instance else [f"{child}/{name}" for name in inside]
            labels += [child] if inside and not instance else []
        known = category_names(self.root)
        self.categories = tuple(known.get(label, label) for label in labels)
        self._rows = {label: row for row, label in enumerate(labels)}
        return names

    def open(self, name: str) -> ColmapScene:
        if self._alone:
            return ColmapScene(name, self.root)
        return ColmapScene(name, self.root / name, self._rows.get(name.partition("/")[0], -1))
