"""An Open3D window of a cloud in the colours of its features; a click on a point shows what is like it.

    python examples/open3d_viewer.py                                           # a synthetic room, made for it
    python examples/open3d_viewer.py scan.ply --encoder runs/spark3d-001
    python examples/open3d_viewer.py scan.ply --screenshot view.png --point 1.2 0.4 0.8      # without a display

Click: colours from blue to yellow tell the cosine similarity to the features of that point. F: back to feature colours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import geo3d
from geo3d.datasets.synthetic.furnished import furnished_mesh
from geo3d.errors import require_extra
from geo3d.viz.feature_colors import Projection, similarity_colors
from geo3d.viz.open3d_process import picked
from geo3d.viz.picture import ceiling_cut

o3d = require_extra("open3d", "open3d", "a window of points")
gui, rendering = o3d.visualization.gui, o3d.visualization.rendering


class Points:
    """A cloud with features, in an Open3D scene."""

    def __init__(self, xyz: np.ndarray, features: np.ndarray) -> None:
        cut = ceiling_cut(xyz)  # or one would see a room from outside
        shown = xyz[:, 2] < (np.inf if cut is None else cut)
        self.xyz, self.features = xyz[shown], features[shown]
        self.feature_colors = Projection.fit(features).colors(self.features)
        self.material = rendering.MaterialRecord()
        self.material.shader, self.material.point_size = "defaultUnlit", 4.0

    def show(self, scene, colors: np.ndarray) -> None:
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(self.xyz))
        cloud.colors = o3d.utility.Vector3dVector(colors / 255)
        scene.clear_geometry()
        scene.add_geometry("points", cloud, self.material)

    def similar_to(self, place: np.ndarray) -> tuple[str, np.ndarray]:
        """What is said of the point nearest to a place, and the colours (N, 3) of all others."""
        number = int(np.linalg.norm(self.xyz - place, axis=1).argmin())
        values, colors = similarity_colors(self.features, number)
        at = ", ".join(f"{x:.2f}" for x in self.xyz[number])
        return f"point {number} at {at} m: {(values > 0.8).sum()} points with a cosine above 0.8", colors

    def eye(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where to look, from where, and what is up: from above one corner."""
        low, high = self.xyz.min(0), self.xyz.max(0)
        middle, size = (low + high) / 2, np.linalg.norm(high - low)
        return middle, middle + size * np.array([0.3, -0.45, 0.65]), np.array([0.0, 0.0, 1.0])


class Window:
    """A window that shows points and takes clicks."""

    def __init__(self, points: Points) -> None:
        self.points, self.pressed = points, None
        gui.Application.instance.initialize()
        self.window = gui.Application.instance.create_window("geo3d", 1280, 800)
        self.view, self.line = gui.SceneWidget(), gui.Label("click a point")
        self.view.scene = rendering.Open3DScene(self.window.renderer)
        self.view.scene.view.set_post_processing(False)  # or colours would no longer mean what they say
        self.window.add_child(self.view)
        self.window.add_child(self.line)
        self.window.set_on_layout(self.layout)
        self.window.set_on_key(self.on_key)
        self.view.set_on_mouse(self.on_mouse)
        points.show(self.view.scene, points.feature_colors)
        self.view.setup_camera(60.0, self.view.scene.bounding_box, points.eye()[0])
        self.view.look_at(*points.eye())

    def layout(self, context) -> None:
        room = self.window.content_rect
        self.view.frame = gui.Rect(room.x, room.y, room.width, room.height - 32)
        self.line.frame = gui.Rect(room.x + 8, room.get_bottom() - 28, room.width - 16, 24)

    def on_mouse(self, event):
        if event.type == gui.MouseEvent.Type.BUTTON_DOWN:
            self.pressed = (event.x, event.y)
        if event.type == gui.MouseEvent.Type.BUTTON_UP and self.pressed == (event.x, event.y):  # no drag
            self.click(event.x - self.view.frame.x, event.y - self.view.frame.y)
        return gui.Widget.EventCallbackResult.IGNORED  # the widget turns the view

    def click(self, column: int, row: int) -> None:
        """Show what is like the point at a pixel of the view."""
        camera, size = self.view.scene.camera, (self.view.frame.width, self.view.frame.height)
        seen = (np.asarray(camera.get_view_matrix()), np.asarray(camera.get_projection_matrix()))
        number = picked((column, row), self.points.xyz, *seen, size)
        if number is not None:
            self.line.text, colors = self.points.similar_to(self.points.xyz[number])
            self.points.show(self.view.scene, colors)
            self.view.force_redraw()

    def on_key(self, event) -> bool:
        if event.type == gui.KeyEvent.DOWN and event.key == gui.KeyName.F:
            self.points.show(self.view.scene, self.points.feature_colors)
            self.view.force_redraw()
        return False


def screenshot(points: Points, path: Path, place: np.ndarray | None) -> None:
    """Feature colours beside similarity to the point nearest to a place, drawn without a window."""
    renderer = rendering.OffscreenRenderer(900, 700)
    renderer.scene.view.set_post_processing(False)
    text, colors = points.similar_to(points.xyz.mean(0) if place is None else place)
    pictures = []
    for shown in (points.feature_colors, colors):
        points.show(renderer.scene, shown)
        renderer.setup_camera(60.0, *(v.astype(np.float32) for v in points.eye()))  # of what is there by now
        pictures.append(np.asarray(renderer.render_to_image()))
    o3d.io.write_image(str(path), o3d.geometry.Image(np.ascontiguousarray(np.concatenate(pictures, 1))))
    print(f"{text}\npicture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path, help="file of points; a synthetic room when not given")
    parser.add_argument(
        "--encoder", default="sparse_resnet_tiny", help="run folder, file, or model with weights in geo3d"
    )
    parser.add_argument("--fresh", type=int, metavar="SEED", help="fresh weights instead, to compare with")
    parser.add_argument("--screenshot", type=Path, help="draw this PNG without a window")
    parser.add_argument("--point", type=float, nargs=3, help="place of the point of the screenshot (metres)")
    args = parser.parse_args()
    if args.scan is None:
        cloud = furnished_mesh(0).to_points(np.zeros(3))
    else:
        cloud = geo3d.read_points(args.scan)
    encoder = geo3d.load_encoder(args.encoder, fresh=args.fresh)
    if encoder.kind not in ("voxels", "points"):
        raise geo3d.InputError(f"--encoder: {encoder!r} does not read points")
    out = encoder(cloud)
    print(f"{len(cloud)} points, {out.points.shape[1]} channels, filled in: {out.filled or 'nothing'}")
    points = Points(cloud.xyz.double().numpy(), out.points.cpu().numpy())
    if args.screenshot:
        screenshot(points, args.screenshot, None if args.point is None else np.array(args.point))
    else:
        Window(points)
        gui.Application.instance.run()


if __name__ == "__main__":
    main()
