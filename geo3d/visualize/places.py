"""What is looked at: scenes of any dataset, captures, files of points; as points, meshes, cameras and views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from geo3d.datasets import Scene, SceneDataset, open_dataset, read_points
from geo3d.datasets.read_points import POINT_ENDINGS
from geo3d.datasets.scene import Mesh
from geo3d.errors import InputError
from geo3d.geometry import PointCloud, View
from geo3d.geometry.byte_colors import byte_colors
from geo3d.geometry.surface import sample_surface
from geo3d.random import Stream, stream_generator
from geo3d.samples.objects import ObjectClouds
from geo3d.spread import evenly_spread
from geo3d.viz.picture import Frustum, Points

#: Metres across below which files of points, which do not tell, are taken for an object.
_OBJECT = 1.8
#: Points drawn of an object's surface, views lifted by their depth, and pixels of each at most.
_OBJECT_POINTS, _LIFTED_VIEWS, _LIFTED_PIXELS = 8192, 12, 20_000
#: Thickness over length below which an object is a sheet.
_FLAT = 0.15
#: Length of a drawn camera over the scene's diagonal, and how many are drawn at most.
_FRUSTUM, _MOST_CAMERAS = 0.035, 80


@dataclass
class Place:
    """A scene, or the points of a file.

    Args:
        name: for captions.
        scene: of a dataset; None for a file.
        file: of points; None for a scene.
        classes: names of what labels count in.
        object_cloud: points of an object that was cut out of a scene.
    """

    name: str
    scene: Scene | None = None
    file: Path | None = None
    classes: Sequence[str] | None = None
    object_cloud: PointCloud | None = None

    def __post_init__(self) -> None:
        self._cloud = self.object_cloud

    @property
    def origin(self) -> np.ndarray:
        """(3,) that was taken off all coordinates."""
        cloud = self.cloud()
        return np.zeros(3) if cloud.origin is None else cloud.origin[0].numpy()

    @property
    def parts(self) -> frozenset[str]:
        """What the scene holds; of a file: points."""
        return frozenset({"points"}) if self.scene is None else self.scene.parts

    @property
    def has_points(self) -> bool:
        """Whether :meth:`cloud` gives some."""
        lifted = {"views", "depth", "poses"} <= self.parts
        return bool(self.parts & {"points", "mesh", "tracks"}) or lifted

    @property
    def is_object(self) -> bool:
        """Whether it is a single thing; of files, which do not tell, whether it is less than 1.8 m across."""
        from geo3d.datasets.point_files import PointFileScene

        if self.object_cloud is not None:
            return True
        if self.scene is not None and not isinstance(self.scene, PointFileScene):
            return self.scene.is_object
        xyz = self.cloud().xyz
        return bool(len(xyz)) and float((xyz.amax(0) - xyz.amin(0))[:2].max()) < _OBJECT

    def cloud(self) -> PointCloud:
        """Its points: those of the scene, of its mesh, of its depth maps or of its tracks.

        Raises:
            InputError: it has none of them, or they cannot be read.
        """
        if self._cloud is None:
            self._cloud = read_points(self.file) if self.file is not None else _cloud_of(self.scene)
        return self._cloud

    def mesh(self) -> Mesh | None:
        """Its mesh, where it has one."""
        return self.scene.mesh() if self.scene is not None and "mesh" in self.scene.parts else None

    def views(self, count: int) -> list[int]:
        """Numbers of as many views, evenly spread; none where it has no views."""
        if self.scene is None or "views" not in self.scene.parts:
            return []
        return evenly_spread(len(self.scene.view_names), count)

    def cameras(self) -> tuple[Frustum, ...]:
        """Its cameras, at most 80 of them, of a length that fits the scene."""
        if not {"views", "poses"} <= self.parts:
            return ()
        numbers = self.views(_MOST_CAMERAS)
        poses = [self.scene.pose(n) for n in numbers]
        spread = np.array([pose[:3, 3] for pose in poses])
        if self.has_points:
            spread = np.concatenate([spread, self.cloud().xyz.numpy()])
        low, high = np.quantile(spread, (0.01, 0.99), axis=0)
        length = max(_FRUSTUM * float(np.linalg.norm(high - low)), 1e-3)
        names = self.scene.view_names
        return tuple(Frustum(pose, self.scene.camera(n), length, name=names[n]) for n, pose in zip(numbers, poses))


def find_places(data: Sequence[Path], scenes: Sequence[str] = ()) -> list[Place]:
    """The places of some folders and files.

    Args:
        data: folders of datasets or scenes, and files of points.
        scenes: names of scenes of the datasets; the first readable one of each folder where there are none.

    Raises:
        InputError: nothing is named, a path that is neither, or a scene that is in none of the datasets.
    """
    if not data:
        raise InputError("name what to look at: --data FOLDER_OR_FILE")
    datasets: list[SceneDataset] = []
    places: list[Place] = []
    for path in data:
        if path.is_file():
            if path.suffix.lower() not in POINT_ENDINGS:
                raise InputError(f"{path}: points are read from {' '.join(POINT_ENDINGS)}; or name a folder of scenes")
            places.append(Place(path.stem, file=path))
            continue
        dataset = open_dataset(path)
        datasets.append(dataset)
        if not scenes:
            if not len(dataset):
                raise InputError(f"{path}: holds no scene")
            places.append(_place(dataset, dataset.scene_names[0]))
    for name in scenes:
        holding = [dataset for dataset in datasets if name in dataset]
        if not holding:
            known = ", ".join(n for dataset in datasets for n in dataset.scene_names[:6]) or "no dataset is named"
            raise InputError(f"no scene {name!r} under {', '.join(map(str, data))}; there are: {known} ...")
        places.append(_place(holding[0], name))
    return places


def find_objects(data: Sequence[Path], numbers: Sequence[int] = (), usual: int = 1) -> list[Place]:
    """Objects: scenes and files that are one, and instances of labelled scenes.

    Args:
        data: folders of datasets, and files of points.
        numbers: of the objects of all folders; the first ``usual`` ones that are not flat where none are given.
        usual: how many.

    Raises:
        InputError: no object, or none of a number.
    """
    places = [Place(path.stem, object_cloud=read_points(path)) for path in data if path.is_file()]
    folders = tuple(path for path in data if not path.is_file())
    if not folders:
        return places
    source = ObjectClouds.find(folders)
    chosen = list(numbers) or list(islice((n for n in range(len(source)) if not _is_flat(source.cloud(n))), usual))
    for number in chosen or [0]:
        if not 0 <= number < len(source):
            raise InputError(f"--object {number}: there are {len(source)} objects, from 0 to {len(source) - 1}")
        category = source.category(number)
        kind = f"{source.categories[category]}, " if category >= 0 else ""
        within = source.name_in_scene(number)
        scene = source.opened(number).scene.name
        places.append(Place(f"{kind}{scene} {within}".strip(), object_cloud=source.cloud(number)))
    return places


def _is_flat(cloud: PointCloud) -> bool:
    """Whether an object is a sheet, such as a ceiling or a picture, of which little can be seen."""
    sides = cloud.xyz.amax(0) - cloud.xyz.amin(0)
    return bool(sides.min() < _FLAT * sides.max())


def _place(dataset: SceneDataset, name: str) -> Place:
    return Place(name, scene=dataset[name], classes=dataset.classes)


def shown_points(
    cloud: PointCloud, most: int, colors: np.ndarray | None = None, features: np.ndarray | None = None
) -> Points:
    """A cloud as a picture has it, evenly thinned out to ``most`` points; in its own colours where none are given."""
    rows = shown_rows(len(cloud), most)
    own = cloud_colors(cloud) if colors is None else colors
    own = _by_height(cloud.xyz.numpy()) if own is None else own
    normals = None if cloud.normals is None else cloud.normals.numpy()[rows]
    return Points(
        cloud.xyz.numpy()[rows],
        own[rows],
        normals,
        None if features is None else features[rows],
    )


def shown_rows(count: int, most: int) -> np.ndarray:
    """Numbers of at most so many rows, the same at every call, without a pattern."""
    if count <= most:
        return np.arange(count)
    return np.sort(stream_generator(0, Stream.SURFACE_SAMPLES).permutation(count)[:most])


def _by_height(xyz: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 greys of points without colours, lighter above, so that one sees their shape."""
    low, high = (xyz[:, 2].min(), xyz[:, 2].max()) if len(xyz) else (0.0, 1.0)
    grey = 95 + 120 * (xyz[:, 2] - low) / max(high - low, 1e-9)
    return np.repeat(grey.round().astype(np.uint8)[:, None], 3, 1)


