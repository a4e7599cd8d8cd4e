"""Grids of nerfstudio runs: of a stand-in with analytic fields."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nerfstudio_stand_in as stand_in
import numpy as np
import pytest
import torch
from analytic_scenes import look_at
from PIL import Image

from geo3d.datasets import open_dataset
from geo3d.errors import InputError, MissingExtra
from geo3d.reconstruction.nerfstudio import NerfstudioConfig, find_run, load_run, nerfstudio_grid, scene_grid, scene_run
from geo3d.reconstruction.routes import get_route

_CENTRE = np.array([3.0, -2.0, 1.2])
_HALF = np.array([0.8, 0.6, 0.5])
_LOW, _HIGH = _CENTRE - _HALF, _CENTRE + _HALF
_DENSITY = 9.0
_WIDTH, _HEIGHT, _FOCAL = 16, 12, 34.0  # the edges of the box lie beyond some of the pictures
_APPLIED = [[0.0, 1.0, 0.0, 0.5], [1.0, 0.0, 0.0, -1.0], [0.0, 0.0, -1.0, 0.25]]


def _write_capture(root: Path, views: int = 6, **extra: object) -> Path:
    """A capture of cameras around a place; their poses, in OpenGL's axes, are returned by :func:`_poses`."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    frames = []
    for view in range(views):
        turn = 2 * np.pi * view / views
        eye = _CENTRE + np.array([1.7 * np.cos(turn), 1.5 * np.sin(turn), 0.3 + 0.1 * view])
        pose = look_at(eye, _CENTRE + 0.1 * np.sin([view, 2 * view, 3 * view])) @ np.diag([1.0, -1, -1, 1])
        pixels = random.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{view}.png")
        frames.append({"file_path": f"images/{view}.png", "transform_matrix": pose.tolist()})
    shared = {"w": _WIDTH, "h": _HEIGHT, "fl_x": _FOCAL, "fl_y": _FOCAL, "cx": _WIDTH / 2, "cy": _HEIGHT / 2}
    (root / "transforms.json").write_text(json.dumps({**shared, "camera_model": "OPENCV", **extra, "frames": frames}))
    return root


def _poses(capture: Path) -> np.ndarray:
    frames = json.loads((capture / "transforms.json").read_text())["frames"]
    return np.array([frame["transform_matrix"] for frame in frames])


def _inside(world: np.ndarray) -> np.ndarray:
    """Places of the world in the stand-in's frame."""
    return stand_in.SCALE * (world @ stand_in.TURN[:3, :3].T + stand_in.TURN[:3, 3])


#: A box in the middle of the field's frame.
_CORNERS = _inside(_CENTRE) + np.array([[-0.14, -0.1, -0.12], [0.15, 0.13, 0.09]])


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in.install(monkeypatch)
    return _write_capture(tmp_path / "capture")


@pytest.fixture
def run(tmp_path: Path, capture: Path) -> Path:
    return stand_in.write_run(tmp_path / "run", capture, _CORNERS, _DENSITY)


