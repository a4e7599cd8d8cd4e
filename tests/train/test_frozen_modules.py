"""Modules that a method declares frozen, such as a teacher, take part in its loss and in nothing else."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import assert_same_run
from torch import nn
from toy import TaughtToyMethod, ToyMethod, train_toy

from geo3d.train import TrainConfig
from geo3d.train.engine import Engine
from geo3d.train.launch import launch
from geo3d.train.optimizer import parameter_groups

pytestmark = pytest.mark.usefixtures("lean")
CPU = TrainConfig(accelerator="cpu", ema_decay=0.9)


@pytest.fixture
def engine() -> Engine:
    return Engine(launch(CPU), TaughtToyMethod(), CPU)


def teacher_of(method: ToyMethod) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items() if name.startswith("teacher.")}


def test_they_have_no_gradient_and_no_place_in_the_optimizer(engine: Engine) -> None:
    method = engine.method
    trained = {p for group in engine.optimizer.param_groups for p in group["params"]}
    names = {name for name, p in method.named_parameters() if p in trained}
    assert names == {name for name, _ in ToyMethod().named_parameters()}
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert sum(len(group["params"]) for group in parameter_groups(method, 0.1)) == len(names)


def test_they_stay_in_evaluation_mode(engine: Engine) -> None:
    for module in (engine.model, engine.method):
        module.train()
        assert engine.method.blocks[0].training
        assert not any(part.training for part in engine.method.teacher.modules())
    with engine.method.measuring():
        pass
    assert engine.method.training
    assert not engine.method.teacher.training


def test_weights_and_average_of_a_checkpoint_are_without_them(tmp_path: Path, capsys) -> None:
    class Large(TaughtToyMethod):
        def __init__(self, **toy) -> None:
            super().__init__(**toy)
            self.teacher["large"] = nn.Linear(1000, 1000)

    result = train_toy(tmp_path, Large, ema_decay=0.9)
    for name in ("model.safetensors", "ema.safetensors"):
        assert load_file(result.checkpoint / name).keys() == ToyMethod().state_dict().keys()
    assert "toy: 0.0 M weights" in capsys.readouterr().err  # those that are trained


def test_training_leaves_them_as_they_are_and_learns_from_them(tmp_path: Path) -> None:
    kept: list[ToyMethod] = []

    class Kept(TaughtToyMethod):
        def __init__(self, **toy) -> None:
            super().__init__(**toy)
            kept.append(self)

    before = teacher_of(TaughtToyMethod())
    one = train_toy(tmp_path / "one", Kept)
    after = teacher_of(kept[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    other = train_toy(tmp_path / "other", Kept, toy={"teacher_seed": 8})
    assert one.final_loss != other.final_loss


def test_a_run_goes_on_bit_for_bit_without_them_in_its_checkpoint(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", TaughtToyMethod, ema_decay=0.9)
    train_toy(tmp_path / "cut", TaughtToyMethod, toy={"signal_at": (7, signal.SIGTERM)}, ema_decay=0.9)
    result = train_toy(tmp_path / "cut", TaughtToyMethod, ema_decay=0.9)
    assert result.resumed_from == 7
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_name_without_a_module_is_a_fault_of_the_method() -> None:
    class Wrong(ToyMethod):
        def frozen_modules(self) -> tuple[str, ...]:
            return ("blocks", "pupil")

    with pytest.raises(ValueError, match=r"Wrong freezes what is no module of it: \['pupil'\]"):
        Engine(launch(CPU), Wrong(), CPU)
