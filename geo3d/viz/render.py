"""A picture drawn: in a window, by Open3D's off-screen renderer, by geo3d's own projection, or as PLY or GLB."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from geo3d.errors import InputError
from geo3d.viz.picture import Lines, Marker, Picture3D, Points, Space, Surface
from geo3d.viz.picture_sheet import compose, draw_markers, panel_size
from geo3d.viz.ply import write_ply
from geo3d.viz.projection import DOT, draw_space, shaded
from geo3d.viz.sheet import write_picture
from geo3d.viz.viewpoint import Viewpoint
from geo3d.writing import prepare_place, replacing

#: What draws: Open3D in a window, Open3D off-screen, geo3d's own projection; or the first of them that works.
Renderer = Literal["auto", "window", "offscreen", "own"]
#: Endings of files that hold geometry and no picture.
GEOMETRY = (".ply", ".glb")
_PICTURE = ".png"
#: Seconds that Open3D has to draw, and a window to appear.
_PATIENCE = 300
#: Degrees about z from where spaces that stand side by side along x are seen so on the screen too.
_ALONG_X = -80.0
#: Room between spaces in one frame of coordinates, as a share of the widest.
_GAP = 0.15
# Width of what stands beside a window's view, and of what stands in a window without one, pixels.
_BESIDE, _WHOLE = 360, 1240


@dataclass(frozen=True)
class Drawn:
    """What became of a picture.

    Args:
        path: of the file; None: a window was shown.
        renderer: what drew it: ``window``, ``offscreen``, ``own``; or ``ply``, ``glb``.
        reason: why it was not what ``auto`` would rather have taken; empty where it was.
        pixels: (H, W, 3) uint8 of a picture.
    """

    path: Path | None
    renderer: str
    reason: str = ""
    pixels: np.ndarray | None = None

    def told(self) -> str:
        """One line for people."""
        how = {
            "window": "shown in a window of Open3D",
            "offscreen": "drawn by Open3D's off-screen renderer",
            "own": "drawn by geo3d's own projection",
            "images": "images alone, which need no renderer",
        }.get(self.renderer, f"written as {self.renderer.upper()}")
        why = f" ({self.reason})" if self.reason else ""
        return f"{how}{why}" if self.path is None else f"picture: {self.path}, {how}{why}"


class _CannotDraw(Exception):
    """Open3D cannot; says why, in a few words."""


def has_display() -> bool:
    """Whether windows can be opened, as far as the environment tells."""
    if sys.platform.startswith(("win", "darwin")):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def render(
    picture: Picture3D,
    out: str | Path | None = None,
    renderer: Renderer = "auto",
    *,
    azimuth: float | None = None,
    elevation: float | None = None,
    close_after: float | None = None,
    default: Path = Path("picture.png"),
) -> Drawn:
    """Draw a picture.

    Args:
        picture: what to draw.
        out: PNG, PLY or GLB to write; None: a window where there is a display, else the file ``default``.
        renderer: what draws; ``auto``: a window where no file is asked for and there is a display, else Open3D
            off-screen, and where it cannot be used geo3d's own projection.
        azimuth, elevation: degrees, from where spaces are seen; the usual ones where not given.
        close_after: seconds after which a window closes by itself.
        default: file to write where none is asked for and there is no window.

    Raises:
        InputError: the ending of ``out`` is none of these, the renderer that is asked for cannot be used (says why),
            a file of geometry is asked for of a picture of images alone, or the file cannot be written.
    """
    out = None if out is None else Path(out)
    if renderer not in get_args(Renderer):
        raise InputError(f"renderer must be one of {', '.join(get_args(Renderer))}, got {renderer!r}")
    if out is not None and out.suffix.lower() not in (_PICTURE, *GEOMETRY):
        raise InputError(f"{out}: pictures are written as .png, geometry as .ply or .glb; choose one of these endings")
    if out is not None and renderer == "window":
        raise InputError(f"{out}: a window writes no file; leave out --out, or take another --renderer")
    if out is not None and out.suffix.lower() in GEOMETRY:
        return Drawn(write_geometry(picture, out), out.suffix.lower()[1:])
    reason = ""
    if renderer == "window" or (renderer == "auto" and out is None and has_display()):
        try:
            _show_window(picture, azimuth, elevation, close_after)
            return Drawn(None, "window")
        except _CannotDraw as problem:
            reason = f"no window: {problem}"
            if renderer == "window":
                raise InputError(f"--renderer window cannot be used: {problem}; take offscreen or own") from problem
    path = prepare_place(default if out is None else out)
    cells, used, why = _cells(picture, renderer, azimuth, elevation)
    pixels = compose(picture, cells)
    write_picture(path, pixels)
    return Drawn(path, used, "; ".join(filter(None, (reason, why))), pixels)


def _cells(
    picture: Picture3D, renderer: Renderer, azimuth: float | None, elevation: float | None
) -> tuple[list[np.ndarray], str, str]:
    """The spaces as still pictures, what drew them, and why it was not Open3D where ``auto`` would have taken it."""
    if not picture.spaces:
        return [], "images", ""
    size = panel_size(picture)
    spaces = [space.without_ceiling() for space in picture.spaces]
    eyes = [Viewpoint.of(space, size, azimuth, elevation) for space in spaces]
    seen = [eye.sees(space) for eye, space in zip(eyes, spaces)]
    used, reason = "own", ""
    if renderer != "own":
        try:
            cells, used = _offscreen(seen, eyes, size), "offscreen"
        except _CannotDraw as problem:
            if renderer == "offscreen":
                raise InputError(f"--renderer offscreen cannot be used: {problem}; take own") from problem
            reason = f"Open3D cannot be used: {problem}"
    if used == "own":
        cells = [draw_space(space, eye, size) for space, eye in zip(seen, eyes)]
    return [draw_markers(cell, space, eye) for cell, space, eye in zip(cells, seen, eyes)], used, reason


def _offscreen(spaces: list[Space], eyes: list[Viewpoint], size: tuple[int, int]) -> list[np.ndarray]:
    finer = (2 * size[0], 2 * size[1])
    tasks = []
    for space, eye in zip(spaces, eyes):
        tasks.append(_plain(space, eye) | {"eye": _plain_eye(eye), "dot": _dot(space, eye, finer)})
    task = {"window": False, "size": finer, "spaces": tasks}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "panels.npz"
        _run_open3d(task, Path(folder), answer)
        with np.load(answer) as file:
            drawn = [file[name] for name in file.files]
    return [np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BOX)) for panel in drawn]


def _dot(space: Space, eye: Viewpoint, size: tuple[int, int]) -> float:
    """Pixels across a point so that neighbours touch, as geo3d's own projection has it."""
    xyz = np.concatenate([p.xyz for p in space.points]) if space.points else np.zeros((0, 3))
    if not len(xyz):
        return 1.0
    uv, _ = eye.project(xyz, size)
    uv = uv[np.isfinite(uv).all(1)]
    covered = len(np.unique((uv // 16).astype(np.int64), axis=0)) * 256
    return float(np.clip(np.ceil(DOT * np.sqrt(covered / max(len(uv), 1))), 2, 32))


def _show_window(picture: Picture3D, azimuth: float | None, elevation: float | None, close_after: float | None) -> None:
    if not has_display():
        raise _CannotDraw("there is no display")
    spaces = arranged([space.without_ceiling() for space in picture.spaces])
    aside = replace(picture, spaces=(), columns=1)
    whole = Space(
        points=tuple(p for space in spaces for p in space.points),
        surfaces=tuple(s for space in spaces for s in space.surfaces),
        lines=tuple(space.every_line() for space in spaces),
        is_object=all(space.is_object for space in spaces),
    )
    size = (900, 800)
    beside = _ALONG_X if len(spaces) > 1 and azimuth is None else azimuth
    eye = Viewpoint.of(whole, size, beside, elevation)
    has_features = any(p.features is not None for space in spaces for p in space.points)
    texts = [[(m.place, m.text) for m in space.markers] for space in spaces]
    if len(spaces) > 1:
        for space, told in zip(spaces, texts):
            told.append((space.frame().max(0), space.caption))
    task = {
        "window": True,
        "title": picture.title,
        "hint": ("click a point: likeness to it" if has_features else "drag to turn, wheel to go nearer")
        + "\nEsc: close",
        "aside": _narrow(compose(aside, []), _BESIDE if spaces else _WHOLE),
        "spaces": [_plain(space, eye) | {"texts": told} for space, told in zip(spaces, texts)],
        "eye": _plain_eye(eye),
        "dot": min(_dot(whole, eye, size), 8.0),
        "close_after": close_after,
    }
    with tempfile.TemporaryDirectory() as folder:
        _run_open3d(task, Path(folder), Path(folder) / "window", None)


def _narrow(pixels: np.ndarray, width: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    share = min(1.0, width / image.width)
    return np.asarray(image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.LANCZOS))


def _run_open3d(task: dict[str, Any], folder: Path, answer: Path, patience: float | None = _PATIENCE) -> None:
    """Have a process of its own do a task; raises what it cannot do."""
    path = folder / "task.pickle"
    path.write_bytes(pickle.dumps(task))
    command = [sys.executable, "-m", "geo3d.viz.open3d_process", str(path), str(answer)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise _CannotDraw(f"it did not draw in {patience:.0f} s") from error
    if done.returncode < 0:
        raise _CannotDraw(f"it ended by {signal.Signals(-done.returncode).name}")
    if done.returncode or not answer.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _CannotDraw((lines[-1] if lines else f"it ended with code {done.returncode}")[:200])


def _plain(space: Space, eye: Viewpoint) -> dict[str, Any]:
    """A space as arrays in dictionaries, which another process reads without geo3d's classes."""
    lines = space.every_line()
    points = [{"xyz": p.xyz, "colors": p.colors, "features": p.features} for p in map(_finite, space.points)]
    return {
        "points": points,
        "surfaces": [{"vertices": s.vertices, "faces": s.faces, "colors": shaded(s, eye)} for s in space.surfaces],
        "lines": {"ends": lines.ends, "colors": lines.colors},
    }


def _finite(points: Points) -> Points:
    known = np.isfinite(points.xyz).all(1)
    return points if known.all() else points.rows(known)


def _plain_eye(eye: Viewpoint) -> dict[str, Any]:
    return {"eye": eye.eye, "target": eye.target, "up": -eye.axes[:, 1], "field_of_view": eye.field_of_view}


def arranged(spaces: list[Space] | tuple[Space, ...]) -> list[Space]:
    """Spaces side by side along x in one frame of coordinates, the first where it is."""
    if len(spaces) < 2:
        return list(spaces)
    frames = [space.frame() for space in spaces]
    gap = _GAP * max(float(np.ptp(frame[:, 0])) for frame in frames if len(frame))
    moved, end = [], None
    for space, frame in zip(spaces, frames):
        low, high = (frame.min(0), frame.max(0)) if len(frame) else (np.zeros(3), np.zeros(3))
        start = frames[0].min(0) if end is None else np.array([end + gap, *frames[0].min(0)[1:]])
        moved.append(_moved(space, start - low))
        end = start[0] + high[0] - low[0]
    return moved


def _moved(space: Space, by: np.ndarray) -> Space:
    pose = np.eye(4)
    pose[:3, 3] = by
    return replace(
        space,
        points=tuple(replace(p, xyz=p.xyz + by) for p in space.points),
        lines=tuple(Lines(line.ends + by, line.colors) for line in space.lines),
        surfaces=tuple(replace(s, vertices=s.vertices + by) for s in space.surfaces),
        cameras=tuple(replace(c, world_from_camera=pose @ c.world_from_camera) for c in space.cameras),
        markers=tuple(Marker(m.place + by, m.text, m.color) for m in space.markers),
    )


def write_geometry(picture: Picture3D, path: Path) -> Path:
    """Write points, surfaces and lines of all spaces side by side, whole, as a PLY or GLB file.

    PLY: points and vertices with their colours, the triangles; lines as points along them. GLB: all of it, z up turned
    to the y up of its format.

    Returns:
        The path.

    Raises:
        InputError: the picture has no spaces, or the file cannot be written.
    """
    spaces = arranged(picture.spaces)
    points = [_finite(p) for space in spaces for p in space.points if len(p.xyz)]
    surfaces = [s for space in spaces for s in space.surfaces if len(s.faces)]
    lines = [line for line in (space.every_line() for space in spaces) if len(line.ends)]
    if not points and not surfaces and not lines:
        raise InputError(f"{path}: this picture is of images alone and has no geometry; write it as .png")
    path = prepare_place(path)
    if path.suffix.lower() == ".ply":
        _write_ply(path, points, surfaces, lines)
    else:
        _write_glb(path, points, surfaces, lines)
    return path


def _write_ply(path: Path, points: list[Points], surfaces: list[Surface], lines: list[Lines]) -> None:
    along = np.linspace(0, 1, 50)[:, None]
    xyz, colors, faces, start = [], [], [], 0
    for surface in surfaces:
        faces.append(surface.faces + start)
        xyz.append(surface.vertices)
        colors.append(surface.colors)
        start += len(surface.vertices)
    for part in points:
        xyz.append(part.xyz)
        colors.append(part.colors)
    for part in lines:
        xyz.append((part.ends[:, None, 0] + along * (part.ends[:, None, 1] - part.ends[:, None, 0])).reshape(-1, 3))
        colors.append(np.repeat(part.colors, len(along), 0))
    every, painted = np.concatenate(xyz).astype(np.float32), np.concatenate(colors)
    columns = {axis: every[:, i] for i, axis in enumerate("xyz")}
    columns |= {name: painted[:, i] for i, name in enumerate(("red", "green", "blue"))}
    write_ply(path, columns, np.concatenate(faces).astype(np.int32) if faces else None)


def _write_glb(path: Path, points: list[Points], surfaces: list[Surface], lines: list[Lines]) -> None:
    import trimesh

    scene = trimesh.Scene()
    for surface in surfaces:
        mesh = trimesh.Trimesh(surface.vertices, surface.faces, vertex_colors=surface.colors, process=False)
        scene.add_geometry(mesh)
    for part in points:
        scene.add_geometry(trimesh.PointCloud(part.xyz, part.colors))
    for part in lines:
        strokes = trimesh.load_path(part.ends)
        strokes.colors = np.c_[part.colors, np.full(len(part.colors), 255, np.uint8)][: len(strokes.entities)]
        scene.add_geometry(strokes)
    scene.apply_transform([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    with replacing(path) as unfinished:
        unfinished.write_bytes(scene.export(file_type="glb"))


__all__ = ["GEOMETRY", "Drawn", "Renderer", "arranged", "has_display", "render", "write_geometry"]
