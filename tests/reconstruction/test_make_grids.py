"""Folders of grids: routes, what is written beside a grid, going on, broken scenes, previews, grids of rooms."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, BoxScene, look_at, orbit
from dataset_builders import BUILDERS, build_frames
from PIL import Image

from geo3d.datasets import open_dataset
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.errors import InputError
from geo3d.geometry import Camera, VolumeGrid
from geo3d.reconstruction.depth_fusion import DepthFusionConfig
from geo3d.reconstruction.grid_file import grid_path
from geo3d.reconstruction.make_grids import GridsConfig, make_room_grids, prepare_grids
from geo3d.reconstruction.preview import grid_slices, label_slices, preview
from geo3d.reconstruction.radiance_field import RadianceField
from geo3d.reconstruction.routes import ROUTES, Made, Route, even_box, get_route, held_out_views, list_routes
from geo3d.reconstruction.scene_box import grid_sides

OPTIONS = DepthFusionConfig(longest_side=24)
CAMERA = Camera.from_fov(64, 48, np.pi / 2)


def _silent(_line: str) -> None:
    return


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    """Two synthetic rooms of a few small views."""
    root = tmp_path_factory.mktemp("rooms")
    write_synthetic(SyntheticConfig(root, scenes=2, objects=0, views=17, width=64, height=48, mesh_edge=0.1, workers=1))
    return root / "scannet"


def test_every_route_names_its_options() -> None:
    assert list_routes() == ["depth_fusion", "nerfstudio", "radiance_field"]
    for name in list_routes():
        route = get_route(name)
        assert route.summary
        assert route.config_type()(longest_side=32).longest_side == 32
        assert {"views", "poses"} <= set(route.parts)
    with pytest.raises(InputError, match=r"unknown route 'depthfusion'.*did you mean 'depth_fusion'"):
        get_route("depthfusion")


def test_depth_fusion_holds_views_out() -> None:
    scene = BoxScene(orbit(17, 21), BOXES, camera=CAMERA)
    made = get_route("depth_fusion")().make(scene, OPTIONS, _silent)
    assert made.held_out == (0, 8, 16)
    assert made.figures["views"] == 14
    assert max(made.grid.sides) == 24
    assert held_out_views(15, 8) == held_out_views(20, 0) == ()


def test_the_radiance_field_route() -> None:
    """A short fit; what it is worth is tested with the fit."""
    scene = BoxScene(orbit(9, 40), BOXES, camera=CAMERA)
    route = get_route("radiance_field")
    made = route().make(scene, route.config_type()(steps=4, longest_side=16, photo_side=32), _silent)
    assert made.held_out == (0, 8)
    assert max(made.grid.sides) == 16
    assert all(side == 16 or side % 2 == 0 for side in made.grid.sides)
    voxel = made.grid.voxel
    assert torch.allclose(voxel, voxel[:1].expand(3))
    colour, depth = made.render(scene.camera(0), torch.from_numpy(scene.pose(0)))
    assert (colour.shape, depth.shape) == ((48, 64, 3), (48, 64))


def test_a_box_of_whole_voxels() -> None:
    low, high = even_box((-1, 0, 0.5), (1, 1.23, 1.1), 20)
    sides = grid_sides(np.array(low), np.array(high), 20)
    assert sides == (20, 12, 6)
    assert (np.array(high) - low) / sides == pytest.approx([0.1] * 3)


def test_a_folder_is_made_and_gone_on_with(rooms: Path, tmp_path: Path) -> None:
    config, seen = GridsConfig((rooms,), tmp_path / "grids", "depth_fusion"), []
    summary = prepare_grids(config, OPTIONS, _silent, lambda done, total, name: seen.append((done, total, name)))
    assert summary.made == ["scene0000_00", "scene0001_00"]
    assert seen == [(1, 2, "scene0000_00"), (2, 2, "scene0001_00")]
    assert "2 grids made" in summary.report()
    assert "PSNR" in summary.report()
    dataset = open_dataset(config.out)
    assert dataset.kind == "radiance_grids"
    assert dataset.classes == open_dataset(rooms).classes
    for scene in dataset:
        grid = scene.grid()
        assert max(grid.sides) == 24
        occupied = grid.opacity > 0.01
        assert 0.02 < occupied.float().mean() < 0.5
        assert (grid.labels[occupied] >= 0).float().mean() > 0.8
        assert len(grid.boxes) > 3
        figures = json.loads(scene.file.with_suffix(".json").read_text())
        assert figures["psnr"] > 10  # voxels of a quarter of a metre
        assert figures["views_held_out"]
        with Image.open(scene.file.with_suffix(".png")) as picture:
            assert picture.width > 400

    first = config.out / "features" / "scene0000_00.npz"
    before = first.stat().st_mtime_ns
    (config.out / "features" / "scene0001_00.npz").unlink()
    again = prepare_grids(config, OPTIONS, _silent)
    assert (again.made, again.kept) == (["scene0001_00"], ["scene0000_00"])
    assert first.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"made otherwise \(longest_side 24 instead of 32\)"):
        prepare_grids(config, DepthFusionConfig(longest_side=32), _silent)


def test_broken_scenes_are_named_and_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        build_frames(tmp_path / "data" / name)
    for file in (tmp_path / "data" / "b" / "depth").glob("*.png"):
        file.write_bytes(b"cut")
    config = GridsConfig((tmp_path / "data",), tmp_path / "grids", "depth_fusion", previews=False)
    summary = prepare_grids(config, OPTIONS, _silent)
    assert summary.made == ["a", "c"]
    assert len(summary.broken) == 1
    assert "scene b:" in summary.report()
    strict = GridsConfig((tmp_path / "data",), tmp_path / "strict", "depth_fusion", strict=True)
    with pytest.raises(InputError, match="scene b"):
        prepare_grids(strict, OPTIONS, _silent)
    shutil.rmtree(tmp_path / "data" / "a")
    shutil.rmtree(tmp_path / "data" / "c")
    with pytest.raises(InputError, match="no grid could be made of 1 scenes; scene b"):
        prepare_grids(GridsConfig((tmp_path / "data",), tmp_path / "none", "depth_fusion"), OPTIONS, _silent)


@pytest.mark.parametrize("route", ["depth_fusion", "radiance_field"])
def test_broken_views_are_named_and_the_others_used(route: str, tmp_path: Path) -> None:
    """The grid is the very one of a capture without them; held-out views and pictures too go by those that stay."""
    build_frames(tmp_path / "data" / "a", range(18))
    photos = [tmp_path / "data" / "a" / "color" / f"{number}.jpg" for number in range(18)]
    photos[0].write_bytes(b"cut")  # held out, so that it is read for the picture alone
    photos[5].write_bytes(b"")
    options = OPTIONS if route == "depth_fusion" else get_route(route).config_type()(longest_side=16, steps=2, rays=16)
    config = GridsConfig((tmp_path / "data",), tmp_path / "grids", route)
    summary = prepare_grids(config, options, _silent)
    assert summary.made == ["a"]
    assert not summary.broken
    (remark,) = summary.remarks
    assert remark in summary.report()
    assert re.search(r"^scene a: .*: 2 views left out, which cannot be read; the first: .*0\.jpg at byte 0", remark)
    made = open_dataset(config.out)[0].grid()
    with pytest.raises(InputError, match=r"scene a: .*[05]\.jpg at byte 0"):
        prepare_grids(replace(config, out=tmp_path / "strict", strict=True), options, _silent)
    for photo in (photos[0], photos[5]):
        photo.unlink()
    prepare_grids(replace(config, out=tmp_path / "without"), options, _silent)
    without = open_dataset(tmp_path / "without")[0].grid()
    assert torch.equal(made.opacity, without.opacity)
    assert torch.equal(made.rgb, without.rgb)


def test_what_cannot_be_asked_for(rooms: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data"):
        prepare_grids(GridsConfig((), tmp_path / "grids", "depth_fusion"))
    with pytest.raises(InputError, match="both have a scene scene0000_00; give each an output of its own"):
        prepare_grids(GridsConfig((rooms, rooms), tmp_path / "grids", "depth_fusion", previews=False), OPTIONS, _silent)
    places = tmp_path / "places"
    places.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8)).save(places / f"{number}.png")
    with pytest.raises(InputError, match="no grid could be made of 1 scenes; none has all that depth_fusion needs"):
        prepare_grids(GridsConfig((places,), tmp_path / "none", "depth_fusion"), OPTIONS, _silent)
    (tmp_path / "grids" / "grids.json").write_text("[")
    with pytest.raises(InputError, match="says not how the grids were made"):
        prepare_grids(GridsConfig((rooms,), tmp_path / "grids", "depth_fusion"), OPTIONS, _silent)


def test_an_output_is_claimed_by_its_first_grid(tmp_path: Path) -> None:
    """What failed before it made any grid leaves the output free for another route; what made one does not."""
    root, out = tmp_path / "scans", tmp_path / "grids"
    BUILDERS["mvimgnet"](root)
    with pytest.raises(InputError, match=r"none has all that depth_fusion needs.*radiance_field"):
        prepare_grids(GridsConfig((root,), out, "depth_fusion"), OPTIONS, _silent)
    quick = get_route("radiance_field").config_type()(longest_side=16, steps=2, rays=16)
    prepare_grids(GridsConfig((root,), out, "radiance_field", previews=False), quick, _silent)
    with pytest.raises(InputError, match=r"made otherwise \(route radiance_field instead of depth_fusion\)"):
        prepare_grids(GridsConfig((root,), out, "depth_fusion"), OPTIONS, _silent)
    with pytest.raises(InputError, match="precision float16 instead of float32"):
        prepare_grids(GridsConfig((root,), out, "radiance_field", previews=False, precision="float32"), quick, _silent)
    with pytest.raises(InputError, match="precision must be one of float16, float32, got 'float8'"):
        GridsConfig((root,), out, precision="float8")


def test_a_fitted_field_is_kept(tmp_path: Path) -> None:
    """It renders as it did while its grid was made, and a turn-table is drawn of it with no scene at hand."""
    root = tmp_path / "scans"
    BUILDERS["mvimgnet"](root)
    quick = get_route("radiance_field").config_type()(longest_side=16, steps=2, rays=16)
    config = GridsConfig((root,), tmp_path / "grids", previews=False, keep_field=True)
    (name, *_) = prepare_grids(config, quick, _silent).made
    field = RadianceField.load(grid_path(config.out, name).with_suffix(".safetensors"))
    scene = open_dataset(root).open(name)
    camera, pose = scene.camera(0).resized(16, 12), torch.from_numpy(scene.pose(0))
    colour, _ = get_route("radiance_field")().make(scene, quick, _silent).render(camera, pose)
    assert torch.equal(field.render(camera, pose).image, colour)
    assert field.turn_table(tmp_path / "seen", frames=2, longest_side=16).is_file()
    assert len(open_dataset(config.out)) == len(list((config.out / "features").glob("*.safetensors")))
    with pytest.raises(InputError, match="keep_field True instead of False"):
        prepare_grids(replace(config, keep_field=False), quick, _silent)
    with pytest.raises(InputError, match="depth_fusion fits no field that could be kept; take the route radiance_f"):
        prepare_grids(replace(config, route="depth_fusion"), OPTIONS, _silent)


def test_grids_of_rooms_are_made_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geo3d.reconstruction.make_grids.make_rooms", lambda rooms, seed, log: _few_rooms(rooms))
    lines: list[str] = []
    folder = make_room_grids(1, 0, 16, lines.append)
    assert folder == Path("data/synthetic/rooms_1_seed_0/grids_depth_fusion_16")
    grid = open_dataset(folder)[0].grid()
    assert grid.boxes is not None
    assert grid.labels.max() >= 0
    assert make_room_grids(1, 0, 16, lines.append) == folder
    assert "0 grids made, 1 were there already" in lines[-1]


def _few_rooms(rooms: int) -> Path:
    output = Path("data/synthetic/rooms_1_seed_0")
    write_synthetic(SyntheticConfig(output, scenes=rooms, objects=0, views=6, width=48, height=36, workers=1))
    return output / "scannet"


def test_a_route_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    class Own(Route):
        summary, parts = "grey everywhere", ("views",)

        @classmethod
        def config_type(cls) -> type:
            return DepthFusionConfig

        def make(self, scene, config, log) -> Made:
            return Made(VolumeGrid(torch.full((4, 4, 4, 3), 0.5), torch.ones(4, 4, 4)))

    monkeypatch.setitem(ROUTES._known, "grey", Own)
    build_frames(tmp_path / "data" / "a")
    summary = prepare_grids(
        GridsConfig((tmp_path / "data",), tmp_path / "grids", "grey", previews=False), None, _silent
    )
    assert summary.made == ["a"]
    assert open_dataset(tmp_path / "grids")[0].grid().low is None


def test_slices_show_the_grid_upright() -> None:
    grid = VolumeGrid(torch.zeros(3, 4, 5, 3), torch.zeros(3, 4, 5), labels=torch.full((3, 4, 5), -1))
    grid.opacity[2, 3, 4] = 1
    grid.rgb[2, 3, 4] = torch.tensor([1.0, 0, 0])
    grid.labels[2, 3, 4] = 0
    across_x, across_y, across_z = grid_slices(grid, (2, 3, 4))
    assert (across_x.shape, across_y.shape, across_z.shape) == ((5, 4, 3), (5, 3, 3), (4, 3, 3))
    for image, (row, column) in ((across_x, (0, 3)), (across_y, (0, 2)), (across_z, (0, 2))):
        red = (image == [255, 0, 0]).all(-1)
        assert red.sum() == 1
        assert red[row, column]
    assert (label_slices(grid, 1, (2, 3, 4))[0][0, 3] != 255).any()
    assert (label_slices(grid, 1, (2, 3, 4))[0][1] == 255).all()


def test_a_preview_measures_grid_and_route() -> None:
    """A route that renders the photos themselves has the highest PSNR there is."""
    scene = BoxScene(orbit(4, 90), BOXES, camera=CAMERA)
    photos = {scene.pose(i).tobytes(): torch.from_numpy(np.array(scene.image(i))).float() / 255 for i in range(4)}
    grid = get_route("depth_fusion")().make(scene, OPTIONS, _silent).grid
    made = Made(grid, lambda camera, pose: (photos[pose.numpy().tobytes()], torch.ones(48, 64)), {}, (1, 2))
    picture, figures = preview(scene, made)
    assert figures["psnr_route"] == 100
    assert 5 < figures["psnr"] < 40
    assert 0.9 < figures["covered"] <= 1
    assert figures["views_held_out"]
    assert (picture.dtype, picture.ndim) == (np.uint8, 3)
    assert not preview(scene, Made(grid))[1]["views_held_out"]


def test_pixels_that_a_grid_does_not_cover_do_not_count() -> None:
    """A grid of the right half of a wall alone, white, beside which photos are black."""
    low, high = torch.tensor([1.0, -4, -3]).double(), torch.tensor([2.0, 0, 3]).double()
    grid = VolumeGrid(torch.ones(4, 16, 24, 3), torch.full((4, 16, 24), 0.999), low, high)
    pose = look_at((-1, 0, 0.0), (2, 0, 0))

    class Half(BoxScene):
        def image(self, index: int) -> Image.Image:
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, 32:] = 255  # y falls to the right
            return Image.fromarray(pixels)

    _, figures = preview(Half([pose, pose], camera=CAMERA, parts=("views", "poses")), Made(grid))
    assert figures["covered"] == pytest.approx(0.5, abs=0.05)
    assert figures["psnr"] > 20
