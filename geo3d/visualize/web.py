"""A page for the browser: a scene to turn, to colour and to click into. viser, of the extra `web`, serves it."""

from __future__ import annotations

import contextlib
import html
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from geo3d.errors import InputError, MissingExtra, require_extra
from geo3d.geometry.rotation import quaternion_of
from geo3d.visualize.coloring import FEATURES, SIMILARITY, Coloring, joined, spacing
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.feature_colors import likeness_ends, similarity, value_colors
from geo3d.viz.picture import MARK_COLOR, Frustum, Picture3D, Space, ceiling_cut
from geo3d.viz.viewpoint import Viewpoint

#: The oldest viser that tells clicks as this page reads them.
_VISER, _UPGRADE = (1, 1), "pip install --upgrade 'geo3d[web]'"
#: Where the page is served when nothing else is said: for this machine alone.
HOST, PORT = "127.0.0.1", 8080
#: Width and height of what the first view has to fit into: the middle of a browser's window, where no panel hides it.
_WINDOW = (680, 800)
#: Share of its distance by which a point may lie off the ray of a click, and how much nearer than others, in widths of
#: a dot, it must be to be the one that is seen.
_OFF_RAY, _BEFORE = 0.004, 3.0
#: Longest side of the images that cameras hold, and of those in the panel, pixels.
_THUMBNAIL, _PANEL_IMAGE = 240, 480
#: How many times the spacing of points a dot is wide.
_DOT = 1.5
#: Cameras beyond which they are hidden at first.
_MANY_CAMERAS = 60
#: (60, 3) evenly spread over the unit sphere, along a spiral.
_TURNS, _HEIGHTS = np.arange(60) * np.pi * (1 + 5**0.5), np.linspace(-1, 1, 60)
_BALL = np.c_[np.sqrt(1 - _HEIGHTS[:, None] ** 2) * np.c_[np.cos(_TURNS), np.sin(_TURNS)], _HEIGHTS]
_HINT = "Click a point to see what is like it; click beside the points to go back."


