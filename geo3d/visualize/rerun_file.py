"""A picture as an .rrd file, for the viewer of rerun: rerun-sdk, of the extra `rerun`, writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.errors import InputError, require_extra
from geo3d.visualize.coloring import FEATURES, Coloring, joined, spacing
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.picture import Frustum, Picture3D, Space
from geo3d.viz.viewpoint import Viewpoint
from geo3d.writing import prepare_place, replacing

#: Name of the timeline that checkpoints lie on, by their optimizer steps.
TIMELINE = "step"
#: How many times the spacing of points a dot is wide.
_DOT = 1.5
_JPEG_QUALITY = 90
_WINDOW = (1000, 800)


def write_rerun(
    picture: Picture3D,
    path: Path,
    timeline: FeatureTimeline | None = None,
    colorings: Sequence[Coloring] = (),
    own: str = "colours",
    azimuth: float | None = None,
    elevation: float | None = None,
) -> Path:
    """Write a picture as an .rrd file, which ``rerun FILE`` opens.

    Each space is an entity by its caption (``scene`` where it has none). Below it lie its points, once for each
    colouring, ``features/LAYER`` whose colours change along the timeline ``step``, ``surfaces``, ``lines``,
    ``markers``, and ``cameras/NAME``, each a pinhole with its pose and its image. A layout with a tab for each
    colouring comes along.

    Args:
        picture: what to write.
        path: the file.
        timeline: features of the points of the first space at each state of a network.
        colorings: more ways to colour these points; those with a legend become classes with names.
        own: what the picture's own colours are called.
        azimuth, elevation: degrees, from where spaces are seen at first; the usual ones where not given.

    Returns:
        The path.

    Raises:
        MissingExtra: rerun-sdk is not installed.
        InputError: the name does not end in .rrd, the file cannot be written, or there are not as many features or
            colours as points.
    """
    rr = require_extra("rerun", "rerun", "an .rrd file")
    if path.suffix.lower() != ".rrd":
        raise InputError(f"{path}: what --rerun writes is an .rrd file; give it that ending")
    with replacing(prepare_place(path)) as unfinished:
        recording = rr.RecordingStream("geo3d")
        recording.save(unfinished)
        recording.set_log_tick_enabled(False)
        recording.set_log_time_enabled(False)
        recording.send_recording_name(picture.title)
        views = []
        for number, space in enumerate(picture.spaces):
            root = [space.caption or ("scene" if len(picture.spaces) == 1 else f"panel {number + 1}")]
            first = number == 0
            more = (timeline, colorings) if first else (None, ())
            views += _Writer(rr, recording, root, azimuth, elevation).write(space, picture.legend, own, *more)
        for number, panel in enumerate(picture.images):
            name = ["images", panel.caption or str(number + 1)]
            recording.log(name, rr.Image(panel.pixels).compress(jpeg_quality=_JPEG_QUALITY), static=True)
            views.append(rr.blueprint.Spatial2DView(origin=_path(rr, name), name=name[-1]))
        if picture.notes:
            recording.log("notes", rr.TextDocument("\n".join((picture.title, *picture.notes))), static=True)
        tabs = rr.blueprint.Tabs(*views)
        recording.send_blueprint(rr.blueprint.Blueprint(tabs, collapse_panels=True))
        recording.flush()
        recording.disconnect()
    return path


class _Writer:
    """Writes one space below an entity."""

    def __init__(
        self, rr: Any, recording: Any, root: list[str], azimuth: float | None, elevation: float | None
    ) -> None:
        self._rr, self._recording, self._root = rr, recording, root
        self._seen_from = azimuth, elevation

    def write(
        self,
        space: Space,
        legend: Sequence[tuple[str, tuple[int, int, int]]],
        own: str,
        timeline: FeatureTimeline | None,
        colorings: Sequence[Coloring],
    ) -> list[Any]:
        """Write it, and return the views that show it: one for each colouring."""
        rr = self._rr
        self._log([], rr.ViewCoordinates.RIGHT_HAND_Z_UP)
        points = joined(space)
        every = [Coloring(own, points.colors, tuple(legend)), *colorings]
        shown = []
        if len(points.xyz):
            radius = _DOT / 2 * (spacing(points.xyz) or 0.01)
            for coloring in every:
                self._log([coloring.name], self._points(points.xyz, radius, coloring))
                shown.append((coloring.name, [coloring.name]))
            if timeline is not None:
                for layer in timeline.layers:
                    self._log([FEATURES, layer], rr.Points3D(points.xyz, radii=radius))
                    shown.append((f"{FEATURES}, {layer}", [FEATURES, layer]))
                for step, number in enumerate(timeline.numbers):
                    self._recording.set_time(TIMELINE, sequence=number)
                    self._log(["state"], rr.TextDocument(timeline.steps[step]), static=False)
                    for layer in timeline.layers:
                        colors = rr.Points3D.from_fields(colors=timeline.colors(step, layer))
                        self._log([FEATURES, layer], colors, static=False)
                self._recording.reset_time()
        self._others(space)
        return self._views(space, shown or [(self._root[-1], [])])

    def _log(self, below: Sequence[str], what: Any, static: bool = True) -> None:
        self._recording.log([*self._root, *below], what, static=static)

    def _points(self, xyz: np.ndarray, radius: float, coloring: Coloring) -> Any:
        """Points; those that a legend names as members of classes, which the viewer tells."""
        rr = self._rr
        if not coloring.legend:
            return rr.Points3D(xyz, colors=coloring.colors, radii=radius)
        numbered = list(enumerate(coloring.legend, 1))
        names = [rr.AnnotationInfo(id=number, label=name, color=color) for number, (name, color) in numbered]
        self._log([coloring.name], rr.AnnotationContext(names))
        classes = np.zeros(len(xyz), np.uint16)
        for number, (_, color) in numbered:
            classes[(coloring.colors == np.array(color)).all(1)] = number
        return rr.Points3D(xyz, colors=coloring.colors, class_ids=classes, radii=radius)

    def _others(self, space: Space) -> None:
        rr = self._rr
        for number, surface in enumerate(space.surfaces):
            mesh = rr.Mesh3D(
                vertex_positions=surface.vertices, triangle_indices=surface.faces, vertex_colors=surface.colors
            )
            self._log(["surfaces", str(number)], mesh)
        for number, lines in enumerate(space.lines):
            self._log(["lines", str(number)], rr.LineStrips3D(lines.ends, colors=lines.colors))
        if space.markers:
            places, texts, colors = zip(*((m.place, m.text, m.color) for m in space.markers))
            self._log(
                ["markers"], rr.Points3D(np.array(places), labels=texts, colors=colors, radii=rr.Radius.ui_points(5))
            )
        for number, frustum in enumerate(space.cameras):
            self._camera(["cameras", frustum.name or str(number)], frustum)

    def _camera(self, name: list[str], frustum: Frustum) -> None:
        """A pinhole at its pose, and its image; what a lens bends is not told."""
        rr, camera, pose = self._rr, frustum.camera, np.asarray(frustum.world_from_camera, float)
        if frustum.image is not None:
            height, width = frustum.image.shape[:2]
            camera = camera.resized(width, height)
        self._log(name, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        pinhole = rr.Pinhole(
            focal_length=(camera.fx, camera.fy),
            principal_point=(camera.cx + 0.5, camera.cy + 0.5),  # the corner of the upper-left pixel is rerun's (0, 0)
            resolution=(camera.width, camera.height),
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=frustum.length,
        )
        self._log(name, pinhole)
        if frustum.image is not None:
            self._log(name, rr.Image(frustum.image).compress(jpeg_quality=_JPEG_QUALITY))

    def _views(self, space: Space, shown: Sequence[tuple[str, list[str]]]) -> list[Any]:
        blueprint, origin = self._rr.blueprint, _path(self._rr, self._root)
        eye = Viewpoint.of(space, _WINDOW, *self._seen_from)
        controls = blueprint.EyeControls3D(position=eye.eye, look_target=eye.target, eye_up=(0, 0, 1))
        others = [f"$origin/{name}/**" for name in ("surfaces", "lines", "markers", "cameras")]
        return [
            blueprint.Spatial3DView(
                origin=origin,
                name=name,
                contents=["$origin", _path(self._rr, [*self._root, *below]), *others],
                eye_controls=controls,
                background=(255, 255, 255),
            )
            for name, below in shown
        ]


def _path(rr: Any, parts: Sequence[str]) -> str:
    return rr.new_entity_path(list(parts))


__all__ = ["TIMELINE", "write_rerun"]
