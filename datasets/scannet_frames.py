"""RGB-D frames as ScanNet's exporters and 7-Scenes have them: one file for each image, depth map and pose.

Layout of a scene (the numbers need not be consecutive), by the exporter of ScanNet's SDK in Python::

    <scene>/color/<number>.jpg            or another image
            depth/<number>.png            16 bits, millimetres; the folder may be absent
            pose/<number>.txt             world_from_camera, 4 x 4
            intrinsic/intrinsic_color.txt and/or intrinsic_depth.txt, 4 x 4

and in 7-Scenes, and by the exporter of the SDK in C++::

    <scene>/frame-<number>.color.png      or another image
            frame-<number>.depth.png      or .pgm; 16 bits, millimetres, 65535 where unknown; may be absent
            frame-<number>.pose.txt       world_from_camera, 4 x 4
            _info.txt                     or intrinsics as above, or camera-intrinsics.txt; may be absent
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from geo3d.datasets.files import (
    are_rigid,
    entries,
    looked_at,
    numeric_order,
    parse_matrix,
    read_matrix,
    read_text,
    subfolders,
)
from geo3d.datasets.image_files import IMAGE_ENDINGS, depth_size, image_names, image_size, open_image, read_depth
from geo3d.datasets.plain_text import split_lines, to_number
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
_FLAT = re.compile(r"(frame-\d+)\.(color|depth|pose)\.(\w+)", re.ASCII)
# The flat layout: one matrix for both kinds of images, also of all sequences in the folder above; the SDK's own file.
_SHARED_INTRINSICS, _INFO = ("camera-intrinsics.txt", "../camera-intrinsics.txt"), "_info.txt"
# What the authors of 7-Scenes used where they had calibrated nothing: focal length and image size, pixels.
_DEFAULT_FOCAL, _DEFAULT_WIDTH = 585.0, 640
_SATURATED = 65535
_DEPTH_ENDINGS = (*IMAGE_ENDINGS, ".npy", ".npz")


class FrameSource(Protocol):
    """Where the RGB-D frames of a ScanNet scene come from."""

    views: ViewList
    depth_camera: Camera

    def image(self, index: int) -> Image.Image: ...

    def depth(self, index: int) -> np.ndarray: ...


class ExportedFrames:
    """The frames in the folder of one scene; those without an image, a depth map or a valid pose are left out.

    Args:
        folder: the scene's folder.
        scene: name for messages.
    """

    def __init__(self, folder: Path, scene: str) -> None:
        self.folder, self.scene = folder, scene

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether ``folder`` is laid out like a scene of exported frames."""
        return _in_folders(folder) or _are_flat(folder)

    @cached_property
    def _flat(self) -> bool:
        return not _in_folders(self.folder)

    @cached_property
    def _files(self) -> dict[str, dict[str, Path]]:
        """Files of the kinds ``color``, ``depth`` and ``pose`` by frame."""
        files: dict[str, dict[str, Path]] = {"color": {}, "depth": {}, "pose": {}}
        if self._flat:
            for entry in sorted(entries(self.folder), key=lambda entry: entry.name):
                if match := _FLAT.fullmatch(entry.name):
                    files[match[2]].setdefault(match[1], self.folder / entry.name)
            return files
        color, depth, pose = (self.folder / kind for kind in files)
        files["color"] = {_stem(name): color / name for name in image_names(color)}
        for folder, kind, endings in ((depth, "depth", _DEPTH_ENDINGS), (pose, "pose", (".txt",))):
            names = sorted(entry.name for entry in entries(folder)) if folder.is_dir() else []
            files[kind] = {_stem(name): folder / name for name in names if name.lower().endswith(endings)}
        return files

    @cached_property
    def has_depth(self) -> bool:
        """Whether depth maps were exported too."""
        depth = self.folder / "depth"
        return bool(self._files["depth"]) or (not self._flat and depth.is_dir() and any(depth.iterdir()))

    @cached_property
    def views(self) -> ViewList:
        """The usable frames, sorted by number.

        Raises:
            BrokenScene: a matrix cannot be read, the intrinsics do not fit the images, or no frame is usable.
        """
        color, depth, pose = (self._files[kind] for kind in ("color", "depth", "pose"))
        listed = sorted(color.keys() | pose.keys(), key=numeric_order)
        remarks = []

        def keep(names: list[str], usable: list[bool], place: str, reason: str) -> list[str]:
            lost = usable.count(False)
            if lost:
                file = self.folder if self._flat else self.folder / place
                remarks.append(Remark(self.scene, str(file), f"frames skipped: {reason}", lost))
            return [name for name, good in zip(names, usable) if good]

        names = keep(listed, [n in color for n in listed], "color", "they have no image")
        names = keep(names, [n in pose for n in names], "pose", "they have no pose file")
        if self.has_depth:
            names = keep(names, [n in depth for n in names], "depth", "they have no depth map")
        poses = [read_matrix(pose[n], self.scene) for n in names]
        rigid = are_rigid(np.array(poses).reshape(-1, 4, 4))
        names = keep(names, rigid.tolist(), "pose", "their pose was lost")
        if not names:
            skipped = "; ".join(f"{r.count} {r.reason}" for r in remarks) or "the folder is empty"
            place = self.folder if self._flat else self.folder / "color"
            raise BrokenScene(self.scene, place, f"no usable frame: {skipped}")
        camera = self._camera("color", [color[name] for name in names])
        if self._flat and self._intrinsics("color") is None:
            share = f"{_DEFAULT_FOCAL:g} pixels of {_DEFAULT_WIDTH}"
            reason = f"views without a file of intrinsics: a focal length of {share} is assumed, as in 7-Scenes"
            remarks.append(Remark(self.scene, str(self.folder), reason, len(names)))
        return ViewList(names, [camera] * len(names), np.array(poses)[rigid], tuple(remarks))

    @cached_property
    def depth_camera(self) -> Camera:
        """Intrinsics of the depth maps."""
        return self._camera("depth", [self._files["depth"][name] for name in self.views.names])

    def _intrinsics(self, kind: str) -> tuple[np.ndarray, Path] | None:
        """Matrix of the ``kind`` of images and its file; None where there is none, in the flat layout.

        Colour images are often exported at depth resolution; the one matrix that was written then serves both.
        """
        kinds = (kind, "depth" if kind == "color" else "color")
        files = [self.folder / pattern.format(k) for k in kinds for pattern in _INTRINSICS]
        if self._flat:
            if (info := self.folder / _INFO).is_file():
                return _matrix_of_info(info, self.scene, kind), info
            files += [Path(os.path.normpath(self.folder / name)) for name in _SHARED_INTRINSICS]
        file = next((f for f in files if f.is_file()), None if self._flat else files[0])
        return None if file is None else (read_matrix(file, self.scene, intrinsic=True), file)

    def _sample(self, kind: str, files: Sequence[Path]) -> tuple[Path, int, int]:
        """The first of some images that tells its width and height, and these.

        Raises:
            BrokenScene: of the first, where none of them can be read.
        """
        broken: list[BrokenScene] = []
        for file in files:
            try:
                return file, *(depth_size if kind == "depth" else image_size)(file, self.scene)
            except BrokenScene as found:
                broken.append(found)
        raise broken[0]

    def _camera(self, kind: str, files: Sequence[Path]) -> Camera:
        """Camera of the ``kind`` of images (``color``, ``depth``) that ``files``, one or more, are."""
        sample, width, height = self._sample(kind, files)
        found = self._intrinsics(kind)
        if found is None:
            focal = _DEFAULT_FOCAL * width / _DEFAULT_WIDTH
            return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
        matrix, file = found
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

    @cached_property
    def _depth_units(self) -> float:
        """Whole numbers of a depth map in a metre."""
        info = self.folder / _INFO
        if not (self._flat and info.is_file()):
            return _MILLIMETRES
        try:
            units = to_number(_info(info, self.scene).get("m_depthShift", str(_MILLIMETRES)))
        except ValueError:
            units = float("nan")
        if not 0 < units < float("inf"):
            raise BrokenScene(self.scene, info, "m_depthShift is no number of units in a metre")
        return units

    def image(self, index: int) -> Image.Image:
        """Colour image of frame ``index``, decoded when its pixels are asked for."""
        return open_image(self._files["color"][self.views.names[index]], self.scene)

    def depth(self, index: int) -> np.ndarray:
        """Depth (H, W) float32 metres of frame ``index``, 0 where unknown."""
        invalid = _SATURATED if self._flat else None
        return read_depth(self._files["depth"][self.views.names[index]], self.scene, self._depth_units, invalid)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _in_folders(folder: Path) -> bool:
    return (folder / "color").is_dir() and (folder / "pose").is_dir()


