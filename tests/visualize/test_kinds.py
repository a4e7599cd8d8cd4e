"""Every kind of picture, by the command, drawn by geo3d's own projection; and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from picture_checks import check_picture
from PIL import Image

from geo3d.cli.main import main
from geo3d.datasets import open_dataset
from geo3d.datasets.ply import read_ply
from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.nn.mutual_nearest import mutual_nearest
from geo3d.visualize.kinds import KINDS, get_kind
from geo3d.visualize.matches import verdicts
from geo3d.visualize.places import lifted
from geo3d.viz.feature_colors import Projection, likeness_ends, similarity, value_colors


def call(*args: object) -> int:
    """Run `geo3d visualize ARGS` in this process; returns the exit code."""
    with pytest.raises(SystemExit) as stop:
        main(["visualize", *map(str, args)])
    return stop.value.code


@pytest.fixture(autouse=True)
def _small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ninth of the pixels, for speed."""
    monkeypatch.setattr("geo3d.viz.render.panel_size", lambda picture: (200, 160))


def draw(tmp_path: Path, capsys: pytest.CaptureFixture, *args: object) -> str:
    """Run it with a picture of its own, look at this, and return what was printed."""
    capsys.readouterr()
    code = call(*args, "--out", tmp_path / "picture.png", "--renderer", "own")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    check_picture(tmp_path / "picture.png", 0.05)  # small panels on a sheet that keeps its width
    return printed.out


def test_scene(rooms: Path, tmp_path: Path, capsys) -> None:
    printed = draw(tmp_path, capsys, "scene", "--data", rooms, "--views", 2)
    assert "4 views" in printed
    assert "drawn by geo3d's own projection" in printed


def test_scene_of_a_file_as_ply(rooms: Path, tmp_path: Path, capsys) -> None:
    assert call("scene", "--data", rooms, "--show", "points", "--out", tmp_path / "x.ply", "--no-cameras") == 0
    cloud = open_dataset(rooms)[0].cloud()
    ply = read_ply(tmp_path / "x.ply", "x")
    assert len(ply.vertex["x"]) == 2 * len(cloud)  # in its colours, and by its labels
    assert f"x: {2 * len(cloud):,} points" in draw(tmp_path, capsys, "scene", "--data", tmp_path / "x.ply")


def test_features_of_points_are_coloured_by_one_projection(
    rooms: Path, networks: dict[str, Path], tmp_path: Path, capsys
) -> None:
    kept = tmp_path / "colours.npz"
    printed = draw(
        tmp_path, capsys, "features", "--data", rooms, "--checkpoint", networks["sparse_resnet_tiny"],
        "--save-projection", kept,
    )  # fmt: skip
    assert "the three main axes of 304 channels" in printed
    first = np.asarray(Image.open(tmp_path / "picture.png"))
    again = ("--checkpoint", networks["sparse_resnet_tiny"], "--projection", kept)
    draw(tmp_path, capsys, "features", "--data", rooms, *again)
    assert (first == np.asarray(Image.open(tmp_path / "picture.png"))).mean() > 0.999
    assert Projection.load(kept).axes.shape == (304, 3)
    assert call("features", "--data", rooms, "--checkpoint", networks["swin3d_tiny"], "--projection", kept) == 2
    assert "fitted to features of 304 channels" in capsys.readouterr().err


def test_features_of_views_objects_and_grids(
    rooms: Path, networks: dict[str, Path], grid_file: Path, tmp_path: Path, capsys
) -> None:
    views = ("--views", 2, "--layers", "stage2")
    printed = draw(tmp_path, capsys, "features", "--data", rooms, "--checkpoint", networks["resnet_tiny"], *views)
    assert "the same for all panels" in printed
    draw(tmp_path, capsys, "features", "--data", rooms, "--checkpoint", networks["i2p_mae_tiny"], "--views", 2)
    draw(tmp_path, capsys, "features", "--data", grid_file, "--checkpoint", networks["nerf_mae_tiny"])


def test_fresh_weights_are_told(rooms: Path, tmp_path: Path, capsys) -> None:
    printed = draw(tmp_path, capsys, "features", "--data", rooms, "--model", "sparse_resnet_tiny", "--fresh", 3)
    assert "FRESH weights, seed 3" in printed


