"""Open3D in a process of its own: what it prints, and where it takes a process down, stays there.

``python -m geo3d.viz.open3d_process TASK ANSWER``: TASK is a pickle that :mod:`geo3d.viz.render` wrote, of plain
arrays; off-screen, the drawn panels go to ANSWER as an NPZ. Importing this module imports NumPy alone.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from typing import Any

import numpy as np

#: Distance between mouse button down and up, pixels, up to which it is a click and not a turn of the view.
_STILL = 4
#: Pixels around a click within which a point is looked for.
_REACH = 12
_PANEL = 380  # width of the panel beside the window's view, pixels
_SIZE = (1280, 800)


def picked(
    click: tuple[float, float], xyz: np.ndarray, view: np.ndarray, projection: np.ndarray, size: tuple[int, int]
) -> int | None:
    """The point that a click means: the nearest to the eye of those close to it.

    Args:
        click: pixels from the upper left corner.
        xyz: (N, 3).
        view, projection: (4, 4) of the camera, as OpenGL has them.
        size: width and height of the view, pixels.

    Returns:
        Its row; None where there is no point.
    """
    if not len(xyz):
        return None
    clip = np.c_[xyz, np.ones(len(xyz))] @ (projection @ view).T
    ahead = clip[:, 3] > 1e-9
    place = clip[:, :2] / np.where(ahead, clip[:, 3], 1)[:, None]
    uv = (place * (1, -1) + 1) / 2 * size
    apart = np.where(ahead, np.linalg.norm(uv - click, axis=1), np.inf)
    close = np.flatnonzero(apart <= _REACH)
    if not len(close):
        return None
    # A dot covers some pixels: of nearly the same distance to the eye, the one nearest to the click.
    return int(close[np.argmin(clip[close, 3] * (1 + 0.01 * apart[close] / _REACH))])


def _points(o3d: Any, part: dict[str, np.ndarray]) -> Any:
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(part["xyz"].astype(np.float64)))
    cloud.colors = o3d.utility.Vector3dVector(part["colors"] / 255.0)
    return cloud


def _add(o3d: Any, scene: Any, space: dict[str, Any], name: str, dot: float, line: float) -> None:
    """Put a space into an Open3DScene."""
    for number, part in enumerate(space["surfaces"]):
        mesh = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(part["vertices"].astype(np.float64)),
            o3d.utility.Vector3iVector(part["faces"].astype(np.int32)),
        )
        mesh.vertex_colors = o3d.utility.Vector3dVector(part["colors"] / 255.0)
        scene.add_geometry(f"{name} surface {number}", mesh, _material(o3d, "defaultUnlit"))
    for number, part in enumerate(space["points"]):
        if len(part["xyz"]):
            material = _material(o3d, "defaultUnlit")
            material.point_size = dot
            scene.add_geometry(f"{name} points {number}", _points(o3d, part), material)
    ends = space["lines"]["ends"]
    if len(ends):
        pairs = np.arange(2 * len(ends), dtype=np.int32).reshape(-1, 2)
        lines = o3d.geometry.LineSet(
            o3d.utility.Vector3dVector(ends.reshape(-1, 3).astype(np.float64)), o3d.utility.Vector2iVector(pairs)
        )
        lines.colors = o3d.utility.Vector3dVector(space["lines"]["colors"] / 255.0)
        material = _material(o3d, "unlitLine")
        material.line_width = line
        scene.add_geometry(f"{name} lines", lines, material)


def _material(o3d: Any, shader: str) -> Any:
    material = o3d.visualization.rendering.MaterialRecord()
    material.shader = shader
    return material


def draw_offscreen(task: dict[str, Any]) -> list[np.ndarray]:
    """The spaces of a task, (H, W, 3) uint8 each."""
    import open3d as o3d

    width, height = task["size"]
    renderer = o3d.visualization.rendering.OffscreenRenderer(width, height)
    scene, drawn = renderer.scene, []
    scene.set_background([1.0, 1.0, 1.0, 1.0])
    scene.view.set_post_processing(False)  # tone mapping would change the colours that mean something
    for space in task["spaces"]:
        scene.clear_geometry()
        _add(o3d, scene, space, "space", space["dot"], 2.0)
        eye = space["eye"]
        renderer.setup_camera(
            float(eye["field_of_view"]), *(np.asarray(eye[name], np.float32) for name in ("target", "eye", "up"))
        )
        drawn.append(np.asarray(renderer.render_to_image())[..., :3].copy())
    return drawn


class Window:
    """A window with all spaces of a task beside each other, and what the picture says on its right.

    A click on a point that has features colours all that have by their likeness to it; Escape closes the window.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        import open3d as o3d

        self.o3d, self.task = o3d, task
        gui, rendering = o3d.visualization.gui, o3d.visualization.rendering
        self.app = gui.Application.instance
        self.app.initialize()
        self.window = self.app.create_window(task["title"], *_SIZE)
        self.view = gui.SceneWidget()
        self.view.scene = rendering.Open3DScene(self.window.renderer)
        self.view.scene.set_background([1.0, 1.0, 1.0, 1.0])
        self.view.scene.view.set_post_processing(False)
        self.side = gui.ScrollableVert(4, gui.Margins(8, 8, 8, 8))
        self.status = gui.Label(task["hint"])
        self.side.add_child(self.status)
        self.side.add_child(gui.ImageWidget(o3d.geometry.Image(np.ascontiguousarray(task["aside"]))))
        self.window.add_child(self.view)
        self.window.add_child(self.side)
        self.window.set_on_layout(self._layout)
        self.window.set_on_close(self._end)
        for number, space in enumerate(task["spaces"]):
            _add(o3d, self.view.scene, space, f"space {number}", task["dot"], 2.0)
            for place, text in space["texts"]:
                self.view.add_3d_label(np.asarray(place, np.float32), text)
        eye, bounds = task["eye"], self.view.scene.bounding_box
        if not task["spaces"]:
            bounds = o3d.geometry.AxisAlignedBoundingBox([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0])
        self.view.setup_camera(float(eye["field_of_view"]), bounds, np.asarray(eye["target"], np.float32))
        self.view.look_at(*(np.asarray(eye[name], np.float32) for name in ("target", "eye", "up")))
        self.pressed: tuple[int, int] | None = None
        self.view.set_on_mouse(self._on_mouse)
        self.window.set_on_key(self._on_key)
        self.begun: float | None = None
        self.ends: float | None = task["close_after"]
        if self.ends is not None:
            self.window.set_on_tick_event(self._on_tick)

    def run(self) -> None:
        """Until the window is closed."""
        self.app.run()

    def _end(self) -> bool:
        os._exit(0)  # Open3D ends with a segmentation fault where Python still holds its objects

    def _on_key(self, event: Any) -> bool:
        if event.key == self.o3d.visualization.gui.KeyName.ESCAPE:
            self._end()
        return False

    def _on_tick(self) -> bool:
        self.begun = self.begun or time.monotonic()  # when it is there, and not when it is being made
        if time.monotonic() - self.begun > self.ends:
            self._end()
        return False

    def _layout(self, context: Any) -> None:
        room, gui = self.window.content_rect, self.o3d.visualization.gui
        beside = min(_PANEL, room.width // 2) if self.task["spaces"] else room.width
        self.view.frame = gui.Rect(room.x, room.y, room.width - beside, room.height)
        self.side.frame = gui.Rect(room.get_right() - beside, room.y, beside, room.height)

    def _on_mouse(self, event: Any) -> Any:
        gui = self.o3d.visualization.gui
        result, place = gui.Widget.EventCallbackResult, (event.x - self.view.frame.x, event.y - self.view.frame.y)
        if event.type == gui.MouseEvent.Type.BUTTON_DOWN:
            self.pressed = place
        elif event.type == gui.MouseEvent.Type.BUTTON_UP and self.pressed is not None:
            if max(abs(place[0] - self.pressed[0]), abs(place[1] - self.pressed[1])) <= _STILL:
                self.click(place)
            self.pressed = None
        return result.IGNORED

    def click(self, place: tuple[int, int]) -> None:
        """Colour by likeness to the point at a pixel of the view."""
        camera, size = self.view.scene.camera, (self.view.frame.width, self.view.frame.height)
        parts = [
            (number, part_number, part)
            for number, space in enumerate(self.task["spaces"])
            for part_number, part in enumerate(space["points"])
            if part["features"] is not None
        ]
        if not parts:
            return
        xyz = np.concatenate([part["xyz"] for _, _, part in parts])
        found = picked(
            place, xyz, np.asarray(camera.get_view_matrix()), np.asarray(camera.get_projection_matrix()), size
        )
        if found is None:
            return
        from geo3d.viz.feature_colors import similarity_colors

        features = np.concatenate([part["features"] for _, _, part in parts])
        _, colors = similarity_colors(features, found)
        start = 0
        for number, part_number, part in parts:
            name, stop = f"space {number} points {part_number}", start + len(part["xyz"])
            self.view.scene.remove_geometry(name)
            material = _material(self.o3d, "defaultUnlit")
            material.point_size = self.task["dot"]
            shown = {"xyz": part["xyz"], "colors": colors[start:stop]}
            self.view.scene.add_geometry(name, _points(self.o3d, shown), material)
            start = stop
        x, y, z = xyz[found]
        self.status.text = f"cosine similarity to the point at\n{x:.2f} {y:.2f} {z:.2f}, from blue to yellow"
        self.view.force_redraw()


def main(task_path: str, answer: str) -> None:
    """Do what a task says."""
    with open(task_path, "rb") as file:
        task = pickle.load(file)
    import open3d as o3d

    o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)
    if task["window"]:
        window = Window(task)
        open(answer, "wb").close()  # says that there is a window
        window.run()
    else:
        np.savez(answer, *draw_offscreen(task))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
