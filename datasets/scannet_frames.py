"""ScanNet frames as the exporter of its SDK writes them: one file for each image, depth map and pose.

Layout of a scene (the numbers need not be consecutive)::

    <scene>/color/<number>.jpg            or .png
            depth/<number>.png            16 bits, millimetres; the folder may be absent
            pose/<number>.txt             world_from_camera, 4 x 4
            intrinsic/intrinsic_color.txt and/or intrinsic_depth.txt, 4 x 4
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from geo3d.datasets.files import (
    are_rigid,
    image_names,
    image_size,
    numeric_order,
    open_image,
    read_depth,
    read_matrix,
    subfolders,
)
from geo3d.datasets.posed import PosedScene, ViewList
from geo3d.datasets.scene import BrokenScene, Remark, SceneDataset
from geo3d.geometry import Camera

_MILLIMETRES = 1000.0
# Where the exporter of the SDK and that of the benchmark's 25,000 frames put the matrices.
_INTRINSICS = ("intrinsic/intrinsic_{}.txt", "intrinsics_{}.txt")
# Principal points of real cameras lie within this share of the image size of its centre.
_CENTRE_TOLERANCE = 0.15
#: Detection looks at so many folders.
LOOKED_AT = 8
#: How the names of the files that make a folder a raw scan end.
MESH_ENDING, STREAM_ENDING = "_vh_clean_2.ply", ".sens"


class FrameSource(Protocol):
    """Where the RGB-D frames of a ScanNet scene come from."""

    views: ViewList
    depth_camera: Camera

    def image(self, index: int) -> Image.Image: ...

    def depth(self, index: int) -> np.ndarray: ...


class ExportedFrames:
    """The frames in the folders of one scene; those without an image, a depth map or a valid pose are left out.

    Args:
        folder: the scene's folder.
        scene: name for messages.
    """

    def __init__(self, folder: Path, scene: str) -> None:
        self.folder, self.scene = folder, scene

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether ``folder`` is laid out like a scene of exported frames."""
        return (folder / "color").is_dir() and (folder / "pose").is_dir()

    @cached_property
    def has_depth(self) -> bool:
        """Whether depth maps were exported too."""
        depth = self.folder / "depth"
        return depth.is_dir() and any(depth.iterdir())

    @cached_property
    def _files(self) -> dict[str, str]:
        """Image file of each frame that has one."""
        return {name.rpartition(".")[0]: name for name in image_names(self.folder / "color")}

    @cached_property
    def views(self) -> ViewList:
        """The usable frames, sorted by number.

        Raises:
            BrokenScene: a matrix cannot be read, the intrinsics do not fit the images, or no frame is usable.
        """
        posed = {p.stem for p in (self.folder / "pose").glob("*.txt")}
        listed = sorted(self._files.keys() | posed, key=numeric_order)
        remarks = []

        def keep(names: list[str], usable: list[bool], place: str, reason: str) -> list[str]:
            lost = usable.count(False)
            if lost:
                remarks.append(Remark(self.scene, str(self.folder / place), f"frames skipped: {reason}", lost))
            return [name for name, good in zip(names, usable) if good]

        names = keep(listed, [n in self._files for n in listed], "color", "they have no image")
        names = keep(names, [n in posed for n in names], "pose", "they have no pose file")
        if self.has_depth:
            mapped = {name.rpartition(".")[0] for name in image_names(self.folder / "depth")}
            names = keep(names, [n in mapped for n in names], "depth", "they have no depth map")
        poses = [read_matrix(self.folder / "pose" / f"{n}.txt", self.scene) for n in names]
        rigid = are_rigid(np.array(poses).reshape(-1, 4, 4))
        names = keep(names, rigid.tolist(), "pose", "their pose was lost")
        if not names:
            skipped = "; ".join(f"{r.count} {r.reason}" for r in remarks) or "the folder is empty"
            raise BrokenScene(self.scene, self.folder / "color", f"no usable frame: {skipped}")
        camera = self._camera("color", self._image_path(names[0]))
        return ViewList(names, [camera] * len(names), np.array(poses)[rigid], tuple(remarks))

    @cached_property
    def depth_camera(self) -> Camera:
        """Intrinsics of the depth maps."""
        return self._camera("depth", self._depth_path(self.views.names[0]))

    def _image_path(self, name: str) -> Path:
        return self.folder / "color" / self._files[name]

    def _depth_path(self, name: str) -> Path:
        return self.folder / "depth" / f"{name}.png"

    def _camera(self, kind: str, sample: Path) -> Camera:
        """Camera of the ``kind`` of images (``color``, ``depth``) of which ``sample`` is one.

        Colour images are often exported at depth resolution; the one matrix that was written then serves both.
        """
        width, height = image_size(sample, self.scene)
        kinds = (kind, "depth" if kind == "color" else "color")
        files = [self.folder / pattern.format(k) for k in kinds for pattern in _INTRINSICS]
        file = next((f for f in files if f.is_file()), files[0])
        matrix = read_matrix(file, self.scene)
        fx, fy, cx, cy = (float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]))
        off_centre = max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5))
        if not off_centre <= _CENTRE_TOLERANCE:
            reason = (
                f"principal point ({cx:g}, {cy:g}) is not near the centre of {sample.relative_to(self.folder)}, "
                f"{width} x {height}: the matrix belongs to images of another size; scale it to these"
            )
            raise BrokenScene(self.scene, file, reason)
        try:
            return Camera(width, height, fx, fy, cx, cy)
        except ValueError as error:
            raise BrokenScene(self.scene, file, str(error)) from error

    def image(self, index: int) -> Image.Image:
        """Colour image of frame ``index``, decoded when its pixels are asked for."""
        return open_image(self._image_path(self.views.names[index]), self.scene)

    def depth(self, index: int) -> np.ndarray:
        """Depth (H, W) float32 metres of frame ``index``, 0 where unknown."""
        return read_depth(self._depth_path(self.views.names[index]), self.scene, _MILLIMETRES)


