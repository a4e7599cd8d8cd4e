"""From where a space is seen: the same for every renderer, near enough that it fills the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from geo3d.viz.picture import Points, Space, Surface

#: Degrees: angle about z and above the horizon from which a place and an object are seen, and the height of the view.
AZIMUTH, ELEVATION, OBJECT_ELEVATION, FIELD_OF_VIEW = 35.0, 55.0, 25.0, 30.0
#: Share of the picture that is left free at each side.
_FREE = 0.04
#: Of many points, the share at each end of an axis that need not be in view: strays of a scan.
_STRAY, _MANY = 0.0005, 2000
#: Cosine of the angle to the viewing direction beyond which a surface faces away.
_AWAY = 0.1


@dataclass(frozen=True, eq=False)
class Viewpoint:
    """An eye in the world.

    Args:
        eye, target: (3,) metres.
        axes: (3, 3) columns right, down, forward.
        field_of_view: of the picture's height, degrees.
    """

    eye: np.ndarray
    target: np.ndarray
    axes: np.ndarray
    field_of_view: float = FIELD_OF_VIEW

    @classmethod
    def of(
        cls, space: Space, size: tuple[int, int], azimuth: float | None = None, elevation: float | None = None
    ) -> Viewpoint:
        """The nearest one that holds all of a space.

        Args:
            space: what is to be seen.
            size: width and height of the picture, pixels; their ratio matters.
            azimuth, elevation: degrees, from where; the usual ones of places and objects where not given.
        """
        azimuth = np.radians(AZIMUTH if azimuth is None else azimuth)
        usual = OBJECT_ELEVATION if space.is_object else ELEVATION
        elevation = np.radians(usual if elevation is None else elevation)
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
        forward = -np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        axes = np.stack([right, np.cross(forward, right), forward], 1)
        seen = _without_strays(space.frame()) @ axes
        if not len(seen):
            seen = np.zeros((1, 3))
        # The eye sees x where |x - eye_x| <= slope (z - eye_z): of each side of the picture, two planes that all places
        # have to lie between; the nearest eye is where the planes of the tighter side meet.
        slope = np.tan(np.radians(FIELD_OF_VIEW) / 2) * (1 - 2 * _FREE) * np.array([size[0] / size[1], 1.0])
        lowest = (seen[:, :2] - slope * seen[:, 2:]).max(0)
        highest = (seen[:, :2] + slope * seen[:, 2:]).min(0)
        near = min(((highest - lowest) / (2 * slope)).min(), seen[:, 2].min() - 1e-3)
        middle = (lowest + highest) / 2
        eye = axes @ np.array([*middle, near])
        distance = max(float(np.median(seen[:, 2])) - near, 1e-3)
        return cls(eye, eye + distance * forward, axes)

    def project(self, xyz: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 2) of points (N, 3), the centre of the upper left one at (0, 0), and their depth (N,), metres."""
        seen = (xyz - self.eye) @ self.axes
        focal = size[1] / 2 / np.tan(np.radians(self.field_of_view) / 2)
        depth = seen[:, 2]
        uv = seen[:, :2] * focal / np.where(depth > 1e-6, depth, np.nan)[:, None]
        return uv + (np.array(size) - 1) / 2, depth

    def sees(self, space: Space) -> Space:
        """A space without what faces away from the eye: points whose normals do, and, of places, triangles that do.

        So that one looks into a room through its walls.
        """
        points = tuple(p if p.normals is None else self._facing(p) for p in space.points)
        surfaces = space.surfaces if space.is_object else tuple(self._front(s) for s in space.surfaces)
        return replace(space, points=points, surfaces=surfaces)

    def _facing(self, points: Points) -> Points:
        rays = points.xyz - self.eye
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True).clip(1e-9)
        return points.rows(~((points.normals * rays).sum(1) >= _AWAY))  # unknown normals are kept

    def _front(self, surface: Surface) -> Surface:
        corners = surface.vertices[surface.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        front = (normals * (corners.mean(1) - self.eye)).sum(1) <= 0
        return replace(surface, faces=surface.faces[front])


def _without_strays(xyz: np.ndarray) -> np.ndarray:
    if len(xyz) < _MANY:
        return xyz
    low, high = np.quantile(xyz, (_STRAY, 1 - _STRAY), axis=0)
    free = 0.02 * (high - low)
    return xyz[((xyz >= low - free) & (xyz <= high + free)).all(1)]


__all__ = ["AZIMUTH", "ELEVATION", "FIELD_OF_VIEW", "OBJECT_ELEVATION", "Viewpoint"]
