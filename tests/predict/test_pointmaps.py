"""A place from photos: found by a network that knows it, written, and read again; and the command itself."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "reconstruction"), str(Path(__file__).parents[1] / "cli")]

from geo3d_command import error_of, run  # noqa: E402
from photographed_room import Knowing, PhotographedRoom, compare  # noqa: E402

import geo3d  # noqa: E402
from geo3d.checkpoints import save_model  # noqa: E402
from geo3d.datasets import read_points  # noqa: E402
from geo3d.errors import InputError  # noqa: E402
from geo3d.geometry import Camera  # noqa: E402
from geo3d.geometry.similarity import fit_similarity  # noqa: E402
from geo3d.predict.pointmaps import finish  # noqa: E402
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions  # noqa: E402
from geo3d.reconstruction.pointmaps.photos import NetworkPairs, find_photos, read_photos  # noqa: E402
from geo3d.reconstruction.pointmaps.place import PlaceOptions, Reconstruction, reconstruct  # noqa: E402

#: Of photos that no whole number of patches fits: they are resized and cropped.
_CAMERA = Camera.from_fov(211, 157, np.radians(64))
_QUICK = PlaceOptions(alignment=AlignmentOptions(steps=60))
_TURN_BACK = {6: Image.Transpose.ROTATE_90}  # what is stored, of an image that EXIF turns by a quarter


@pytest.fixture(scope="module")
def network() -> geo3d.models.Encoder:
    return geo3d.create_model("dust3r_tiny", generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save_model(network, path)
    return path


@pytest.fixture(scope="module")
def room() -> PhotographedRoom:
    return PhotographedRoom(1, 4, _CAMERA)


@pytest.fixture(scope="module")
def folder(room, tmp_path_factory) -> Path:
    """Photos of four views, of which one lies on its side and says so, and one is smaller; and one of nothing."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        room.save(number, folder / f"{number}.png")
    with Image.open(folder / "1.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(_TURN_BACK[6]).save(folder / "1.jpg", exif=exif, quality=95)
    with Image.open(folder / "2.png") as image:
        image.resize((140, 104)).save(folder / "2.jpg", quality=95)
    (folder / "1.png").unlink()
    (folder / "2.png").unlink()
    Image.effect_noise((150, 110), 90).convert("RGB").save(folder / "other.png")
    return folder


def _views(room: PhotographedRoom, photos: list) -> list:
    """What a photo's loaded pixels see, exactly."""
    views = []
    for number, photo in enumerate(photos):
        height, width = photo.image.source_size
        views.append(room.view(min(number, 3), photo.image.camera(_CAMERA.resized(width, height))))
    return views


@pytest.fixture(scope="module")
def made(room, folder, network, tmp_path_factory) -> tuple[Reconstruction, list, Path, str]:
    """The place of the photos, found with a little noise, and where it was written."""
    photos, left_out = read_photos(find_photos([folder])[0], network)
    assert [photo.name for photo in photos] == ["0.png", "1.jpg", "2.jpg", "3.png", "other.png"]
    assert not left_out
    views = _views(room, photos)
    knowing = Knowing(views, 0.002, 0.02, strangers=[4])
    place = reconstruct(photos, knowing, lambda: None, np.random.default_rng(0), _QUICK)
    out = tmp_path_factory.mktemp("place")
    return place, views[:4], out, finish(out, place, [], None, 100_000, picture=True)


def test_the_place_is_found(made) -> None:
    place, views, _, told = made
    errors = compare(place.aligned, views)
    # Measured: 0.013 degrees, 0.8 mm, 0.08 %, 2 mm.
    assert errors.degrees < 0.1
    assert errors.places < 0.01
    assert errors.focal < 0.005
    assert errors.points < 0.01
    assert "4 photos in one frame; 6 of 10 pairs" in told
    assert [left.reason for left in place.left_out] == ["no pair connects it to the others"]
    assert "other.png: no pair connects it" in told


def test_intrinsics_are_of_the_photos(made) -> None:
    place = made[0]
    for number, photo in enumerate(place.photos):
        camera = place.camera(number)
        assert (camera.height, camera.width) == photo.image.source_size
        assert camera.fx == pytest.approx(_CAMERA.fx * camera.width / _CAMERA.width, rel=0.01)
        assert camera.fy == pytest.approx(camera.fx, rel=1e-9)
        assert camera.cx == pytest.approx((camera.width - 1) / 2, abs=1e-9)
        assert camera.cy == pytest.approx((camera.height - 1) / 2, abs=1e-9)


@pytest.mark.parametrize("kind", ["auto", "transforms"])
def test_our_readers_read_what_was_written(made, room, kind: str) -> None:
    place, _, out, _ = made
    dataset = geo3d.open_dataset(out, kind)
    (name,) = dataset.scene_names
    scene = dataset[name]
    assert scene.view_names[0].endswith("0.png")
    assert len(scene.view_names) == 4
    poses = np.stack([scene.pose(number) for number in range(4)])
    poses[:, :3, 3] += scene.origin
    centres = [torch.from_numpy(p[:, :3, 3]) for p in (poses, place.aligned.world_from_camera.numpy())]
    way = fit_similarity(*centres)  # a COLMAP model is read in a unit of its own
    assert (way.apply(centres[0]) - centres[1]).abs().max() < 1e-6
    view = scene.view(1)
    assert view.image.shape[:2] == (157, 211)  # upright, in its own pixels
    # The photo that lay on its side is the room's again, but for its compression.
    assert (view.image - room.view(1).image).abs().mean() < 0.03
    if kind == "auto":
        points = scene.points()
        seen = way.apply(points.world()[:5000].double())
        pose = place.aligned.world_from_camera[0]
        assert ((seen - pose[:3, 3]) @ pose[:3, 2] > 0).float().mean() > 0.7  # before the first camera, most of them
    else:
        depth = view.depth[view.depth > 0]
        assert len(depth) > 1000
        xyz, _ = view.world_points()
        apart = torch.cdist(xyz[::50], place.cloud(0).xyz.double()).amin(1)
        assert apart.max() < 0.05


def test_every_file_is_there(made) -> None:
    place, _, out, _ = made
    cloud = read_points(out / "points.ply")
    summary = json.loads((out / "summary.json").read_text())
    assert len(cloud) == summary["points"] > 1000
    assert cloud.colors is not None
    assert [photo["name"] for photo in summary["photos"]] == ["0.png", "1.jpg", "2.jpg", "3.png"]
    assert summary["left_out"][0]["file"].endswith("other.png")
    with np.load(out / "pointmaps.npz") as arrays:
        assert arrays["points_00001"].shape == (64, 64, 3)  # squares, as it was trained on
        assert arrays["intrinsics"].shape == (4, 3, 3)
        kept = place.kept(1, summary["confidence"]).numpy()
        assert np.allclose(arrays["points_00001"][kept], place.aligned.points(1).numpy()[kept], atol=1e-5)
    with Image.open(out / "picture.png") as picture:
        assert picture.width > 600
    nothing = geo3d.open_dataset(out, "transforms")
    assert nothing.kind == "transforms"


def test_the_world_is_upright(made, room) -> None:
    place = made[0]
    poses = place.aligned.world_from_camera
    true = torch.from_numpy(room.poses[0])
    up = poses[0, :3, :3] @ true[:3, :3].T @ torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert float(up[2]) > np.cos(np.radians(8))  # hands are not quite level


def test_a_field_of_view_that_no_lens_has_is_told(made, tmp_path) -> None:
    place, _, _, told = made
    assert "fields of view are below" not in told
    aligned = replace(place.aligned, focals=[5000.0, *place.aligned.focals[1:]])
    strange = finish(tmp_path, replace(place, aligned=aligned), [], None, 1000, picture=False)
    assert "1 of 4 fields of view are below 15 or above 120 degrees" in strange


def test_no_connection_is_one_line(room, folder, network) -> None:
    photos, _ = read_photos(find_photos([folder])[0][:2], network)
    knowing = Knowing(_views(room, photos), strangers=[0])
    with pytest.raises(InputError, match="no pair connects two photos"):
        reconstruct(photos, knowing, lambda: None, np.random.default_rng(0), _QUICK)


def test_a_focal_that_is_known_is_of_the_photos_pixels(room, folder, network) -> None:
    photos, _ = read_photos([folder / "0.png", folder / "3.png"], network)
    knowing = Knowing([room.view(number, photos[0].image.camera(_CAMERA)) for number in (0, 3)], 0.002)
    place = reconstruct(photos, knowing, lambda: None, np.random.default_rng(0), replace(_QUICK, focal=_CAMERA.fx))
    assert place.camera(0).fx == pytest.approx(_CAMERA.fx, rel=0.005)
    with pytest.raises(InputError, match="no point has confidence 50"):
        place.cloud(50.0)


def test_pairs_of_encoded_views_are_those_of_images(network, folder) -> None:
    photos, _ = read_photos(find_photos([folder])[0], network)
    pairs = NetworkPairs(network, photos, batch=2)
    found = pairs([(0, 1), (3, 0), (1, 3)])
    assert [(p.first, p.second) for p in found] == [(0, 1), (3, 0), (1, 3)]
    with torch.no_grad():
        whole = network(*(network.prepare(photos[n].image.pixels) for n in (3, 0)))
    # Batches of other sizes: sums in another order.
    assert torch.allclose(found[1].second_points, whole.second.points[0], rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[1].first_confidence, whole.first.confidence[0], rtol=1e-3, atol=1e-4)
    assert pairs.descriptors().shape == (5, 96)


def test_the_command_runs_on_fresh_weights(folder, checkpoint, tmp_path, capsys) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (photos / "phone.heic").write_bytes(b"\0\0\0 ftypheic")
    out = tmp_path / "place"
    options = ("--checkpoint", checkpoint, "--steps", 2, "--pairs", "similar", "--reach", 1, "--out", out)
    run("predict", "pointmaps", photos, *options)
    told = capsys.readouterr().out
    assert "5 photos in one frame" in told
    assert "broken.jpg" in told
    assert "phone.heic: .heic photos are not read" in told
    assert {p.name for p in out.iterdir()} == {
        "depth", "images", "picture.png", "pointmaps.npz", "points.ply", "sparse", "summary.json", "transforms.json",
    }  # fmt: skip


def test_the_command_aligns_by_matches_where_it_is_told_to(folder, tmp_path, capsys) -> None:
    checkpoint = tmp_path / "mast3r.safetensors"
    save_model(geo3d.create_model("mast3r_tiny", generator=torch.Generator().manual_seed(0)), checkpoint)
    photos = [folder / "0.png", folder / "3.png", folder / "other.png"]
    # Fresh weights tell no focal length.
    options = ("--checkpoint", checkpoint, "--steps", 2, "--connect", 1.01, "--focal", 100, "--no-picture")
    run("predict", "pointmaps", *photos, *options, "--out", tmp_path / "place", "--alignment", "sparse")
    assert "sparse alignment: " in capsys.readouterr().out
    run("predict", "pointmaps", *photos, *options, "--out", tmp_path / "place")
    assert "dense alignment: " in capsys.readouterr().out


def test_a_place_is_found_by_matches(room, folder, network) -> None:
    photos, _ = read_photos([folder / "0.png", folder / "3.png"], network)
    knowing = Knowing([room.view(number, photos[0].image.camera(_CAMERA)) for number in (0, 3)], 0.005, astray=0.05)
    place = reconstruct(photos, knowing, lambda: None, np.random.default_rng(0), replace(_QUICK, method="sparse"))
    assert "sparse alignment: " in place.aligned.told
    errors = compare(place.aligned, knowing.views)
    assert errors.degrees < 0.3
    assert errors.focal < 0.01


def test_bad_input_is_one_line(folder, checkpoint, tmp_path, capsys) -> None:
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "place")
    assert "two photos or more, 1 can be read of 1" in error_of(
        capsys, "predict", "pointmaps", folder / "0.png", *options
    )
    assert "no such file or folder" in error_of(capsys, "predict", "pointmaps", tmp_path / "no", *options)
    other = tmp_path / "croco.safetensors"
    save_model(geo3d.create_model("croco_tiny"), other)
    assert "croco_tiny, without a head, and nothing that puts out pointmaps" in error_of(
        capsys, "predict", "pointmaps", folder, "--checkpoint", other
    )
    assert "has no descriptors to match; take dense" in error_of(
        capsys, "predict", "pointmaps", folder, "--alignment", "sparse", *options
    )
    assert "reach must be 1 or more" in error_of(capsys, "predict", "pointmaps", folder, "--reach", 0, *options)
    assert "no point has confidence 1000" in error_of(
        capsys, "predict", "pointmaps", folder, "--confidence", 1000, "--steps", 0, *options
    )
