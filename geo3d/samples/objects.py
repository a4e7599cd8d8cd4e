"""ObjectClouds: the sample source of methods that read single objects as point clouds."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from geo3d.datasets.scene import SURFACES, BrokenScene, Mesh, Scene, SceneDataset
from geo3d.errors import InputError
from geo3d.geometry import PointCloud, unit_sphere
from geo3d.geometry.origin import origin_rows
from geo3d.geometry.surface import sample_surface
from geo3d.random import Stream, stream_generator
from geo3d.samples.source import Items, NumberedItems, SampleSource, folders

if TYPE_CHECKING:
    from typing_extensions import Self

#: Points spread over the surface of a mesh, once for each object and process.
SURFACE_POINTS = 8192


@dataclass
class ObjectItems(NumberedItems):
    """Objects of scenes; ``number`` is the instance in its scene.

    Args:
        whole: (I,) bool, whether the scene itself is the object.
        category: (I,) int64 row of the source's ``categories``, -1 where it is not known.
        subset: (I,) str, of the scene.
    """

    whole: np.ndarray
    category: np.ndarray
    subset: np.ndarray


class OpenedObjects(NamedTuple):
    """A scene, and its labelled surface or points where objects are cut out of it."""

    scene: Scene
    labelled: Mesh | PointCloud | None


class ObjectClouds(SampleSource[OpenedObjects]):
    """Objects as point clouds, of any datasets.

    - Scenes that are objects are an item each: those of object datasets, of files of points, and captures of MVImgNet.
      Of captures that have masks, the sparse points remain that lie in the mask in most of the views that observe them.
    - Scenes with instance labels give an item for each instance; all items of a scene are a group. They are read to be
      found: about 0.1 s a scan.

    Coordinates and axes are those of the scene: see :func:`to_unit_sphere`. Meshes are sampled evenly over their
    surface, :data:`SURFACE_POINTS` points once for each object and process, from which clouds are then drawn.

    Args:
        datasets, scenes, items: as :class:`SampleSource` takes them; ``items`` are :class:`ObjectItems`.
        categories: names of what items' categories count in.

    Raises:
        InputError: no item.
    """

    kind = "objects"
    holds = "objects: scenes that are one, or instance labels"
    open_scenes: ClassVar[int] = 16
    #: Bytes of clouds that stay in memory, in each process.
    memory: ClassVar[int] = 1 << 28

    items: ObjectItems

    def __init__(
        self,
        datasets: Sequence[SceneDataset],
        scenes: Sequence[tuple[int, str]],
        items: Items | None = None,
        categories: Sequence[str] = (),
    ) -> None:
        if items is None:
            rows, zeros = np.arange(len(scenes)), np.zeros(len(scenes), np.int64)
            items = ObjectItems(rows, rows, zeros, zeros == 0, zeros - 1, np.full(len(scenes), ""))
        super().__init__(datasets, scenes, items)
        #: Names of what categories count in: those of all datasets together, each once.
        self.categories: tuple[str, ...] = tuple(categories)
        self._clouds: OrderedDict[tuple[int, int], PointCloud] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of_datasets(
        cls,
        datasets: Sequence[SceneDataset],
        fewest: int = 200,
        leave_out: Sequence[str] = SURFACES,
        subset: str | None = None,
    ) -> Self:
        """The objects of all scenes of some datasets; broken ones go to the quarantine of their dataset.

        Categories of the same name are one, whatever dataset they come from.

        Args:
            datasets: where the scenes are.
            fewest: instances of labelled scenes with fewer points are left out.
            leave_out: classes whose instances are no objects.
            subset: only scenes of this subset (``train``, ``test``, ``val``); None takes all.

        Raises:
            InputError: no object.
        """
        names: dict[str, int] = {}
        scenes: list[tuple[int, str]] = []
        rows: list[tuple[int, int, bool, int]] = []
        subsets: list[str] = []
        others: set[str] = set()
        for number, dataset in enumerate(datasets):
            own = [names.setdefault(name, len(names)) for name in dataset.categories]
            for scene in dataset.readable():
                try:
                    if not cls.reads(scene):
                        continue
                    if subset not in (None, scene.subset):
                        others.add(scene.subset)
                        continue
                    labels = _instance_labels(scene)
                except BrokenScene as broken:
                    dataset.quarantine.add(broken)
                    continue
                if labels is not None:
                    found = _named_instances(*labels, dataset.classes or (), fewest, leave_out)
                    objects = [(n, False, names.setdefault(name, len(names)) if name else -1) for n, name in found]
                elif scene.is_object:
                    objects = [(0, True, own[scene.category] if scene.category >= 0 else -1)]
                else:
                    objects = []
                if objects:
                    rows += [(len(scenes), *described) for described in objects]
                    subsets += [scene.subset] * len(objects)
                    scenes.append((number, scene.name))
        if others and not rows:
            raise InputError(f"{folders(datasets)}: no object is of subset {subset!r}, only of {sorted(others)}")
        scene_rows, instances, whole, category = np.array(rows, np.int64).reshape(-1, 4).T.copy()
        table = (scene_rows, scene_rows, instances, whole.astype(bool), category, np.array(subsets, dtype=np.str_))
        return cls(datasets, scenes, ObjectItems(*table), tuple(names))

    @classmethod
    def reads(cls, scene: Scene) -> bool:
        """Whether a scene is an object, or may hold instance labels."""
        return scene.is_object or "labels" in scene.parts

    def load(self, scene: Scene) -> OpenedObjects:
        return OpenedObjects(scene, None if scene.is_object and "labels" not in scene.parts else _labelled(scene))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_clouds": OrderedDict(), "_bytes": 0}

    def category(self, index: int) -> int:
        """Row of :attr:`categories` that an object is of; -1 where that is not known."""
        return int(self.items.category[self.row(index)])

    def subset(self, index: int) -> str:
        """``train``, ``test`` or ``val`` where the dataset says so of the object; else empty."""
        return str(self.items.subset[self.row(index)])

    def name_in_scene(self, index: int) -> str:
        row = self.row(index)
        return "" if self.items.whole[row] else f"instance {self.items.number[row]}"

    def cloud(self, index: int, rng: np.random.Generator | None = None, count: int | None = None) -> PointCloud:
        """The points of an object, with what is known of them; those of a mesh have no colours, normals or labels.

        Args:
            index: of the item.
            rng: draws the points and their order. Without it the points and their order are always the same.
            count: number of points, repeated where an object of points has fewer. None: all that are stored, of a mesh
                :data:`SURFACE_POINTS`.

        Raises:
            InputError: the scene is broken, holds no point, or a mesh has no area.
        """
        row = self.row(index)
        key = int(self.items.scene[row]), int(self.items.number[row])
        pool = self._pool(index, key)
        if rng is None and count in (None, len(pool)):
            return pool
        rng = self._generator(key) if rng is None else rng
        if count is not None and count > len(pool):
            mesh, origin = self._surface(index)
            if mesh is not None:
                return _sampled(mesh, origin, count, rng, self.describe(index))
        return _rows_of(pool, torch.from_numpy(_draw(len(pool), len(pool) if count is None else count, rng)))

    def _generator(self, key: tuple[int, int]) -> np.random.Generator:
        """Always the same one for an object, whatever other scenes there are."""
        return stream_generator(0, Stream.OBJECT_CLOUDS, zlib.crc32(self.scenes[key[0]][1].encode()), key[1])

    def _pool(self, index: int, key: tuple[int, int]) -> PointCloud:
        """The points that clouds of an object are drawn from; kept while there is room."""
        if key in self._clouds:
            self._clouds.move_to_end(key)
            return self._clouds[key]
        mesh, origin = self._surface(index)
        if mesh is None:
            cloud = self._points(index)
        else:
            cloud = _sampled(mesh, origin, SURFACE_POINTS, self._generator(key), self.describe(index))
        self._clouds[key] = cloud
        self._bytes += _size(cloud)
        while self._bytes > self.memory and len(self._clouds) > 1:
            self._bytes -= _size(self._clouds.popitem(last=False)[1])
        return cloud

    def _surface(self, index: int) -> tuple[Mesh | None, np.ndarray]:
        """The mesh of an object, None where it is one of points, and its origin."""
        scene, labelled = self.opened(index)
        if not self.items.whole[self.row(index)]:
            mesh = labelled if isinstance(labelled, Mesh) else None
            mesh = None if mesh is None else _cut(mesh, mesh.instance == self.number(index))
        else:
            mesh = scene.mesh() if "mesh" in scene.parts else None
        if mesh is None or not len(mesh.faces):
            return None, np.zeros(3)
        return mesh, scene.origin

    def _points(self, index: int) -> PointCloud:
        """The stored points of an object; of a mesh without faces its vertices."""
        scene, labelled = self.opened(index)
        if not self.items.whole[self.row(index)]:
            cloud = labelled.to_points(scene.origin) if isinstance(labelled, Mesh) else labelled
            cloud = _rows_of(cloud, cloud.instance == self.number(index))
        elif scene.parts.issuperset(("masks", "tracks", "points")):
            cloud = _masked(scene)
        else:
            cloud = scene.cloud()
        if not len(cloud):
            raise InputError(f"{self.describe(index)}: holds no point")
        return cloud


def _labelled(scene: Scene) -> Mesh | PointCloud:
    """Mesh or points of a labelled scene."""
    return scene.mesh() if "mesh" in scene.parts else scene.points()


def _instance_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray] | None:
    """(N,) instances and (N,) classes of a scene's points; None where it has no instances."""
    if "labels" not in scene.parts:
        return None
    found = _labelled(scene)
    if found.instance is None:
        return None
    instance = np.asarray(found.instance)
    return instance, np.full_like(instance, -1) if found.semantic is None else np.asarray(found.semantic)


