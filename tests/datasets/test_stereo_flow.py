"""Pairs with disparity and flow: every layout and file both ways, and synthetic pairs against reprojection."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d.datasets import BrokenScene, open_dataset
from geo3d.datasets.disparity_files import (
    read_disparity,
    read_flow,
    write_disparity_png,
    write_flow,
    write_flow_png,
    write_pfm,
)
from geo3d.datasets.synthetic.furnished import furnished_stage
from geo3d.datasets.synthetic.render import render
from geo3d.datasets.synthetic.stereo_flow import (
    StereoFlowConfig,
    disparity_of,
    flow_of,
    flow_pose,
    stereo_pose,
    write_stereo_flow,
)
from geo3d.datasets.synthetic.walk import look_at
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.geometry.flow import is_visible, moved_points

SIZE = (11, 7)


@pytest.fixture
def disparity() -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.1, 200, SIZE[::-1]).astype(np.float32)
    values[2, 3] = np.nan
    return values


@pytest.fixture
def flow() -> np.ndarray:
    values = np.random.default_rng(0).uniform(-300, 300, (*SIZE[::-1], 2)).astype(np.float32)
    values[2, 3] = np.nan
    return values


def _image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_files_of_disparity_come_back(disparity, tmp_path):
    whole = np.nan_to_num(disparity).round()
    write_pfm(tmp_path / "a.pfm", disparity)
    write_disparity_png(tmp_path / "a.png", disparity)
    np.save(tmp_path / "a.npy", np.where(np.isnan(disparity), np.inf, disparity))
    np.savez(tmp_path / "a.npz", disparity[None])
    Image.fromarray(whole.astype(np.uint8)).save(tmp_path / "whole.png")
    Image.fromarray(whole.astype(np.uint8)).save(tmp_path / "whole.pgm")
    np.save(tmp_path / "whole.npy", whole.astype(np.int32))
    for name, wanted, step in (
        ("a.pfm", disparity, 0),
        ("a.npy", disparity, 0),
        ("a.npz", disparity, 0),
        ("a.png", disparity, 0.5 / 256),
        ("whole.png", np.where(whole > 0, whole, np.nan), 0),
        ("whole.pgm", np.where(whole > 0, whole, np.nan), 0),
        ("whole.npy", np.where(whole > 0, whole, np.nan), 0),
    ):
        found = read_disparity(tmp_path / name, "scene")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=step + 1e-6)
    quarters = read_disparity(tmp_path / "whole.png", "scene", 4)
    np.testing.assert_allclose(quarters, np.where(whole > 0, whole / 4, np.nan))


def test_files_of_flow_come_back(flow, tmp_path):
    write_flow(tmp_path / "a.flo", flow)
    write_flow_png(tmp_path / "a.png", flow)
    np.save(tmp_path / "a.npy", flow)
    np.save(tmp_path / "first.npy", flow.transpose(2, 0, 1))
    for name, step in (("a.flo", 0), ("a.npy", 0), ("first.npy", 0), ("a.png", 0.5 / 64)):
        found = read_flow(tmp_path / name, "scene")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, flow, atol=step)


def _write_flow_pfm(path: Path, flow: np.ndarray, order: str = "<", header: str = "PF\n{0} {1}\n{2}\n") -> None:
    """As SceneFlow has it, by the format's own description: rows from the bottom up, a third channel of no use."""
    height, width = flow.shape[:2]
    data = header.format(width, height, "-1.0" if order == "<" else "1.0").encode()
    for row in range(height - 1, -1, -1):
        for u, v in flow[row]:
            data += struct.pack(f"{order}fff", *(float("inf") if np.isnan(x) else x for x in (u, v)), np.nan)
    path.write_bytes(data)


