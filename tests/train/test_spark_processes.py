"""SparK in two processes: batch norms over active sites of both give what one process gives with all images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_two_processes

from geo3d.methods.spark import reconstruction_loss
from geo3d.models import create_model
from geo3d.nn.masked_conversion import to_sparse


def _inputs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 96, generator=generator, dtype=torch.float64)
    active = torch.rand(4, 6, generator=generator).argsort(1) < 3
    return images, active.view(4, 1, 2, 3)


def _network(path: str, rows: slice) -> tuple[nn.Module, torch.Tensor]:
    model = create_model("spark", encoder="resnet_tiny", decoder_width=32, generator=torch.Generator().manual_seed(0))
    model = model.double().train()
    shared = DistributedDataParallel(model) if distributed.is_initialized() else model
    images, active = (value[rows] for value in _inputs())
    loss = reconstruction_loss(shared(images, active, path).reconstruction, images, active)
    loss.backward()
    return model, loss


def _numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())


def _process(rank: int, folder: str) -> None:
    for path in ("dense", "tiles"):
        model, loss = _network(path, slice(2 * rank, 2 * rank + 2))
        distributed.all_reduce(loss.detach())
        if rank == 0:
            torch.save(_numbers(model), Path(folder, f"{path}.pt"))
    # Different numbers of active sites in each process, and torch's own class as the dense network has it.
    norm = to_sparse(nn.Sequential(nn.SyncBatchNorm(3))).double().train()
    images, active = _inputs()
    active = active.clone()
    active[0] = True
    norm(images[2 * rank : 2 * rank + 2], active[2 * rank : 2 * rank + 2], "tiles")
    torch.save(dict(norm.named_buffers()), Path(folder, f"norm{rank}.pt"))


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    run_two_processes(_process, tmp_path)
    for path in ("dense", "tiles"):
        expected = _numbers(_network(path, slice(None))[0])
        found = torch.load(tmp_path / f"{path}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = (found[name] - value).double().norm() / value.double().norm().clamp_min(1e-12)
            assert error < 1e-9, f"{path} {name}: {error:.1e}"  # float64; other orders of summing

    images, active = _inputs()
    active[0] = True
    seen = active.repeat_interleave(32, 2).repeat_interleave(32, 3)[:, 0]
    sites = images.permute(0, 2, 3, 1)[seen]
    for rank in range(2):
        buffers = torch.load(tmp_path / f"norm{rank}.pt", weights_only=True)
        torch.testing.assert_close(buffers["sp_cnn.0.running_mean"], 0.1 * sites.mean(0))
        torch.testing.assert_close(buffers["sp_cnn.0.running_var"], 0.9 + 0.1 * sites.var(0))
