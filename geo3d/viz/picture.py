"""What a picture shows, as plain arrays: kinds of pictures make it, and every renderer draws it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from geo3d.geometry import Camera
from geo3d.viz.feature_colors import UNKNOWN
from geo3d.viz.grids import BELOW_CEILING

#: Of lines, cameras and marks where nothing else is said.
LINE_COLOR = (70, 70, 70)
MARK_COLOR = (230, 30, 30)
#: Share of the floor's cells that must have points near the top for a place to have a ceiling, and the cells' number
#: along the longer side; the top is as much of the height.
_CEILING_SHARE, _CELLS, _TOP = 0.4, 16, 0.1


@dataclass(frozen=True, eq=False)
class Points:
    """Coloured points.

    Args:
        xyz: (N, 3) float, metres.
        colors: (N, 3) uint8; grey when not given.
        normals: (N, 3) unit vectors; with them what faces away is left out of still pictures.
        features: (N, C) float, rows not finite where there is none: what viewers compare when a point is clicked.
    """

    xyz: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.colors is None:
            object.__setattr__(self, "colors", np.tile(np.array(UNKNOWN, np.uint8), (len(self.xyz), 1)))

    def rows(self, kept: np.ndarray) -> Points:
        """Some of the points, by mask or by numbers."""
        parts = (self.xyz, self.colors, self.normals, self.features)
        return Points(*(None if part is None else part[kept] for part in parts))


@dataclass(frozen=True, eq=False)
class Lines:
    """Straight lines: ``ends`` (L, 2, 3) metres, ``colors`` (L, 3) uint8."""

    ends: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh: ``vertices`` (V, 3) metres, ``faces`` (F, 3), ``colors`` (V, 3) uint8."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True, eq=False)
class Frustum:
    """A camera, drawn as the pyramid that it sees.

    Args:
        world_from_camera: (4, 4) pose, OpenCV's axes.
        camera: its intrinsics.
        length: of the pyramid along the viewing direction, metres.
        color: of its edges.
        image: (H, W, 3) uint8 that viewers may put into it.
        name: of the view.
    """

    world_from_camera: np.ndarray
    camera: Camera
    length: float = 0.2
    color: tuple[int, int, int] = LINE_COLOR
    image: np.ndarray | None = None
    name: str = ""

    def lines(self) -> Lines:
        """Its edges, and a stroke that says where up is: 9 lines."""
        camera, (width, height) = self.camera, (self.camera.width, self.camera.height)
        uv = np.array([(0, 0), (width, 0), (width, height), (0, height), (width / 2, -0.15 * height)], float) - 0.5
        rays = np.c_[(uv - (camera.cx, camera.cy)) / (camera.fx, camera.fy), np.ones(len(uv))] * self.length
        pose = np.asarray(self.world_from_camera, float)
        corners, eye = rays @ pose[:3, :3].T + pose[:3, 3], pose[:3, 3]
        ends = [(eye, corners[i]) for i in range(4)] + [(corners[i], corners[(i + 1) % 4]) for i in range(4)]
        ends.append((corners[:2].mean(0), corners[4]))
        return Lines(np.array(ends), np.tile(np.array(self.color, np.uint8), (len(ends), 1)))


@dataclass(frozen=True, eq=False)
class Marker:
    """A place that is pointed out: ``place`` (3,) metres, and a short text beside it."""

    place: np.ndarray
    text: str = ""
    color: tuple[int, int, int] = MARK_COLOR


@dataclass(frozen=True, eq=False)
class Space:
    """Things in one frame of coordinates, z up; a panel of the picture.

    Args:
        caption: above the panel.
        points, lines, surfaces, cameras, markers: what is in it.
        is_object: whether it is a single thing, looked at from a little above, or a place, looked down into.
    """

    caption: str = ""
    points: tuple[Points, ...] = ()
    lines: tuple[Lines, ...] = ()
    surfaces: tuple[Surface, ...] = ()
    cameras: tuple[Frustum, ...] = ()
    markers: tuple[Marker, ...] = ()
    is_object: bool = False

    def every_line(self) -> Lines:
        """All lines, those of cameras among them."""
        parts = [*self.lines, *(camera.lines() for camera in self.cameras)]
        none = Lines(np.zeros((0, 2, 3)), np.zeros((0, 3), np.uint8))
        every = [none, *parts]
        return Lines(np.concatenate([p.ends for p in every]), np.concatenate([p.colors for p in every]))

    def frame(self) -> np.ndarray:
        """(M, 3) places that a view has to hold: those of points and surfaces, and of lines where there are none."""
        solid = [p.xyz for p in self.points] + [s.vertices for s in self.surfaces]
        solid = [part[np.isfinite(part).all(1)] for part in solid]
        if sum(map(len, solid)):
            return np.concatenate([*solid, *(m.place[None] for m in self.markers)]).astype(np.float64)
        return np.concatenate([self.every_line().ends.reshape(-1, 3), *(m.place[None] for m in self.markers)])

    def without_ceiling(self) -> Space:
        """A place of which one sees the inside: where there is a ceiling, what lies in the upper 30 % is left out.

        Objects, and places without a ceiling, stay as they are.
        """
        height = None if self.is_object else ceiling_cut(self.frame())
        if height is None:
            return self
        surfaces = tuple(
            replace(s, faces=s.faces[(s.vertices[s.faces][..., 2] <= height).all(1)]) for s in self.surfaces
        )
        surfaces = tuple(_used(s) for s in surfaces if len(s.faces))
        points = tuple(p.rows(p.xyz[:, 2] <= height) for p in self.points)
        return replace(self, points=points, surfaces=surfaces)


@dataclass(frozen=True, eq=False)
class ImagePanel:
    """An image beside the spaces: ``pixels`` (H, W, 3) uint8, and what stands above it."""

    caption: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Scale:
    """What colours of :func:`geo3d.viz.feature_colors.value_colors` mean: values at both ends, and of what."""

    low: float
    high: float
    label: str


@dataclass(frozen=True, eq=False)
class Picture3D:
    """Everything of one picture.

    Args:
        title: in one line.
        spaces: panels in 3D, from left to right.
        images: panels that are images, below them.
        legend: names and their colours.
        scale: of values that are drawn in colours.
        notes: lines below all, such as how colours were made, and whether weights are trained.
        columns: panels of images in a row.
    """

    title: str
    spaces: tuple[Space, ...] = ()
    images: tuple[ImagePanel, ...] = ()
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    scale: Scale | None = None
    notes: tuple[str, ...] = field(default=())
    columns: int = 3


def ceiling_cut(xyz: np.ndarray) -> float | None:
    """Height above which points (N, 3), z up, hide a place from above; None where it has no ceiling.

    There is one where points in the upper tenth of the height spread over 40 % of the floor's cells.
    """
    if len(xyz) < _CELLS:
        return None
    low, high = np.quantile(xyz[:, 2], (0.002, 0.998))
    first, size = xyz[:, :2].min(0), max(np.ptp(xyz[:, :2], axis=0).max() / _CELLS, 1e-9)
    cells = ((xyz[:, :2] - first) / size).astype(np.int64)
    occupied, above = (len(np.unique(c, axis=0)) for c in (cells, cells[xyz[:, 2] >= high - _TOP * (high - low)]))
    return float(low + BELOW_CEILING * (high - low)) if above >= _CEILING_SHARE * occupied else None


def _used(surface: Surface) -> Surface:
    """A surface without the vertices that no face uses."""
    used, faces = np.unique(surface.faces, return_inverse=True)
    return Surface(surface.vertices[used], faces.reshape(surface.faces.shape), surface.colors[used])


__all__ = [
    "LINE_COLOR",
    "MARK_COLOR",
    "Frustum",
    "ImagePanel",
    "Lines",
    "Marker",
    "Picture3D",
    "Points",
    "Scale",
    "Space",
    "Surface",
    "ceiling_cut",
]
