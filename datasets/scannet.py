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

from geo3d.datasets.files import are_rigid, parse_matrix, read_json, read_plain, read_text, require_finite
from geo3d.datasets.plain_text import decode_plain, split_lines, to_whole
from geo3d.datasets.ply import Ply, read_ply
from geo3d.datasets.point_columns import named_columns, unit_colors, whole_labels
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
from geo3d.datasets.scene import BrokenScene, Mesh, Remark, SceneDataset
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
# Which table came with which release, and which of its lists lie beside it.
_LABEL_TABLES = {2: "scannetv2-labels.combined.tsv", 1: "scannet-labels.combined.tsv"}
_LISTS = {release: [f"scannetv{release}_{part}.txt" for part in ("train", "val", "test")] for release in (1, 2)}
_LISTED_IDS = 5  # so many stray ids are named


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
        self._label_remarks: tuple[Remark, ...] | None = None  # None: the labels have not been read
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
        """``aligned_from_scan`` (4, 4) float64 of the scan's text file; identity where it states none, as in v1.

        Raises:
            BrokenScene: the file is damaged, or the matrix is no rotation with a translation.
        """
        text = self._stated_alignment()
        if text is None:
            return np.eye(4)
        alignment = parse_matrix(text, self._file(".txt"), self.name)
        if not are_rigid(alignment[None])[0]:
            reason = "axisAlignment is no rotation with a translation; delete its line to leave the scan as it is"
            raise BrokenScene(self.name, self._file(".txt"), reason)
        return alignment

    def _stated_alignment(self) -> str | None:
        path = self._file(".txt")
        if path.is_file():
            for line in split_lines(read_text(path, self.name)):
                key, _, value = line.partition("=")
                if key.strip() == "axisAlignment":
                    return value
        return None

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
        if not len(vertices):
            raise BrokenScene(self.name, path, "holds no point")
        require_finite(vertices, path, self.name)
        alignment = self.axis_alignment()
        return vertices @ alignment[:3, :3].T + alignment[:3, 3]

    def mesh(self) -> Mesh:
        self.require("mesh")
        path = self._file(MESH_ENDING)
        ply = read_ply(path, self.name)
        vertices = self._aligned_vertices(ply)
        self._mesh_origin = find_origin(vertices)  # saves that property from reading the file again
        vertices = (vertices - self._mesh_origin).astype(np.float32)
        mesh = Mesh(vertices, ply.faces, normals=vertex_normals(vertices, ply.faces))
        try:
            colors = named_columns(ply.vertex).colors
            mesh.colors = None if colors is None else unit_colors(colors)
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

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was left out of the views, and of the labels once they have been read; reads the views, or else these.

        Raises:
            BrokenScene: what is read is damaged.
        """
        if "labels" in self.parts and "views" not in self.parts and self._label_remarks is None:
            self.nyu40()
        return super().remarks + (self._label_remarks or ())

    def nyu40(self) -> np.ndarray:
        """The nyu40 id of each mesh vertex, (V,) int64 in 0 to 40, 0 where unlabelled.

        The release tells what the file holds: nyu40 ids in the second, the raw ids of the label table in the first.
        A vertex whose label is none of these is unlabelled, and counted in :attr:`remarks`.

        Raises:
            BrokenScene: the file is damaged; it cannot be told of which release it is; it holds raw ids and no table
                translates them; or most of its labels are not those of its release.
        """
        self.require("labels")
        path = self._file(_LABELS_ENDING)
        stored = read_ply(path, self.name, faces=False).vertex.get("label")
        if stored is None:
            raise BrokenScene(self.name, path, "the vertices have no property 'label'")
        try:
            labels = whole_labels(stored)
        except ValueError as error:
            raise BrokenScene(self.name, path, str(error)) from error
        ids, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
        known, remarks = self._known_ids(ids, counts)
        labelled, strays = ids > 0, np.array([i > 0 and i not in known for i in ids.tolist()], dtype=bool)
        count = int(counts[strays].sum())
        named = ", ".join(map(str, ids[strays][:_LISTED_IDS])) + (", ..." if strays.sum() > _LISTED_IDS else "")
        if 2 * count > counts[labelled].sum():
            reason = f"{count} of {counts[labelled].sum()} labels ({named}) are no ids of its release"
            raise BrokenScene(self.name, path, f"{reason}, which {' or '.join(_LABEL_TABLES.values())} tells")
        if count:
            reason = f"vertices left unlabelled: their labels ({named}) are no ids of this release"
            remarks = (*remarks, Remark(self.name, str(path), reason, count))
        self._label_remarks = remarks
        return np.array([known.get(i, 0) for i in ids.tolist()], dtype=np.int64)[position]

    def _known_ids(self, ids: np.ndarray, counts: np.ndarray) -> tuple[dict[int, int], tuple[Remark, ...]]:
        """nyu40 id of each label that the scan's release knows, and what was assumed.

        Args:
            ids: the labels that occur.
            counts: how often each does.
        """
        path, release, table = self._file(_LABELS_ENDING), *self._release()
        nyu40 = {i: i for i in range(_LARGEST_NYU40_ID + 1)}
        if release == 1 and table is None:
            reason = f"holds raw label ids; put {_LABEL_TABLES[1]} in the folder of the dataset to translate them"
            raise BrokenScene(self.name, path, reason)
        if table is not None and release == 1:
            return self._nyu40_of_raw_ids(table), ()
        if release is not None:
            return nyu40, ()
        large = ids > _LARGEST_NYU40_ID
        if large.any():
            reason = (
                f"{counts[large].sum()} labels exceed {_LARGEST_NYU40_ID}, and nothing tells of which release the scan "
                f"is; put its label table in the folder of the dataset: {_LABEL_TABLES[2]} if labels are nyu40 ids, "
                f"{_LABEL_TABLES[1]} if they are raw ids"
            )
            raise BrokenScene(self.name, path, reason)
        reason = (
            "labels taken for nyu40 ids: neither a label table nor an axisAlignment tells of which release they are"
        )
        return nyu40, (Remark(self.name, str(path), reason, int(counts[ids > 0].sum())),)

    def _release(self) -> tuple[int | None, Path | None]:
        """Of which release the scan is, and the label table; None for what is not known.

        The table tells, in the nearest of the folders; or the alignment, which the first release has not; or lists.

        Raises:
            BrokenScene: the tables of both releases lie together, and the scan states no alignment.
        """
        folders = (self.root, *list(self.root.parents)[:2])
        tables = ({r: f / name for r, name in _LABEL_TABLES.items() if (f / name).is_file()} for f in folders)
        found = next(filter(None, tables), {})
        if len(found) == 1:
            return next(iter(found.items()))
        if self._stated_alignment() is not None:
            return 2, found.get(2)
        if found:
            reason = f"lies beside {found[1].name}; keep the one whose release the scan {self.name} is of"
            raise BrokenScene(self.name, found[2], reason)
        listed = [r for r, names in _LISTS.items() if any((f / name).is_file() for f in folders for name in names)]
        return listed[0] if len(listed) == 1 else None, None

    def _nyu40_of_raw_ids(self, table: Path) -> dict[int, int]:
        """Raw id -> nyu40 id by a label table; columns are found by name, as their order differs.

        Raises:
            BrokenScene: the table is damaged.
        """
        lines = split_lines(decode_plain(read_plain(table, self.name)))
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        known = {0: 0}
        try:
            names = [name.strip().lower() for name in next(rows, [])]
            raw, nyu40 = names.index("id"), names.index("nyu40id")
            for row in filter(None, rows):
                text = row[nyu40].strip() if len(row) > nyu40 else ""
                known[to_whole(row[raw].strip())] = number = to_whole(text) if text else 0
                if not 0 <= number <= _LARGEST_NYU40_ID:
                    raise ValueError(f"{number} is no nyu40 id")
        except (ValueError, IndexError, csv.Error) as error:
            raise BrokenScene(self.name, table, f"line {rows.line_num}: no usable id and nyu40id: {error}") from error
        return known

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
            if not 0 <= number < 1 << 31:
                raise BrokenScene(self.name, groups_path, f"an object has the number {number}")
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
