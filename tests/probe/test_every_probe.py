"""Probes by name: an example from outside the package, and what every probe has."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

import geo3d
from geo3d import InputError
from geo3d.probe import Probe, ProbeConfig, get_probe, list_probes, register_probe, registry, run_probe
from geo3d.probe.linear_probe import LinearProbe
from geo3d.probe.probe import table

_PROBES = ["depth", "linear", "match", "retrieve", "robustness", "segment", "svm"]
_EXAMPLE = Path(__file__).parents[2] / "examples" / "own_probe.py"


@pytest.fixture
def brightness(monkeypatch) -> type[Probe]:
    """The probe of the example, registered while a test runs."""
    monkeypatch.setattr(registry.PROBES, "_known", dict(registry.PROBES._known))
    return runpy.run_path(str(_EXAMPLE))["BrightnessProbe"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    geo3d.save_model(geo3d.create_model("resnet_tiny", generator=torch.Generator().manual_seed(3)), path)
    return path


def test_a_probe_of_ones_own_is_found_by_name_and_compares(brightness, checkpoint: Path, tmp_path: Path) -> None:
    assert list_probes() == ["brightness", *_PROBES]
    assert get_probe("brightness") is brightness
    lines: list[str] = []
    out = tmp_path / "new" / "scores.json"
    config = brightness.settings(checkpoint=checkpoint, seed=2, fresh=2, out=out)
    scores = run_probe("brightness", config, lines.append)
    assert list(scores) == ["checkpoint", "fresh weights, seed 2", "fresh weights, seed 3", "input features"]
    assert scores["input features"].error < 1e-20  # what is asked for is what is handed in
    assert all(0 <= score.error <= 1 for score in scores.values())
    assert scores["checkpoint"] == scores["fresh weights, seed 3"]  # which is what the file holds
    assert scores["checkpoint"] != scores["fresh weights, seed 2"]
    assert json.loads(out.read_text()) == {name: {"error": score.error} for name, score in scores.items()}
    assert lines[-2].splitlines()[0] == " " * 21 + "  error"
    assert lines[-2].splitlines()[-2:] == ["input features         0.000", "over 16 pictures"]
    assert lines[-1] == f"picture: {out.with_suffix('.png')}"
    assert Image.open(out.with_suffix(".png")).size > (300, 100)
    config = brightness.settings(checkpoint=checkpoint, baseline="none")
    assert list(run_probe("brightness", config, lines.append)) == ["checkpoint", "input features"]
    assert "picture: " not in lines[-1]


def test_a_probe_of_ones_own_is_a_command(brightness, checkpoint: Path, capsys) -> None:
    from geo3d.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(["probe", "brightness", "--checkpoint", str(checkpoint), "--images", "5"])
    assert stop.value.code == 0
    assert "over 5 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--help"])
    assert "brightness  the brightness of grey pictures" in capsys.readouterr().out


@pytest.mark.parametrize("name", _PROBES)
def test_every_probe_says_what_it_is_and_takes_what_all_take(name: str) -> None:
    probe = get_probe(name)
    assert 20 < len(probe.summary) < 100
    assert issubclass(probe.settings, ProbeConfig)
    config = probe.settings(checkpoint=Path("weights"), seed=2, fresh=3, baseline="none", picture=Path("a.png"))
    assert (config.seed, config.fresh, config.baseline) == (2, 3, "none")


def test_the_linear_probe_is_there() -> None:
    assert get_probe("linear") is LinearProbe
    assert LinearProbe.summary == "the class of every voxel, read off frozen features by a linear map"


def test_unknown_names_and_second_registrations_are_refused(brightness) -> None:
    known = ", ".join(["brightness", *_PROBES])
    with pytest.raises(InputError, match=rf"unknown probe 'liner'; known: {known}; did you mean 'linear'\?"):
        get_probe("liner")
    with pytest.raises(ValueError, match="probe 'brightness' is registered twice"):
        register_probe("brightness", brightness)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fresh": 0}, "fresh must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0 and below"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProbeConfig(checkpoint=Path("weights"), **options)


def test_a_place_where_no_figures_can_be_written_is_told_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = LinearProbe.settings(checkpoint=checkpoint, out=tmp_path / "file" / "scores.json")
    with pytest.raises(
        InputError, match=r"scores.json: cannot be written \(.*file is a file, where a folder should be"
    ):
        run_probe("linear", config)


def test_cells_stand_under_their_titles() -> None:
    rows = {"one": {"mean IoU": "5.0 %", "n": "1000"}, "three": {"mean IoU": "100.0 %", "n": "2"}}
    assert table(rows).splitlines() == ["       mean IoU     n", "one       5.0 %  1000", "three   100.0 %     2"]
