"""The robustness probe: corruptions whose outcome is known, and a run with its table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d.errors import InputError
from geo3d.probe import run_probe
from geo3d.probe.corruptions import half_cut, hidden_side_cut, with_noise, with_outliers
from geo3d.probe.robustness import RobustnessConfig, corruptions

_FEW = {"counts": (32, 500), "noise": (0.02, 0.5), "outliers": (0.2,)}
_QUICK = {"per_class": 3, "splits": 2, "points": 100}


def _sphere(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(count, 3))
    return torch.from_numpy(direction / np.linalg.norm(direction, axis=1, keepdims=True)).float()


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    cloud = _sphere(5000)
    moved = with_noise(cloud, 0.05, np.random.default_rng(1)) - cloud
    assert moved.std(0).numpy() == pytest.approx([0.05] * 3, rel=4 / np.sqrt(2 * 5000))
    assert moved.mean(0).abs().max() < 4 * 0.05 / np.sqrt(5000)


def test_outliers_fill_the_sphere_evenly_and_the_rest_stays() -> None:
    cloud = _sphere(5000)
    changed = with_outliers(cloud, 0.2, np.random.default_rng(1))
    moved = (changed != cloud).any(1)
    assert int(moved.sum()) == 1000
    radii = changed[moved].norm(dim=1)
    assert radii.max() <= 1
    assert (radii**3).mean().item() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 1000))  # evenly: its cube is even
    assert changed[moved].mean(0).abs().max() < 4 * np.sqrt(1 / 5 / 1000)
    assert torch.equal(cloud, _sphere(5000))


def test_half_of_a_ball_goes_with_one_side_of_a_plane() -> None:
    kept = half_cut(_sphere(4000), np.random.default_rng(2))
    assert abs(len(kept) / 4000 - 0.5) < 4 * 0.5 / np.sqrt(4000)
    direction = torch.from_numpy(np.random.default_rng(2).normal(size=3)).float()
    assert (kept @ direction >= 0).all()


def test_of_a_sphere_the_cap_is_seen_that_turns_to_the_eye() -> None:
    cloud = _sphere(4000)
    kept = hidden_side_cut(cloud, np.random.default_rng(2))
    eye = np.random.default_rng(2).normal(size=3)
    toward = kept @ torch.from_numpy(eye / np.linalg.norm(eye)).float()
    # From three radii away the horizon is at a cosine of 1/3; points are 0.06 apart, and some just beyond are kept.
    seen = int((cloud @ torch.from_numpy(eye / np.linalg.norm(eye)).float() > 1 / 3).sum())
    assert int((toward > 1 / 3).sum()) == seen
    assert toward.min() > 0.2
    assert torch.equal(kept, cloud[(cloud[:, None] == kept[None]).all(2).any(1)])  # in their order


def test_every_sort_has_its_strongest_in_the_short_table() -> None:
    found = corruptions(RobustnessConfig(checkpoint=Path("weights")))
    assert [c.name for c in found if c.strongest] == [
        "256 points", "noise 5 %", "outliers 20 %", "half cut away", "hidden side cut away",
    ]  # fmt: skip
    assert len({c.name for c in found}) == len(found) == 6 + 5 + 3 + 2
    some = corruptions(RobustnessConfig(checkpoint=Path("weights"), counts=(), noise=(0.025,), outliers=()))
    assert [c.name for c in some] == ["noise 2.5 %", "half cut away", "hidden side cut away"]


def test_a_run_gives_figures_and_a_picture(statistics: Path, objects: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    for name in ("first", "second"):
        config = RobustnessConfig(
            checkpoint=statistics, data=(objects,), **_FEW, **_QUICK, out=tmp_path / name / "scores.json"
        )
        scores = run_probe("robustness", config, lines.append)
    files = [(tmp_path / name / "scores.json").read_text() for name in ("first", "second")]
    assert files[0] == files[1]
    assert list(scores) == ["checkpoint", "fresh weights, seed 0", "input features", "local histograms"]
    names = ["clean", "32 points", "500 points", "noise 2 %", "noise 50 %", "outliers 20 %"]
    names += ["half cut away", "hidden side cut away"]
    for score in scores.values():
        assert list(score.accuracy) == names
        assert score.in_table == ("clean", "32 points", "noise 50 %", "outliers 20 %", *names[-2:])
        assert 9 <= score.repeated <= 18  # all that are measured on in some split: they have 300 points
    inputs = scores["input features"].accuracy
    assert inputs["clean"] == inputs["500 points"] == inputs["noise 2 %"] == 1
    assert inputs["noise 50 %"] < 0.7  # as wide as the objects
    assert json.loads(files[0])["input features"]["accuracy"] == inputs
    said = "\n".join(lines)
    repeated = scores["checkpoint"].repeated
    assert f"{repeated} of the objects measured on have fewer than 500 points: larger clouds repeat theirs" in said
    assert "learnt from clean clouds" in said
    assert f"picture: {tmp_path / 'second' / 'scores.png'}" in said
    picture = Image.open(tmp_path / "second" / "scores.png")
    assert picture.size == (100 + 4 * 360, 480)
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 50  # lines and labels


def test_without_a_place_the_picture_is_where_the_command_is_called(
    statistics: Path, objects: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = {"counts": (), "noise": (), "outliers": ()}
    scores = run_probe(
        "robustness", RobustnessConfig(checkpoint=statistics, data=(objects,), **nothing, **_QUICK), print
    )
    assert list(scores["checkpoint"].accuracy) == ["clean", "half cut away", "hidden side cut away"]
    assert (tmp_path / "robustness.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": (0, 5)}, "counts must be at least 1, got 0"),
        ({"noise": (0.01, 1.5)}, r"noise must lie between 0 and 1, got 0.01, 1.5"),
        ({"outliers": (0,)}, "outliers must lie between 0 and 1, got 0"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RobustnessConfig(checkpoint=Path("weights"), **options)


def test_a_place_where_no_picture_can_be_is_told_first(statistics: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(it is a folder\)"):
        run_probe("robustness", RobustnessConfig(checkpoint=statistics, picture=tmp_path), print)
