"""ScanNet as it is downloaded: mesh, labels, instances and the RGB-D stream of each scan.

Layout of a scan (the first two names suffice; views come from the stream, or else from frames exported beside it)::

    <scene>/<scene>.sens                                 RGB-D stream
            <scene>_vh_clean_2.ply                       mesh
            <scene>_vh_clean_2.labels.ply                `label` per vertex: nyu40 ids, or raw ids in the first release
            <scene>_vh_clean_2.0.010000.segs.json        segment per vertex
            <scene>.aggregation.json                     segments of each instance
            <scene>.txt                                  axisAlignment

Scenes lie in ``scans/`` and ``scans_test/`` of the root, or in the root itself; the root may be one scene.
"""

from __future__ import annotations

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from geo3d.datasets.files import are_rigid, parse_matrix, read_json, read_text, require_finite
from geo3d.datasets.ply import Ply, read_ply
from geo3d.datasets.point_columns import unit_colors
from geo3d.datasets.posed import ViewList
from geo3d.datasets.scannet_frames import (
    LOOKED_AT,
    MESH_ENDING,
    STREAM_ENDING,
    ExportedFrames,
    FramesScene,
    scan_folders,
    scan_stem,
)
from geo3d.datasets.scene import BrokenScene, Mesh, SceneDataset
from geo3d.datasets.sens import SensFile
from geo3d.geometry import PointCloud
from geo3d.geometry.origin import find_origin
from geo3d.geometry.surface import vertex_normals

#: The 20 classes that ScanNet evaluates; ``Mesh.semantic`` counts in this order.
SCANNET20_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub",
    "other furniture",
)  # fmt: skip
#: The nyu40 id of each of :data:`SCANNET20_CLASSES`.
SCANNET20_NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)

_LABELS_ENDING = "_vh_clean_2.labels.ply"
_LARGEST_NYU40_ID = 40
_LABEL_TABLES = ("scannetv2-labels.combined.tsv", "scannet-labels.combined.tsv")