class WebPage:
    """A page that shows a picture; it is served from its making until it is closed, and is a context too.

    All who open the page see and change the same state.

        >>> with WebPage(picture, timeline) as page:
        ...     print(page.address)
        ...     page.wait()

    Args:
        picture: what is shown; of several spaces one at a time.
        timeline: features of the points of the first space at each state of a network; without one, a click compares
            the features that points hold.
        colorings: more ways to colour the points of the first space.
        own: what the picture's own colours are called.
        start: the colouring to begin with; ``own`` when not given.
        host: address to listen at.
        port: to listen at; the next free one where it is taken, any where it is 0.
        azimuth, elevation: degrees, from where spaces are seen at first; the usual ones where not given.

    Attributes:
        address: where the page is.
        server: viser's, to add to the page what else one wants to see.
        selected: number of the point that was clicked, or None.
        likeness: (N,) cosines to its feature while they are shown, or None.
        colors: (N, 3) uint8 colours of the points of the space that is shown.

    Raises:
        MissingExtra: viser is not installed, or too old.
        InputError: nothing can be served there, nothing to turn, or features and points are not as many.
    """

    def __init__(
        self,
        picture: Picture3D,
        timeline: FeatureTimeline | None = None,
        colorings: Sequence[Coloring] = (),
        own: str = "colours",
        start: str | None = None,
        host: str = HOST,
        port: int = PORT,
        azimuth: float | None = None,
        elevation: float | None = None,
    ) -> None:
        viser = require_extra("viser", "web", "a page in the browser")
        if tuple(map(int, viser.__version__.split(".")[:2])) < _VISER:
            raise MissingExtra(f"a page in the browser needs a newer viser than {viser.__version__}: {_UPGRADE}")
        if not picture.spaces:
            raise InputError(f"{picture.title}: there is nothing in 3D to turn in a browser; leave out --web")
        self._picture = picture
        self._subjects = [_Subject(space, own, picture.legend, azimuth, elevation) for space in picture.spaces]
        self._subjects[0].add(timeline, colorings)
        self._lock = threading.RLock()
        self.selected: int | None = None
        self.likeness: np.ndarray | None = None
        _check_host(host)
        with _silent():
            self.server = viser.ViserServer(host=host, port=port, label="geo3d", verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.scene.configure_default_lights(cast_shadow=False)  # slow to draw without a GPU
        shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::1", "::") else host
        self.address = f"http://{shown}:{self.server.get_port()}"
        self._panel = _Panel(self.server.gui, picture, self._subjects, start or own)
        self._before = self.coloring
        self._nodes: list[Any] = []
        self._draw()
        self._panel.on_change(self._show, self._draw)
        self.server.scene.on_click()(lambda event: self.click(event.ray_origin, event.ray_direction))

    def __enter__(self) -> WebPage:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Serve no more."""
        with _silent():
            self.server.stop()

    def wait(self) -> None:
        """Return on Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()

    @property
    def coloring(self) -> str:
        """Name of what colours show."""
        return self._panel.coloring.value

    @coloring.setter
    def coloring(self, name: str) -> None:
        self._panel.coloring.value = name

    @property
    def space(self) -> str:
        """Caption of the space that is shown."""
        return self._panel.space.value

    @space.setter
    def space(self, caption: str) -> None:
        self._panel.space.value = caption

    @property
    def step(self) -> int:
        """Number of the state of the network, from 0."""
        return self._panel.step_number

    @step.setter
    def step(self, number: int) -> None:
        self._panel.step.value = number

    @property
    def layer(self) -> str:
        """Name of the layer whose features are shown or compared."""
        return self._panel.layer.value

    @layer.setter
    def layer(self, name: str) -> None:
        self._panel.layer.value = name

    def hide_above(self, height: float | None) -> None:
        """Show only what lies below a height, metres; None: everything."""
        self._panel.set_top(height)

    def click(self, origin: Sequence[float], direction: Sequence[float]) -> None:
        """What a click does: select the point that a ray meets first, or none.

        Args:
            origin, direction: (3,) of the ray, metres.
        """
        with self._lock:
            subject = self._subject
            shown = np.flatnonzero(subject.xyz[:, 2] <= self._panel.top)
            found = nearest_to_ray(subject.xyz[shown], np.array(origin), np.array(direction), self._panel.dot)
            self.select(None if found is None else int(shown[found]))

    def select(self, point: int | None) -> None:
        """Compare all points to one of them, by its number; None: show what was shown before.

        Raises:
            InputError: there is no such point.
        """
        with self._lock:
            if point is not None and not 0 <= point < len(self._subject.xyz):
                raise InputError(f"there is no point {point} among {len(self._subject.xyz)}")
            if point is None and self.selected is None:
                return
            if self.coloring != SIMILARITY:
                self._before = self.coloring
            self.selected = point
            if self._subject.timeline is not None:
                self.coloring = self._before if point is None else SIMILARITY
            self._show()

    @property
    def _subject(self) -> _Subject:
        return self._subjects[self._panel.space_number]

    def _draw(self) -> None:
        """Put the things of a space into the scene, in place of those of another."""
        with self._lock, self.server.atomic():
            for node in self._nodes:
                node.remove()
            self.selected = self.likeness = None
            self._panel.begin(self._subject)
            self._before = self.coloring
            self._nodes = list(self._things(self._subject.space))
            self._show()

    def _show(self) -> None:
        """Bring colours, places, marks and texts up to date with the panel's state."""
        with self._lock, self.server.atomic():
            subject, panel = self._subject, self._panel
            legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
            likeness = ends = None
            if self.coloring == SIMILARITY and self.selected is not None:
                likeness = similarity(subject.timeline.features(self.step, self.layer), self.selected)
                ends = likeness_ends(likeness)
                self.colors = value_colors(likeness, *ends)
            elif self.coloring in (FEATURES, SIMILARITY):
                self.colors = subject.timeline.colors(self.step, self.layer)
            else:
                chosen = subject.colorings[self.coloring]
                self.colors, legend = chosen.colors, chosen.legend
            self.likeness = likeness
            shown = subject.xyz[:, 2] <= panel.top
            if self._points is not None:
                self._points.visible = bool(shown.any())
            if shown.any():
                self._points.points, self._points.colors = subject.xyz[shown], self.colors[shown]
                self._points.point_size = panel.dot
            for node in self._camera_nodes:
                node.visible = panel.cameras.value
            for node in self._surface_nodes:
                node.visible = panel.surfaces.value
            self._mark.visible = self.selected is not None
            if self.selected is not None:
                self._mark.position = subject.xyz[self.selected]
                self._mark.scale = 0.8 * max(panel.dot, 0.008 * subject.size)
            panel.tell(self._told(), legend, ends, self._picture.scale if ends is None else None)

    def _told(self) -> str:
        """What is said of the point that was clicked."""
        subject = self._subject
        if self.selected is None:
            return _HINT if subject.timeline is not None else ""
        x, y, z = subject.xyz[self.selected]
        names = [f"point {self.selected:,} at {x:.2f}, {y:.2f}, {z:.2f} m"]
        names += filter(None, (coloring.name_of(self.selected) for coloring in subject.colorings.values()))
        if (
            subject.timeline is not None
            and not np.isfinite(subject.timeline.features(self.step, self.layer)[self.selected]).all()
        ):
            names.append("it has no feature")
        return ", ".join(names)

    def _things(self, space: Space) -> Iterator[Any]:
        """Nodes of the scene, made anew."""
        scene, subject = self.server.scene, self._subject
        camera = self.server.initial_camera
        view = subject.viewpoint
        camera.position, camera.look_at, camera.up = view.eye, view.target, (0.0, 0.0, 1.0)
        camera.fov = float(np.radians(view.field_of_view))
        camera.near, camera.far = 0.002 * subject.size, 100 * subject.size
        for client in self.server.get_clients().values():
            client.camera.position, client.camera.look_at = view.eye, view.target
        self._points = None
        if len(subject.xyz):
            self._points = scene.add_point_cloud(
                "/points",
                subject.xyz,
                next(iter(subject.colorings.values())).colors,
                point_size=self._panel.dot,
                point_shape="circle",
                point_shading="flat",
                precision="float32",
            )
            yield self._points
        self._mark = self._add_ball("/selected", np.zeros(3), 1.0, MARK_COLOR)
        self._mark.visible = False
        yield self._mark
        self._surface_nodes = [self._add_surface(number, surface) for number, surface in enumerate(space.surfaces)]
        self._camera_nodes = [self._add_camera(number, frustum) for number, frustum in enumerate(space.cameras)]
        yield from (*self._surface_nodes, *self._camera_nodes)
        for number, lines in enumerate(space.lines):
            colors = np.repeat(lines.colors[:, None], 2, 1)
            yield scene.add_line_segments(
                f"/lines/{number}", lines.ends.astype(np.float32), colors, thickness=2.0, thickness_units="screen"
            )
        for number, marker in enumerate(space.markers):
            place = np.asarray(marker.place, float)
            yield self._add_ball(f"/markers/{number}", place, 0.006 * subject.size, marker.color)
            if marker.text:
                yield scene.add_label(f"/texts/{number}", marker.text, position=place)

    def _add_ball(self, name: str, place: np.ndarray, radius: float, color: tuple[int, int, int]) -> Any:
        """A ball of dots, for which no shader of surfaces has to be made: without a GPU that takes seconds."""
        return self.server.scene.add_point_cloud(
            name,
            _BALL,
            np.array(color, np.uint8),
            point_size=0.5,
            point_shape="circle",
            point_shading="flat",
            precision="float32",
            scale=radius,
            position=place,
        )

    def _add_surface(self, number: int, surface: Any) -> Any:
        import trimesh

        mesh = trimesh.Trimesh(surface.vertices, surface.faces, vertex_colors=surface.colors, process=False)
        return self.server.scene.add_mesh_trimesh(f"/surfaces/{number}", mesh, cast_shadow=False)

    def _add_camera(self, number: int, frustum: Frustum) -> Any:
        camera, pose = frustum.camera, np.asarray(frustum.world_from_camera, float)
        node = self.server.scene.add_camera_frustum(
            f"/cameras/{number}",
            fov=2 * float(np.arctan(camera.height / 2 / camera.fy)),
            aspect=camera.width / camera.height * camera.fy / camera.fx,
            scale=frustum.length,
            thickness=1.5,
            thickness_units="screen",
            color=frustum.color,
            image=None if frustum.image is None else shrunk(frustum.image, _THUMBNAIL),
            wxyz=quaternion_of(pose[:3, :3]),
            position=pose[:3, 3],
            cast_shadow=False,
        )

        @node.on_click
        def _(event: Any) -> None:
            own = event.client.camera
            with event.client.atomic():
                own.position, own.look_at = pose[:3, 3], pose[:3, 3] + pose[:3, 2] * 10 * frustum.length

        return node


class _Subject:
    """A space, and what its points can be coloured by."""

    def __init__(
        self,
        space: Space,
        own: str,
        legend: tuple[tuple[str, tuple[int, int, int]], ...],
        azimuth: float | None,
        elevation: float | None,
    ) -> None:
        points = joined(space)
        self.space, self.kept = space, np.isfinite(points.xyz).all(1)
        points = points.rows(self.kept)
        self.xyz = points.xyz.astype(np.float32)
        self.colorings = {own: Coloring(own, points.colors, legend)}
        frame = space.frame()
        self.low, self.high = (float(edge) for edge in (frame[:, 2].min(), frame[:, 2].max()))
        self.size = float(max(np.linalg.norm(np.ptp(frame, axis=0)), 1e-3))
        cut = None if space.is_object else ceiling_cut(frame)
        self.cut = self.high if cut is None else cut
        self.spacing = spacing(self.xyz) or self.size / 100
        self.viewpoint = Viewpoint.of(space.without_ceiling(), _WINDOW, azimuth, elevation)
        self.timeline: FeatureTimeline | None = None
        if points.features is not None and np.isfinite(points.features).all(1).any():
            self.timeline = FeatureTimeline(["features"], [0], {"features": slice(None)}, lambda _: points.features)

    def add(self, timeline: FeatureTimeline | None, colorings: Sequence[Coloring]) -> None:
        """More to colour its points by.

        Raises:
            InputError: of another number of points.
        """
        counts = {coloring.name: len(coloring.colors) for coloring in colorings}
        counts |= {} if timeline is None else {FEATURES: len(timeline)}
        for name, count in counts.items():
            if count != len(self.kept):
                raise InputError(
                    f"the page has {len(self.kept)} points, its {name} are of {count}; make both of one cloud"
                )
        if timeline is not None and not self.kept.all():
            raise InputError("the page has points without a place, which features cannot be shown of; leave them out")
        self.timeline = timeline or self.timeline
        self.colorings |= {c.name: replace(c, colors=c.colors[self.kept]) for c in colorings}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all colourings, those that the page makes among them."""
        return (*self.colorings, *(() if self.timeline is None else (FEATURES, SIMILARITY)))


class _Panel:
    """What is said and asked at the side of the page."""

    def __init__(self, gui: Any, picture: Picture3D, subjects: Sequence[_Subject], start: str) -> None:
        self._gui, self._captions = gui, [s.space.caption or f"panel {n}" for n, s in enumerate(subjects, 1)]
        first = subjects[0]
        gui.add_html(_lines([f"<b>{html.escape(picture.title)}</b>", *map(html.escape, picture.notes)]))
        self.space = gui.add_dropdown("Panel", _distinct(self._captions), visible=len(subjects) > 1)
        self.coloring = gui.add_dropdown("Colours", first.names, initial_value=start)
        steps = max((len(s.timeline.steps) for s in subjects if s.timeline is not None), default=1)
        layers = [] if first.timeline is None else list(first.timeline.layers)
        self.layer = gui.add_dropdown("Layer", layers or ["features"], visible=len(layers) > 1)
        self.step = gui.add_slider("Checkpoint", 0, max(steps - 1, 1), 1, steps - 1, visible=steps > 1)
        self._step_name = gui.add_html("", visible=steps > 1)
        self._legend = gui.add_html("")
        self._told = gui.add_html("")
        self._size = gui.add_slider("Dot size", 0.1, 4.0, 0.1, 1.0, hint="Times the usual size")
        self._cut = gui.add_slider("Hide above", 0.0, 1.0, 0.01, 1.0, hint="Share of the height; hides a ceiling")
        self.cameras = gui.add_checkbox("Cameras", any(0 < len(s.space.cameras) <= _MANY_CAMERAS for s in subjects))
        self.surfaces = gui.add_checkbox("Surfaces", True)
        if picture.images:
            with gui.add_folder("Images", expand_by_default=True):
                for image in picture.images:
                    gui.add_image(shrunk(image.pixels, _PANEL_IMAGE), label=image.caption)

    def on_change(self, show: Any, draw: Any) -> None:
        """Have functions called when something is changed, and when another space is to be drawn."""
        for control in (self.coloring, self.layer, self.step, self._size, self._cut, self.cameras, self.surfaces):
            control.on_update(lambda _: show())
        self.space.on_update(lambda _: draw())

    def begin(self, subject: _Subject) -> None:
        """Offer what a space has."""
        self._subject = subject
        if tuple(self.coloring.options) != subject.names:
            self.coloring.options = subject.names
        self.coloring.visible = len(subject.names) > 1
        self._size.visible = self._cut.visible = bool(len(subject.xyz))
        self.set_top(subject.cut)
        self.cameras.visible, self.surfaces.visible = bool(subject.space.cameras), bool(subject.space.surfaces)

    @property
    def space_number(self) -> int:
        """Of the space that is shown, from 0."""
        return _distinct(self._captions).index(self.space.value)

    @property
    def step_number(self) -> int:
        """Of the state of the network, from 0."""
        timeline = self._subject.timeline
        return 0 if timeline is None else min(int(self.step.value), len(timeline.steps) - 1)

    @property
    def dot(self) -> float:
        """Width of a dot, metres."""
        return _DOT * self._subject.spacing * self._size.value

    @property
    def top(self) -> float:
        """Height above which nothing is shown, metres."""
        return np.inf if self._cut.value >= 1 else self._subject.low + self._cut.value * self._height

    def set_top(self, height: float | None) -> None:
        """Move the slider to a height, metres; None: to its end."""
        share = 1.0 if height is None else (height - self._subject.low) / max(self._height, 1e-9)
        self._cut.value = round(float(np.clip(share, 0, 1)), 2)

    @property
    def _height(self) -> float:
        return self._subject.high - self._subject.low

    def tell(
        self,
        told: str,
        legend: Sequence[tuple[str, tuple[int, int, int]]],
        ends: tuple[float, float] | None,
        scale: Any,
    ) -> None:
        """Write what is known of what is shown: of the state of the network, of colours, and of a point."""
        timeline = self._subject.timeline
        named = timeline is not None and self.coloring.value in (FEATURES, SIMILARITY)
        self.layer.visible = named and len(timeline.layers) > 1
        self.step.visible = self._step_name.visible = named and len(timeline.steps) > 1
        if named:
            self._step_name.content = _lines([html.escape(timeline.steps[self.step_number])])
        parts = []
        if ends is not None:
            parts.append(_bar(*ends, "cosine to the point"))
        elif scale is not None:
            parts.append(_bar(scale.low, scale.high, scale.label))
        parts += [_swatches(legend)] if legend else []
        self._legend.content = _lines(parts)
        self._told.content = _lines([html.escape(told)] if told else [])


def nearest_to_ray(xyz: np.ndarray, origin: np.ndarray, direction: np.ndarray, width: float) -> int | None:
    """The point that is seen where a ray goes: of those near enough to the ray, the nearest to it of the foremost.

    Args:
        xyz: (N, 3) metres.
        origin, direction: (3,) of the ray.
        width: of a point, metres.

    Returns:
        Its row; None where no point is near the ray.
    """
    moved = xyz.astype(np.float64) - origin
    along = moved @ (direction / np.linalg.norm(direction))
    off = np.sqrt(np.maximum((moved**2).sum(1) - along**2, 0))
    hit = np.flatnonzero((along > 0) & (off <= np.maximum(width / 2, _OFF_RAY * along)))
    if not len(hit):
        return None
    foremost = hit[along[hit] <= along[hit].min() + _BEFORE * width]
    return int(foremost[off[foremost].argmin()])


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) uint8 whose longest side has so many pixels at most."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(scale * edge)) for edge in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if name not in names[:n] else f"{name} ({n + 1})" for n, name in enumerate(names)]


def _check_host(host: str) -> None:
    """Raise InputError where nothing can listen; viser would try port after port."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind(address)
    except OSError as error:
        raise InputError(
            f"--host {host}: this machine cannot listen there ({error.strerror or error}); take {HOST}, or 0.0.0.0 "
            "for all its addresses"
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """viser frames messages of its own, in the colours of rich."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# The panel's texts are HTML, all of whose content is escaped: viser's Markdown stumbles over braces and brackets.
def _lines(lines: Sequence[str]) -> str:
    rows = "".join(f'<div style="margin:2px 0">{line}</div>' for line in lines)
    return f'<div style="font-size:0.8em;line-height:1.45;padding:0 0.6em">{rows}</div>' if lines else ""


def _bar(low: float, high: float, label: str) -> str:
    colors = ",".join(f"rgb({r},{g},{b})" for r, g, b in value_colors(np.linspace(0, 1, 9), 0, 1))
    ends = f"<span>{low:.2f}</span><span>{html.escape(label)}</span><span>{high:.2f}</span>"
    return (
        f'<div style="height:0.8em;border-radius:2px;background:linear-gradient(to right,{colors})"></div>'
        f'<div style="display:flex;justify-content:space-between">{ends}</div>'
    )


def _swatches(legend: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    names = "".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:0.8em;height:0.8em;'
        f'margin-right:0.4em;background:rgb({r},{g},{b})"></span>{html.escape(name)}</span>'
        for name, (r, g, b) in legend
    )
    return f'<div style="display:grid;grid-template-columns:1fr 1fr;gap:0 0.6em">{names}</div>'


__all__ = ["HOST", "PORT", "WebPage", "nearest_to_ray"]