def test_similarity_is_the_cosine_to_the_point_that_is_named(rooms: Path, networks: dict[str, Path]) -> None:
    cloud = open_dataset(rooms)[0].cloud()
    row = len(cloud) // 2
    kind = get_kind("similarity")
    place = tuple(cloud.xyz[row].tolist())
    options = kind.options(data=(rooms,), checkpoint=str(networks["sparse_resnet_tiny"]), at=place)
    picture = kind.draw(options)
    plain, alike = (space.points[0] for space in picture.spaces)
    np.testing.assert_allclose(picture.spaces[0].markers[0].place, place, atol=1e-6)
    found = int(np.linalg.norm(plain.xyz - np.array(place), axis=1).argmin())
    values = similarity(plain.features, found)
    assert values[found] == pytest.approx(1)
    ends = likeness_ends(values)
    assert (picture.scale.low, picture.scale.high) == pytest.approx(ends)
    np.testing.assert_array_equal(alike.colors, value_colors(values, *ends))


def test_similarity_of_points_and_pixels(rooms: Path, networks: dict[str, Path], tmp_path: Path, capsys) -> None:
    assert "compared with the point at" in draw(
        tmp_path, capsys, "similarity", "--data", rooms, "--checkpoint", networks["sparse_resnet_tiny"]
    )
    image = ("--checkpoint", networks["croco_tiny"], "--views", 2, "--pixel", 20, 30)
    assert "pixel 20 30 of" in draw(tmp_path, capsys, "similarity", "--data", rooms, *image)


@pytest.mark.parametrize("model", ["swin3d_tiny", "croco_tiny", "multiview_tiny", "i2p_mae_tiny"])
def test_attention(model: str, rooms: Path, networks: dict[str, Path], tmp_path: Path, capsys) -> None:
    printed = draw(tmp_path, capsys, "attention", "--data", rooms, "--checkpoint", networks[model], "--head", 1)
    assert "head 1 of" in printed


def test_pairs(rooms: Path, tmp_path: Path, capsys) -> None:
    assert "pairs of 1 scenes" in draw(tmp_path, capsys, "pairs", "--data", rooms, "--count", 2)


@pytest.mark.parametrize("model", ["croco_tiny", "sparse_resnet_tiny"])
def test_matches(model: str, rooms: Path, networks: dict[str, Path], tmp_path: Path, capsys) -> None:
    pair = ("--pair", 0, 1)
    printed = draw(tmp_path, capsys, "matches", "--data", rooms, "--checkpoint", networks[model], *pair)
    assert "that can be judged are right" in printed


def test_matches_of_two_photos(networks: dict[str, Path], tmp_path: Path, capsys) -> None:
    pixels = (np.random.default_rng(0).random((6, 8, 3)) * 255).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.fromarray(pixels).save(file)
    printed = draw(tmp_path, capsys, "matches", "--data", *files, "--checkpoint", networks["croco_tiny"])
    assert "none can be judged" in printed


def test_grid(grid_file: Path, tmp_path: Path, capsys) -> None:
    assert "24 x 20 x 12 voxels" in draw(tmp_path, capsys, "grid", "--data", grid_file)


@pytest.fixture(scope="module")
def run(rooms: Path, tmp_path_factory) -> Path:
    """The folder of a run of SparK over voxels, of one step."""
    folder = tmp_path_factory.mktemp("runs") / "spark3d-001"
    quick = ("--train.steps", "1", "--train.batch-size", "1", "--train.workers", "0", "--train.warmup-steps", "0")
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "spark3d", "--data", str(rooms), "--out", str(folder), *quick])
    assert stop.value.code == 0
    return folder


def test_reconstruction(run: Path, tmp_path: Path, capsys) -> None:
    printed = draw(tmp_path, capsys, "reconstruction", "--run", run)
    assert "step 1; training samples; losses of this batch: occupancy" in printed
    (step,) = (run / "checkpoints").glob("step_*")
    assert "step 1" in draw(tmp_path, capsys, "reconstruction", "--run", step, "--sample", 5)


def test_mutual_neighbours_are_each_others_nearest() -> None:
    first = torch.eye(4)[:, :3] + 0.01
    second = torch.eye(3)[[2, 0]]
    rows, score = mutual_nearest(first, second)
    assert rows.tolist() == [[0, 1], [2, 0]]
    assert (score > 0.99).all()


def _wall(x: float) -> View:
    """A camera at (x, 0, 0) that looks along z at a wall 2 m away."""
    camera = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = x
    return View(str(x), camera, pose, torch.rand(48, 64, 3), torch.full((48, 64), 2.0))


