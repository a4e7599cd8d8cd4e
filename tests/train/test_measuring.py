"""Measured while training: in the records, for the best checkpoint, and without a trace in the run itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from test_resume import assert_equal
from toy import ToyMethod, numbers, toy_figures, train_toy

from geo3d.train.checkpoint import CheckpointStore, load_checkpoint
from geo3d.train.measuring import undisturbed

pytestmark = pytest.mark.usefixtures("lean")


def careless_figures(method: ToyMethod) -> dict[str, float]:
    """Draws numbers, changes buffers and modes as no figure should."""
    figures = toy_figures(method)
    torch.manual_seed(0)
    method.blocks[0][2].running_mean.add_(1)
    method.train()
    method.blocks[1].eval()
    return figures


def split(run_dir: Path) -> tuple[list[dict], list[dict]]:
    """Records of training, and those of what was measured."""
    records = numbers(run_dir)
    return [r for r in records if "loss" in r], [r for r in records if "loss" not in r]


def assert_same_training(one: Path, other: Path, step: int = 12) -> None:
    assert split(one)[0] == split(other)[0]
    (state, *weights), (other_state, *other_weights) = (
        load_checkpoint(folder / "checkpoints" / f"step_{step:08d}") for folder in (one, other)
    )
    assert_equal(dict(enumerate(weights)), dict(enumerate(other_weights)))
    assert_equal(state["optimizer"], other_state["optimizer"])


@pytest.mark.parametrize("figures", [toy_figures, careless_figures])
def test_measuring_leaves_no_trace_in_training(tmp_path: Path, figures) -> None:
    train_toy(tmp_path / "plain", ema_decay=0.9)
    result = train_toy(tmp_path / "measured", measure_every=5, figures=figures, ema_decay=0.9)
    assert_same_training(tmp_path / "plain", tmp_path / "measured")
    measured = split(tmp_path / "measured")[1]
    assert [record["step"] for record in measured] == [5, 10, 12]  # the last step as well
    assert all(record["measured/items"] == 8 for record in measured)
    assert measured[-1]["epoch"] == 2
    assert result.measured == {"loss": measured[-1]["measured/loss"], "items": 8}


def test_what_is_measured_is_the_network_at_that_step(tmp_path: Path) -> None:
    train_toy(tmp_path, measure_every=4, save_every_steps=4, keep_last=5)
    for record in split(tmp_path)[1]:
        method = ToyMethod()
        method.load_state_dict(load_checkpoint(tmp_path / "checkpoints" / f"step_{record['step']:08d}")[1])
        with method.measuring():
            assert toy_figures(method)["loss"] == record["measured/loss"]


@pytest.mark.parametrize("stop", [3, 4, 5, 11])  # before, at and after a measurement
def test_a_run_that_is_continued_measures_the_same(tmp_path: Path, stop: int) -> None:
    train_toy(tmp_path / "whole", measure_every=4)
    train_toy(tmp_path / "cut", measure_every=4, toy={"signal_at": (stop, signal.SIGTERM)})
    result = train_toy(tmp_path / "cut", measure_every=4)
    assert result.resumed_from == stop
    assert_same_training(tmp_path / "whole", tmp_path / "cut")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    best = [CheckpointStore(tmp_path / name / "checkpoints").best().name for name in ("whole", "cut")]
    assert best[0] == best[1]


@pytest.mark.parametrize(("higher", "best"), [(False, 6), (True, 9)])
def test_the_best_checkpoint_is_the_best_measured_one(tmp_path: Path, higher: bool, best: int) -> None:
    figures = iter([2.0, 1.0, 3.0, float("nan")])
    result = train_toy(
        tmp_path, measure_every=3, figures=lambda _: {"loss": next(figures)}, higher_is_better=higher, keep_last=1,
        save_every_steps=4,
    )  # fmt: skip
    store = CheckpointStore(tmp_path / "checkpoints")
    assert result.best_checkpoint == store.best() == tmp_path / "checkpoints" / f"step_{best:08d}"
    assert result.best_measured == (3.0 if higher else 1.0)
    assert [path.name for path in store.all()] == [f"step_{best:08d}", "step_00000012"]
    assert json.loads((store.best() / "manifest.json").read_text())["figure"]["name"] == "measured/loss"
    assert split(tmp_path)[1][-1]["measured/loss"] is None  # not a number


def test_the_best_of_a_run_that_is_not_measured_is_of_lowest_loss(tmp_path: Path) -> None:
    result = train_toy(tmp_path, save_every_steps=3, keep_last=9)
    manifests = {
        p: json.loads((p / "manifest.json").read_text()) for p in CheckpointStore(tmp_path / "checkpoints").all()
    }
    assert manifests[result.best_checkpoint]["loss"] == min(m["loss"] for m in manifests.values())
    assert (result.measured, result.best_measured) == (None, None)


def test_measuring_may_begin_in_a_run_that_was_not_measured(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4, schedule="constant")
    result = train_toy(tmp_path, schedule="constant", measure_every=3, figures=lambda _: {"loss": 1e9})
    assert result.best_checkpoint.name == "step_00000012"
    assert result.best_measured == 1e9


def test_undisturbed_puts_everything_back(tmp_path: Path) -> None:
    method = ToyMethod()
    method.blocks[1].eval()
    modes = [module.training for module in method.modules()]
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with undisturbed(method):
        careless_figures(method)
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in method.modules()] == modes
    assert_equal(dict(method.state_dict()), state)
