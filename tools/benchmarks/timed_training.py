"""Trainings at equal time: what a step takes, and runs side by side in processes of one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from geo3d.recipes import Run, get_recipe, pretrain

Job = TypeVar("Job")
Result = TypeVar("Result")

_TIMED_STEPS = 6


def step_seconds(recipe: str, run: Run, source: Any) -> float:
    """Median CPU seconds of a training step, with the draws.

    Args:
        recipe: its name.
        run: its config.
        source: what samples come from.
    """
    method = get_recipe(recipe).build_method(run, source, torch.Generator().manual_seed(0))
    samples, batch, times = method.samples(source), run.train.batch_size, []
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    for step in range(_TIMED_STEPS):
        start = time.process_time()
        rows = [(step * batch + n) % len(samples) for n in range(batch)]
        drawn = [samples.draw(row, np.random.default_rng([step, row])) for row in rows]
        method(method.collate(drawn)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def no_log(_: str) -> None:
    """No line for people."""


def pretrained_croco(out: Path, seed: int, **changes: Any) -> Path:
    """A pre-training run of CroCo by its preset `tiny`, in the folder ``out``; what is there goes on or is done.

    Args:
        out: of the run.
        seed: of weights and order.
        changes: to the config of the run, such as its data.
    """
    one_thread()
    run = get_recipe("croco").preset("tiny")
    train = replace(run.train, seed=seed, workers=0, accelerator="cpu")
    pretrain("croco", replace(run, train=train, out=out, **changes), no_log)
    return out


def one_thread() -> None:
    """Have torch use one."""
    torch.set_num_threads(1)


def side_by_side(do: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """What ``do`` makes of jobs, in their order, in processes of one thread."""
    with ProcessPoolExecutor(processes, get_context("forkserver"), initializer=one_thread) as pool:
        yield from pool.map(do, jobs)


def mean_and_spread(values: Sequence[float]) -> str:
    """Shares as mean ± sample deviation, in per cent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} %"


__all__ = ["mean_and_spread", "no_log", "one_thread", "pretrained_croco", "side_by_side", "step_seconds"]
