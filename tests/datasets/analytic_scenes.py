"""Scenes of axis-aligned boxes with closed-form depth, for tests whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene, SceneDataset, Tracks
from geo3d.geometry import Camera

CAMERA = Camera.from_fov(160, 120, np.pi / 2)
ROOM = ((-3.0, -3.0, 0.0), (3.0, 3.0, 3.0))


def look_at(eye: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """``world_from_camera`` of a level camera."""
    eye, target = np.asarray(eye, dtype=np.float64), np.asarray(target, dtype=np.float64)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


class BoxScene(Scene):
    """Views of solid boxes inside a room.

    Args:
        poses: ``world_from_camera`` of each view.
        boxes: (low, high) corners of solid boxes.
        room: low and high corner of the room, seen from inside.
        camera: of all views, or one a view.
        parts: what the scene admits to have.
        points: (P, 3) of its tracks; each is observed by the views that truly see it.
    """

    def __init__(
        self,
        poses: Sequence[np.ndarray],
        boxes: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
        room: tuple[Sequence[float], Sequence[float]] = ROOM,
        camera: Camera | Sequence[Camera] = CAMERA,
        parts: Sequence[str] = ("views", "poses", "depth"),
        points: np.ndarray | None = None,
        metric: bool = True,
        name: str = "boxes",
    ) -> None:
        self.name, self.root, self.parts, self.metric = name, Path("memory"), frozenset(parts), metric
        self._poses, self._boxes, self._room, self._points = list(poses), boxes, np.array(room), points
        self._cameras = [camera] * len(self._poses) if isinstance(camera, Camera) else list(camera)

    @property
    def view_names(self) -> list[str]:
        return [f"{i:04d}" for i in range(len(self._poses))]

    def camera(self, index: int) -> Camera:
        return self._cameras[index]

    def pose(self, index: int) -> np.ndarray:
        return self._poses[index]

    def hit_depth(self, index: int, uv: np.ndarray) -> np.ndarray:
        """Depth (...) of what pixels (..., 2) show."""
        rays = self._cameras[index].unproject(torch.from_numpy(uv), torch.ones(uv.shape[:-1], dtype=torch.float64))
        pose = self._poses[index]
        direction, origin = rays.numpy() @ pose[:3, :3].T, pose[:3, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.where(direction > 0, (self._room[1] - origin) / direction, (self._room[0] - origin) / direction)
            depth = depth.min(-1)
            for low, high in self._boxes:
                first, second = (np.asarray(low) - origin) / direction, (np.asarray(high) - origin) / direction
                enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
                depth = np.where((enter > 0) & (enter < leave) & (enter < depth), enter, depth)
        return depth

    def depth(self, index: int) -> np.ndarray:
        self.require("depth")
        return self.hit_depth(index, self._cameras[index].pixel_grid().numpy()).astype(np.float32)

    def image(self, index: int) -> Image.Image:
        """Waves painted on the surfaces, so that a point has the same colour in every view."""
        camera = self._cameras[index]
        uv = camera.pixel_grid()
        depth = torch.from_numpy(self.hit_depth(index, uv.numpy()))
        xyz = camera.unproject(uv, depth).numpy() @ self._poses[index][:3, :3].T + self._poses[index][:3, 3]
        waves = 0.5 + 0.5 * np.sin(7 * xyz) * np.cos(4 * np.roll(xyz, 1, -1))
        return Image.fromarray((255 * waves).astype(np.uint8))

    def tracks(self) -> Tracks:
        self.require("tracks")
        views, points, pixels = [], [], []
        for view in range(len(self._poses)):
            seen, uv = self.visible(self._points, view)
            views.append(np.full(len(seen), view))
            points.append(seen)
            pixels.append(uv)
        error = np.zeros(len(self._points))
        return Tracks(self._points, error, np.concatenate(views), np.concatenate(points), np.concatenate(pixels))

    def visible(self, points: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Which points (P, 3) a view truly sees, and at which pixels."""
        camera, pose = self._cameras[view], self._poses[view]
        inside = (points - pose[:3, 3]) @ pose[:3, :3]
        uv = camera.project(torch.from_numpy(inside)).numpy()
        framed = (inside[:, 2] > 0) & (uv >= -0.5).all(1) & (uv < [camera.width - 0.5, camera.height - 0.5]).all(1)
        seen = np.flatnonzero(framed)
        reached = self.hit_depth(view, uv[seen])
        seen = seen[np.abs(reached - inside[seen, 2]) < 1e-6 * reached]
        return seen, uv[seen]


def orbit(count: int, step_degrees: float, radius: float = 2.0) -> list[np.ndarray]:
    """Poses on a circle around the vertical axis, all looking at a point 1 m above the floor."""
    angles = np.radians(step_degrees) * np.arange(count)
    return [look_at((radius * np.cos(a), radius * np.sin(a), 1.5), (0.0, 0.0, 1.0)) for a in angles]


BOXES = (((-0.4, -0.4, 0.0), (0.4, 0.4, 1.2)), ((-2.9, 1.5, 0.0), (-2.0, 2.9, 2.0)))


class AnalyticDataset(SceneDataset):
    """Files ``<scene>.analytic`` that hold the number of views of an orbit, or ``broken``, or ``empty``."""

    kind = "analytic"

    @classmethod
    def detect(cls, root: Path) -> bool:
        return any(root.glob("*.analytic"))

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.analytic"))

    def open(self, name: str) -> BoxScene:
        path = self.root / f"{name}.analytic"
        text = path.read_text().strip()
        if text == "broken":
            raise BrokenScene(name, path, "the word is 'broken'", offset=7)
        if text == "empty":
            return BoxScene([], name=name, parts=("mesh",))
        return BoxScene(orbit(int(text), 10.0), BOXES, name=name)

    @classmethod
    def write(cls, root: Path, scenes: dict[str, str | int]) -> Path:
        """Make a folder of scenes."""
        root.mkdir(parents=True)
        for name, text in scenes.items():
            (root / f"{name}.analytic").write_text(str(text))
        return root
