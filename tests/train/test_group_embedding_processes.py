"""Groups embedded in two processes: normalised by the statistics of both, as one process does with all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from two_processes import run_two_processes

from geo3d.nn.point_layers import GroupEmbedding

_GROUPS = (13, 4)


def _numbers(members: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    embedding = GroupEmbedding(3, (8, 16), (32, 6)).double().train()
    tokens = embedding(members)
    # A sum, so that the gradients of the processes add up.
    (tokens * torch.arange(first, first + len(tokens)).unsqueeze(1)).sum().backward()
    found = {name: parameter.grad for name, parameter in embedding.named_parameters()}
    return found | {"tokens": tokens.detach()} | {name: b.clone() for name, b in embedding.named_buffers()}


def _members() -> torch.Tensor:
    return torch.randn(sum(_GROUPS), 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def work(rank: int, folder: str) -> None:
    torch.save(_numbers(_members().split(_GROUPS)[rank], rank * _GROUPS[0]), f"{folder}/{rank}.pt")


def test_two_processes_embed_as_one(tmp_path: Path) -> None:
    run_two_processes(work, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = _numbers(_members(), 0)
    tokens = torch.cat([part["tokens"] for part in parts])
    torch.testing.assert_close(tokens, expected.pop("tokens"), rtol=0, atol=1e-12)
    for name, reference in expected.items():
        found = parts[0][name]
        if name.endswith(("weight", "bias")):
            found = found + parts[1][name]
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-10)
