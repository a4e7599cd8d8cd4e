"""The example of a method of one's own trains from outside the package, as docs/recipes.md promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from geo3d.recipes import get_recipe, list_recipes, pretrain, registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"


@pytest.fixture
def example(monkeypatch) -> ModuleType:
    monkeypatch.setattr(registry.RECIPES, "_known", dict(registry.RECIPES._known))
    spec = importlib.util.spec_from_file_location("own_method", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_method", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty photographs in shades of orange."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        gray = np.random.default_rng(number).random((4, 6, 1))
        pixels = (gray * [255, 128, 32]).astype(np.uint8)
        Image.fromarray(pixels).resize((60, 40)).save(folder / f"{number}.jpg")
    return folder


def test_it_learns_and_reports(example: ModuleType, photos: Path, tmp_path: Path) -> None:
    assert "colouring" in list_recipes()
    lines: list[str] = []
    run = get_recipe("colouring").preset("tiny")
    run.data, run.out, run.measure_every = (photos,), tmp_path / "run", 20
    run.train.steps, run.train.batch_size, run.train.workers, run.train.accelerator = 60, 8, 0, "cpu"
    result, report = pretrain("colouring", run, lines.append)
    assert report["scenes"] == "held-out"
    assert report["after"]["images"] == 2
    assert report["after"]["loss"] < 0.3 * report["before"]["loss"]
    assert result.best_measured <= report["after"]["loss"]
    assert "loss on 2 held-out images: " in lines[-1]
    assert "18 images of 18 scenes or photographs to train on" in lines[0]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report

    again = get_recipe("colouring").preset("tiny")
    again.data, again.out, again.init, again.train = (photos,), tmp_path / "again", tmp_path / "run", run.train
    assert pretrain("colouring", again, lines.append)[1]["before"] == report["after"]
    assert "4 of 4 tensors are taken" in "\n".join(lines)
