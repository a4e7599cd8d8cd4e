"""Samples to measure that cannot be read: named, left out, counted, and an error where the run is strict."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_builders import build_shapenet55
from small_runs import records, small_run, two_processes

from geo3d import InputError
from geo3d.datasets.sens import SensFile
from geo3d.recipes import get_recipe, pretrain
from geo3d.recipes.croco import CroCoRecipe
from geo3d.recipes.recipe import Recipe

BROKEN = "scene0001_00"
#: Samples of three rooms of three views each, of which one view or one mesh is damaged: all, and those that are lost.
COUNTS = {"croco": None, "depth": (9, 1), "multiview": None, "spark": (9, 1), "spark3d": (3, 1), "swin3d": (3, 1)}


@pytest.fixture
def copy(rooms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rooms, tmp_path / "copy"))


def damage(data: Path, scene: str = BROKEN, frames: tuple[int, ...] = (1,)) -> None:
    """Overwrite images of a scene, and cut its mesh."""
    folder = data / "scans" / scene
    mesh, stream = folder / f"{scene}_vh_clean_2.ply", folder / f"{scene}.sens"
    mesh.write_bytes(mesh.read_bytes()[:3000])
    index = SensFile(stream, scene).index
    with stream.open("r+b") as file:
        for frame in frames:
            file.seek(int(index.color_offset[frame]))
            file.write(bytes(int(index.color_bytes[frame])))


def opened(name: str, data: Path, out: Path, lines: list[str], **changes: Any) -> Recipe:
    """A recipe with its data."""
    recipe, run = get_recipe(name), small_run(name, data=(data,), **changes).resolved()
    if not out.exists():
        out.mkdir()
        recipe.prepare(run, out, lines.append, True)
    return recipe(run, out, lines.append)


@pytest.mark.parametrize("name", COUNTS)
def test_they_are_named_left_out_and_counted(name: str, copy: Path, tmp_path: Path) -> None:
    whole = opened(name, copy, tmp_path / "run", [])
    expected = whole.measure()
    damage(copy)
    lines: list[str] = []
    task = opened(name, copy, tmp_path / "run", lines)
    figures = [task.measure(), task.measure()]
    assert figures[0] == figures[1]
    lost, count = figures[0]["left_out"], whole.measured_count
    assert lost == len(task.readable.left_out) > 0
    assert task.measured_count == count - lost
    assert expected["left_out"] == 0
    if COUNTS[name]:
        assert (count, lost) == COUNTS[name]
    named = [line for line in lines if line.startswith("left out of the report: ")]
    assert len(named) == lost, "each once, however often it is measured"
    assert all(f"scene {BROKEN}" in line and str(copy) in line for line in named)
    figures, text = task.report(figures[0], figures[1])
    assert figures["left_out"] == [line.removeprefix("left out of the report: ") for line in named]
    assert f"on {count - lost} training {task.items}" in text
    assert f"{lost} {task.items} cannot be read and are left out of this" in text

    with pytest.raises(InputError, match=BROKEN):
        opened(name, copy, tmp_path / "run", [], strict=True).measure()


def test_objects_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """One that is a file turns out when it is drawn; one of a labelled scene, which is read to find it, before."""
    data, lines = tmp_path / "shapes", []
    build_shapenet55(data)
    whole = opened("i2p_mae", data, tmp_path / "run", [])
    assert (whole.measured_count, whole.measure()["left_out"]) == (3, 0)
    (data / "shapenet_pc" / "04379243-00ff.npy").write_bytes(b"no array")
    task = opened("i2p_mae", data, tmp_path / "run", lines)
    figures = [task.measure(), task.measure()]
    assert figures[0] == figures[1]
    assert (task.measured_count, figures[0]["left_out"], figures[0]["objects"]) == (2, 1, 2)
    (named,) = [line for line in lines if line.startswith("left out of the report: ")]
    assert "04379243-00ff" in named
    with pytest.raises(InputError, match="04379243-00ff"):
        opened("i2p_mae", data, tmp_path / "run", [], strict=True).measure()


def test_objects_of_scenes_that_cannot_be_read_are_not_there(copy: Path, tmp_path: Path) -> None:
    whole, lines = opened("i2p_mae", copy, tmp_path / "run", []), []
    damage(copy)
    task = opened("i2p_mae", copy, tmp_path / "run", lines)
    assert 0 < task.measured_count < whole.measured_count
    assert sum(BROKEN in line for line in lines) == 1
    with pytest.raises(InputError, match=BROKEN):
        opened("i2p_mae", copy, tmp_path / "run", [], strict=True)


@pytest.mark.parametrize("name", ["croco", "multiview", "spark"])
def test_each_of_the_others_counts_once(name: str, copy: Path, tmp_path: Path, monkeypatch) -> None:
    """The figures are the means over the samples one by one, also where the last batch is smaller."""
    monkeypatch.setattr("geo3d.recipes.recipe.MEASURED_BATCH", 4)
    whole, drawn = opened(name, copy, tmp_path / "run", []), []
    draw = type(whole).draw_measured

    def recorded(item: int, rng: np.random.Generator) -> dict[str, Any]:
        drawn.append((item, draw(whole, item, rng)))
        return drawn[-1][1]

    whole.draw_measured = recorded
    figures = whole.measure()
    items = Counter(item for item, _ in drawn)
    assert len(items) == whole.measured_count == figures[whole.items]
    assert len(set(items.values())) == 1
    with whole.method.measuring():
        losses = [(item, whole.method(whole.method.collate([sample])).loss.item()) for item, sample in drawn]
    assert figures["loss"] == pytest.approx(np.mean([loss for _, loss in losses]), rel=1e-5)  # sums of float32
    damage(copy)
    task = opened(name, copy, tmp_path / "run", [])
    found = task.measure()
    left = [loss for item, loss in losses if item not in task.readable.left_out]
    assert 0 < len(left) < len(losses)
    assert found["loss"] == pytest.approx(np.mean(left), rel=1e-5)
    assert found[task.items] == task.measured_count < figures[whole.items]


def test_the_other_view_of_croco_is_never_of_the_same_scene(copy: Path, tmp_path: Path) -> None:
    """Of three scenes one cannot be read: the views in the place of the true one are of the third."""
    opened("croco", copy, tmp_path / "run", [])
    damage(copy, BROKEN, (0, 1, 2))
    lines: list[str] = []
    task = opened("croco", copy, tmp_path / "run", lines)
    assert isinstance(task, CroCoRecipe)
    asked: list[tuple[int, int]] = []
    samples = task._all
    draw = samples.draw

    def recorded(index: int, rng: np.random.Generator) -> dict[str, Any]:
        sample = draw(index, rng)
        asked.append((samples.source.group(index), index))
        return sample

    samples.draw = recorded
    for item in range(len(task.measured)):
        if BROKEN not in task.measured.describe(item):
            asked.clear()
            sample = task.draw_measured(item, np.random.default_rng(item))
            assert [group for group, _ in asked] == [({0, 2} - {sample["scene"]}).pop()]
    assert any(line.startswith("another scene's view takes the place of one that cannot be read: ") for line in lines)


@pytest.mark.parametrize("name", ["spark", "swin3d"])
def test_none_that_can_be_read_is_an_error(name: str, copy: Path, tmp_path: Path) -> None:
    opened(name, copy, tmp_path / "run", [])
    for number in range(3):
        damage(copy, f"scene{number:04d}_00", (0, 1, 2))
    with pytest.raises(InputError, match=r"none of the \d images|scenes to measure can be read, the first: "):
        opened(name, copy, tmp_path / "run", []).measure()


@pytest.mark.parametrize("name", ["spark", "spark3d"])
def test_a_run_says_so_and_goes_on_to_the_same_figures(name: str, copy: Path, tmp_path: Path) -> None:
    damage(copy)
    run, lines = small_run(name, data=(copy,), measure_every=1), []
    result, report = pretrain(name, replace(run, out=tmp_path / "whole"), lines.append)
    short = replace(run, train=replace(run.train, steps=1))
    pretrain(name, replace(short, out=tmp_path / "cut"), lines.append)
    _, again = pretrain(name, replace(run, out=tmp_path / "cut"), lines.append)
    assert report == json.loads((tmp_path / "whole" / "report.json").read_text())
    reasons = [[re.sub("0x[0-9a-f]+", "", line) for line in some.pop("left_out")] for some in (report, again)]
    assert (report, reasons[0]) == (again, reasons[1])
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    assert len(reasons[0]) == report["before"]["left_out"] == report["after"]["left_out"] == 1
    assert BROKEN in reasons[0][0]
    assert [r["measured/left_out"] for r in records(tmp_path / "whole") if "measured/left_out" in r] == [1, 1]
    assert f"1 {get_recipe(name).items} cannot be read" in lines[-1]
    with pytest.raises(InputError, match=BROKEN):
        pretrain(name, replace(run, out=tmp_path / "strict", strict=True), lines.append)
    assert result.broken_samples == records(tmp_path / "whole")[-2]["broken_samples"]


def test_processes_count_together(copy: Path, tmp_path: Path) -> None:
    """Two processes of a sample each count what one of two samples does: each measured sample, and each draw, once."""
    for scene in ("scene0000_00", BROKEN):
        damage(copy, scene, (0, 1, 2))
    two_processes("spark", copy, tmp_path / "two")
    _, report = pretrain("spark", small_run("spark", data=(copy,), out=tmp_path / "one", measure_every=1), print)
    found = json.loads((tmp_path / "two" / "report.json").read_text())
    assert found["after"]["left_out"] == report["after"]["left_out"] == len(found["left_out"]) == 6
    assert found["after"]["images"] == report["after"]["images"] == 3
    counts = [[r["broken_samples"] for r in records(tmp_path / name) if "loss" in r] for name in ("one", "two")]
    assert counts[0] == counts[1]
    assert counts[0][-1] > 0
    lists = [(tmp_path / name / "quarantine.txt").read_text().splitlines() for name in ("one", "two")]
    one, two = ({line.split("\t")[0] for line in lines} for lines in lists)
    assert one == two
