"""Synthetic objects: solids of known area, all kinds, files that are made once."""

from __future__ import annotations

import numpy as np
import pytest

from geo3d.datasets import open_dataset
from geo3d.datasets.synthetic import objects
from geo3d.datasets.synthetic.object_kinds import OBJECT_KINDS
from geo3d.datasets.synthetic.objects import OBJECT_POINTS, make_objects, object_points, objects_folder
from geo3d.datasets.synthetic.solids import (
    Solid,
    box,
    cylinder,
    ellipsoid,
    extrusion,
    lathe,
    limb,
    mirrored,
    moved,
    polygon,
    ring,
    scaled,
    triangles,
    turned,
)
from geo3d.errors import InputError
from geo3d.samples.objects import ObjectClouds

KINDS = list(OBJECT_KINDS)


def area(solid: Solid) -> float:
    vertices, faces = triangles(solid)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


@pytest.mark.parametrize(
    ("solid", "expected", "tolerance"),
    [
        (box((1, 2, 3), (5, 5, 5)), 22, 1e-9),
        (extrusion(polygon(6), 2), 6 * 2 + 2 * 1.5 * 3**0.5, 1e-9),
        # A pyramid on a square of edge sqrt 2: its sides are sqrt 1.5 high.
        (extrusion(polygon(4), 1, top=0), 2 + 2 * 2**0.5 * 1.5**0.5, 1e-9),
        # Of round ones the corners lie on the surface: 14 to 25 of them around.
        (cylinder(0.5, 2), 2.5 * np.pi, 0.04),
        (ellipsoid((1, 1, 1)), 4 * np.pi, 0.05),
        (ring(1, 0.25), 4 * np.pi**2 * 0.25, 0.05),
        (lathe([(0, 0), (1, 0), (1, 1)]), 3 * np.pi, 0.03),
        (limb((0, 0, 0), (0, 0, 2), 0.5), 2 * np.pi + np.pi, 0.08),
    ],
)
def test_the_area_of_solids(solid, expected, tolerance):
    assert area(solid) == pytest.approx(expected, rel=tolerance)
    assert area(turned(scaled(moved(solid, (1, 2, 3)), 2), "x", 0.7)) == pytest.approx(4 * area(solid))
    assert area(mirrored(solid, 0)) == pytest.approx(2 * area(solid))


def test_turns_follow_the_right_hand():
    point = [np.array([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])]
    for axis, expected in (("z", [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]), ("x", [[1, 0, 0], [0, 0, 1], [0, -1, 0]])):
        np.testing.assert_allclose(turned(point, axis, np.pi / 2)[0][0], expected, atol=1e-12)
    np.testing.assert_allclose(turned(point, "y", np.pi / 2)[0][0], [[0, 0, -1], [0, 1, 0], [1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_whole_and_varies(kind):
    first = KINDS.index(kind)
    clouds = [object_points(first + copy * len(KINDS), 3, 256) for copy in range(3)]
    for cloud in clouds:
        assert (cloud.shape, cloud.dtype) == ((256, 3), np.float32)
        assert np.isfinite(cloud).all()
        np.testing.assert_allclose(cloud.mean(0), 0, atol=1e-6)  # float32
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-6)
    extents = {tuple(np.ptp(cloud, 0).round(4)) for cloud in clouds}
    assert len(extents) == 3
    vertices, faces = triangles(OBJECT_KINDS[kind](np.random.default_rng(1)))
    assert 0 <= faces.min() <= faces.max() < len(vertices)


def test_objects_are_made_once_and_read_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    folder = make_objects(90, 5, lines.append)
    assert folder == objects_folder(90, 5)
    (file,) = folder.iterdir()
    made = file.read_bytes()
    assert make_objects(90, 5, lines.append) == folder
    assert [line.split()[0] for line in lines] == ["making", "90"]
    dataset = open_dataset(folder)
    assert (dataset.kind, len(dataset), dataset.categories) == ("object_arrays", 90, tuple(KINDS))
    for index in (0, 1, 89):
        assert dataset[index].category == index % len(KINDS)
        # Stored in half precision, of which a step is 2^-11 below 1.
        np.testing.assert_allclose(dataset[index].points().xyz, object_points(index, 5), atol=2**-12 + 1e-7)
    assert len(ObjectClouds.find([folder]).cloud(3)) == OBJECT_POINTS
    file.unlink()
    assert (make_objects(90, 5, print) / file.name).read_bytes() == made


def test_another_number_or_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few, more = make_objects(3, 0, print), make_objects(5, 0, print)
    for index in range(3):
        assert np.array_equal(open_dataset(few)[index].points().xyz, open_dataset(more)[index].points().xyz)
    other = open_dataset(make_objects(3, 1, print))
    assert not np.array_equal(open_dataset(few)[0].points().xyz, other[0].points().xyz)
    for count, seed in ((0, 0), (3, -1)):
        with pytest.raises(InputError, match="count must be at least 1 and seed 0"):
            make_objects(count, seed, print)


def test_what_is_cut_short_leaves_nothing_and_old_files_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = objects.object_points
    monkeypatch.setattr(objects, "object_points", lambda index, seed: real(index, seed) if index < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_objects(4, 0, print)
    assert list(objects_folder(4, 0).iterdir()) == []
    monkeypatch.setattr(objects, "object_points", real)
    old = objects_folder(4, 0) / "objects_v0.npz"
    old.write_bytes(b"")
    assert len(open_dataset(make_objects(4, 0, print))) == 4
    assert not old.exists()


def test_where_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        make_objects(2, 0, print)
