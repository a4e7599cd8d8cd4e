"""`geo3d pretrain` from the command line to the run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import filled, small_disk
from geo3d_command import call, error_of, run
from PIL import Image

from geo3d import InputError, create_model
from geo3d.config import load_config, save_config
from geo3d.recipes import get_recipe
from geo3d.recipes.croco import CroCoRecipe, CroCoRun
from geo3d.recipes.pretrain import numbered_folder

#: Recipe of the fixture `finished`, and the fixture of its data.
FINISHED = ("croco", "photos")
QUICK = ["--train.steps", "4", "--train.batch-size", "4", "--train.workers", "0", "--train.log-every", "1"]
QUICK += ["--train.warmup-steps", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three places of three photographs each: windows of one picture a place."""
    root = tmp_path_factory.mktemp("photos")
    for place in range(3):
        rng = np.random.default_rng(place)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240))
        (root / f"place{place}").mkdir()
        for shift in range(3):
            coarse.crop((10 * shift, 0, 200 + 10 * shift, 200)).save(root / f"place{place}" / f"{shift}.jpg")
    return root


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    report = json.loads((finished / "report.json").read_text())
    assert report["scenes"] == "training"  # three scenes are too few to hold one out
    assert 0.5 < report["after"]["loss"] < 3
    assert report["after"]["loss_other_scene"] != report["after"]["loss"]
    for name in ("loss.png", "pairs.png", *(f"pictures/step_{s:08d}.png" for s in (0, 4))):
        with Image.open(finished / name) as picture:
            picture.verify()
    assert (finished / "pairs.tsv").stat().st_size > 0


def test_the_checkpoint_goes_out_of_the_same_door(finished: Path) -> None:
    model = create_model("croco_tiny", checkpoint=finished)
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 96)
    by_step = create_model("croco", checkpoint=finished / "checkpoints" / "step_00000004")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_step.parameters(), strict=True))


