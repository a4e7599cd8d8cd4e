"""The examples of a capture's features and of matching two photos, run on a small synthetic room."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geo3d

pytest.importorskip("embreex", reason="synthetic rooms need embreex")
from small_room import write_small_room

EXAMPLES = Path(__file__).parents[2] / "examples"
CAPTURE, MATCH = EXAMPLES / "features_of_a_capture.py", EXAMPLES / "match_two_photos.py"


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return write_small_room(tmp_path_factory.mktemp("room"))


def run(monkeypatch, capsys, example: Path, *options) -> str:
    monkeypatch.setattr("sys.argv", [str(example), *map(str, options)])
    runpy.run_path(str(example), run_name="__main__")
    return capsys.readouterr().out


def test_features_of_a_posed_capture(room, tmp_path, monkeypatch, capsys):
    told = run(monkeypatch, capsys, CAPTURE, room, "--fresh", 0, "--views", 3, "--out", tmp_path)
    scene = geo3d.open_dataset(room)[0]
    with np.load(tmp_path / "maps.npz") as maps:
        assert len(maps.files) == 3
        assert {maps[name].shape for name in maps.files} == {(256, 6, 8)}
        encoder = geo3d.load_encoder("resnet_tiny", fresh=0)
        first = encoder(scene.view(0)).maps[-2]
        np.testing.assert_allclose(maps[scene.view_names[0]], first, atol=1e-5 * float(first.abs().max()))
    with np.load(tmp_path / "points.npz") as points:
        seen = np.isfinite(points["features"]).all(1)
        assert len(seen) == len(scene.cloud())
    assert f"{len(seen)} points, {100 * seen.mean():.0f} % of them seen in 3 photos" in told
    assert 0.2 < seen.mean() < 0.9
    colored = geo3d.read_points(tmp_path / "points.ply")
    assert (colored.colors[torch.from_numpy(seen)].std(0) > 0.1).all()
    assert Image.open(tmp_path / "photos.png").size == (4 * 320, 2 * 240 + 14)
    assert np.asarray(Image.open(tmp_path / "points.png")).std() > 20


def test_a_point_is_lifted_from_the_photos_that_see_it(room):
    """Of an encoder that says where a pixel looks at, a point gets the place where it is."""
    example = runpy.run_path(str(CAPTURE))
    scene = geo3d.open_dataset(room)[0]
    views = [scene.view(n) for n in range(4)]

    class Places:
        def __init__(self, view):
            depth = torch.nn.functional.interpolate(view.depth[None, None], tuple(view.image.shape[:2]))[0, 0].double()
            local = view.camera.unproject(view.camera.pixel_grid(), depth)
            pose = view.world_from_camera
            self.maps = [(local @ pose[:3, :3].T + pose[:3, 3]).float().permute(2, 0, 1)]

        def at(self, pixels, layer):
            column, row = pixels.round().long().unbind(1)
            return self.maps[layer][:, row, column].T

    cloud = scene.cloud()
    places = example["lifted"](cloud, views, [Places(view) for view in views], 0)
    seen = places.isfinite().all(1)
    apart = (places - cloud.xyz)[seen].norm(dim=1)
    # Half a pixel of 3 cm at 2.5 m, twice as far along slanted surfaces; edges of things are farther off.
    assert apart.median() < 0.03
    assert (apart < 0.15).float().mean() > 0.95


def test_features_of_a_folder_of_photos(room, tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        geo3d.open_dataset(room)[0].image(number).save(photos / f"{number}.jpg")
    told = run(monkeypatch, capsys, CAPTURE, photos, "--fresh", 0, "--out", tmp_path / "out")
    assert told.startswith("2 photos, maps of 256 channels")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["maps.npz", "photos.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(geo3d.InputError, match="empty"):
        run(monkeypatch, capsys, CAPTURE, tmp_path / "empty", "--fresh", 0)


def test_matching_two_views(room, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "matches.png"
    options = ("--fresh", 0, "--step", 4, "--out", picture)
    told = run(monkeypatch, capsys, MATCH, "--capture", room, "--views", 1, 2, *options)
    assert re.match(r"\d+ mutual matches of 768 pixels, \d+ agree with those around them; cosine", told)
    assert "epipolar error, all: median" in told
    assert "true error, agreeing: median" in told
    assert Image.open(picture).size == (2 * 128 + 8, 96 + 24)
    for number in (1, 2):
        geo3d.open_dataset(room)[0].image(number).save(tmp_path / f"{number}.png")
    paths = [tmp_path / "1.png", tmp_path / "2.png"]
    again = run(monkeypatch, capsys, MATCH, *paths, *options)
    assert again.splitlines()[0] == told.splitlines()[0]  # the same photos
    assert "epipolar" not in again
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, MATCH, paths[0])


def test_what_matches_are_measured_by(room):
    """Matches that depth tells have no error; those moved along and across the epipolar line have the one expected."""
    example = runpy.run_path(str(MATCH))
    scene = geo3d.open_dataset(room)[0]
    a, b = scene.view(1), scene.view(2)
    pixels = torch.tensor([[x, y] for x in range(8, 120, 16) for y in range(8, 90, 16)], dtype=torch.float64)
    scale = a.depth.shape[1] / a.camera.width
    column, row = (pixels * scale).round().long().unbind(1)
    local = a.camera.unproject(pixels, a.depth[row, column].double())
    b_from_a = torch.linalg.inv(b.world_from_camera) @ a.world_from_camera
    there = local @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    known = (a.depth[row, column] > 0) & (there[:, 2] > 0.2)
    exact = b.camera.project(there)
    assert example["true_errors"](a, b, pixels, exact)[known].max() < 1e-6
    assert example["epipolar_errors"](a, b, pixels, exact)[known].max() < 1e-6
    farther = b.camera.project((1.5 * local) @ b_from_a[:3, :3].T + b_from_a[:3, 3])  # along the line
    assert example["epipolar_errors"](a, b, pixels, farther)[known].max() < 1e-6
    assert (example["true_errors"](a, b, pixels, exact + 3)[known] - 18**0.5).abs().max() < 1e-6
    assert example["epipolar_errors"](a, b, pixels, exact + 3)[known].max() <= 18**0.5 + 1e-6


def test_mutual_matches_and_those_that_agree():
    example = runpy.run_path(str(MATCH))
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(50, 16, generator=generator)
    order = torch.randperm(50, generator=generator)
    rows, cosines = example["mutual_nearest"](first, 3 * first[order])
    assert torch.equal(order[rows[:, 1]], rows[:, 0])
    assert len(rows) == 50
    torch.testing.assert_close(cosines, torch.ones(50))
    places = 100 * torch.rand(60, 2, generator=generator)
    moved = places + 5
    moved[:10] = 100 * torch.rand(10, 2, generator=generator)  # a sixth of them is wrong
    kept = example["agreeing"](places, moved, 0.3)
    assert kept[10:].float().mean() > 0.9
    assert kept[:10].float().mean() < 0.3
