"""Timing variants of one computation side by side, each in a process of its own.

A variant is a factory, importable by name, that returns a function to time. All variants are built first; then they
take turns, one call each, so that whatever slows the machine slows them all. Figures are medians over the turns.
"""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geo3d.errors import InputError


@dataclass
class Variant:
    """One contestant.

    Args:
        name: as it stands in the table.
        factory: ``module:function``; called with ``arguments``, returns the function to time, which may return a
            float to be compared between variants (a loss, a checksum).
        arguments: keyword arguments of the factory.
        dtype, device: for the table.
        threads: torch threads of its process.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1


def _peak_mb() -> float:
    """Highest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would remember the parent's, across exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
    while pipe.recv() == "go":
        start = time.perf_counter()
        value = step()
        if cuda:
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start, value))
    pipe.send(torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_mb() - before)


def race(case: str, variants: list[Variant], turns: int, warmup: int = 1) -> list[dict[str, Any]]:
    """Time variants in turn.

    Returns:
        One row a variant, in their order: ``case, variant, device, dtype, seconds`` (median of the turns), ``peak_mb``
        (of the process beyond what importing torch took, weights included) and ``value`` (what the step returned).
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
    values: dict[str, Any] = {}
    for turn in range(warmup + turns):
        for variant, _, pipe in running:
            pipe.send("go")
            elapsed, values[variant.name] = pipe.recv()
            if turn >= warmup:
                seconds[variant.name].append(elapsed)
    rows = []
    for variant, process, pipe in running:
        pipe.send("stop")
        peak = pipe.recv()
        process.join()
        rows.append(
            {
                "case": case,
                "variant": variant.name,
                "device": variant.device,
                "dtype": variant.dtype,
                "seconds": statistics.median(seconds[variant.name]),
                "peak_mb": peak,
                "value": values[variant.name],
            }
        )
    return rows
