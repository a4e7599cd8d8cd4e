"""Timing variants of one computation side by side, each in a process of its own; and the memory of a single call.

A variant is a factory, importable by name, that returns a function to time. All variants are built first; then they
take turns, one call each, so that whatever slows the machine slows them all. Figures are medians over the turns.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo3d.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_CLEAR_PEAK = "5"  # what resets VmHWM when it is written to /proc/self/clear_refs
_PROBES = 4  # random projections that two tensors are compared by: few differences are at right angles to all


@dataclass
class Variant:
    """One contestant.

    Args:
        name: as it stands in the table.
        factory: ``module:function``; called with ``arguments``, returns the function to time, which may return a
            float (a loss, a count) or tensors (its results).
        arguments: keyword arguments of the factory.
        dtype, device: for the table.
        threads: torch threads of its process.
        share: the part of the case's work that it does; its time is divided by that.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    share: float = 1.0


def _peak_mb() -> float:
    """Highest resident memory of this process so far, MiB."""
    if Path("/proc/self/status").exists():  # getrusage would remember the parent's, across exec
        return _status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def _summary(value: Any) -> Any:
    """Of tensors what tells them apart, for the way to another process: projections, and the norm, of each."""
    import torch

    if not isinstance(value, (list, tuple)):
        return value
    summary, generator = [], torch.Generator().manual_seed(0)
    for tensor in value:
        flat = tensor.detach().cpu().double().flatten()
        probes = (torch.randn(len(flat), generator=generator, dtype=torch.float64) for _ in range(_PROBES))
        summary.append(([float(flat @ probe) for probe in probes], float(flat.norm())))
    return summary


def _contestant(variant: Variant, pipe) -> None:
    import torch

    torch.set_num_threads(variant.threads)
    torch.manual_seed(0)
    before = _peak_mb()
    cuda = variant.device == "cuda"
    if cuda and not torch.cuda.is_available():
        pipe.send(InputError("there is no CUDA device here; run this benchmark with --device cpu"))
        return
    module, _, function = variant.factory.partition(":")
    try:
        step: Callable[[], float | None] = getattr(importlib.import_module(module), function)(**variant.arguments)
    except InputError as error:
        pipe.send(error)
        return
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    pipe.send("ready")
    value = None
    while pipe.recv() == "go":
        value = None  # the last turn's results take no memory beside this one's
        start = time.perf_counter()
        value = step()
        if cuda:
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_mb() - before
    pipe.send((peak, _summary(value)))


def race(
    case: str, variants: list[Variant], turns: int, warmup: int = 1, tolerance: float = 1e-4
) -> list[dict[str, Any]]:
    """Time variants in turn.

    Args:
        case: what they all do.
        variants: whose tensors, where they return some, must agree among those of the same share.
        turns: timed calls of each.
        warmup: calls of each before.
        tolerance: largest difference of two tensors, relative to their norm.

    Raises:
        RuntimeError: two variants compute different things.

    Returns:
        One row a variant, in their order: ``case, variant, device, dtype, seconds`` (median of the turns), ``peak_mb``
        (of the process beyond what importing torch took, weights included), ``value`` (what the step returned) and
        ``each`` (seconds of every turn).
    """
    context = multiprocessing.get_context("spawn")
    running = []
    for variant in variants:
        here, there = context.Pipe()
        process = context.Process(target=_contestant, args=(variant, there), daemon=True)
        process.start()
        there.close()
        answer = here.recv()
        if isinstance(answer, InputError):
            raise answer
        running.append((variant, process, here))
    seconds: dict[str, list[float]] = {v.name: [] for v in variants}
    for turn in range(warmup + turns):
        for variant, _, pipe in running:
            pipe.send("go")
            elapsed = pipe.recv()
            if turn >= warmup:
                seconds[variant.name].append(elapsed)
    rows = []
    for variant, process, pipe in running:
        pipe.send("stop")
        peak, value = pipe.recv()
        process.join()
        rows.append(
            {
                "case": case,
                "variant": variant.name,
                "device": variant.device,
                "dtype": variant.dtype,
                "seconds": statistics.median(seconds[variant.name]) / variant.share,
                "peak_mb": peak,
                "value": value,
                "each": seconds[variant.name],
            }
        )
    _compare(case, variants, [row["value"] for row in rows], tolerance)
    return rows


def _compare(case: str, variants: list[Variant], values: list[Any], tolerance: float) -> None:
    first: dict[float, tuple[str, Any]] = {}
    for variant, value in zip(variants, values, strict=True):
        if not isinstance(value, list):
            continue
        other, expected = first.setdefault(variant.share, (variant.name, value))
        for number, ((found, norm), (wanted, _)) in enumerate(zip(value, expected, strict=True)):
            worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
            if not worst <= tolerance * norm:
                raise RuntimeError(
                    f"{case}: {variant.name} and {other} compute different things: tensor {number} of norm {norm:.3g} "
                    f"differs by about {worst:.3g}"
                )


def _measure(factory: str, arguments: dict[str, Any], threads: int, pipe) -> None:
    import torch

    torch.set_num_threads(threads)
    module, _, function = factory.partition(":")
    small, call = getattr(importlib.import_module(module), function)(**arguments)
    small()  # whatever is loaded or started once is there
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still held would hide what the call takes
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    before = _status_mb("VmRSS")
    results: Sequence[Tensor] = call()
    held = sum(result.numel() * result.element_size() for result in results) / 2**20
    pipe.send(_status_mb("VmHWM") - before - held)


def extra_memory_mb(factory: str, arguments: dict[str, Any], threads: int) -> float | None:
    """What one call takes at its highest beyond its arguments and results, MiB, measured in a fresh process.

    Args:
        factory: ``module:function``; called with ``arguments``, returns two functions without arguments: a small call
            that warms up, and the call to measure, which returns its results.
        arguments: keyword arguments of the factory.
        threads: torch threads.

    Returns:
        None on a system other than Linux, which does not tell.
    """
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(factory, arguments, threads, there), daemon=True)
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found
