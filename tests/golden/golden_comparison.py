"""What golden cases share: tensors compared whole or at stored positions, as sharp as the precision allows."""

from __future__ import annotations

import pytest
import torch
from golden_cases import GoldenCase
from torch import Tensor

# In float64 the stored values' rounding to float32 is what remains: 1.2e-7 of the largest was measured at most. Losses
# and gradient norms are stored in float64. In float32 the published code itself deviates by what `tolerance` says:
# sums in another order may deviate by some times that, or by 1e-5 of the largest value where it was lucky.
SHARP_RELATIVE = 5e-7
SHARP_SCALAR = 1e-9
FLOAT32_FACTOR, FLOAT32_RELATIVE = 10, 1e-5


class Comparison:
    """Compares tensors with those of the case, whole or at the stored positions.

    Args:
        case: the case.
        dtype: of the network that is compared.
        channel: dimension of channels, by which means are stored.
    """

    def __init__(self, case: GoldenCase, dtype: torch.dtype, channel: int = 1) -> None:
        self.stored, self.tolerance, self.sharp = case.tensors, case.meta["tolerance"], dtype == torch.float64
        self.meta, self.channel = case.meta, channel

    def allowed(self, name: str) -> float:
        """How far a tensor may lie from the stored one."""
        tolerance, expected = self.tolerance[name], self.stored[f"out.{name}"]
        scale = tolerance["max_abs_value"]
        if not self.sharp:
            return max(FLOAT32_FACTOR * tolerance["max_abs_diff_fp32_vs_fp64"], FLOAT32_RELATIVE * scale)
        return (SHARP_SCALAR if expected.ndim == 0 else SHARP_RELATIVE) * scale

    def check(self, name: str, value: Tensor) -> None:
        """Compare a tensor, and its means over channels where these are stored."""
        expected, allowed = self.stored[f"out.{name}"].double(), self.allowed(name)
        value = value.detach().double()
        picked = value.reshape(-1)[self.stored[f"idx.{name}"].long()] if f"idx.{name}" in self.stored else value
        assert picked.shape == expected.shape, f"{name}: {tuple(picked.shape)} for {tuple(expected.shape)}"
        error = float((picked - expected).abs().max())
        scale = self.tolerance[name]["max_abs_value"]
        assert error <= allowed, f"{name}: {error:.1e} of {scale:.1e}, {allowed:.1e} is allowed"
        if f"chan_mean.{name}" in self.stored:
            others = [d for d in range(value.ndim) if d != self.channel % value.ndim]
            means = {"chan_mean": value.mean(others), "chan_rms": value.square().mean(others).sqrt()}
            for what, found in means.items():
                error = float((found - self.stored[f"{what}.{name}"].double()).abs().max())
                assert error <= allowed, f"{what} of {name}: {error:.1e}, {allowed:.1e} is allowed"

    def check_gradients(self, model: torch.nn.Module) -> None:
        """Compare stored buffers and gradients, and the norms of all gradients."""
        values = dict(model.named_buffers()) | {f"grad.{name}": p.grad for name, p in model.named_parameters()}
        for name in (n.removeprefix("out.") for n in self.stored if n.startswith(("out.after.", "out.grad."))):
            self.check(name, values[name.removeprefix("after.")])
        parameters = dict(model.named_parameters())
        assert set(self.meta["grad_norm_names"]) == {name for name, p in parameters.items() if p.grad is not None}
        null = set(self.meta["grad_norm_null"])
        deviation = self.tolerance["grad_norm"]["max_rel_diff_fp32_vs_fp64"]
        relative = SHARP_SCALAR if self.sharp else FLOAT32_FACTOR * deviation
        for name, expected in zip(self.meta["grad_norm_names"], self.stored["out.grad_norm"].tolist(), strict=True):
            if name not in null:
                norm = float(parameters[name].grad.double().norm())
                assert norm == pytest.approx(expected, rel=relative), name


def need_the_weights_of_the_case() -> None:
    """Skip where torch draws other weights than the case's."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("without AVX2 torch draws normal numbers of other last bits: these would not be the case's weights")
