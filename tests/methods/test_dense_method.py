"""Stereo, flow and depth as methods: crops and targets stay together, and what is trained is what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d import InputError
from geo3d.methods.dense import (
    DepthConfig,
    DepthEstimation,
    FlowConfig,
    OpticalFlow,
    StereoConfig,
    StereoMatching,
    draw_dense,
)
from geo3d.metrics import depth_errors, outliers
from geo3d.samples.dense import DenseItem, nearest_values

PLAIN = {"color_jitter": 0.0, "flip": 0.0}


class Shifted:
    """Pairs in which all is moved by some whole pixels, and a camera that sees a slope.

    Args:
        shift: pixels to the right and down, from the first image to the second.
        target: (C,) true at every pixel, but for one that is not known; None: 1 m and 1 cm more a column.
    """

    def __init__(self, shift: tuple[int, int], target: tuple[float, ...] | None, size: tuple[int, int] = (96, 80)):
        width, height = size
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 255, (16, 20, 3), dtype=np.uint8))
        large = np.asarray(coarse.resize((width + 40, height + 40), Image.Resampling.BICUBIC))
        x, y = shift
        self._images = [large[20 - b : 20 - b + height, 20 - a : 20 - a + width] for a, b in ((0, 0), (x, y))]
        if target is None:
            self._target = np.broadcast_to((1 + 0.01 * np.arange(width))[None, :, None], (height, width, 1)).copy()
        else:
            self._target = np.tile(np.array(target, np.float32), (height, width, 1))
        self._target[:4] = np.nan

    def __len__(self) -> int:
        return 4

    def describe(self, index: int) -> str:
        return f"item {index}"

    def dense(self, index: int) -> DenseItem:
        images = tuple(Image.fromarray(image) for image in self._images)
        return DenseItem(images, lambda places: nearest_values(self._target.astype(np.float32), places))


def _apart(first: torch.Tensor, second: torch.Tensor, shift: tuple[int, int]) -> float:
    """Mean difference of the first image's colours and those of the second one a shift away, 0 to 255."""
    x, y = shift
    height, width, _ = first.shape
    rows, columns = slice(max(0, -y), height - max(0, y)), slice(max(0, -x), width - max(0, x))
    there = second[rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
    return float((first[rows, columns].float() - there.float()).abs().mean())


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("task", ["stereo", "flow"])
def test_targets_follow_crops_scales_and_mirrors(task: str, flip: float, scale: float) -> None:
    """What is true of the crop is where its pixels are found in the other crop."""
    if task == "stereo":
        source, method = Shifted((-6, 0), (6.0,)), StereoMatching
        config = StereoConfig(image_size=(40, 64), **(PLAIN | {"flip": flip, "scale": (scale, scale)}))
    else:
        source, method = Shifted((4, -2), (4.0, -2.0)), OpticalFlow
        config = FlowConfig(image_size=(40, 64), **(PLAIN | {"flip": flip, "scale": (scale, scale)}))
    samples = method(config).samples(source)
    seen = set()
    for number in range(8):
        drawn = samples.draw(0, np.random.default_rng(number))
        assert drawn["first"].shape == drawn["second"].shape == (40, 64, 3)
        known = drawn["target"].isfinite().all(0)
        assert drawn["target"].shape == (len(method.units), 40, 64)
        (value,) = {tuple(v) for v in drawn["target"][:, known].T.tolist()}
        shift = (-value[0], 0.0) if task == "stereo" else value
        seen.add(value)
        whole = tuple(int(v) for v in shift)
        assert _apart(drawn["first"], drawn["second"], whole) < 1.0  # resampled twice: measured 0.4 at most
        assert _apart(drawn["first"], drawn["second"], (0, 0)) > 5.0
    wanted = {(6.0 * scale,)}
    if task == "flow":
        x, y = 4.0 * scale, -2.0 * scale
        wanted = {(-x, y), (x, -y)} if flip else {(x, y)}
    assert seen == wanted


def test_depth_follows_the_crop_and_the_zoom() -> None:
    config = DepthConfig(image_size=(40, 40), resized=80, **PLAIN)
    source = Shifted((0, 0), None)
    usual = DepthEstimation(config).samples(source).draw(0, np.random.default_rng(0))["target"][0]
    assert DepthEstimation(config).network.config.resized == 80  # which its files say
    steps = usual.diff(dim=1)
    torch.testing.assert_close(steps[20:], torch.full_like(steps[20:], 0.01))
    nearer = DepthEstimation(replace(config, scale=(2.0, 2.0))).samples(source)
    found = nearer.draw(0, np.random.default_rng(0))["target"][0]
    known = found[found.isfinite()]
    assert known.max() < 0.5 * (1 + 0.96)
    assert known.min() >= 0.5


def test_colours_are_jittered_alike_or_apart() -> None:
    source = Shifted((0, 0), (1.0,))
    for asymmetric, same in ((0.0, True), (1.0, False)):
        config = StereoConfig(image_size=(40, 64), flip=0.0, asymmetric=asymmetric)
        method = StereoMatching(config)
        drawn = method.samples(source).draw(0, np.random.default_rng(0))
        assert torch.equal(drawn["first"], drawn["second"]) == same
        plain = method.measured_samples(source).draw(0, np.random.default_rng(0))
        assert torch.equal(plain["first"], plain["second"])
        assert not torch.equal(drawn["first"], plain["first"])


def test_small_images_are_enlarged_to_the_crop() -> None:
    config = StereoConfig(image_size=(64, 128), **PLAIN)
    drawn = StereoMatching(config).samples(Shifted((-6, 0), (6.0,), (64, 48))).draw(0, np.random.default_rng(0))
    assert drawn["first"].shape == (64, 128, 3)
    known = drawn["target"][drawn["target"].isfinite()]
    assert known.unique().tolist() == [12.0]


@pytest.mark.parametrize("method", [StereoMatching, OpticalFlow, DepthEstimation])
def test_what_is_kept_and_how_fast_the_rest_learns(method: type) -> None:
    kinds = {StereoMatching: StereoConfig, OpticalFlow: FlowConfig, DepthEstimation: DepthConfig}
    made = method(kinds[method](frozen=True, layer_decay=0.5))
    assert {name.split(".")[1] for name in made.kept_modules()} == {"patch_embed", "enc_blocks", "enc_norm"}
    factors = made.rate_factors()
    assert factors["network.head.dpt.head.4.bias"] == 1.0
    assert factors["network.enc_blocks.3.mlp.fc1.weight"] == 0.5  # the last layer of five
    assert factors["network.patch_embed.proj.weight"] == 0.5**5


def test_networks_of_another_task_are_refused() -> None:
    with pytest.raises(InputError, match=r"model must predict stereo of 2 image\(s\); croco_flow_tiny predicts flow"):
        StereoMatching(StereoConfig(model="croco_flow_tiny"))
    with pytest.raises(InputError, match="model must predict flow, such as croco_flow_tiny; croco_tiny is of croco"):
        OpticalFlow(FlowConfig(model="croco_tiny"))
    with pytest.raises(InputError, match="image size 65 x 64"):
        OpticalFlow(FlowConfig(image_size=(65, 64)))
    with pytest.raises(InputError, match="scale must be two positive factors"):
        FlowConfig(scale=(2.0, 1.0))


def test_figures_are_what_they_are_called() -> None:
    truth = torch.tensor([[[[10.0, 100.0, 100.0, torch.nan]]]])
    found = truth.nan_to_num() + torch.tensor([3.5, 4.0, 6.0, 9.0])
    assert outliers(found, truth) == pytest.approx(200 / 3)  # beyond 3 pixels are three, beyond 5 % as well two of them
    assert StereoMatching.errors(found, truth) == pytest.approx(
        {"epe": 4.5, "bad1": 100.0, "bad2": 100.0, "d1": 200 / 3}
    )
    errors = depth_errors(torch.tensor([[[[1.1, 2.6, -1.0]]]]), torch.tensor([[[[1.0, 2.0, torch.nan]]]]))
    assert errors["abs_rel"] == pytest.approx(0.2)
    assert errors["delta1"] == 0.5
    assert errors["rmse"] == pytest.approx(np.sqrt((0.01 + 0.36) / 2))


def test_a_picture_shows_truth_prediction_and_error() -> None:
    truth = np.linspace(1, 9, 40, dtype=np.float32).reshape(1, 5, 8)
    first, second, error = draw_dense(truth, truth)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(error.reshape(-1, 3), axis=0)) == 1
    flow = np.stack([truth[0], -truth[0]])
    flow[:, 2, 3] = np.nan
    first, second, error = draw_dense(np.nan_to_num(flow), flow)
    assert (first[2, 3] == 153).all()
    assert (second[2, 3] != 153).any()
    method = StereoMatching(StereoConfig(image_size=(40, 64), **PLAIN))
    samples = method.samples(Shifted((-6, 0), (6.0,)))
    batch = method.collate([samples.draw(n, np.random.default_rng(n)) for n in range(2)])
    output = method(batch)
    assert {"error"} == output.metrics.keys()
    known = batch["target"].isfinite()
    wanted = (output.extras["values"] - batch["target"])[known].abs().mean()
    assert output.metrics["error"] == pytest.approx(float(wanted), rel=1e-5)
    picture = method.picture(batch, output)
    assert picture.shape[1] == 4 * 64 * 6  # enlarged to some 224 pixels
