"""SparK over voxels in two processes: norms over the voxels of both give what one process gives with all scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_two_processes

from geo3d.methods.spark3d import SparK3D, SparK3DConfig
from geo3d.nn.batch_norm import VoxelNorm1d

#: Rows that each process holds in turn: uneven numbers, none in one, one in all, none in any.
_ROWS = [(7, 3), (5, 0), (1, 1), (0, 1), (0, 0), (2, 4)]


def _rows() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(n, 3, generator=generator, dtype=torch.float64) + 2 for n in counts] for counts in _ROWS]


def _norm_numbers(norm: nn.Module, xs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results and gradients of a few steps, then the buffers; the loss is a sum, so that processes' losses add up."""
    found = []
    for x in xs:
        x = x.clone().requires_grad_()
        y = norm(x)
        (y * (1 + x.detach()).sin()).sum().backward()
        found += [y.detach(), x.grad]
    return [*found, *norm.buffers(), norm.weight.grad, norm.bias.grad]


def _norm() -> VoxelNorm1d:
    norm = VoxelNorm1d(3).double().train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1, 2]))
        norm.bias.copy_(torch.tensor([1.0, 2, 3]))
    return norm


def _scenes() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(xyz, kept) of four scenes of equally many masked cells, of very different numbers of voxels."""
    generator = torch.Generator().manual_seed(1)
    scenes = []
    for count in (600, 40, 300, 90):
        cells = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1))
        cell = cells[torch.arange(count) % len(cells)]
        voxels = (8 * cell + torch.randint(0, 8, (count, 3), generator=generator)).unique(dim=0)
        scenes.append((voxels + 0.5, torch.tensor([True, False, True, False, False, True])))
    return scenes


def _batch(scenes: list[tuple[torch.Tensor, torch.Tensor]], method: SparK3D) -> dict[str, torch.Tensor]:
    samples = []
    for xyz, kept in scenes:
        color = (0.1 * xyz).sin().double()
        samples.append({"xyz": xyz.double(), "colors": color, "normals": color * torch.nan, "kept": kept})
    return method.collate(samples)


def _train(model: str, rows: slice) -> dict[str, torch.Tensor]:
    config = SparK3DConfig(model, signals="XYZ_RGB", decoder_width=32, decoder_context=1)
    method = SparK3D(config, torch.Generator().manual_seed(0)).double().train()
    for module in method.modules():
        if "DropPath" in type(module).__name__:
            module.eval()  # drawn apart in each process
    shared = DistributedDataParallel(method) if distributed.is_initialized() else method
    output = shared(_batch(_scenes()[rows], method))
    output.loss.backward()
    return {n: p.grad for n, p in method.named_parameters()} | dict(method.named_buffers())


def _process(rank: int, folder: str) -> None:
    norm = _norm()
    numbers = _norm_numbers(norm, [xs[rank] for xs in _rows()])
    torch.save(numbers, Path(folder, f"norm{rank}.pt"))
    numbers = _train("sparse_resnet_tiny", slice(2 * rank, 2 * rank + 2))
    torch.save(numbers, Path(folder, f"method{rank}.pt"))


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    run_two_processes(_process, tmp_path)

    expected = _norm_numbers(_norm(), [torch.cat(xs) for xs in _rows()])
    found = [torch.load(tmp_path / f"norm{rank}.pt", weights_only=True) for rank in range(2)]
    steps = 2 * len(_ROWS)
    for own, other, whole in zip(found[0][:steps], found[1][:steps], expected[:steps], strict=True):
        torch.testing.assert_close(torch.cat([own, other]), whole)
    for own, other, whole in zip(found[0][steps:-2], found[1][steps:-2], expected[steps:-2], strict=True):
        torch.testing.assert_close(own, whole)
        torch.testing.assert_close(other, whole)
    for own, other, whole in zip(found[0][-2:], found[1][-2:], expected[-2:], strict=True):
        torch.testing.assert_close(own + other, whole)

    expected = _train("sparse_resnet_tiny", slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"method{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = (found[name] - value).double().norm() / value.double().norm().clamp_min(1e-12)
            assert error < 1e-6, f"{name}: {error:.1e}"  # the loss is float32; below 1e-9 was measured