def test_matches_are_judged_by_depth_and_pose() -> None:
    views = [_wall(0.0), _wall(0.4)]  # a wall's pixel moves by 50 * 0.4 / 2 = 10 pixels to the left
    first = np.array([[30.0, 20], [30, 20], [30, 20], [4, 20]])
    second = np.array([[20.0, 20], [22, 21], [30, 20], [0, 20]])
    np.testing.assert_array_equal(verdicts(views, first, second, 3.0), [1, 1, 0, -1])  # the last is out of sight
    views[1].depth = torch.full((48, 64), 1.0)  # something stands before the wall
    np.testing.assert_array_equal(verdicts(views, first, second, 3.0), [-1] * 4)
    views[0].depth = torch.zeros(48, 64)
    np.testing.assert_array_equal(verdicts([views[0], _wall(0.4)], first, second, 3.0), [-1] * 4)


def test_pixels_are_lifted_with_the_normals_of_their_surface() -> None:
    points, uv = lifted(_wall(0.5))
    np.testing.assert_allclose(points.xyz[:, 2], 2)
    np.testing.assert_allclose(points.xyz[:, 0], 0.5 + 2 * (uv[:, 0] - 31.5) / 50)
    known = np.linalg.norm(points.normals, axis=1) > 0
    np.testing.assert_allclose(points.normals[known], [[0, 0, -1]] * known.sum(), atol=1e-12)
    assert known.mean() > 0.9


def test_help_names_all_kinds(capsys) -> None:
    assert call("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in KINDS)
    for name in KINDS:
        assert call(name, "--help") == 0
        assert "--renderer" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"unknown kind 'feature'.* did you mean 'features'"):
        get_kind("feature")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("scenes",), "unknown kind 'scenes'"),
        (("scene", "--data", "nowhere"), "nowhere"),
        (("scene", "--data", "ROOMS", "--scene", "none"), "no scene 'none' under"),
        (("scene", "--data", "ROOMS", "--points", "0"), "points must be 1 or more"),
        (("scene", "--data", "ROOMS", "--out", "x.jpg"), "geometry as .ply or .glb"),
        (("scene", "--data", "ROOMS", "--elevation", "90"), "between -90 and 90"),
        (("features", "--data", "ROOMS"), "name an encoder: --checkpoint"),
        (("features", "--data", "ROOMS", "--checkpoint", "nowhere"), "nowhere"),
        (("features", "--data", "GRID", "--checkpoint", "resnet_tiny"), "room"),
        (("similarity", "--data", "ROOMS", "--checkpoint", "sparse_resnet_tiny", "--pixel", "1", "1"), "--at X Y Z"),
        (("similarity", "--data", "ROOMS", "--checkpoint", "croco_tiny", "--at", "1", "1", "1"), "--pixel X Y"),
        (("similarity", "--data", "ROOMS", "--checkpoint", "croco_tiny", "--pixel", "999", "1"), "96 x 72 pixels"),
        (("similarity", "--data", "ROOMS", "--checkpoint", "swin3d_tiny", "--at", "99", "1", "1"), "far outside"),
        (("attention", "--data", "ROOMS", "--checkpoint", "resnet_tiny"), "has no layer of it to show"),
        (("attention", "--data", "ROOMS", "--checkpoint", "swin3d_tiny", "--stage", "9"), "--stage 9: there are 3"),
        (("attention", "--data", "ROOMS", "--checkpoint", "croco_tiny", "--pair", "0", "x"), "there is no view 'x'"),
        (("reconstruction", "--run", "ROOMS"), "is no run of geo3d pretrain"),
        (("pairs", "--data", "nowhere.tsv"), "no such index of view pairs"),
        (("matches", "--data", "ROOMS", "--checkpoint", "i2p_mae_tiny"), "encoders of images or voxels"),
        (("grid", "--data", "ROOMS"), "has no radiance grid; geo3d prepare grids"),
    ],
)
def test_what_is_wrong_is_one_line(
    args: tuple[str, ...], told: str, rooms: Path, grid_file: Path, networks: dict[str, Path], capsys
) -> None:
    named = {"ROOMS": rooms, "GRID": grid_file} | networks
    code = call(*(named.get(arg, arg) for arg in args))
    printed = capsys.readouterr().err
    assert code == 2
    assert told in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
