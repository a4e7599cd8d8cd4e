"""`geo3d predict stereo`, `flow` and `depth` on small images: what is written is what the network says there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geo3d_command import error_of, run
from PIL import Image

from geo3d import InputError, create_model, save_model
from geo3d.datasets.disparity_files import read_disparity, read_flow
from geo3d.inference.stereo import match_stereo
from geo3d.inference.tiling import tiled_prediction
from geo3d.models.croco_downstream import CroCoDownstream
from geo3d.nn.colors import normalise
from geo3d.predict import depth, flow, stereo

SIZES: dict[str, Any] = {"encoder_dim": 16, "encoder_depth": 4, "encoder_heads": 2, "decoder_dim": 8, "mlp_ratio": 2.0}
SIZES |= {"decoder_depth": 3, "decoder_heads": 2, "head_levels": (4, 6, 8, 10), "head_width": 8, "head_last": 4}
SIZES |= {"image_size": (16, 24), "crop": (16, 24)}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, CroCoDownstream]]:
    """Task -> file of a small network with fresh weights, and the network."""
    made = {}
    for task in ("stereo", "flow", "depth"):
        model = create_model(f"croco_{task}_tiny", generator=torch.Generator().manual_seed(0), **SIZES)
        path = tmp_path_factory.mktemp("networks") / task
        save_model(model, path)
        made[task] = path, model
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images of 37 x 26 pixels, which no patch divides."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / name for name in ("left.png", "right.png")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (26, 37, 3), dtype=np.uint8)).save(path)
    return paths


def pixels(paths: list[Path]) -> list[torch.Tensor]:
    return [normalise(torch.from_numpy(np.array(Image.open(path))).unsqueeze(0)) for path in paths]


@pytest.mark.parametrize("ending", [".npz", ".pfm", ".png"])
def test_stereo(ending: str, networks: dict, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, model = networks["stereo"]
    out, options = tmp_path / "in" / f"d{ending}", ["--overlap", 0.5, "--reach", 20, "--tolerance", 6]
    run("predict", "stereo", *photos, "--checkpoint", path, "--out", out, *options, "--focal", 100, "--baseline", 0.2)
    text = capsys.readouterr().out
    weigh = model.config.tile_confidence.weight
    found = match_stereo(model, *pixels(photos), (16, 24), weigh, 0.5, reach=20, tolerance=6)
    known = found.consistent[0].numpy()
    assert 0.02 < known.mean() < 0.98
    with np.load(out.with_suffix(".npz")) as arrays:
        disparity, metres = arrays["disparity"], arrays["depth"]
        np.testing.assert_array_equal(arrays["known"], known)
        np.testing.assert_allclose(arrays["confidence"], found.confidence[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            arrays["deviation"], model.config.criterion.build().deviation(found.confidence[0]), rtol=1e-3
        )
    np.testing.assert_array_equal(np.isfinite(disparity), known)
    np.testing.assert_allclose(disparity[known], found.disparity[0].numpy()[known], rtol=1e-4, atol=1e-4)
    near = np.isfinite(disparity) & (disparity > 0)
    np.testing.assert_allclose(metres[near], 20 / disparity[near], rtol=1e-5)
    assert (metres[~near] == 0).all()
    if ending != ".npz":  # KITTI's numbers go in steps of 1 / 256 from the first of these
        stored, step = read_disparity(out, "a"), 1 / 250 if ending == ".png" else 0
        kept = near if ending == ".png" else known
        np.testing.assert_array_equal(np.isfinite(stored) | ~kept, True)
        np.testing.assert_allclose(stored[kept], disparity[kept], rtol=0, atol=step)
    assert f"known at {100 * known.mean():.1f} % of the pixels" in text
    assert f"picture: {tmp_path / 'in' / 'd_picture.png'}" in text
    with Image.open(tmp_path / "in" / "d_picture.png") as picture:
        assert picture.width > 4 * 37


@pytest.mark.parametrize("ending", [".flo", ".png"])
def test_flow(ending: str, networks: dict, photos: list[Path], tmp_path: Path) -> None:
    path, model = networks["flow"]
    out = tmp_path / f"f{ending}"
    run("predict", "flow", *photos, "--checkpoint", path, "--out", out, "--tile", 24, 32)
    found = tiled_prediction(model, *pixels(photos), (24, 32), model.config.tile_confidence.weight)
    expected = found.values[0].permute(1, 2, 0).numpy()
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_allclose(arrays["flow"], expected, rtol=1e-4, atol=1e-4)
        assert arrays["deviation"].shape == (26, 37)
        assert ((arrays["deviation"] > 0.25) & (arrays["deviation"] < 4)).all()  # the bounds of flow's criterion
    np.testing.assert_allclose(read_flow(out, "a"), expected, rtol=1e-4, atol=1 / 120 if ending == ".png" else 1e-4)


def test_depth_of_several_images(networks: dict, photos: list[Path], tmp_path: Path) -> None:
    path, model = networks["depth"]
    run("predict", "depth", *photos, "--checkpoint", path, "--out", tmp_path / "z.pfm")
    for photo, image in zip(photos, pixels(photos), strict=True):
        found = tiled_prediction(model, image, None, (16, 24), model.config.tile_confidence.weight, moves=False)
        expected = found.values[0, 0].numpy().clip(min=0)
        with np.load(tmp_path / f"z_{photo.stem}.npz") as arrays:
            np.testing.assert_allclose(arrays["depth"], expected, rtol=1e-4, atol=1e-4)
        stored = read_disparity(tmp_path / f"z_{photo.stem}.pfm", "a")
        np.testing.assert_allclose(np.nan_to_num(stored), expected, rtol=1e-4, atol=1e-4)
    run("predict", "depth", photos[0], "--checkpoint", path, "--out", tmp_path / "one.png")
    assert read_disparity(tmp_path / "one.png", "a").shape == (26, 37)
    assert (tmp_path / "one_picture.png").exists()


def test_resized_images_give_results_in_the_images_own_pixels(
    networks: dict, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A network that says 3 pixels right and 5 down at half the size says 6 and 10 of the images."""

    def constant(self: CroCoDownstream, first: torch.Tensor, second: torch.Tensor | None = None) -> Any:
        values = torch.tensor([3.0, 5.0][: 1 + (self.config.task == "flow")]).view(1, -1, 1, 1)
        return values.expand(1, -1, *first.shape[2:]), torch.zeros_like(first[:, 0])

    monkeypatch.setattr(CroCoDownstream, "forward", constant)
    big = [tmp_path / photo.name for photo in photos]
    for photo, path in zip(photos, big, strict=True):
        Image.open(photo).resize((96, 64)).save(path)
    run("predict", "flow", *big, "--checkpoint", networks["flow"][0], "--out", tmp_path / "f.npz", "--resized", 32)
    run("predict", "stereo", *big, "--checkpoint", networks["stereo"][0], "--out", tmp_path / "d.npz", "--resized", 32)
    with np.load(tmp_path / "f.npz") as moved, np.load(tmp_path / "d.npz") as matched:
        np.testing.assert_allclose(moved["flow"], np.broadcast_to([6.0, 10.0], (64, 96, 2)), rtol=1e-5)
        np.testing.assert_allclose(moved["deviation"], 2 * 2.125, rtol=1e-5)  # b = (0.25 + 4) / 2 where c is 0
        np.testing.assert_allclose(matched["disparity"], 6.0, rtol=1e-5)
        np.testing.assert_allclose(matched["deviation"], 2.0, rtol=1e-5)
    assert "as in training" not in capsys.readouterr().out
    trained, out = tmp_path / "trained", tmp_path / "d.npz"
    save_model(create_model(checkpoint=networks["stereo"][0], resized=32), trained)
    for options, wanted in (((), 6.0), (("--resized", 0), 3.0)):
        run("predict", "stereo", *big, "--checkpoint", trained, "--out", out, *options)
        with np.load(out) as found:
            np.testing.assert_allclose(found["disparity"], wanted, rtol=1e-5)
        text = capsys.readouterr().out
        assert ("sees images of 32 pixels on the shorter side, as in training" in text) == (not options)


