"""LAMB against the paper's algorithm in float64 numpy, weight decay groups, and the moving average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy import ToyMethod

from geo3d.train import TrainConfig
from geo3d.train.ema import Ema
from geo3d.train.engine import Engine
from geo3d.train.lamb import Lamb
from geo3d.train.launch import launch
from geo3d.train.optimizer import build_optimizer, parameter_groups


def numpy_lamb(weight: np.ndarray, gradients: list[np.ndarray], lr: float, betas, eps: float, decay: float):
    """Algorithm 2 of You et al. 2020, line by line, with phi the identity."""
    m, v, x = np.zeros_like(weight), np.zeros_like(weight), weight.copy()
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        update = m_hat / (np.sqrt(v_hat) + eps) + decay * x
        ratio = np.linalg.norm(x) / np.linalg.norm(update) if decay else 1.0
        x = x - lr * ratio * update
    return x


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_follows_the_paper(decay: float) -> None:
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal((5, 4)), rng.standard_normal((3,)) * 100]
    gradients = [[rng.standard_normal(start.shape) for _ in range(20)] for start in starts]
    parameters = [nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    optimizer = Lamb(parameters, lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=decay)
    for step in range(20):
        for parameter, steps in zip(parameters, gradients):
            parameter.grad = torch.from_numpy(steps[step].copy())
        optimizer.step()
    for parameter, start, steps in zip(parameters, starts, gradients):
        expected = numpy_lamb(start, steps, 0.01, (0.9, 0.95), 1e-6, decay)
        # all in float64 but for the norms, which are summed in float32: 20 steps of relative error 1e-7 each
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5)
        assert np.abs(expected - start).max() > 0.05


def test_lamb_moves_weights_that_are_all_zero_and_leaves_those_without_gradient() -> None:
    zero, still = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.ones(2))
    optimizer = Lamb([zero, still], lr=0.1, weight_decay=0.1)
    zero.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((3, 3), -0.1))  # ratio 1, Adam's first step is the sign
    assert torch.equal(still, torch.ones(2))
    zero.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.isfinite(zero).all()


def test_one_dimension_biases_and_named_parameters_do_not_decay() -> None:
    method = ToyMethod(noisy=False)
    decaying, still = parameter_groups(method, 0.05)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in method.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} == {"blocks.0.0.weight", "blocks.1.weight"}
    assert {names[id(p)] for p in still["params"]} == set(names.values()) - {"blocks.0.0.weight", "blocks.1.weight"}


def test_parameters_that_learn_at_another_rate_have_groups_of_their_own() -> None:
    method = ToyMethod(noisy=False)
    method.rate_factors = lambda: {"blocks.1.weight": 0.1, "blocks.1.bias": 0.1}
    groups = parameter_groups(method, 0.05)
    assert [(g["rate_factor"], g["weight_decay"]) for g in groups] == [(1, 0.05), (1, 0), (0.1, 0.05), (0.1, 0)]
    engine = Engine(launch(TrainConfig(accelerator="cpu")), method, TrainConfig(accelerator="cpu"))
    engine.set_rates(0.5, None)
    assert [g["lr"] for g in engine.optimizer.param_groups] == [0.5, 0.5, 0.05, 0.05]
    method.rate_factors = lambda: {"blocks.2.weight": 0.1}
    with pytest.raises(ValueError, match=r"rate_factors\(\) names no parameter: \['blocks.2.weight'\]"):
        parameter_groups(method, 0.05)


def test_frozen_parameters_are_left_out() -> None:
    method = ToyMethod()
    method.blocks[1].requires_grad_(False)
    trained = {id(p) for group in parameter_groups(method, 0.05) for p in group["params"]}
    assert trained == {id(p) for name, p in method.named_parameters() if not name.startswith("blocks.1.")}


def test_a_name_that_is_no_parameter_is_a_bug_that_shows() -> None:
    method = ToyMethod()
    method.no_weight_decay = lambda: {"tokn"}
    with pytest.raises(ValueError, match="tokn"):
        parameter_groups(method, 0.1)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("lamb", Lamb)])
def test_config_chooses_the_optimizer(name: str, kind: type) -> None:
    optimizer = build_optimizer(ToyMethod(), TrainConfig(optimizer=name, betas=(0.8, 0.9), weight_decay=0.2))
    assert type(optimizer) is kind
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_moving_average_of_a_jump_is_geometric() -> None:
    method = ToyMethod(noisy=False)
    method.tied = method.token
    with torch.no_grad():
        method.token.zero_()
    ema = Ema(method, decay=0.9)
    with torch.no_grad():
        method.token.fill_(1.0)
    for _ in range(5):
        ema.update()
    state = ema.whole_state()
    assert set(state) == set(method.state_dict())
    for name in ("token", "tied"):
        torch.testing.assert_close(state[name], torch.full((1, 8), 1 - 0.9**5))
    other = Ema(method, decay=0.9)
    other.load(state)
    assert torch.equal(other.whole_state()["token"], state["token"])
    assert torch.equal(method.token, torch.ones(1, 8))


def test_weight_decay_follows_its_schedule_where_there_is_any() -> None:
    engine = Engine(launch(TrainConfig(accelerator="cpu")), ToyMethod(), TrainConfig(accelerator="cpu"))
    engine.set_rates(0.1, None, 0.2)
    assert [g["weight_decay"] for g in engine.optimizer.param_groups] == [0.2, 0.0]
    engine.set_rates(0.1, None)
    assert [g["weight_decay"] for g in engine.optimizer.param_groups] == [0.2, 0.0]