def _named_instances(
    instance: np.ndarray, semantic: np.ndarray, classes: Sequence[str], fewest: int, leave_out: Sequence[str]
) -> list[tuple[int, str]]:
    """Number of each instance with enough points, and its most frequent class; empty where that is none."""
    found = []
    for number, count in zip(*(column.tolist() for column in np.unique(instance[instance >= 0], return_counts=True))):
        if count < fewest:
            continue
        labels, votes = np.unique(semantic[instance == number], return_counts=True)
        label = int(labels[votes.argmax()])
        name = classes[label] if 0 <= label < len(classes) else ""
        if name not in leave_out:
            found.append((number, name))
    return found


def _cut(mesh: Mesh, kept: np.ndarray) -> Mesh:
    """The faces of a mesh all of whose vertices are ``kept`` (V,)."""
    faces = mesh.faces[kept[mesh.faces].all(1)]
    used, corners = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], corners.reshape(-1, 3))


def _sampled(mesh: Mesh, origin: np.ndarray, count: int, rng: np.random.Generator, where: str) -> PointCloud:
    """Points spread evenly over a mesh."""
    try:
        face, weights = sample_surface(mesh.vertices, mesh.faces, count, rng)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    xyz = (mesh.vertices[mesh.faces[face]] * weights[:, :, None]).sum(1).astype(np.float32)
    return PointCloud(torch.from_numpy(xyz), origin=origin_rows(origin))


