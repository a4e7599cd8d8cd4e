"""What recipes of stereo, flow and depth have of their own: whence they start, few labels, nothing that is known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import DATA, small_run

from geo3d import InputError, create_model, save_model
from geo3d.datasets.disparity_files import write_pfm
from geo3d.recipes import get_recipe
from geo3d.recipes.init import find_initial_weights


@pytest.mark.parametrize("name", ["stereo", "flow", "depth"])
def test_all_but_the_head_comes_from_pretraining(name: str, tmp_path: Path) -> None:
    save_model(create_model("croco_tiny"), tmp_path / "croco.safetensors")
    method = get_recipe(name).check(replace(small_run(name), data=(tmp_path,)))
    found = find_initial_weights(tmp_path / "croco.safetensors", "whole", method)
    assert {key.split(".")[1] for key in found.fresh} == {"head"}
    parts = {"patch_embed", "enc_blocks", "enc_norm", "decoder_embed", "dec_blocks", "dec_norm"}
    of_encoder = {part for part in parts if not part.startswith("dec")}
    assert {key.split(".")[1] for key in found.taken} == (of_encoder if name == "depth" else parts)


def _task(data: Path, tmp_path: Path, **method):
    run = small_run("stereo", method, data=(data,)).resolved()
    return get_recipe("stereo")(run, tmp_path, lambda _: None)


def test_few_labels_are_learnt_from_and_all_that_is_held_out_is_measured(stereo_rooms: Path, tmp_path: Path) -> None:
    task = _task(stereo_rooms, tmp_path, labels=2.0)
    assert (len(task.samples), task.measured_count) == (2, 9)
    assert task.samples.augment
    assert not task.measured.augment


def test_nothing_known_is_told(stereo_rooms: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(stereo_rooms, tmp_path / "data"))
    for path in data.rglob("*.pfm"):
        write_pfm(path, np.full((48, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="nothing is known of the 9 pairs to measure"):
        _task(data, tmp_path).measure()


@pytest.mark.parametrize("name", ["stereo", "flow", "depth"])
def test_a_fresh_head_begins_at_what_is_usual(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """So that it is a constant's error which is learnt from, and not that of the way there."""
    data = request.getfixturevalue(DATA.get(name, "rooms"))
    run = small_run(name, {"color_jitter": 0.0, "flip": 0.0}, data=(data,)).resolved()
    task = get_recipe(name)(run, tmp_path, lambda _: None)
    with task.method.measuring():
        values = task.method.predict(task.method.collate([task.samples.draw(0, np.random.default_rng(0))])).values
    # The last layer's weights of 0.01 leave it there: at most 0.05 was seen.
    assert torch.allclose(values, task.usual.view(1, -1, 1, 1).expand_as(values), atol=0.2)


def test_the_median_leaves_out_what_is_not_known(stereo_rooms: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(stereo_rooms, tmp_path / "data"))
    for number, path in enumerate(sorted(data.rglob("*.pfm"))):
        write_pfm(path, np.full((48, 64), np.nan if number % 2 else 7.0, np.float32))
    assert _task(data, tmp_path, resized=None, image_size=(32, 48)).usual.item() == 7.0
