"""What only a CUDA device shows, and sizes that are for the CUDA kernels alone; the emulation runs these cases as well.

Parity with the references on the cases of all operators is in ``test_every_operator.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operator_examples import (
    EXAMPLES,
    SWIN3D_BINS,
    VOXEL_ATTENTION_TOLERANCES,
    Arguments,
    cast_arguments,
    overload,
    random_tensor,
    require_library,
    run,
    voxel_attention_arguments,
)

from geo3d.ops import explain, kernel_map, voxel_attention, voxelize, window_partition
from geo3d.ops.registry import get_operator

#: Windows over several tiles of own and of other voxels, axes over several pieces of rows, many axes, wide heads.
LARGE_CASES: dict[str, Arguments] = {
    "full window": voxel_attention_arguments((343, 1, 64, 65), 2, 16, SWIN3D_BINS),
    "two tiles of others exactly": voxel_attention_arguments((256, 128, 129), 1, 8, (56, 32)),
    "long axes": voxel_attention_arguments((140, 3), 1, 16, (200, 65, 33, 1)),
    "many axes": voxel_attention_arguments((30, 70), 2, 4, (3, 9, 40) * 7),
    "heads of 33": voxel_attention_arguments((130, 64, 7), 1, 33, (56, 12)),
    "heads of 64, two tiles of others": voxel_attention_arguments((100,), 2, 64, (40, 12)),
    "heads of 24": voxel_attention_arguments((200, 9), 2, 24, (40, 12)),
    "plain, large": voxel_attention_arguments((700, 5), 2, 16, (), "plain"),
    "bias, large": voxel_attention_arguments((300, 80), 3, 8, (90, 32), "bias"),
    "many small windows": voxel_attention_arguments((3,) * 200, 1, 8, (12, 12)),
}


def of_backward(forward: Arguments) -> Arguments:
    """Arguments of the backward that belong to those of the forward."""
    _, lse = get_operator("voxel_attention").reference(*forward)
    return random_tensor(*forward[0].shape), random_tensor(*lse.shape).float(), lse.float(), *forward


@pytest.mark.cuda
@pytest.mark.parametrize("case", LARGE_CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_large_windows(case: str, backward: bool) -> None:
    require_library("cuda")
    name, arguments = "voxel_attention", LARGE_CASES[case]
    if backward:
        name, arguments = "voxel_attention_backward", of_backward(arguments)
    cast = cast_arguments(name, arguments, torch.float32, "cuda")
    assert explain(name, *cast)["cuda"] == "chosen"
    expected = get_operator(name).reference(*cast_arguments(name, cast, torch.float64, "cuda"))
    relative, absolute = VOXEL_ATTENTION_TOLERANCES[torch.float32]
    for result, exact in zip(overload(name)(*cast), expected, strict=True):
        torch.testing.assert_close(result.double(), exact.double(), rtol=relative, atol=absolute)


def _swin3d(device: str, voxels: int = 3000) -> tuple[list[Any], list[int]]:
    """Leaves and constants of a layer on ``device``, with windows of up to 343."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 344, (voxels // 170,), generator=generator).tolist()
    *tensors, _, bins, _ = voxel_attention_arguments(tuple(sizes), 6, 16, SWIN3D_BINS)
    moved = [t.to(device, torch.float32 if t.is_floating_point() else t.dtype) for t in tensors]
    return [t.requires_grad_(t.ndim == 3) for t in moved], bins


@pytest.mark.cuda
def test_equal_input_gives_equal_bits() -> None:
    """The kernel runs in deterministic mode too, and it is deterministic in any."""
    require_library("cuda")
    results = []
    for deterministic in (True, False, False):
        torch.use_deterministic_algorithms(deterministic)
        try:
            tensors, bins = _swin3d("cuda")
            out = voxel_attention(*tensors, bins)
            out.square().sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        results.append([out.detach(), *(t.grad for t in tensors if t.requires_grad)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
def test_attention_does_not_wait_for_the_device() -> None:
    """A captured graph cannot hold a wait, and torch's own are made errors."""
    require_library("cuda")
    tensors, bins = _swin3d("cuda")
    constants = [t.detach() for t in tensors]
    expected = voxel_attention(*constants, bins)  # loads the library before the capture
    torch.cuda.set_sync_debug_mode("error")
    try:
        voxel_attention(*tensors, bins).backward(torch.ones_like(expected))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = voxel_attention(*constants, bins)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


def _of_operators() -> Iterator[Any]:
    for name in EXAMPLES:
        if any(kernel.name == "cuda" for kernel in get_operator(name).kernels):
            yield name


def _example_on(device: str, name: str) -> Arguments:
    (kernel,) = (k for k in get_operator(name).kernels if k.name == "cuda")
    return cast_arguments(name, next(iter(EXAMPLES[name].cases.values())), kernel.dtypes[0], device)


@pytest.mark.cuda
@pytest.mark.parametrize("name", list(_of_operators()))
def test_runs_on_the_current_stream(name: str) -> None:
    """What is computed behind a long sleep of another stream reads what that stream writes after the sleep."""
    require_library("cuda")
    arguments = _example_on("cuda", name)
    expected = run(name, overload(name), arguments)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # clock cycles
        for to, source in zip(late, arguments):
            if to is not source:
                to.copy_(source)
        results = run(name, overload(name), late)
    torch.cuda.synchronize()
    for result, exact in zip(results, expected):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5)  # atomics of interpolate's gradient


@pytest.mark.cuda
@pytest.mark.parametrize("name", list(_of_operators()))
def test_runs_on_the_second_device(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    require_library("cuda")
    expected = run(name, overload(name), _example_on("cuda:0", name))
    results = run(name, overload(name), _example_on("cuda:1", name))
    assert torch.cuda.current_device() == 0
    for result, exact in zip(results, expected):
        assert result.device == torch.device("cuda:1")
        torch.testing.assert_close(result.to("cuda:0"), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
def test_topology_equals_the_cpus() -> None:
    """Order, windows, voxels and maps to the last bit, on a cloud of many blocks."""
    require_library("cuda")
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(300_000, 3, generator=generator) * torch.tensor([6.0, 4.0, 0.3])
    offsets = torch.tensor([0, 100_000, 100_000, 300_000])
    results = {}
    for device in ("cpu", "cuda"):
        cloud = xyz.to(device), offsets.to(device), 0.05
        first = voxelize(*cloud)
        chosen = voxelize(*cloud, mode="random", generator=torch.Generator().manual_seed(1))
        windows = window_partition(first[0], 1, 7, shift=True)
        results[device] = [*first, *chosen, *windows, kernel_map(first[0], first[0], 1, 3)]
    for on_cpu, on_cuda in zip(results["cpu"], results["cuda"], strict=True):
        assert torch.equal(on_cpu, on_cuda.cpu())