def cloud_colors(cloud: PointCloud) -> np.ndarray | None:
    """(N, 3) uint8, None where a cloud has no colours."""
    if cloud.colors is None:
        return None
    return byte_colors(cloud.colors.nan_to_num(0.75).numpy())


def image_of(view: View) -> np.ndarray:
    """(H, W, 3) uint8."""
    return byte_colors(view.image.numpy())


def lifted(view: View, most: int = _LIFTED_PIXELS) -> tuple[Points, np.ndarray]:
    """Pixels of a view with depth and pose as points, with their colours and the normals of the depth map.

    Returns:
        The points (N,), xyz float64, and their pixels in the image (N, 2), x and y.
    """
    xyz, _ = view.world_points()
    rows = torch.from_numpy(shown_rows(len(xyz), most))
    xyz, normals = xyz[rows], view.world_normals()[rows]
    uv = view.image_pixels(xyz)
    inside = uv[:, 0].isfinite()
    xyz, uv, normals = xyz[inside], uv[inside], normals[inside]
    at = uv.round().long().numpy()
    colors = image_of(view)[at[:, 1], at[:, 0]]
    return Points(xyz.numpy(), colors, normals.numpy()), uv.numpy()


def _cloud_of(scene: Scene) -> PointCloud:
    if scene.is_object and "mesh" in scene.parts:
        mesh = scene.mesh()
        if len(mesh.faces):
            rng = stream_generator(0, Stream.SURFACE_SAMPLES)
            face, weights = sample_surface(mesh.vertices, mesh.faces, _OBJECT_POINTS, rng)
            corners = mesh.faces[face]
            parts = (mesh.vertices, mesh.colors, mesh.normals)
            blended = [None if p is None else (p[corners] * weights[:, :, None]).sum(1) for p in parts]
            return PointCloud(*(None if p is None else torch.from_numpy(p.astype(np.float32)) for p in blended))
    if scene.parts & {"points", "mesh"}:
        return scene.cloud()
    if {"views", "depth", "poses"} <= scene.parts:
        parts = [lifted(scene.view(n))[0] for n in evenly_spread(len(scene.view_names), _LIFTED_VIEWS)]
        xyz, colors, normals = (np.concatenate([getattr(p, n) for p in parts]) for n in ("xyz", "colors", "normals"))
        return PointCloud(*(torch.from_numpy(part).float() for part in (xyz, colors / 255, normals)))
    if "tracks" in scene.parts:
        return PointCloud(torch.from_numpy(scene.tracks().xyz).float())
    raise InputError(
        f"scene {scene.name} ({scene.root}) has no points, mesh, depth or tracks to be shown in 3D; it has "
        f"{', '.join(sorted(scene.parts))}"
    )


__all__ = ["Place", "cloud_colors", "find_objects", "find_places", "image_of", "lifted", "shown_points", "shown_rows"]