def _are_flat(folder: Path) -> bool:
    matches = (_FLAT.fullmatch(entry.name) for entry in looked_at(folder))
    kinds: set[str] = set()
    return any({"color", "pose"} <= kinds for match in matches if match and not kinds.add(match[2]))


def _info(path: Path, scene: str) -> dict[str, str]:
    """``key = value`` lines of the SDK's description of a scene."""
    lines = (line.partition("=") for line in split_lines(read_text(path, scene)))
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def _matrix_of_info(path: Path, scene: str, kind: str) -> np.ndarray:
    key = f"m_calibration{kind.capitalize()}Intrinsic"
    info = _info(path, scene)
    if key not in info:
        raise BrokenScene(scene, path, f"{key} is not given")
    return parse_matrix(info[key], path, scene, intrinsic=True)


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
    names = sorted(entry.name for entry in looked_at(folder) if entry.name.endswith((MESH_ENDING, STREAM_ENDING)))
    return names[0].removesuffix(MESH_ENDING).removesuffix(STREAM_ENDING) if names else None


class ScanNetFrames(SceneDataset):
    """Exported frames: ``root`` holds the scenes' folders (also in ``scans/``), or is one of them.

    A folder in it that holds no frames, and folders with frames, gives these as scenes: the sequences of 7-Scenes.
    """

    kind = "scannet_frames"

    @classmethod
    def detect(cls, root: Path) -> bool:
        scenes = [root, *list(scan_folders(root).values())[:LOOKED_AT]]
        if any(map(scan_stem, scenes)):
            return False
        return any(map(ExportedFrames.are_in, scenes)) or any(_sequences(scene) for scene in scenes[1:])

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        return ExportedFrames.are_in(root) and scan_stem(root) is None

    def names(self) -> list[str]:
        self._folders: dict[str, Path] = {}
        alone = self.is_scene(self.root)
        for name, folder in ({self.root.name: self.root} if alone else scan_folders(self.root)).items():
            sequences = () if ExportedFrames.are_in(folder) else _sequences(folder)
            self._folders |= {f"{name}/{sequence}": folder / sequence for sequence in sequences} or {name: folder}
        return list(self._folders)

    def open(self, name: str) -> FramesScene:
        folder = self._folders[name]
        if not ExportedFrames.are_in(folder):
            raise BrokenScene(name, folder, "holds no folders color/ and pose/, nor frame-000000.color and .pose files")
        frames = ExportedFrames(folder, name)
        return FramesScene(name, folder, frames, frames.has_depth)


def _sequences(folder: Path) -> list[str]:
    """Names of the folders in ``folder`` that hold frames in the flat layout."""
    return [name for name in subfolders(folder) if _are_flat(folder / name)]
