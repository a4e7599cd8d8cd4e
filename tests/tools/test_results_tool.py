"""tools/results.py: tables of figures that are known, a quick run of one family, and what is not done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import result_tasks
import results
from results import FAMILIES, FIGURES, Figure, ResultsConfig, gathered, page, verdict

from geo3d.cli import command_line
from geo3d.probe import list_probes
from geo3d.recipes import list_recipes


def _seed(pretrained: float, fresh: float, seed: int) -> dict:
    names = {"checkpoint": pretrained, f"fresh weights, seed {seed}": fresh, "input features": 0.25}
    figures = {name: {"miou": value, "accuracy": 2 * value} for name, value in names.items()}
    few = {name: {"miou": [value, value, value]} for name, value in names.items()}
    probes = {"linear": figures, "segment": few}
    return {
        "pretrain": {"cpu_seconds": 60.0, "steps": 7},
        "probes": {name: {"cpu_seconds": 30.0, "result": found} for name, found in probes.items()},
    }


_FOUND = {"nerf_mae": {"0": _seed(0.5, 0.3, 0), "1": _seed(0.4, 0.3, 1), "2": _seed(0.3, 0.4, 2)}}


def test_rows_hold_a_figure_of_each_seed() -> None:
    rows = gathered(_FOUND["nerf_mae"], "linear", FIGURES["linear"][0])
    assert rows == {"pre-trained": [0.5, 0.4, 0.3], "fresh weights": [0.3, 0.3, 0.4], "input features": [0.25] * 3}
    assert FIGURES["linear"][0].text(rows["pre-trained"]) == "40.0 ± 10.0 %"


def test_a_gain_is_told_as_it_is() -> None:
    rows = {"pre-trained": [0.5, 0.4, 0.3], "fresh weights": [0.3, 0.3, 0.4]}
    wins, gain = verdict(rows, FIGURES["linear"][0])
    assert (wins, gain) == ("2 of 3", "+6.7 ± 8.8 points")  # 0.2, 0.1 and -0.1; deviation 0.153 over the root of 3
    error = Figure("error", (), percent=False, higher=False)
    assert verdict(rows, error) == ("1 of 3", "-0.067 ± 0.088")


def test_the_page_says_where_pre_training_does_not_help() -> None:
    text = page(_FOUND, ResultsConfig(families=("nerf_mae",)), 120.0)
    assert (
        "| NeRF-MAE | linear | mean IoU | 25.0 ± 0.0 % | 33.3 ± 5.8 % | 40.0 ± 10.0 % | +6.7 ± 8.8 points | 2 of 3 |"
        in text
    )
    assert "`geo3d pretrain nerf_mae --train.steps 7`: 60 s of a core." in text
    assert "6 minutes of a core for all that is below, 2 minutes in the last call." in text
    assert "| fresh weights | 33.3 ± 5.8 % | 66.7 ± 11.5 % |" in text


def test_fine_tuned_tasks_have_a_table_of_their_own() -> None:
    task = next(task for task in result_tasks.TASKS if task.family == "nerf_mae")

    def tuned(pretrained: float, fresh: float) -> dict:
        reports = {"pre-trained": pretrained, "fresh weights": fresh}
        return {
            row: {"cpu_seconds": 30.0, "result": {"after": {"miou": value, "accuracy": 2 * value}}}
            for row, value in reports.items()
        }

    seeds = {str(n): _seed(0.5, 0.3, n) | {"tasks": {task.name: tuned(0.3 + n / 10, 0.2)}} for n in range(2)}
    text = page({"nerf_mae": seeds}, ResultsConfig(families=("nerf_mae",)), 120.0)
    told = f"{task.recipe}, {task.steps} steps"
    # gains of 10 and 20 points: 15, and their deviation of 7.07 over the root of 2
    assert f"| NeRF-MAE | {told} | mean IoU | 20.0 ± 0.0 % | 35.0 ± 7.1 % | +15.0 ± 5.0 points | 2 of 2 |" in text
    assert "|  |  | accuracy | 40.0 ± 0.0 % | 70.0 ± 14.1 % | +30.0 ± 10.0 points | 2 of 2 |" in text
    assert "6 minutes of a core" in text  # 2 x (60 + 2 x 30 + 2 x 30) s
    assert "trained on labels" not in page(_FOUND, ResultsConfig(families=("nerf_mae",)), 120.0)


def test_every_fine_tuned_task_is_of_a_family_and_a_recipe() -> None:
    names = [(task.family, task.name) for task in result_tasks.TASKS]
    assert len(set(names)) == len(names)
    assert {task.family for task in result_tasks.TASKS} <= set(FAMILIES)
    assert {task.recipe for task in result_tasks.TASKS} <= set(list_recipes("finetune"))


def test_every_probe_is_of_some_family_and_has_figures() -> None:
    used = {probe for family in FAMILIES.values() for probe in family.probes}
    assert used == set(FIGURES) == set(list_probes())


def _run(folder: Path, *args: str) -> None:
    place = ["--folder", str(folder / "kept"), "--out", str(folder / "results.md")]
    with pytest.raises(SystemExit) as stop:
        command_line.run(results.main, "results.py", [*place, "--quick", "--seeds", "1", *args])
    assert stop.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_quick_run_writes_the_page_and_is_not_done_twice(family: str, tmp_path: Path, capsys) -> None:
    _run(tmp_path, "--families", family)
    text = (tmp_path / "results.md").read_text()
    for probe in FAMILIES[family].probes:
        assert f"| {FAMILIES[family].title} | {probe} |" in text
    found = json.loads((tmp_path / "results.json").read_text())["families"][family]["0"]
    assert found["probes"].keys() == FAMILIES[family].probes.keys()
    assert f"{family}-seed-0 pretrain: " in capsys.readouterr().out
    _run(tmp_path, "--families", family)
    assert f"{family}-seed-0" not in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["families"][family]["0"] == found


def test_unknown_families_are_named(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.run(results.main, "results.py", ["--families", "dust3r"])
    assert stop.value.code == 2
    assert "there is no 'dust3r'; known: croco, spark" in capsys.readouterr().err
