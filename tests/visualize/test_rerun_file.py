"""The .rrd file, read back by rerun's own reader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.visualize.coloring import Coloring
from geo3d.visualize.rerun_file import TIMELINE, write_rerun
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.picture import Frustum, ImagePanel, Lines, Marker, Picture3D, Points, Space, Surface

pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'geo3d[rerun]'")

_RNG = np.random.default_rng(0)
_XYZ = _RNG.uniform(0, 1, (400, 3)) * (4, 3, 0.5)  # without a ceiling
_COLORS = _RNG.integers(0, 255, (400, 3)).astype(np.uint8)
_LEGEND = (("chair", (10, 20, 30)), ("table top", (200, 100, 0)))
_CLASS = _RNG.integers(0, 2, 400)
_LABELS = Coloring("labels", np.array([color for _, color in _LEGEND], np.uint8)[_CLASS], _LEGEND)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Entity -> its rows, in order of time: component -> values; ``step`` where it lies on the timeline."""
    from rerun.chunk import RrdReader

    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch().to_pydict()
        rows = [{name: values[n] for name, values in batch.items()} for n in range(chunk.num_rows)]
        found.setdefault(chunk.entity_path, []).extend(rows)
    return {name: sorted(rows, key=lambda row: row.get(TIMELINE, -1)) for name, rows in found.items()}


def _with(rows: list[dict[str, Any]], component: str) -> list[Any]:
    return [row[component] for row in rows if component in row]


def _packed(colors: np.ndarray) -> list[int]:
    """Colours as rerun writes them: red, green, blue and opacity in a number."""
    return (colors.astype(np.uint32) @ np.array([1 << 24, 1 << 16, 1 << 8], np.uint32) + 255).tolist()


def test_points_features_and_cameras_are_read_back(tmp_path: Path) -> None:
    timeline = FeatureTimeline(
        ["fresh weights", "step 30"],
        [0, 30],
        {"all stages": slice(0, 6), "stage 1": slice(0, 3)},
        lambda step: np.random.default_rng(step).standard_normal((400, 6)),
    )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), (1, 2, 3)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = (0, 255, 0)
    frustum = Frustum(pose, Camera(160, 120, 150.0, 140.0, 81.5, 58.5), 0.3, image=image, name="a/photo 1")
    picture = Picture3D("a scene", (Space(points=(Points(_XYZ, _COLORS),), cameras=(frustum,)),), notes=("a note",))
    path = write_rerun(picture, tmp_path / "deep" / "scene.rrd", timeline, [_LABELS])
    assert [file.name for file in path.parent.iterdir()] == ["scene.rrd"]
    found = _read(path)

    colours = found["/scene/colours"]
    assert np.allclose(_with(colours, "Points3D:positions")[0], _XYZ, atol=1e-6)
    assert _with(colours, "Points3D:colors") == [_packed(_COLORS)]
    labels = found["/scene/labels"]
    assert _with(labels, "Points3D:class_ids") == [(_CLASS + 1).tolist()]
    (context,) = _with(labels, "AnnotationContext:context")
    names = {entry["class_description"]["info"]["label"] for entry in context[0]}
    assert names == {"chair", "table top"}

    for layer, name in (("all stages", r"/scene/features/all\ stages"), ("stage 1", r"/scene/features/stage\ 1")):
        assert np.allclose(_with(found[name], "Points3D:positions")[0], _XYZ, atol=1e-6)
        assert _with(found[name], TIMELINE) == [0, 30]
        assert _with(found[name], "Points3D:colors") == [_packed(timeline.colors(step, layer)) for step in (0, 1)]
    assert _with(found["/scene/state"], "TextDocument:text") == [["fresh weights"], ["step 30"]]

    (camera,) = (rows for name, rows in found.items() if name.startswith("/scene/cameras/"))
    assert np.allclose(_with(camera, "Transform3D:translation")[0], [(1, 2, 3)])
    assert np.allclose(np.reshape(_with(camera, "Transform3D:mat3x3")[0][0], (3, 3)).T, pose[:3, :3])  # by columns
    matrix = np.reshape(_with(camera, "Pinhole:image_from_camera")[0][0], (3, 3)).T
    # The image has half the camera's size, and rerun counts from the corner of the upper-left pixel.
    assert np.allclose(matrix, [[75, 0, 41], [0, 70, 29.5], [0, 0, 1]])
    assert _with(camera, "Pinhole:resolution") == [[[80.0, 60.0]]]
    (blob,) = _with(camera, "EncodedImage:blob")
    written = np.asarray(Image.open(io.BytesIO(bytes(blob[0]))), int)
    assert written.shape == image.shape
    assert np.abs(written - image)[:, np.r_[0:36, 44:80]].max() < 12  # JPEG, away from the edge
    assert "a note" in _with(found["/notes"], "TextDocument:text")[0][0]


def test_what_hides_a_room_is_kept_apart(tmp_path: Path) -> None:
    floor = np.stack(np.meshgrid(np.linspace(0, 4, 30), np.linspace(0, 4, 30), [0.0]), -1).reshape(-1, 3)
    xyz = np.concatenate([floor, floor + np.array([0, 0, 2.5])])
    picture = Picture3D("a room", (Space("room", (Points(xyz),)),))
    found = _read(write_rerun(picture, tmp_path / "room.rrd"))
    assert np.allclose(_with(found["/room/colours"], "Points3D:positions")[0], floor, atol=1e-6)
    assert np.allclose(
        _with(found["/room/colours/ceiling"], "Points3D:positions")[0], floor + np.array([0, 0, 2.5]), atol=1e-6
    )


def test_every_kind_of_thing_is_written(tmp_path: Path) -> None:
    surface = Surface(
        np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0]], float), np.array([[0, 1, 2]]), np.full((3, 3), 200, np.uint8)
    )
    lines = Lines(np.array([[[0, 0, 0], [1, 1, 1]]], float), np.array([[255, 0, 0]], np.uint8))
    marker = Marker(np.array([1, 1, 0.5]), "here")
    picture = Picture3D(
        "several",
        (Space("one", surfaces=(surface,), lines=(lines,), markers=(marker,)), Space(points=(Points(_XYZ, _COLORS),))),
        (ImagePanel("an image", np.zeros((6, 8, 3), np.uint8)),),
    )
    found = _read(write_rerun(picture, tmp_path / "several.rrd"))
    assert _with(found["/one/surfaces/0"], "Mesh3D:triangle_indices") == [[[0, 1, 2]]]
    assert np.allclose(_with(found["/one/lines/0"], "LineStrips3D:strips")[0][0], lines.ends[0])
    assert _with(found["/one/markers"], "Points3D:labels") == [["here"]]
    assert len(_with(found[r"/panel\ 2/colours"], "Points3D:positions")[0]) == len(_XYZ)
    assert _with(found[r"/images/an\ image"], "EncodedImage:media_type") == [["image/jpeg"]]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give it that ending"):
        write_rerun(Picture3D("a scene"), tmp_path / "scene.ply")
