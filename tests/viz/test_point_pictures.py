"""Pictures and PLY files of labelled points."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geo3d.datasets.ply import read_ply
from geo3d.viz.points import draw_labels, label_colors, write_labelled_points


def test_labelled_points_survive_their_ply(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    labels = np.array([0, 3, -1, 2, 3])
    write_labelled_points(tmp_path / "points.ply", xyz, labels, 4)
    ply = read_ply(tmp_path / "points.ply", "points")
    np.testing.assert_array_equal(ply.stacked("x", "y", "z"), xyz)
    np.testing.assert_array_equal(ply.vertex["label"], labels)
    np.testing.assert_array_equal(ply.stacked("red", "green", "blue"), label_colors(4)[labels])


def test_colors_of_classes_differ() -> None:
    colors = label_colors(20).astype(int)
    apart = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert apart[np.triu_indices(21, 1)].min() > 20


def test_nearer_points_cover_those_behind_and_surfaces_that_face_away_are_left_out() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), -1).reshape(-1, 2)
    floor, lid = (np.c_[grid, np.full(len(grid), z)] for z in (0.0, 0.3))
    xyz = np.concatenate([lid, floor])
    labels = np.repeat([1, 0], len(grid))
    normals = np.repeat([[0, 0, -1.0], [0, 0, 1.0]], len(grid), axis=0)
    palette = label_colors(2)

    def share(image: np.ndarray, label: int) -> float:
        return (image[30:450] == palette[label]).all(-1).sum() / (image[30:450] != 255).any(-1).sum()

    covered = draw_labels(xyz, None, {"labels": labels}, ("floor", "lid"))
    assert share(covered, 1) > share(covered, 0) > 0.05
    opened = draw_labels(xyz, normals, {"labels": labels}, ("floor", "lid"))
    assert share(opened, 1) == 0
    assert share(opened, 0) > 0.9
    assert draw_labels(xyz[:0], None, {"labels": labels[:0]}, ()).dtype == np.uint8