def test_what_a_png_does_not_hold_is_told_and_the_rest_is_there(
    networks: dict, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def far(self: CroCoDownstream, first: torch.Tensor, second: torch.Tensor | None = None) -> Any:
        channels = 1 + (self.config.task == "flow")
        return torch.full((1, channels, *first.shape[2:]), 600.0), torch.zeros_like(first[:, 0])

    monkeypatch.setattr(CroCoDownstream, "forward", far)
    for task, inputs in (("stereo", photos), ("flow", photos), ("depth", photos)):
        out = tmp_path / f"{task}.PNG"
        text = error_of(capsys, "predict", task, *inputs, "--checkpoint", networks[task][0], "--out", out)
        assert "962" in text
        assert "up to 600; write a" in text
        for stem in (task,) if task != "depth" else (f"{task}_left", f"{task}_right"):
            assert (tmp_path / f"{stem}.npz").exists()
            assert (tmp_path / f"{stem}_picture.png").exists()
            assert not (tmp_path / f"{stem}.PNG").exists()


def test_what_does_not_fit_is_told(
    networks: dict, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    flow_file, out = networks["flow"][0], tmp_path / "d.npz"
    save_model(create_model("resnet_tiny"), tmp_path / "resnet")
    pair = dict(zip(("left", "right"), photos), checkpoint=networks["stereo"][0], out=out)
    moved = dict(zip(("first", "second"), photos), checkpoint=flow_file, out=out)
    for task, kind, options, message in (
        (
            stereo,
            stereo.StereoOptions,
            pair | {"checkpoint": flow_file},
            r"croco_flow_tiny \(flow\), and nothing that predicts stereo",
        ),
        (stereo, stereo.StereoOptions, pair | {"right": tmp_path / "small.png"}, "10 x 10 pixels"),
        (stereo, stereo.StereoOptions, pair | {"tile": (20, 24)}, "multiples of the network's patch"),
        (stereo, stereo.StereoOptions, pair | {"overlap": 1.0}, "overlap must be at least 0"),
        (stereo, stereo.StereoOptions, pair | {"focal": 9.0}, "needs both the focal length"),
        (stereo, stereo.StereoOptions, pair | {"reach": -9.0}, "reach must not be negative"),
        (stereo, stereo.StereoOptions, pair | {"resized": -1}, "resized must be at least 1"),
        (flow, flow.FlowOptions, moved | {"second": tmp_path / "text.png"}, "text.png"),
        (flow, flow.FlowOptions, moved | {"out": tmp_path / "f.pfm"}, r"ends in \.npz, \.flo, \.png"),
        (flow, flow.FlowOptions, moved | {"checkpoint": tmp_path / "resnet"}, "holds a resnet_tiny"),
        (flow, flow.FlowOptions, moved | {"device": "abacus"}, "predict flow: 'abacus' is no device"),
        (depth, depth.DepthOptions, {"images": (), "checkpoint": flow_file}, "name one image or more"),
        (depth, depth.DepthOptions, {"images": (photos[0],) * 2, "checkpoint": flow_file}, "are called alike"),
    ):
        with pytest.raises(InputError, match=message):
            task.predict(kind(**options))
    assert not out.exists()
    words = ["predict", "stereo", photos[0], tmp_path / "no.png", "--checkpoint", networks["stereo"][0], "--out", out]
    assert "no.png" in error_of(capsys, *words)
