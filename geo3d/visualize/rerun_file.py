"""A picture as an .rrd file, for the viewer of rerun: rerun-sdk, of the extra `rerun`, writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.errors import InputError, require_extra
from geo3d.visualize.coloring import FEATURES, Coloring, joined, spacing
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.picture import Frustum, Picture3D, Space, ceiling_cut
from geo3d.viz.viewpoint import Viewpoint
from geo3d.writing import prepare_place, replacing

#: Name of the timeline that checkpoints lie on, by their optimizer steps.
TIMELINE = "step"
#: How many times the spacing of points a dot is wide.
_DOT = 1.5
_JPEG_QUALITY = 90
#: How much nearer the eye is than where a picture is seen from: the viewer's field of view is 55 degrees, not 30.
_NEARER = 0.6
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
    ``markers``, and ``cameras/NAME``, each a pinhole with its pose and its image. Points that hide a room from above
    are in ``ceiling`` below each of these entities. A layout with a tab for each colouring comes along, which leaves
    ceilings out.

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
        try:
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
            active = next((str(view.name) for view in views if FEATURES in str(view.name)), None)
            tabs = rr.blueprint.Tabs(*views, active_tab=active)
            recording.send_blueprint(rr.blueprint.Blueprint(tabs, collapse_panels=True))
            recording.flush()
        finally:
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
        cut = None if space.is_object else ceiling_cut(space.frame())
        hiding = np.zeros(len(points.xyz), bool) if cut is None else points.xyz[:, 2] > cut
        self._parts = [([], ~hiding), *([(["ceiling"], hiding)] if hiding.any() else [])]
        shown = []
        if len(points.xyz):
            radius = _DOT / 2 * (spacing(points.xyz) or 0.01)
            for coloring in (Coloring(own, points.colors, tuple(legend)), *colorings):
                self._points(points.xyz, radius, coloring)
                shown.append((coloring.name, [coloring.name]))
            if timeline is not None:
                self._features(points.xyz, radius, timeline)
                shown += [(f"{FEATURES}, {layer}", [FEATURES, layer]) for layer in timeline.layers]
        self._others(space)
        return self._views(space, shown or [(self._root[-1], [])])

    def _log(self, below: Sequence[str], what: Any, static: bool = True) -> None:
        self._recording.log([*self._root, *below], what, static=static)

    def _points(self, xyz: np.ndarray, radius: float, coloring: Coloring) -> None:
        """Points; those that a legend names are members of classes, whose names the viewer tells."""
        rr, name = self._rr, [coloring.name]
        classes = None
        if coloring.legend:
            numbered = list(enumerate(coloring.legend, 1))
            infos = [rr.AnnotationInfo(id=number, label=label, color=color) for number, (label, color) in numbered]
            self._log(name, rr.AnnotationContext(infos))
            classes = np.zeros(len(xyz), np.uint16)
            for number, (_, color) in numbered:
                classes[(coloring.colors == np.array(color)).all(1)] = number
        for below, rows in self._parts:
            ids = None if classes is None else classes[rows]
            points = rr.Points3D(xyz[rows], colors=coloring.colors[rows], class_ids=ids, radii=radius)
            self._log([*name, *below], points)

    def _features(self, xyz: np.ndarray, radius: float, timeline: FeatureTimeline) -> None:
        """Points whose colours change from state to state, once for each layer, and what the states are called."""
        rr = self._rr
        names = [([FEATURES, layer, *below], layer, rows) for layer in timeline.layers for below, rows in self._parts]
        for name, _, rows in names:
            self._log(name, rr.Points3D(xyz[rows], radii=radius))
        for step, number in enumerate(timeline.numbers):
            self._recording.set_time(TIMELINE, sequence=number)
            self._log(["state"], rr.TextDocument(timeline.steps[step]), static=False)
            for name, layer, rows in names:
                colors = timeline.colors(step, layer)[rows]
                self._log(name, rr.Points3D.from_fields(colors=colors), static=False)
        self._recording.reset_time()

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
        seen = Viewpoint.of(space.without_ceiling(), _WINDOW, *self._seen_from)
        eye = seen.target + _NEARER * (seen.eye - seen.target)
        controls = blueprint.EyeControls3D(position=eye, look_target=seen.target, eye_up=(0, 0, 1))
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
