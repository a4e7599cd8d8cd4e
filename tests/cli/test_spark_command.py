"""SparK from the command line: a run on a folder of photographs, its continuation, its encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from geo3d_command import error_of, run
from PIL import Image

from geo3d import create_model
from geo3d.config import load_config, save_config
from geo3d.recipes.spark import SparKRecipe, SparKRun

#: Recipe of the fixture `finished`, and the fixture of its data.
FINISHED = ("spark", "photos")
QUICK = ["--train.steps", "4", "--train.batch-size", "3", "--train.workers", "0", "--train.warmup-steps", "1"]
QUICK += ["--train.log-every", "1", "--method.decoder-width", "32", "--method.image-size", "64", "96"]
QUICK += ["--method.drop-path-rate", "0.3", "--train.optimizer", "lamb", "--train.weight-decay-end", "0.2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((160, 120)).save(root / f"{number}.jpg")
    return root


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    report = json.loads((finished / "report.json").read_text())
    assert report["images"] == "held-out"
    assert report["after"]["images"] == 1  # a tenth of twelve photographs
    assert report["after"]["loss_of_means"] == pytest.approx(1, abs=0.01)
    assert 0.3 < report["after"]["loss"] < 3
    for name in ("loss.png", "pictures/step_00000000.png", "pictures/step_00000004.png"):
        with Image.open(finished / name) as picture:
            picture.verify()


def test_encoder_and_whole_network_go_out_of_the_same_door(finished: Path) -> None:
    encoder, whole = create_model("resnet_tiny", checkpoint=finished), create_model("spark", checkpoint=finished)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 2, 2)
    expected = whole.sparse_encoder.sp_cnn.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())


def test_a_run_goes_on_where_it_stopped_bit_for_bit(finished: Path, photos: Path, tmp_path: Path) -> None:
    # Rate and weight decay run over a fixed number of epochs, so that a shorter run is the beginning of a longer one.
    args = ["pretrain", "spark", "--data", photos, *QUICK, "--train.schedule-epochs", "2"]
    run(*args, "--out", tmp_path / "parts", "--train.steps", "2")
    run(*args, "--out", tmp_path / "parts")
    run(*args, "--out", tmp_path / "straight")
    weights = [
        create_model("spark", checkpoint=tmp_path / name / "checkpoints" / "step_00000004").state_dict()
        for name in ("parts", "straight")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method.image-size", "60", "64"], "multiples of 32"),
        (["--method.encoder", "resnet5"], "unknown encoder"),
        (["--train.weight-decay", "0"], "weight_decay_end"),
        (["--held-out", "0.99"], "leaves none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message: str, photos: Path, tmp_path: Path, capsys) -> None:
    assert message in error_of(capsys, "pretrain", "spark", "--data", photos, "--out", tmp_path / "run", *QUICK, *args)


@pytest.mark.parametrize("preset", SparKRecipe.presets)
def test_presets_survive_their_file(preset: str, tmp_path: Path) -> None:
    config = SparKRecipe.preset(preset)
    config.check()
    save_config(config, tmp_path / "config.yaml")
    assert load_config(SparKRun, tmp_path / "config.yaml") == config


def test_the_published_recipe() -> None:
    run = SparKRecipe.preset("paper")
    train = run.train
    assert train.peak_lr(4096) == pytest.approx(3.2e-3)
    assert train.min_lr == pytest.approx(3.2e-6)
    assert (train.optimizer, train.betas, train.clip_norm) == ("lamb", (0.9, 0.95), 5.0)
    assert SparKRecipe.preset("paper-convnext").train.betas == (0.9, 0.999)
    assert (run.method.mask_ratio, run.method.decoder_width) == (0.6, 768)