class ScanNetScene(FramesScene):
    """One scan.

    ``labels`` are semantic classes (index into :data:`SCANNET20_CLASSES`, -1 for everything else), and instances
    where segments and aggregation are there. The scan's ``axisAlignment`` is applied to mesh and poses alike.

    Args:
        name: unique in the dataset.
        root: the scan's folder.
        stem: what its files' names start with.

    Raises:
        BrokenScene: the folder holds neither mesh nor views.
    """

    def __init__(self, name: str, root: Path, stem: str) -> None:
        self._stem = stem
        stream, exported = root / f"{stem}{STREAM_ENDING}", ExportedFrames(root, name)
        if stream.is_file():
            super().__init__(name, root, SensFile(stream, name), has_depth=True)
        elif ExportedFrames.are_in(root):
            super().__init__(name, root, exported, exported.has_depth)
        else:
            super().__init__(name, root, None, has_depth=False)
        if self._file(MESH_ENDING).is_file():
            self.parts |= {"mesh", "points"}
            if self._file(_LABELS_ENDING).is_file():
                self.parts |= {"labels"}
        if not self.parts:
            raise BrokenScene(
                name, root, f"holds neither {stem}{MESH_ENDING} nor {stem}{STREAM_ENDING} nor exported frames"
            )

    def _file(self, ending: str) -> Path:
        return self.root / f"{self._stem}{ending}"

    def axis_alignment(self) -> np.ndarray:
        """``aligned_from_scan`` (4, 4) float64 of the scan's text file; identity where it states none, as in v1."""
        path = self._file(".txt")
        if path.is_file():
            for line in read_text(path, self.name).splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "axisAlignment":
                    alignment = parse_matrix(value, path, self.name)
                    if not are_rigid(alignment[None])[0]:
                        raise BrokenScene(self.name, path, "axisAlignment is no rigid transform")
                    return alignment
        return np.eye(4)

    def read_views(self) -> ViewList:
        views = self.frames.views
        aligned = ViewList(views.names, views.cameras, self.axis_alignment() @ views.poses, views.remarks)
        return aligned.located(self._mesh_origin)

    @property
    def origin(self) -> np.ndarray:
        return super().origin if self._mesh_origin is None else self._mesh_origin.copy()

    @cached_property
    def _mesh_origin(self) -> np.ndarray | None:
        """Origin of the mesh; None where there is no mesh, or none that can be read and would have to fit the views."""
        if "mesh" not in self.parts:
            return None
        try:
            return find_origin(self._aligned_vertices(read_ply(self._file(MESH_ENDING), self.name, faces=False)))
        except BrokenScene:
            return None

    def _aligned_vertices(self, ply: Ply) -> np.ndarray:
        """(V, 3) float64 vertices in the world."""
        path, vertices = self._file(MESH_ENDING), ply.stacked("x", "y", "z")
        if vertices is None:
            raise BrokenScene(self.name, path, "the vertices have no x, y, z")
        require_finite(vertices, path, self.name)
        alignment = self.axis_alignment()
        return vertices @ alignment[:3, :3].T + alignment[:3, 3]

    def mesh(self) -> Mesh:
        self.require("mesh")
        path = self._file(MESH_ENDING)
        ply = read_ply(path, self.name)
        vertices, colors = self._aligned_vertices(ply), ply.stacked("red", "green", "blue")
        self._mesh_origin = find_origin(vertices)  # saves that property from reading the file again
        vertices = (vertices - self._mesh_origin).astype(np.float32)
        mesh = Mesh(vertices, ply.faces, normals=vertex_normals(vertices, ply.faces))
        if colors is not None:
            try:
                mesh.colors = unit_colors(colors)
            except ValueError as error:
                raise BrokenScene(self.name, path, str(error)) from error
        if "labels" in self.parts:
            mesh.semantic = _CLASS_OF_NYU40_ID[self.nyu40()]
            mesh.instance = self._instances(len(vertices))
            if len(mesh.semantic) != len(vertices):
                reason = f"holds {len(mesh.semantic)} vertices, the mesh {len(vertices)}"
                raise BrokenScene(self.name, self._file(_LABELS_ENDING), reason)
        return mesh

    def points(self) -> PointCloud:
        """The mesh's vertices with colours, normals and labels."""
        return self.mesh().to_points(self.origin)

    def nyu40(self) -> np.ndarray:
        """The nyu40 id of each mesh vertex, (V,) int64 in 0 to 40, 0 where unlabelled.

        Raises:
            BrokenScene: the file is damaged, or holds raw ids of the first release and no table translates them.
        """
        self.require("labels")
        path = self._file(_LABELS_ENDING)
        ply = read_ply(path, self.name, faces=False)
        if "label" not in ply.vertex:
            raise BrokenScene(self.name, path, "the vertices have no property 'label'")
        labels = ply.vertex["label"].astype(np.int64)
        # The first release (2017) stores the label table's own ids, of which there are hundreds.
        if labels.max(initial=0) <= _LARGEST_NYU40_ID:
            return labels
        table = self._nyu40_of_raw_ids()
        unknown = np.setdiff1d(labels, list(table))
        if len(unknown):
            raise BrokenScene(self.name, path, f"label {unknown[0]} is not in the label table")
        raw, position = np.unique(labels, return_inverse=True)
        return np.array([table[int(r)] for r in raw], dtype=np.int64)[position]

    def _nyu40_of_raw_ids(self) -> dict[int, int]:
        """Raw id -> nyu40 id by the label table beside the scans; columns are found by name, as their order differs."""
        folders = (self.root, *list(self.root.parents)[:2])
        found = [f / name for f in folders for name in _LABEL_TABLES if (f / name).is_file()]
        if not found:
            reason = f"holds raw label ids; put {_LABEL_TABLES[0]} in the folder of the dataset to translate them"
            raise BrokenScene(self.name, self._file(_LABELS_ENDING), reason)
        rows = csv.DictReader(read_text(found[0], self.name).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            return {0: 0, **{int(row["id"]): int(row["nyu40id"] or 0) for row in rows}}
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenScene(
                self.name, found[0], f"line {rows.line_num}: no usable id and nyu40id: {error}"
            ) from error

    def _instances(self, vertex_count: int) -> np.ndarray | None:
        """Instance of each vertex, -1 where there is none; None where the scan was not segmented."""
        segments_path = self._file("_vh_clean_2.0.010000.segs.json")
        # The first aggregation names the segments of the decimated mesh that is read here. `_vh_clean` stands for the
        # full-resolution mesh (see `segmentsFile` in it): it serves where it is alone and all its segments are known.
        aggregations = [self._file(ending) for ending in (".aggregation.json", "_vh_clean.aggregation.json")]
        groups_path = next((path for path in aggregations if path.is_file()), None)
        if groups_path is None or not segments_path.is_file():
            return None
        segments = self._segments(segments_path)
        members = self._members(groups_path)
        if segments.shape != (vertex_count,):
            reason = f"segIndices has shape {segments.shape}, the mesh {vertex_count} vertices"
            raise BrokenScene(self.name, segments_path, reason)
        ids, position = np.unique(segments, return_inverse=True)
        instance = np.full(len(ids), -1, dtype=np.int64)
        for number, owned in members:
            missing = np.setdiff1d(owned, ids)
            if len(missing):
                reason = f"object {number} owns segment {missing[0]}, which no vertex of the mesh has"
                raise BrokenScene(self.name, groups_path, reason)
            instance[np.searchsorted(ids, owned)] = number
        return instance[position]

    def _segments(self, path: Path) -> np.ndarray:
        """Segment of each vertex."""
        content = read_json(path, self.name)
        try:
            return np.array(content["segIndices"], dtype=np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BrokenScene(self.name, path, f"not a segmentation of ScanNet: {error!r}") from error

    def _members(self, path: Path) -> list[tuple[int, np.ndarray]]:
        """Number and segments of each instance."""
        content = read_json(path, self.name)
        try:
            groups = content["segGroups"]
            return [(int(g["objectId"]), np.array(g["segments"], dtype=np.int64)) for g in groups]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BrokenScene(self.name, path, f"not an aggregation of ScanNet: {error!r}") from error


def _class_table() -> np.ndarray:
    table = np.full(_LARGEST_NYU40_ID + 1, -1, dtype=np.int64)
    table[list(SCANNET20_NYU40_IDS)] = np.arange(len(SCANNET20_NYU40_IDS))
    return table


_CLASS_OF_NYU40_ID = _class_table()


class ScanNet(SceneDataset):
    """ScanNet's own files, of the first and the second release.

    The official lists (``scannetv2_train.txt``) go in as ``split``.
    """

    kind = "scannet"
    classes = SCANNET20_CLASSES

    @classmethod
    def detect(cls, root: Path) -> bool:
        folders = [root, *list(scan_folders(root).values())[:LOOKED_AT]]
        return any(scan_stem(folder) is not None for folder in folders)

    @classmethod
    def is_scene(cls, root: Path) -> bool:
        return scan_stem(root) is not None

    def names(self) -> list[str]:
        alone = self.is_scene(self.root)
        self._folders = {self.root.name: self.root} if alone else scan_folders(self.root)
        return list(self._folders)

    def open(self, name: str) -> ScanNetScene:
        folder = self._folders[name]
        return ScanNetScene(name, folder, scan_stem(folder) or folder.name)