def test_flow_in_a_pfm_of_three_channels_is_read(flow, tmp_path):
    _write_flow_pfm(tmp_path / "a.pfm", flow)
    _write_flow_pfm(tmp_path / "b.pfm", flow, ">", "PF {0} {1} {2}\n")
    for name in ("a.pfm", "b.pfm"):
        found = read_flow(tmp_path / name, "scene")
        assert (found.dtype, found.shape) == (np.float32, flow.shape)
        np.testing.assert_array_equal(found, flow)
    for name, seed in (("first", 0), ("second", 1)):
        _image(tmp_path / "street" / name / "7.png", seed)
    _write_flow_pfm(_folder(tmp_path / "street" / "flow") / "7.pfm", flow)
    (street,) = open_dataset(tmp_path / "street")
    assert street.flow_pairs().tolist() == [[0, 1]]
    np.testing.assert_array_equal(street.flow(0), flow)


def test_what_a_png_of_kitti_does_not_hold_is_refused(tmp_path):
    write_disparity_png(tmp_path / "a.png", np.array([[255.99, np.nan]], np.float32))
    write_flow_png(tmp_path / "a.png", np.array([[[-512.0, 511.98]]], np.float32))
    with pytest.raises(InputError, match=r"up to 256.00 pixels; 1 pixels have more, up to 300; write a .pfm"):
        write_disparity_png(tmp_path / "b.png", np.array([[300.0, 3.0]], np.float32))
    with pytest.raises(InputError, match=r"from -512 to 511.98 pixels; that of 1 pixels is longer, up to 513; "):
        write_flow_png(tmp_path / "b.png", np.array([[[-513.0, 0.0], [1.0, 1.0]]], np.float32))
    assert not (tmp_path / "b.png").exists()


