"""Viewpoints and geo3d's own projection, against what is known of simple things; files of geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from geo3d.datasets.ply import read_ply
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.viz.picture import Frustum, ImagePanel, Lines, Marker, Picture3D, Points, Space, Surface, ceiling_cut
from geo3d.viz.picture_sheet import compose
from geo3d.viz.projection import draw_space
from geo3d.viz.render import arranged, render
from geo3d.viz.viewpoint import Viewpoint

SIZE = (200, 150)


def _square(z: float, color: tuple[int, int, int], half: float = 1.0) -> Surface:
    corners = half * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]]) + (0, 0, z)
    return Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.full((4, 3), color, np.uint8))


@pytest.mark.parametrize("elevation", [5.0, 55.0, 89.9])
@pytest.mark.parametrize("size", [(200, 150), (150, 200)])
def test_a_view_is_as_near_as_it_holds_everything(size: tuple[int, int], elevation: float) -> None:
    xyz = np.random.default_rng(0).normal(size=(500, 3)) * (3, 1, 0.5) + (100, -50, 7)
    view = Viewpoint.of(Space(points=(Points(xyz),)), size, azimuth=20, elevation=elevation)
    uv, depth = view.project(xyz, size)
    assert (depth > 0).all()
    place = uv / (np.array(size) - 1)
    assert place.min() > 0.02
    assert place.max() < 0.98
    assert max(np.ptp(place, axis=0)) > 0.88  # of the tighter side 4 % are free at each end


def test_a_square_is_as_large_as_it_must_be() -> None:
    space = Space(surfaces=(_square(0, (200, 0, 0)),))
    view = Viewpoint.of(space, SIZE, azimuth=0, elevation=90)
    pixels = draw_space(space, view, SIZE)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 50)
    side = 0.92 * SIZE[1]  # 4 % are free above and below
    assert abs(red.sum() - side**2) < 0.03 * side**2
    assert (pixels[60:90, 90:110].min((0, 1)) >= (190, 0, 0)).all()  # without a hole, a little darker at its rims
    assert pixels[60:90, 90:110, 1:].max() == 0


def test_nearer_things_cover_those_behind() -> None:
    low, high = _square(0, (200, 0, 0)), _square(0.5, (0, 0, 200), 0.5)
    space = Space(surfaces=(high, low), points=(Points(np.array([[0, 0, 0.2]]), np.array([[0, 255, 0]], np.uint8)),))
    pixels = draw_space(space, Viewpoint.of(space, SIZE, 0, 90), SIZE)
    assert pixels[75, 100, 2] > 190
    assert pixels[75, 100, :2].max() == 0
    assert not ((pixels[..., 1] > 200) & (pixels[..., 0] < 100)).any()


def test_a_line_lies_where_its_ends_are_seen_and_is_cut_behind_the_eye() -> None:
    frame = _square(0, (240, 240, 240))
    line = Lines(np.array([[[-1, 0, 0.01], [1, 0, 0.01]], [[0, 0, -50], [0, 0, 500.0]]]), np.zeros((2, 3), np.uint8))
    space = Space(surfaces=(frame,), lines=(line,))
    view = Viewpoint.of(space, SIZE, azimuth=-90, elevation=60)
    pixels = draw_space(space, view, SIZE)
    uv, _ = view.project(np.array([[-0.9, 0, 0.0], [0, 0, 0], [0.9, 0, 0]]), SIZE)
    for u, v in uv.round().astype(int):
        assert pixels[v - 1 : v + 2, u - 1 : u + 2].min() < 60


def test_what_faces_away_is_left_out() -> None:
    xyz = np.array([[0, 0, 0], [0, 0, 1.0]])
    up = Points(xyz, normals=np.array([[0, 0, 1.0], [0, 0, -1.0]]))
    space = Space(points=(up,), surfaces=(_square(0, (9, 9, 9)), _square(1, (9, 9, 9))))
    lid = space.surfaces[1]
    space = Space(points=(up,), surfaces=(space.surfaces[0], Surface(lid.vertices, lid.faces[:, ::-1], lid.colors)))
    seen = Viewpoint.of(space, SIZE).sees(space)
    assert [len(p.xyz) for p in seen.points] == [1]
    assert [len(s.faces) for s in seen.surfaces] == [2, 0]
    whole = Viewpoint.of(Space(surfaces=space.surfaces, is_object=True), SIZE)
    assert [len(s.faces) for s in whole.sees(Space(surfaces=space.surfaces, is_object=True)).surfaces] == [2, 2]


def test_ceilings_are_cut_and_places_without_one_stay() -> None:
    u, v = (part.reshape(-1) for part in np.meshgrid(np.linspace(0, 4, 40), np.linspace(0, 4, 40)))
    floor, ceiling = np.c_[u, v, 0 * u], np.c_[u, v, 0 * u + 2.5]
    wall = np.c_[0 * u, v, u * 2.5 / 4]
    assert ceiling_cut(np.concatenate([floor, wall])) is None
    height = ceiling_cut(np.concatenate([floor, wall, ceiling]))
    assert height == pytest.approx(0.7 * 2.5, abs=1e-6)
    room = Space(points=(Points(np.concatenate([floor, wall, ceiling])),))
    assert room.without_ceiling().points[0].xyz[:, 2].max() <= height
    thing = Space(points=room.points, is_object=True)
    assert thing.without_ceiling() is thing


def test_a_frustum_opens_as_its_camera_does() -> None:
    camera = Camera.from_fov(101, 51, np.pi / 2)
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    ends = Frustum(pose, camera, 2.0).lines().ends
    np.testing.assert_allclose(ends[:4, 0], [[1, 2, 3]] * 4)
    corners = ends[:4, 1] - (1, 2, 3)
    np.testing.assert_allclose(corners[:, 2], 2)
    np.testing.assert_allclose(np.abs(corners[:, 0]), 2, atol=1e-6)  # of 90 degrees, to the pixels' outer rims
    np.testing.assert_allclose(np.abs(corners[:, 1]), 2 * 51 / 101, atol=1e-6)
    up = ends[8, 1] - ends[8, 0]
    assert up[1] < 0  # the camera's y is down


def test_spaces_stand_beside_each_other() -> None:
    spaces = [Space(points=(Points(np.array([[x, 5, 0], [x + 2, 6, 1.0]])),)) for x in (0.0, 100.0, -7.0)]
    starts = [space.points[0].xyz[0] for space in arranged(spaces)]
    np.testing.assert_allclose(starts, [[0, 5, 0], [2.3, 5, 0], [4.6, 5, 0]], atol=1e-9)


def test_ply_and_glb_hold_everything(tmp_path: Path) -> None:
    space = Space(
        "all of it",
        points=(Points(np.array([[0, 0, 0], [1, 2, 3.0]]), np.array([[255, 0, 0], [0, 255, 0]], np.uint8)),),
        lines=(Lines(np.array([[[0, 0, 0], [0, 0, 4.0]]]), np.zeros((1, 3), np.uint8)),),
        surfaces=(_square(5, (1, 2, 3)),),
        markers=(Marker(np.zeros(3), "mark"),),
    )
    picture = Picture3D("title", (space,))
    assert render(picture, tmp_path / "all.ply").told() == f"picture: {tmp_path / 'all.ply'}, written as PLY"
    ply = read_ply(tmp_path / "all.ply", "all")
    xyz = ply.stacked("x", "y", "z")
    assert len(xyz) == 4 + 2 + 50
    assert len(ply.faces) == 2
    np.testing.assert_array_equal(xyz[4:6], space.points[0].xyz)
    np.testing.assert_array_equal(ply.stacked("red", "green", "blue")[4:6], space.points[0].colors)
    render(picture, tmp_path / "all.glb")
    scene = trimesh.load_scene(tmp_path / "all.glb")
    np.testing.assert_allclose(scene.bounds, [[-1, 0, -2], [1, 5, 1]], atol=1e-6)  # y up: z of ours, and -y as z
    kinds = sorted(type(part).__name__ for part in scene.geometry.values())
    assert kinds == ["Path3D", "PointCloud", "Trimesh"]


def test_a_sheet_names_and_fits_everything() -> None:
    images = tuple(ImagePanel(f"image {n}", np.full((20, 30 * n, 3), 100, np.uint8)) for n in (1, 2, 3, 90))
    note = "a long note " * 60
    sheet = compose(Picture3D("t", images=images, notes=(note,), legend=(("one", (1, 2, 3)),) * 9, columns=2), [])
    assert (sheet == 100).all(-1).sum() > 20 * 30
    assert (sheet == (1, 2, 3)).all(-1).sum() >= 9 * 12 * 12
    assert sheet.shape[1] < 1200


def test_wrong_files_and_renderers_are_told(tmp_path: Path) -> None:
    images = Picture3D("only images", images=(ImagePanel("", np.zeros((4, 4, 3), np.uint8)),))
    with pytest.raises(InputError, match=r"\.png, geometry as \.ply or \.glb"):
        render(images, tmp_path / "x.jpg")
    with pytest.raises(InputError, match="images alone and has no geometry"):
        render(images, tmp_path / "x.ply")
    with pytest.raises(InputError, match="renderer must be one of auto, window"):
        render(images, tmp_path / "x.png", "blender")
    with pytest.raises(InputError, match="a window writes no file"):
        render(images, tmp_path / "x.png", "window")