class FramesScene(PosedScene):
    """A scene of RGB-D frames in metres.

    Args:
        name: unique in the dataset.
        root: the scene's folder.
        frames: where the frames come from; None when the scene has no views.
        has_depth: whether ``frames`` hold depth maps.
    """

    def __init__(self, name: str, root: Path, frames: FrameSource | None, has_depth: bool) -> None:
        self.name, self.root, self.frames = name, root, frames
        if frames is not None:
            self.parts = frozenset({"views", "poses"} | ({"depth"} if has_depth else set()))

    def read_views(self) -> ViewList:
        return self.frames.views.located()

    def image(self, index: int) -> Image.Image:
        self.require("views")
        return self.frames.image(index)

    def depth(self, index: int) -> np.ndarray:
        self.require("depth")
        return self.frames.depth(index)

    def depth_camera(self, index: int) -> Camera:
        self.require("depth")
        return self.frames.depth_camera


def scan_folders(root: Path) -> dict[str, Path]:
    """Folders of scenes under ``root`` by name: those in ``scans`` and ``scans_test``, or else in ``root`` itself."""
    bases = [base for base in (root / "scans", root / "scans_test") if base.is_dir()] or [root]
    return {name: base / name for base in bases for name in subfolders(base)}


def scan_stem(folder: Path) -> str | None:
    """What the names of the raw files of the scan in ``folder`` start with; None when it holds no scan."""
    names = sorted(name for name in os.listdir(folder) if name.endswith((MESH_ENDING, STREAM_ENDING)))
    return names[0].removesuffix(MESH_ENDING).removesuffix(STREAM_ENDING) if names else None


class ScanNetFrames(SceneDataset):
    """Exported ScanNet frames: ``root`` holds the scenes' folders (also in ``scans/``), or is one of them."""

    kind = "scannet_frames"

    @classmethod
    def detect(cls, root: Path) -> bool:
        folders = [root, *list(scan_folders(root).values())[:LOOKED_AT]]
        return any(map(ExportedFrames.are_in, folders)) and not any(map(scan_stem, folders))

    def names(self) -> list[str]:
        self._folders = {self.root.name: self.root} if ExportedFrames.are_in(self.root) else scan_folders(self.root)
        return list(self._folders)

    def open(self, name: str) -> FramesScene:
        folder = self._folders[name]
        if not ExportedFrames.are_in(folder):
            raise BrokenScene(name, folder, "holds no folders color/ and pose/")
        frames = ExportedFrames(folder, name)
        return FramesScene(name, folder, frames, frames.has_depth)