def test_a_flow_png_with_filtered_rows_is_read(tmp_path):
    """Other programs filter rows; Pillow undoes that in both passes alike."""
    pixels = np.random.default_rng(1).integers(0, 2**16, (3, 5, 3)).astype(">u2")
    raw = pixels.view(np.uint8).reshape(3, -1).astype(np.int64)
    rows = bytearray()
    for number, row in enumerate(raw):  # Sub, Up and Paeth
        left = np.concatenate([np.zeros(6, np.int64), row[:-6]])
        up = raw[number - 1] if number else np.zeros_like(row)
        corner = np.concatenate([np.zeros(6, np.int64), up[:-6]])
        guess = left + up - corner
        distance = np.abs(np.stack([left - guess, up - guess, corner - guess]))
        paeth = np.stack([left, up, corner])[distance.argmin(0), np.arange(len(row))]
        rows += bytes([(1, 2, 4)[number]]) + bytes(((row - (left, up, paeth)[number]) % 256).astype(np.uint8))
    head = struct.pack(">IIBBBBB", 5, 3, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    wanted = np.where(pixels[..., 2:] > 0, (pixels[..., :2].astype(float) - 2**15) / 64, np.nan)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.png", "scene"), wanted.astype(np.float32))


def test_damaged_files_are_named(flow, tmp_path):
    write_flow(tmp_path / "a.flo", flow)
    whole = (tmp_path / "a.flo").read_bytes()
    (tmp_path / "cut.flo").write_bytes(whole[:-1])
    (tmp_path / "other.flo").write_bytes(b"PIEX" + whole[4:])
    _image(tmp_path / "colour.png")
    np.save(tmp_path / "three.npy", np.zeros((3, 4, 5)))
    _write_flow_pfm(tmp_path / "whole.pfm", flow)
    (tmp_path / "cut.pfm").write_bytes((tmp_path / "whole.pfm").read_bytes()[:-1])
    write_pfm(tmp_path / "one.pfm", flow[..., 0])
    for read, name, message in (
        (read_flow, "cut.flo", "11 x 7 pixels of flow do not fit in 627 bytes"),
        (read_flow, "other.flo", "is not a .flo file"),
        (read_flow, "cut.pfm", "11 x 7 pixels of flow do not fit in 936 bytes"),
        (read_flow, "one.pfm", "at byte 0: flow in a PFM has three channels: the file should begin with PF"),
        (read_flow, "colour.png", "three channels of 16 bits"),
        (read_flow, "three.npy", r"flow \(H, W, 2\) of floats is expected, found float64 \(3, 4, 5\)"),
        (read_flow, "absent.flo", "cannot be read"),
        (read_disparity, "colour.png", "one channel, this image is of mode RGB"),
        (read_disparity, "three.npy", "disparity is expected, found float64"),
    ):
        with pytest.raises(BrokenScene, match=rf"scene street: .*{name}.*{message}"):
            read(tmp_path / name, "street")


def test_kitti_2015(disparity, flow, tmp_path):
    root = tmp_path / "training"
    for folder in ("image_2", "image_3"):
        for name in ("000000_10", "000000_11", "000001_10", "000001_11"):
            _image(root / folder / f"{name}.png")
    _folder(root / "disp_occ_0")
    for number in ("000000_10", "000001_10"):
        write_disparity_png(root / "disp_occ_0" / f"{number}.png", disparity)
    write_flow_png(_folder(root / "flow_occ") / "000001_10.png", flow)
    dataset = open_dataset(root)
    assert (dataset.kind, list(dataset.scene_names)) == ("stereo_flow", ["training"])
    scene = dataset[0]
    assert scene.of_many_places
    names = np.array(scene.view_names)
    assert names[scene.stereo_pairs()].tolist() == [
        ["image_2/000000_10.png", "image_3/000000_10.png"],
        ["image_2/000001_10.png", "image_3/000001_10.png"],
    ]
    assert names[scene.flow_pairs()].tolist() == [["image_2/000001_10.png", "image_2/000001_11.png"]]
    np.testing.assert_allclose(scene.disparity(1), disparity, atol=0.5 / 256)
    np.testing.assert_allclose(scene.flow(0), flow, atol=0.5 / 64)
    assert len(scene.pairs()) == 3


def test_kitti_2012(disparity, flow, tmp_path):
    for folder in ("colored_0", "colored_1"):
        for name in ("000000_10", "000000_11"):
            _image(tmp_path / folder / f"{name}.png")
    write_disparity_png(_folder(tmp_path / "disp_occ") / "000000_10.png", disparity)
    write_flow_png(_folder(tmp_path / "flow_occ") / "000000_10.png", flow)
    (scene,) = open_dataset(tmp_path)
    assert scene.parts == {"views", "pairs", "disparity", "flow"}
    np.testing.assert_allclose(scene.disparity(0), disparity, atol=0.5 / 256)
    np.testing.assert_allclose(scene.flow(0), flow, atol=0.5 / 64)


@pytest.mark.parametrize(
    ("names", "width", "factor"),
    [
        (("im0.png", "im1.png", "disp0.pfm"), 30, None),
        (("im2.png", "im6.png", "disp2.png"), 450, 4),
        (("im2.ppm", "im6.ppm", "disp2.pgm"), 434, 8),
        (("view1.png", "view5.png", "disp1.png"), 463, 3),
        (("view1.png", "view5.png", "disp1.png"), 695, 2),
    ],
)
def test_middlebury(names, width, factor, tmp_path):
    first, second, target = (tmp_path / "all" / "cones" / name for name in names)
    for seed, image in enumerate((first, second)):
        _image(image, seed, (width, 5))
    values = np.random.default_rng(0).uniform(1, 30, (5, width)).astype(np.float32)
    values[2, 3] = np.nan
    if factor is None:
        write_pfm(target, values)
    else:
        stored = np.nan_to_num((values * factor).round()).astype(np.uint8)
        Image.fromarray(stored).save(target)
        values = np.where(stored > 0, stored / factor, np.nan)
    (scene,) = open_dataset(tmp_path / "all")
    assert (scene.name, scene.parts) == ("cones", {"views", "pairs", "disparity"})
    assert list(scene.view_names) == list(names[:2])
    np.testing.assert_allclose(scene.disparity(0), values, rtol=1e-6)
    assert not scene.of_many_places
    (alone,) = open_dataset(tmp_path / "all" / "cones")
    assert alone.of_many_places


@pytest.mark.skipif("GEO3D_TEST_DATA" not in os.environ, reason="GEO3D_TEST_DATA is not set")
def test_the_real_cones(tmp_path):
    """As Middlebury has it: in quarters of a pixel."""
    folder = Path(os.environ["GEO3D_TEST_DATA"]) / "stereo_cones"
    root = _folder(tmp_path / "cones")
    for name, stored in (("im2", "cones_left"), ("im6", "cones_right")):
        Image.open(folder / f"{stored}.png").save(root / f"{name}.png")
    truth = np.asarray(Image.open(folder / "cones_gt.png"))
    Image.fromarray(4 * truth).save(root / "disp2.png")
    (scene,) = open_dataset(root)
    left, right = (np.asarray(scene.image(row)).astype(float) for row in scene.stereo_pairs()[0])
    found = scene.disparity(0)
    np.testing.assert_array_equal(np.nan_to_num(found), truth)
    # The sign: what is at x in the left image is at x - disparity in the right one.
    rows, columns = np.nonzero(np.isfinite(found) & (np.arange(found.shape[1]) - np.nan_to_num(found) >= 0))
    shift = found[rows, columns].astype(int)
    errors = [np.abs(left[rows, columns] - right[rows, columns - s]).mean() for s in (shift, 0 * shift)]
    assert errors[0] < 0.4 * errors[1]  # measured: 0.27


def test_what_has_no_partner_is_left_out_and_counted(disparity, tmp_path):
    for name in ("a", "b"):
        _image(tmp_path / "left" / f"{name}.png")
    _image(tmp_path / "right" / "a.png")
    for name in ("a", "b", "c"):
        target = tmp_path / "disparity"
        target.mkdir(exist_ok=True)
        write_pfm(target / f"{name}.pfm", disparity)
    (scene,) = open_dataset(tmp_path)
    assert len(scene.stereo_pairs()) == 1
    (remark,) = scene.remarks
    assert remark.count == 2
    assert "without both images of its pair, such as b" in remark.reason
    (tmp_path / "right" / "a.png").unlink()
    with pytest.raises(BrokenScene, match="no map of disparity or flow has both images of its pair"):
        len(open_dataset(tmp_path)[0].view_names)


def test_a_map_of_another_size_is_broken(disparity, tmp_path):
    _image(tmp_path / "left" / "a.png")
    _image(tmp_path / "right" / "a.png", size=(12, 7))
    write_pfm(_folder(tmp_path / "disparity") / "a.pfm", disparity)
    with pytest.raises(BrokenScene, match=r"is 11 x 7, but a.png of its pair is 12 x 7"):
        open_dataset(tmp_path)[0].disparity(0)


@pytest.fixture(scope="module")
def stage():
    return furnished_stage(0)


CAMERA = Camera.from_fov(96, 64, 1.1)
POSE = look_at(np.array([[0.2, 0.1, 1.4]]), np.array([[2.0, 1.0, 0.7]]), np.zeros(1))[0]


def _cast(stage, pose: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N, 3) first hits of rays through pixels (N, 2) of a camera: the truth, by another way than depth maps."""
    rays = CAMERA.unproject(torch.from_numpy(pixels), torch.ones(len(pixels), dtype=torch.float64)).numpy()
    directions = rays @ pose[:3, :3].T
    origins = np.broadcast_to(pose[:3, 3], directions.shape)
    return origins + directions * stage.tracer.cast(origins, directions)["tfar"][:, None]


def test_disparity_of_a_rendered_pair_is_that_of_reprojection(stage):
    """The ray of the right camera through x - disparity meets the same point, or one before it that hides it."""
    image = render(stage, CAMERA, POSE)
    moved, baseline = stereo_pose(stage, CAMERA, POSE, image.depth, np.random.default_rng(0))
    disparity = disparity_of(image, CAMERA, baseline)
    assert np.isfinite(disparity).all()
    assert 0.03 < np.quantile(disparity, 0.98) / CAMERA.width < 0.19
    grid = CAMERA.pixel_grid().numpy().reshape(-1, 2)
    there = grid - np.stack([disparity.ravel(), np.zeros(len(grid))], 1)
    point, other = _cast(stage, POSE, grid), _cast(stage, moved, there)
    apart = np.linalg.norm(point - other, axis=1)
    in_right = np.linalg.inv(moved)
    depth, hit = ((xyz @ in_right[:3, :3].T + in_right[:3, 3])[:, 2] for xyz in (point, other))
    hidden = hit < depth - 0.01
    assert apart[~hidden].max() < 2e-3  # metres; float32 rays at grazing angles, measured 4e-4
    assert 0.0 < hidden.mean() < 0.3


def test_flow_of_a_rendered_pair_is_that_of_reprojection(stage):
    image = render(stage, CAMERA, POSE)
    rng = np.random.default_rng(1)
    moved = flow_pose(stage, CAMERA, POSE, image.depth, rng)
    np.testing.assert_allclose(moved[:3, :3] @ moved[:3, :3].T, np.eye(3), atol=1e-12)
    assert not np.allclose(moved[:3, 3], POSE[:3, 3])
    flow = flow_of(image, CAMERA, POSE, moved)
    grid = CAMERA.pixel_grid().numpy().reshape(-1, 2)
    point, other = _cast(stage, POSE, grid), _cast(stage, moved, grid + flow.reshape(-1, 2))
    to_camera = np.linalg.inv(moved)
    depth, hit = ((xyz @ to_camera[:3, :3].T + to_camera[:3, 3])[:, 2] for xyz in (point, other))
    hidden = hit < depth - 0.01
    apart = np.linalg.norm(point - other, axis=1)
    assert np.quantile(apart[~hidden], 0.99) < 2e-3

    # And the check of depths finds what is hidden, but for pixels at outlines.
    place, in_second = moved_points(
        torch.from_numpy(image.depth), CAMERA.pixel_grid(), CAMERA, CAMERA, torch.from_numpy(to_camera @ POSE)
    )
    seen = is_visible(place, in_second, torch.from_numpy(render(stage, CAMERA, moved).depth)).numpy().ravel()
    end = grid + flow.reshape(-1, 2)
    inside = ((end > -0.5) & (end < np.array([CAMERA.width, CAMERA.height]) - 0.5)).all(1)
    assert not seen[~inside].any()
    assert (seen[inside] == ~hidden[inside]).mean() > 0.97


def test_flow_of_a_wall_that_is_neared_is_known():
    """A camera that goes a fifth of the way to a wall sees it a quarter larger, about the principal point."""
    camera = Camera(40, 30, 50.0, 50.0, 19.5, 14.5)
    grid = camera.pixel_grid()
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -0.4
    depth = torch.full((30, 40), 2.0)
    depth[3, 4] = 0
    place, z = moved_points(depth, grid, camera, camera, pose)
    centre = grid.new_tensor([19.5, 14.5])
    wanted = (grid - centre) * 1.25 + centre
    wanted[3, 4] = torch.nan
    torch.testing.assert_close(place, wanted, equal_nan=True)
    assert z[0, 0] == pytest.approx(1.6)
    seen = is_visible(place, z, torch.full((30, 40), 1.6))
    inside = ((wanted > -0.5) & (wanted < torch.tensor([39.5, 29.5]))).all(-1)
    assert torch.equal(seen, inside)
    assert not is_visible(place, z, torch.full((30, 40), 1.0)).any()


def test_synthetic_pairs_are_written_once_and_read(tmp_path):
    for task, part in (("stereo", "disparity"), ("flow", "flow")):
        config = StereoFlowConfig(tmp_path / task, task=task, scenes=1, pairs=2, width=48, height=32, workers=1)
        assert len(write_stereo_flow(config).written) == 1
        assert len(write_stereo_flow(config).kept) == 1
        dataset = open_dataset(tmp_path / task)
        assert (dataset.kind, len(dataset)) == ("stereo_flow", 1)
        for scene in dataset:
            assert scene.parts == {"views", "pairs", part}
            assert len(scene.pairs()) == 2
            assert np.isfinite(getattr(scene, part)(1)).all()
            assert not scene.of_many_places
    with pytest.raises(InputError, match="another configuration"):
        write_stereo_flow(StereoFlowConfig(tmp_path / "flow", scenes=1, pairs=2, width=48, height=32, workers=1))
    with pytest.raises(InputError, match="pairs must be at least 1"):
        StereoFlowConfig(pairs=0)
