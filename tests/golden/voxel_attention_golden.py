"""Swin3D's golden cases of window attention: values and all gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from golden_cases import GoldenCase
from torch import Tensor

from geo3d.ops import voxel_attention
from geo3d.ops.voxel_attention import table_rows

# Of each tensor's largest value; the published float32 run lies within 1e-6, the cases suggest 2e-5.
_RELATIVE = 2e-5


def _windows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows window after window, and where each window starts."""
    order = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1]
    return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def check_voxel_attention(case: GoldenCase, folder: Path) -> None:
    """Feed the stored rows, compare the result, the chosen bins and every gradient."""
    stored = case.tensors
    signals = case.meta["table_length"]
    bins = tuple(rows for rows in signals.values() for _ in range(3))
    q, k, v = (stored[name].clone().requires_grad_() for name in "qkv")
    tables = {
        f"table.{role}.{name}": stored[f"table.{role}.{name}"].clone().requires_grad_()
        for role in "qkv"
        for name in signals
    }
    joined = [torch.cat([tables[f"table.{role}.{name}"].flatten(0, 1) for name in signals]) for role in "qkv"]
    order, offsets = _windows(stored["window"])
    out = voxel_attention(q, k, v, order, offsets, stored["signal"], *joined, bins, 1.0)  # q is stored scaled
    out.backward(stored["grad_out"])

    actual = {"out": out, "grad.q": q.grad, "grad.k": k.grad, "grad.v": v.grad}
    actual |= {f"grad.{name}": table.grad for name, table in tables.items()}
    assert set(actual) == {
        name for name in stored if name == "out" or (name.startswith("grad.") and name != "grad_out")
    }
    for name, value in actual.items():
        error = (value.double() - stored[name].double()).abs().max() / stored[name].double().abs().max()
        assert error < _RELATIVE, f"{name}: {error:.1e}"

    rows = stored["bins.rows"]
    starts = torch.tensor([0, *bins[:-1]]).cumsum(0)
    chosen = table_rows(stored["signal"][rows].unsqueeze(0), bins)[0] - starts.view(-1, 1, 1)
    assert torch.equal(chosen.permute(1, 2, 0), stored["bins.index"].long())
