"""A function run by two processes that know each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def _process(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    work(rank, folder)
    distributed.destroy_process_group()


def run_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """``work(rank, folder)`` in each of two processes; it must be importable by name."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, work, str(folder))) for rank in range(2)]
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
