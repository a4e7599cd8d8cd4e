"""Swin3D's golden cases of window partition: which voxels attend to each other, and where they lie in their window."""

from __future__ import annotations

from pathlib import Path

import torch
from golden_cases import GoldenCase
from torch import Tensor

from geo3d.nn import Topology


def _labels(order: Tensor, offsets: Tensor) -> Tensor:
    """Window of each row, numbered by first occurrence in the order of the rows."""
    window = torch.empty_like(order)
    window[order] = torch.repeat_interleave(offsets.diff())
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(label, len(number)) for label in window.tolist()])


def check_window_partition(case: GoldenCase, folder: Path) -> None:
    """Every stride, window size and shift of the case: equal set partitions, equal cells."""
    stored, arguments = case.tensors, case.meta["arguments"]
    for stride in arguments["strides"]:
        topology = Topology(stored[f"t{stride}.coord"], stride)
        for size in arguments["window_size"]:
            for name, shifted in (("regular", False), ("shifted", True)):
                label = f"t{stride}.w{size}.{name}"
                windows = topology.windows(size, shifted)
                statistics = case.meta["statistics"][label]
                assert len(windows.offsets) - 1 == statistics["windows"], label
                assert int(windows.offsets.diff().max()) == statistics["largest"], label
                assert torch.equal(_labels(windows.order, windows.offsets), stored[f"{label}.window"].long()), label
                assert torch.equal(windows.cell, stored[f"{label}.cell"].int()), label
