"""Pictures and PLY files of clouds: what is known of their points is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from geo3d.datasets.ply import read_ply
from geo3d.geometry import PointCloud
from geo3d.viz.points import draw_clouds, label_colors, write_points


def _square(color: tuple[float, float, float] | None, normal: float | None = None) -> PointCloud:
    axis = torch.linspace(0, 1, 60)
    xyz = torch.cartesian_prod(axis, axis, torch.zeros(1))
    colors = None if color is None else torch.tensor(color).expand(len(xyz), 3)
    normals = None if normal is None else torch.tensor([0.0, 0, normal]).expand(len(xyz), 3)
    return PointCloud(xyz, colors, normals)


def _shown(panel: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((panel == color).all(-1).sum())


def test_clouds_are_drawn_side_by_side_at_one_scale_in_their_colours() -> None:
    whole, half = _square((1, 0, 0)), _square((0, 0, 1))
    half.xyz = half.xyz / 2
    picture = draw_clouds({"whole": whole, "half": half})
    first, second = np.split(picture, 2, axis=1)
    red, blue = _shown(first, (255, 0, 0)), _shown(second, (0, 0, 255))
    assert 0.2 < blue / red < 0.3
    assert _shown(first, (0, 0, 255)) == _shown(second, (255, 0, 0)) == 0


def test_points_that_face_away_are_left_out_and_unknown_ones_are_grey_and_stay() -> None:
    grey = tuple(label_colors(0)[-1].tolist())
    away = _square((1, 0, 0), -1.0)
    assert _shown(draw_clouds({"": away}), (255, 0, 0)) == 0
    unknown = _square((1, 0, 0), -1.0)
    unknown.colors, unknown.normals = (torch.full_like(unknown.xyz, torch.nan) for _ in range(2))
    drawn = draw_clouds({"": unknown})
    assert _shown(drawn, grey) > 10_000
    np.testing.assert_array_equal(drawn, draw_clouds({"": _square(None)}))


def test_points_survive_their_ply_with_what_else_is_known(tmp_path: Path) -> None:
    cloud = PointCloud(torch.rand(4, 3), torch.tensor([[0.0, 0.5, 1]]).repeat(4, 1))
    cloud.colors[3] = torch.nan
    write_points(tmp_path / "cloud.ply", cloud, error=np.arange(4, dtype=np.float64))
    ply = read_ply(tmp_path / "cloud.ply", "cloud")
    np.testing.assert_array_equal(ply.stacked("x", "y", "z"), cloud.xyz.numpy())
    colors = ply.stacked("red", "green", "blue")
    np.testing.assert_array_equal(colors[:3], [[0, 128, 255]] * 3)
    np.testing.assert_array_equal(colors[3], label_colors(0)[-1])
    np.testing.assert_array_equal(ply.vertex["error"], np.arange(4))