def test_the_stored_config_replays_the_run(finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("pretrain", "croco", "--config", finished / "config.yaml")
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "runs" / "croco-001")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_a_run_goes_on_where_it_stopped(finished: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = ["pretrain", "croco", "--data", photos, "--out", folder, *QUICK, "--train.schedule", "constant"]
    run(*args, "--train.steps", "2")
    run(*args, "--train.steps", "4")
    straight = tmp_path / "straight"
    run("pretrain", "croco", "--data", photos, "--out", straight, *QUICK, "--train.schedule", "constant")
    weights = [
        create_model("croco", checkpoint=f / "checkpoints" / "step_00000004").state_dict() for f in (folder, straight)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def _copied(photos: Path, folder: Path) -> Path:
    shutil.copytree(photos, folder)
    return folder


def test_a_run_is_not_continued_on_other_data(photos: Path, tmp_path: Path, capsys) -> None:
    other = _copied(photos, tmp_path / "other")
    folder = tmp_path / "run"
    run("pretrain", "croco", "--data", photos, "--out", folder, *QUICK, "--train.steps", "2")
    pairs = (folder / "pairs.tsv").read_text()
    error = error_of(capsys, "pretrain", "croco", "--data", other, "--out", folder, *QUICK, "--train.steps", "4")
    assert "other data" in error
    assert str(other) in error
    assert (folder / "pairs.tsv").read_text() == pairs


def test_pairs_of_a_start_that_failed_are_not_taken_up(photos: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    args = ["--out", folder, "--train.batch-size", "4", "--train.workers", "0"]
    late = ["--train.steps", "None", "--train.epochs", "1", "--train.warmup-steps", "99"]  # only the data can tell
    assert "warm-up" in error_of(capsys, "pretrain", "croco", "--data", photos, *args, *late)
    assert (folder / "pairs.tsv").exists()
    other = _copied(photos, tmp_path / "other")
    run("pretrain", "croco", "--data", other, *args, "--train.steps", "4", "--train.warmup-steps", "1")
    assert str(other.name) in (folder / "pairs.tsv").read_text()


def test_a_damaged_image_is_left_out(photos: Path, tmp_path: Path) -> None:
    data = _copied(photos, tmp_path / "data")
    victim = data / "place1" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:1500])
    run("pretrain", "croco", "--data", data, "--out", tmp_path / "run", *QUICK)
    assert "place1" in (tmp_path / "run" / "quarantine.txt").read_text()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["after"]["loss"] < 3


def test_a_single_place_is_enough(photos: Path, tmp_path: Path, capsys) -> None:
    run("pretrain", "croco", "--data", photos / "place0", "--out", tmp_path / "run", *QUICK)
    assert "was not measured" in capsys.readouterr().out
    assert "loss_other_scene" not in json.loads((tmp_path / "run" / "report.json").read_text())["after"]


def test_a_truncated_newest_checkpoint_is_passed_over(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("pretrain", "croco", "--data", photos, "--out", folder, *QUICK, "--train.save-every-steps", "2")
    whole = create_model("croco", checkpoint=folder / "checkpoints" / "step_00000002")
    newest = folder / "checkpoints" / "step_00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="reading step_00000002 instead"):
        model = create_model("croco", checkpoint=folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.slow
def test_torchrun_trains_one_run_in_two_processes(photos: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "-m", "geo3d", "pretrain", "croco"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--data", photos, *QUICK, "--train.batch-size", "2", "--train.accelerator", "cpu"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["croco-001"]
    assert done.stdout.count("second view:") == 1
    assert create_model("croco", checkpoint=tmp_path / "runs" / "croco-001").config.patch_size == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cocor"], "unknown recipe 'cocor'; known: croco"),
        (["croco", "--rooms", "many"], "--rooms"),
        (["croco", "--speed", "3"], "--speed"),
        (["croco", "--preset", "huge"], "unknown preset 'huge'; known: tiny, paper, paper-v1"),
        (["croco", "--preset"], "Missing value for argument '--preset'"),
        (["croco", "--config", "absent.yaml"], "absent.yaml: cannot be read"),
        (["croco", "--data", "absent"], "data: absent is not a folder"),
        (["croco", "--data", "{empty}"], "{empty}"),
        (["croco", "--data", "{photos}", "--pairs", "absent.tsv"], "absent.tsv"),
        (["croco", "--data", "{photos}", "--method.mask-ratio", "1.5"], "mask_ratio"),
        (["croco", "--data", "{photos}", "--method.model", "crocodile"], "unknown model 'crocodile'"),
        (["croco", "--data", "{photos}", "--train.batch-size", "0"], "train.batch_size must be at least 1, got 0"),
        (["croco", "--data", "{photos}", "--method.image-size", "65", "64"], "not a multiple of the patch size"),
        (["croco", "--data", "{photos}", "--method.image-size", "0", "0"], "image_size must be two sides"),
        (["croco", "--data", "{photos}", "--held-out", "1.5"], "held_out"),
        (["croco", "--train.steps", "6", "--train.warmup-steps", "9"], "the warm-up takes 9 steps of a schedule of 6"),
        (["spark", "--train.steps", "6", "--train.warmup-epochs", "9"], "the warm-up takes 9 steps"),  # or more
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message: str, photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    places = {"photos": str(photos), "empty": str(tmp_path / "empty")}
    error = error_of(capsys, "pretrain", *(a.format(**places) for a in args), "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "pairs.tsv").exists()
    assert message.format(**places) in error


def test_a_run_folder_of_another_run_is_refused_and_kept(finished: Path, photos: Path, capsys) -> None:
    before = sorted((finished / "checkpoints").rglob("*"))
    args = ["pretrain", "croco", "--data", photos, "--out", finished, *QUICK, "--method.mask-ratio", "0.5"]
    assert "mask_ratio" in error_of(capsys, *args)
    assert sorted((finished / "checkpoints").rglob("*")) == before
    assert load_config(CroCoRun, finished / "config.yaml").method.mask_ratio == 0.9


def test_help_explains_every_option(capsys) -> None:
    run("pretrain", "croco", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())

    def options(kind: type, prefix: str = "--"):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            name = prefix + field.name.replace("_", "-")
            if dataclasses.is_dataclass(hints[field.name]):
                yield from options(hints[field.name], f"{name}.")
            elif name not in ("--train.strict", "--train.usual-warmup"):  # `--strict` and the presets set them
                yield name

    listed = list(options(CroCoRecipe.run))
    assert len(listed) > 30
    for name in listed:
        start = text.index(f"{name} ") if f"{name} " in text else text.index(f"{name},")
        assert "default:" in text[start : start + 600], name


def test_presets_are_whole_configs_and_survive_a_file(tmp_path: Path) -> None:
    for name in CroCoRecipe.presets:
        config = CroCoRecipe.preset(name)
        config.check()
        save_config(config, tmp_path / "config.yaml")
        assert load_config(CroCoRun, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wings: 2", "unknown field wings"),
        ("train: {epochs: soon}", "train: epochs: expected a number"),
        ("train: {optimizer: sgd}", "expected one of adamw, lamb"),
        ("method: {image_size: [64]}", "a list of 2"),
        ("strict: 1", "expected true or false"),
        ("- 1", "the fields of CroCoRun"),
        ("a: [", "cannot be read"),
    ],
)
def test_broken_config_files_say_where(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(CroCoRun, tmp_path / "config.yaml")


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    assert numbered_folder(tmp_path, "croco").name == "croco-001"
    for name in ("croco-002", "croco-010", "croco-x", "other-099"):
        (tmp_path / name).mkdir()
    assert numbered_folder(tmp_path, "croco").name == "croco-011"


def _steps(*more: str) -> list[str]:
    quick = ["--train.batch-size", "1", "--train.workers", "0", "--train.steps", "2", "--method.image-size", "64", "64"]
    return [*quick, "--method.decoder-width", "32", *more]


def test_a_presets_warm_up_shrinks_with_the_run_and_a_chosen_one_does_not(photos, tmp_path: Path, capsys) -> None:
    args = ["pretrain", "spark", "--data", photos, "--out", tmp_path / "run", *_steps()]
    error = error_of(capsys, *args, "--train.warmup-steps", "20")  # which is the preset's, too
    assert "the warm-up takes 20 steps of a schedule of 2; shorten train.warmup_epochs (or warmup_steps)" in error
    assert not (tmp_path / "run").exists()
    run(*args)
    assert "the warm-up is shortened from 20 to 0 of 2 steps" in capsys.readouterr().err


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for recipe, data in (("spark", "empty"), ("croco", "empty"), ("spark3d", "empty")):
        assert "empty: not recognised" in error_of(capsys, "pretrain", recipe, "--data", data, "--out", "run")
        assert not (tmp_path / "run").exists()


def test_the_config_of_another_recipe_is_named_as_such(tmp_path: Path, capsys) -> None:
    path = tmp_path / "config.yaml"
    save_config(get_recipe("swin3d").preset("tiny"), path)
    error = error_of(capsys, "pretrain", "spark", "--config", path)
    expected = f"{path}: is of a run of swin3d, not of spark; give it to `geo3d pretrain swin3d --config {path}`"
    assert error == f"error: {expected}\n"
    path.write_text("method:\n  image_size: [65, 64]\n")  # which croco would take
    assert "image_size must be two multiples of 32" in error_of(capsys, "pretrain", "spark", "--config", path)
    assert "did you mean 'tiny'?" in error_of(capsys, "pretrain", "spark", "--preset", "tinny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000, "cannot be read as a config"),
        ("train:\n  epochs: 1" + "0" * 400, "is too large a number"),
        ("train:\n  epochs: .inf", "train.epochs must be positive and finite, got inf"),
        ('data: ["a\\0b"]', "expected a path"),
        ("", "expected the fields of SparKRun, found None"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_odd_config_files_are_one_line(text: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    assert message in error_of(capsys, "pretrain", "spark", "--config", tmp_path / "odd.yaml")


def test_a_full_disk_is_exit_code_2_and_what_was_saved_goes_on(photos: Path, tmp_path: Path, capsys) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        args = ["pretrain", "spark", "--data", photos, "--out", disk / "run", *_steps("--train.schedule", "constant")]
        run(*args, "--train.steps", "1")
        with filled(disk):
            capsys.readouterr()
            assert call(*args) == 2
            assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        run(*args)
    assert "1 of 2 steps are done" in capsys.readouterr().err