def _masked(scene: Scene) -> PointCloud:
    """The sparse points of a capture that lie in the object's mask in most of the views that observe them."""
    tracks, cloud = scene.tracks(), scene.points()
    inside = np.zeros(len(tracks.view), bool)
    for view in np.unique(tracks.view).tolist():
        mask, seen = scene.mask(view), np.flatnonzero(tracks.view == view)
        column, row = np.rint(tracks.uv[seen]).astype(np.int64).T
        height, width = mask.shape
        inside[seen] = mask[row.clip(0, height - 1), column.clip(0, width - 1)]
    votes, views = (np.bincount(tracks.point, weights, len(tracks.xyz)) for weights in (inside, None))
    return _rows_of(cloud, torch.from_numpy(votes > views / 2))


def _rows_of(cloud: PointCloud, rows: torch.Tensor) -> PointCloud:
    """Some points of one scene, by a mask or by number."""
    columns = {f.name: getattr(cloud, f.name) for f in fields(cloud) if f.name not in ("offsets", "origin")}
    picked = {name: None if column is None else column[rows] for name, column in columns.items()}
    return PointCloud(**picked, origin=cloud.origin)


def _size(cloud: PointCloud) -> int:
    return sum(column.nbytes for column in cloud.to_numpy().values())


def _draw(points: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) numbers of points in random order: each at most once, or all of them before any is repeated."""
    whole, rest = divmod(count, points)
    if not whole:
        return rng.permutation(points)[:count]
    return rng.permutation(np.concatenate([np.tile(np.arange(points), whole), rng.permutation(points)[:rest]]))


def resample(xyz: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of some points, in random order; points repeat only where there are fewer than ``count``.

    Args:
        xyz: (P, C) points, with any further columns.
        count: how many to draw.
        rng: what is drawn from.

    Returns:
        (count, C).

    Raises:
        InputError: there is no point, or none is asked for.
    """
    if len(xyz) == 0 or count < 1:
        raise InputError(f"resample: {count} of {len(xyz)} points cannot be drawn")
    return xyz[_draw(len(xyz), count, rng)]


def to_unit_sphere(xyz: np.ndarray) -> np.ndarray:
    """Points moved so that their mean is the origin, and scaled so that the farthest has distance 1.

    Args:
        xyz: (P, 3).

    Returns:
        (P, 3) float32; zeros where all points are the same.
    """
    return unit_sphere.to_unit_sphere(torch.from_numpy(np.array(xyz, np.float64)))[0].float().numpy()


__all__ = ["SURFACE_POINTS", "ObjectClouds", "ObjectItems", "resample", "to_unit_sphere"]
