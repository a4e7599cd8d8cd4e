"""Items of different sizes in one batch."""

from __future__ import annotations

import torch

from geo3d.samples.packing import pack


def test_items_are_joined_and_offsets_tell_them_apart() -> None:
    samples = [
        {"xyz": torch.rand(n, 3), "label": torch.arange(n), "kept": torch.zeros(cells, dtype=torch.bool)}
        for n, cells in ((3, 2), (0, 0), (5, 1))
    ]
    batch = pack(samples)
    assert batch["offsets"].tolist() == [0, 3, 3, 8]
    assert batch["offsets"].dtype == torch.int64
    assert batch["kept"].shape == (3,)
    for item, start, stop in zip(samples, batch["offsets"], batch["offsets"][1:]):
        assert torch.equal(batch["xyz"][start:stop], item["xyz"])
        assert torch.equal(batch["label"][start:stop], item["label"])
    assert pack(samples, counted="kept")["offsets"].tolist() == [0, 2, 2, 3]
