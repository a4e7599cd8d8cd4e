"""A place that was made of photos, written so that geo3d's own readers, COLMAP and nerfstudio read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from geo3d.geometry import PointCloud, View
from geo3d.geometry.byte_colors import byte_colors
from geo3d.interop import colmap, nerfstudio
from geo3d.random import Stream, stream_generator
from geo3d.reconstruction.pointmaps.photos import Photo
from geo3d.reconstruction.pointmaps.place import Reconstruction
from geo3d.spread import evenly_spread
from geo3d.viz.picture import Frustum, ImagePanel, Picture3D, Points, Space
from geo3d.viz.render import render
from geo3d.writing import replacing, writing

_IMAGES = "images"
#: Points of the COLMAP model and of the picture at most.
_SPARSE, _DRAWN = 100_000, 400_000
_FRUSTUM, _MOST_IMAGES = 0.05, 6
_QUALITY = 95
_ORIENTATION = 0x0112  # EXIF's tag
#: Endings of files that are copied as they are; others become PNG.
_COPIED = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}  # MPO: what telephones write, a JPEG with more behind it


def write_place(folder: Path, place: Reconstruction, confidence: float, most: int, picture: bool = True) -> PointCloud:
    """Write all files.

    Args:
        folder: where to; it is made.
        place: what was found.
        confidence: of the points that are kept.
        most: points of the cloud at most.
        picture: whether one is drawn.

    Returns:
        The cloud that was written.

    Raises:
        InputError: no point is sure enough, or a file cannot be written.
    """
    cloud = _thinned(place.cloud(confidence), most)
    files = [write_photo(photo, folder / _IMAGES) for photo in place.photos]
    views = [place.view(number, confidence) for number in range(len(place.photos))]
    nerfstudio.write_transforms(folder, views, cloud, photos=[f"{_IMAGES}/{file}" for file in files])
    named = [View(file, view.camera, view.world_from_camera) for file, view in zip(files, views)]
    colmap.write_model(folder / "sparse" / "0", named, _thinned(cloud, _SPARSE))
    _write_pointmaps(folder / "pointmaps.npz", place)
    if picture:
        render(_picture(place, cloud), folder / "picture.png")
    return cloud


def write_photo(photo: Photo, folder: Path) -> str:
    """A photo upright in its own pixels: copied as it is where no EXIF turns it, else written anew.

    Returns:
        Its name in the folder.

    Raises:
        InputError: it cannot be written.
    """
    from PIL import Image, ImageOps

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Image.open(photo.path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
        ending = _COPIED.get(image.format, ".png")
        name = f"{Path(photo.name).stem}{ending}"
        with replacing(folder / name) as unfinished:
            if not turned and image.format in _COPIED:
                shutil.copyfile(photo.path, unfinished)
            else:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                kind = "JPEG" if ending == ".jpg" else "PNG"
                upright.save(unfinished, kind, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return name


def _write_pointmaps(path: Path, place: Reconstruction) -> None:
    """Per view ``points_00000`` (H, W, 3) float32 in the world, ``confidence_00000``; poses, intrinsics, names."""
    count = range(len(place.photos))
    arrays = {f"points_{n:05d}": place.aligned.points(n).float().numpy() for n in count}
    arrays |= {f"confidence_{n:05d}": place.aligned.confidences[n].float().numpy() for n in count}
    arrays |= {f"depth_{n:05d}": place.aligned.depths[n].numpy() for n in count}
    arrays["world_from_camera"] = place.aligned.world_from_camera.numpy()
    arrays["intrinsics"] = np.stack([place.loaded_camera(n).matrix.numpy() for n in count])
    arrays["names"] = np.array([photo.name for photo in place.photos])
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def _thinned(cloud: PointCloud, most: int) -> PointCloud:
    if len(cloud) <= most:
        return cloud
    rows = np.sort(stream_generator(0, Stream.SURFACE_SAMPLES).permutation(len(cloud))[:most])
    rows = torch.from_numpy(rows)
    return PointCloud(cloud.xyz[rows], cloud.colors[rows])


def _picture(place: Reconstruction, cloud: PointCloud) -> Picture3D:
    """The cloud with the cameras, and some of the photos."""
    shown = _thinned(cloud, _DRAWN)
    xyz = shown.xyz.numpy()
    low, high = np.quantile(xyz, (0.01, 0.99), axis=0)
    length = max(_FRUSTUM * float(np.linalg.norm(high - low)), 1e-6)
    near = ((xyz >= low - 0.1 * (high - low)) & (xyz <= high + 0.1 * (high - low))).all(1)
    points = Points(xyz[near], byte_colors(shown.colors.numpy()[near]))
    poses = place.aligned.world_from_camera.numpy()
    cameras = tuple(
        Frustum(pose, place.loaded_camera(n), length, (200, 40, 40), name=place.photos[n].name)
        for n, pose in enumerate(poses)
    )
    count = len(place.photos)
    numbers = evenly_spread(count, _MOST_IMAGES)
    images = tuple(ImagePanel(place.photos[n].name, place.photos[n].image.pixels.numpy()) for n in numbers)
    note = f"{count} photos, {len(cloud):,} points; red: the cameras"
    return Picture3D("place from photos", (Space("points", (points,), cameras=cameras),), images, notes=(note,))


__all__ = ["write_photo", "write_place"]