def _expected(
    capture: Path, centres: np.ndarray, side: float, chosen: list[int], fisheye: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Opacity (N,) and colour (N, 3) in float64: of the cameras whose pictures hold a place, or else of all."""
    places = _inside(centres)
    inside = ((places > _CORNERS[0]) & (places < _CORNERS[1])).all(-1)
    opacity = inside * -np.expm1(-_DENSITY * stand_in.SCALE * side)
    total, count, all_total = np.zeros((len(places), 3)), np.zeros(len(places)), np.zeros((len(places), 3))
    for pose in _poses(capture)[chosen]:
        local = (centres - pose[:3, 3]) @ pose[:3, :3]
        u, v = (_FOCAL * local[:, 0] / -local[:, 2], _FOCAL * local[:, 1] / local[:, 2])
        if fisheye:  # as far from the middle as the angle is
            angle = np.arctan2(np.hypot(local[:, 0], local[:, 1]), -local[:, 2])
            shrink = _FOCAL * angle / np.hypot(u, v)
            u, v = u * shrink, v * shrink
        seen = (local[:, 2] < 0) & (np.abs(u) <= _WIDTH / 2) & (np.abs(v) <= _HEIGHT / 2)
        away = centres - pose[:3, 3]
        colour = 0.5 + 0.4 * (away / np.linalg.norm(away, axis=-1, keepdims=True)) @ stand_in.TURN[:3, :3].T
        total[seen], count[seen] = total[seen] + colour[seen], count[seen] + 1
        all_total += colour
    mean = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], all_total / len(chosen))
    return opacity, mean * inside[:, None]


def _cut_off(capture: Path, places: np.ndarray) -> int:
    """How many of the places lie beyond the picture of the first camera."""
    pose = _poses(capture)[0]
    local = (places - pose[:3, 3]) @ pose[:3, :3]
    return int((np.abs(_FOCAL * local[:, :2] / local[:, 2:]) > [_WIDTH / 2, _HEIGHT / 2]).any(-1).sum())


@pytest.mark.parametrize("most_views", [64, 3])
def test_the_grid_of_a_box_is_what_it_must_be(run: Path, capture: Path, most_views: int) -> None:
    lines: list[str] = []
    grid = nerfstudio_grid(run, _LOW, _HIGH, 24, trust=True, most_views=most_views, samples=500, log=lines.append)
    assert grid.sides == (24, 18, 16)  # 0.5 / 0.8 of 24 is 15, made even
    np.testing.assert_array_equal(grid.low.numpy(), _LOW)
    np.testing.assert_array_equal(grid.high.numpy(), _HIGH)
    side = float(((_HIGH - _LOW) / grid.sides).mean())
    chosen = list(range(6)) if most_views > 6 else [0, 2, 5]
    opacity, colour = _expected(capture, grid.centres().reshape(-1, 3).numpy(), side, chosen)
    assert _cut_off(capture, grid.centres().reshape(-1, 3).numpy()[opacity > 0]) > 100
    assert 500 < (opacity > 0).sum() < 3000
    # float32 of the field: 2e-7 in places and colours; no centre of a voxel is nearer than that to a face of the box.
    np.testing.assert_allclose(grid.opacity.reshape(-1).numpy(), opacity, atol=1e-6)
    np.testing.assert_allclose(grid.rgb.reshape(-1, 3).numpy(), colour, atol=2e-6)
    assert len(lines) == 1
    assert lines[0].startswith(f"{(opacity > 0).sum()} of {24 * 18 * 16} voxels stop 0.1% of light")
    assert lines[0].endswith(f"colours averaged over {len(chosen)} cameras")


def test_what_no_camera_sees_takes_the_mean_over_all(run: Path, capture: Path) -> None:
    file = capture / "transforms.json"
    content = json.loads(file.read_text())
    content |= {"fl_x": 20 * _FOCAL, "fl_y": 20 * _FOCAL}  # pictures of a spot of the box
    file.write_text(json.dumps(content))
    lines: list[str] = []
    grid = nerfstudio_grid(run, _LOW, _HIGH, 16, trust=True, log=lines.append)
    eyes, centres = _poses(capture)[:, :3, 3], grid.centres().reshape(-1, 3).numpy()
    corner = int(np.flatnonzero(grid.opacity.reshape(-1).numpy() > 0)[0])
    away = centres[corner] - eyes
    colour = 0.5 + 0.4 * (away / np.linalg.norm(away, axis=-1, keepdims=True)) @ stand_in.TURN[:3, :3].T
    np.testing.assert_allclose(grid.rgb.reshape(-1, 3)[corner].numpy(), colour.mean(0), atol=2e-6)
    assert re.search(r"more, (0\.[1-9]|[1-9])\d*(\.\d)?% of them in no photo", lines[0])


def test_a_fisheye_sees_what_its_circle_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    capture = _write_capture(tmp_path / "capture", camera_model="OPENCV_FISHEYE")
    run = stand_in.write_run(tmp_path / "run", capture, _CORNERS, _DENSITY)
    grid = nerfstudio_grid(run, _LOW, _HIGH, 24, trust=True)
    side = float(grid.voxel.mean())
    centres = grid.centres().reshape(-1, 3).numpy()
    _, colour = _expected(capture, centres, side, list(range(6)), fisheye=True)
    _, as_perspective = _expected(capture, centres, side, list(range(6)))
    assert np.abs(colour - as_perspective).max() > 0.01
    np.testing.assert_allclose(grid.rgb.reshape(-1, 3).numpy(), colour, atol=2e-6)


def test_a_field_that_diverged_is_told(tmp_path: Path, capture: Path) -> None:
    run = stand_in.write_run(tmp_path / "run", capture, _CORNERS, float("nan"))
    with pytest.raises(InputError, match="the field gives no numbers at places of the box"):
        nerfstudio_grid(run, _LOW, _HIGH, 8, trust=True)


def test_the_route_tells_what_was_held_out(run: Path, capture: Path) -> None:
    _write_capture(capture.parent / "more" / "capture", views=7)  # one photo more than the run was trained on
    content = json.loads((capture / "transforms.json").read_text())
    file = capture.parent / "more" / "capture" / "transforms.json"
    last = json.loads(file.read_text())["frames"][6]
    file.write_text(json.dumps(content | {"frames": [*content["frames"], last]}))
    scene, lines = open_dataset(file.parent)[0], []
    route = get_route("nerfstudio")()
    options = route.config_type()(run=str(run), trust=True, longest_side=8)
    made = route.make(scene, options, lines.append)
    assert made.held_out == (6,)
    assert made.figures["views"] == 6
    assert max(made.grid.sides) == 8
    assert lines[0].startswith("capture: ")


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("as_file", [False, True])
def test_the_world_is_that_of_the_file_whatever_was_applied_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, as_file: bool
) -> None:
    stand_in.install(monkeypatch)
    capture = _write_capture(tmp_path / "capture", applied_transform=_APPLIED, applied_scale=scale)
    data = capture / "transforms.json" if as_file else capture
    loaded = load_run(stand_in.write_run(tmp_path / "run", data, _CORNERS, _DENSITY), trust=True)
    # The stand-in turns poses in float32, as nerfstudio does: 3e-7 of coordinates of up to 5, over a scale of 0.37.
    np.testing.assert_allclose(loaded.poses, _poses(capture) @ np.diag([1.0, -1, -1, 1]), atol=5e-6)
    assert loaded.scale == pytest.approx(stand_in.SCALE, rel=1e-12)
    upright = loaded.upright()
    places = upright.poses[:, :3, 3] * stand_in.SCALE
    np.testing.assert_allclose(places, _inside(_poses(capture)[:, :3, 3]), atol=2e-6)


def test_the_box_is_where_the_cameras_look(run: Path) -> None:
    grid = nerfstudio_grid(run, longest_side=16, trust=True)
    assert grid.sides == (16, 16, 16)
    assert (np.abs((grid.low + grid.high).numpy() / 2 - _CENTRE) < 0.2).all()
    assert (grid.opacity > 0).any()


def test_a_run_may_be_moved_and_its_capture_too(run: Path, capture: Path) -> None:
    moved, elsewhere = run.rename(run.parent / "kept"), capture.rename(capture.parent / "photos")
    with pytest.raises(InputError, match=r"its capture .*capture is not there; say where it is: capture="):
        nerfstudio_grid(moved, _LOW, _HIGH, 8, trust=True)
    grid = nerfstudio_grid(moved / "config.yml", _LOW, _HIGH, 8, trust=True, capture=elsewhere)
    assert (grid.opacity > 0).any()


def test_nothing_of_a_run_is_executed_before_it_is_trusted(run: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (run / "config.yml").write_text(f"!!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(InputError, match=r"executes what its config\.yml says.*trust=True"):
        load_run(run)
    assert not made.exists()
    with pytest.raises(InputError, match=r"nerfstudio cannot load the run: AssertionError"):
        load_run(run, trust=True)
    assert made.exists()  # so that there is what to be trusted


def test_a_checkpoint_executes_nothing(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (tmp_path / "made",)

    torch.save({"step": 8, "pipeline": Evil()}, run / "nerfstudio_models" / "step-000000008.ckpt")
    with pytest.raises(InputError, match="nerfstudio cannot load the run: UnpicklingError"):
        load_run(run, trust=True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": stand_in.DistanceField}, r"the field DistanceField gives no density \(it gives: sdf, rgb\)"),
        ({"field": ""}, r"has no field of density and colour \(Gaussians have none\)"),
        ({"temporal_distortion": True}, "moves, and a grid holds one moment of it"),
    ],
)
def test_runs_that_have_no_grid_are_refused(
    tmp_path: Path, capture: Path, config: dict[str, object], message: str
) -> None:
    run = stand_in.write_run(tmp_path / "run", capture, _CORNERS, _DENSITY, **config)
    with pytest.raises(InputError, match=message):
        nerfstudio_grid(run, _LOW, _HIGH, 8, trust=True)


def test_the_field_of_nerf_is_its_fine_one(tmp_path: Path, capture: Path) -> None:
    run = stand_in.write_run(tmp_path / "run", capture, _CORNERS, _DENSITY, field="field_fine")
    assert isinstance(load_run(run, trust=True).field, stand_in.BoxField)
    with pytest.raises(InputError, match="has no surface of density"):
        load_run(run, trust=True, field="surface")


def test_runs_that_are_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such run"):
        load_run(tmp_path / "nowhere", trust=True)
    with pytest.raises(InputError, match=r"no config\.yml; give the folder of one nerfstudio run$"):
        load_run(tmp_path / "capture", trust=True)
    (run / "nerfstudio_models" / "step-000000007.ckpt").unlink()
    with pytest.raises(InputError, match=r"nerfstudio_models: no checkpoint \(step-\*\.ckpt\) of the run"):
        load_run(run, trust=True)
    other = stand_in.write_run(tmp_path / "other", tmp_path / "capture", _CORNERS, 1.0)
    with pytest.raises(InputError, match="both corners"):
        nerfstudio_grid(other, low=_LOW, trust=True)


def test_the_run_of_a_scene_is_found_among_outputs(tmp_path: Path) -> None:
    for place in ("fox/nerfacto/2026-01-02_1", "fox/tensorf/2026-03-04_1", "mouse/nerfacto/2026-05-06_1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.yml").write_text("")
    assert find_run(tmp_path, "fox") == tmp_path / "fox/tensorf/2026-03-04_1/config.yml"
    assert find_run(tmp_path / "mouse/nerfacto/2026-05-06_1") == tmp_path / "mouse/nerfacto/2026-05-06_1/config.yml"
    with pytest.raises(InputError, match=r"no config\.yml of scene cat"):
        find_run(tmp_path, "cat")
    with pytest.raises(InputError, match=r"give the folder of one nerfstudio run, such as .*fox/tensorf/2026-03-04_1"):
        find_run(tmp_path / "fox")


def test_a_missing_nerfstudio_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "nerfstudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nerfstudio", None)
    with pytest.raises(MissingExtra, match=r"reading a nerfstudio run needs .*pip install 'geo3d\[nerfstudio\]'"):
        load_run(run, trust=True)


def test_the_grid_of_a_scene_lies_in_its_box(run: Path, capture: Path) -> None:
    scene = open_dataset(capture)[0]
    config = NerfstudioConfig(run=str(run), trust=True, longest_side=16)
    loaded = scene_run(scene, config)
    assert loaded.held_out(scene) == ()
    loaded.names = [name for name in loaded.names if Path(name).name not in ("1.png", "4.png")]
    assert loaded.held_out(scene) == (1, 4)
    loaded.names = [name.replace("images/", "copies/") for name in loaded.names]
    assert loaded.held_out(scene) == (1, 4)
    grid = scene_grid(scene, config)
    assert max(grid.sides) == 16
    centres = grid.centres().reshape(-1, 3).numpy() + scene.origin
    opacity, colour = _expected(capture, centres, float(grid.voxel.mean()), list(range(6)))
    np.testing.assert_allclose(grid.opacity.reshape(-1).numpy(), opacity, atol=1e-6)
    np.testing.assert_allclose(grid.rgb.reshape(-1, 3).numpy(), colour, atol=2e-6)


def test_a_run_of_another_capture_is_refused(run: Path, capture: Path, tmp_path: Path) -> None:
    scene = open_dataset(capture)[0]
    content = json.loads((capture / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["transform_matrix"][0][3] += 0.1
    _write_capture(tmp_path / "shifted")
    (tmp_path / "shifted/transforms.json").write_text(json.dumps(content))
    config = NerfstudioConfig(run=str(run), trust=True, capture=str(tmp_path / "shifted"), longest_side=8)
    with pytest.raises(InputError, match=r"the run's cameras lie up to 0\.1 from those of scene capture"):
        scene_grid(scene, config)
    for frame in content["frames"]:
        frame["file_path"] = frame["file_path"].replace("images/", "images/other_")
    (tmp_path / "shifted/transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="shares no photo with scene capture"):
        scene_grid(scene, config)
    with pytest.raises(InputError, match="say which nerfstudio run is its"):
        scene_grid(scene, NerfstudioConfig())


@pytest.mark.parametrize("wrong", [{"longest_side": 4}, {"most_views": -1}, {"least_opacity": 1.0}])
def test_wrong_configurations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="nerfstudio: "):
        NerfstudioConfig(**wrong)
