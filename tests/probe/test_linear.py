"""The linear read-out: cases with a known answer, and scipy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from geo3d import InputError
from geo3d.probe.linear import fit_path, fit_readout, untrained_readout

LABELS = torch.arange(600) % 4


def _noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_linear_function_of_the_class_is_read_off_whole() -> None:
    """However it is scaled, shifted and mixed; rows that were not learnt from as well."""
    code = torch.nn.functional.one_hot(LABELS, 4).float() @ _noise(4, 6) * 1e-3 + 50
    readout = fit_readout(code[:400], LABELS[:400], 1e-4)
    assert torch.equal(readout.predict(code), LABELS)


def test_shuffled_labels_are_at_chance() -> None:
    """Of 4 equally frequent classes; 5 standard deviations of 1200 coin tosses."""
    labels = LABELS.repeat(4)[torch.randperm(2400, generator=torch.Generator().manual_seed(1))]
    features = _noise(2400, 8)
    hits = (fit_readout(features[:1200], labels[:1200], 1e-3).predict(features[1200:]) == labels[1200:]).double()
    assert abs(hits.mean().item() - 0.25) < 5 * (0.25 * 0.75 / 1200) ** 0.5


def _cross_entropy(flat: np.ndarray, rows: np.ndarray, labels: np.ndarray, penalty: float) -> float:
    """The objective in float64, written out: weights (C, K), then bias (K,)."""
    weight, bias = flat[:-4].reshape(-1, 4), flat[-4:]
    logits = rows @ weight + bias
    top = logits.max(1)
    log_sum = np.log(np.exp(logits - top[:, None]).sum(1)) + top
    return float((log_sum - logits[np.arange(len(rows)), labels]).mean() + penalty / 2 * (weight**2).sum())


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_optimum_is_that_of_scipy(penalty: float) -> None:
    """Float32 steps end within 1e-6 of the least value (measured: 1e-7 at most)."""
    features = _noise(600, 5) + 0.7 * _noise(4, 5, 2)[LABELS]
    readout = fit_readout(features, LABELS, penalty)
    rows = ((features.double() - features.double().mean(0)) / features.double().std(0, correction=0)).numpy()
    arguments = (rows, LABELS.numpy(), penalty)
    best = minimize(_cross_entropy, np.zeros(24), arguments, method="BFGS", options={"gtol": 1e-7})
    found = _cross_entropy(torch.cat([readout.weight.flatten(), readout.bias]).double().numpy(), *arguments)
    assert best.fun - 1e-9 <= found <= best.fun + 1e-6


def test_the_same_rows_give_the_same_bits() -> None:
    features = _noise(600, 5)
    first, second = (fit_readout(features, LABELS, 1e-3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_path_ends_where_each_fit_does() -> None:
    """From another start to the same optimum; logits differ by 1e-2 at most (measured: 1e-3)."""
    features = _noise(600, 5) + _noise(4, 5, 2)[LABELS]
    path = dict(fit_path(features, LABELS, [1e-3, 1e-1]))
    assert list(path) == [1e-1, 1e-3]
    alone = fit_readout(features, LABELS, 1e-3)
    torch.testing.assert_close(path[1e-3].weight, alone.weight, rtol=0, atol=1e-2)


def test_classes_that_are_not_there_are_never_named() -> None:
    labels = torch.tensor([2, 7])[torch.arange(100) % 2]
    readout = fit_readout(_noise(100, 3), labels, 1e-3)
    assert readout.weight.shape == (3, 2)
    assert set(readout.predict(_noise(1000, 3, 5)).tolist()) == {2, 7}


def test_columns_that_do_not_vary_do_no_harm() -> None:
    features = torch.cat([torch.full((600, 1), 0.1), LABELS.unsqueeze(1).float()], 1)
    readout = fit_readout(features, LABELS // 2, 1e-4)
    assert torch.equal(readout.predict(features), LABELS // 2)
    assert readout.weight.isfinite().all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "no labelled row"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), "NaN or infinite"),
    ],
)
def test_wrong_features_are_named(features: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        untrained_readout(features, labels)
