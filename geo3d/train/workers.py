"""How loader workers are started: as processes of their own, not as copies of the training process.

A copy (fork) holds whatever locks other threads held at that moment, and nobody who would release them: with threads of
BLAS, OpenMP, pycolmap or a logger at work, it may wait for ever. Workers are forked from a server with one thread
instead, or begun anew where the system has no such server; what they need is pickled.
"""

from __future__ import annotations

import ast
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from geo3d.errors import InputError

#: How long a worker goes on after SIGTERM unless the training process ends it.
SECONDS_TO_LIVE = 30


class Packed(Dataset):
    """A dataset as bytes, which each worker unpacks when it is first asked.

    Args:
        dataset: what is packed; parameters of networks that hang on to it travel without their values, but for frozen
            ones, such as a teacher's that samples are shown to.
        name: what to call it in messages.

    Raises:
        InputError: it cannot be pickled, or needs a script that would run again in every worker.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset: Dataset | None = None
        self._packed = _pack(dataset, name)
        self.needs_main = b"__main__" in self._packed
        if self.needs_main:
            _check_main(name)

    def __getitem__(self, key: Any) -> Any:
        if self._dataset is None:
            self._dataset = pickle.loads(self._packed)
        return self._dataset[key]


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter) and value.requires_grad:
            return _parameter_without_values, (tuple(value.shape), value.dtype)
        return NotImplemented


def _parameter_without_values(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _pack(dataset: Dataset, name: str) -> bytes:
    packed = io.BytesIO()
    try:
        _Pickler(packed, pickle.HIGHEST_PROTOCOL).dump(dataset)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"{name} cannot be sent to loader workers: {error}; define classes and functions in a module, "
            "or set train.workers to 0"
        ) from error
    return packed.getvalue()


def _check_main(name: str) -> None:
    """Refuse a script that defines what workers need and would train again when they import it."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:
        raise InputError(
            f"{name}: loader workers need what this session defines, and cannot import it: "
            "define it in a module, or set train.workers to 0"
        )
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError):
        return  # no source to tell it from
    if not any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(tree)):
        raise InputError(
            f"{path}: loader workers import this script, which defines what {name} needs, and would run it again: put "
            "what it does under `if __name__ == '__main__':`, define classes in a module, or set train.workers to 0"
        )


def worker_context() -> BaseContext:
    """How processes are started here."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    # Imported once, in the server. Takes effect where that does not run yet.
    found.set_forkserver_preload(["geo3d.worker_server", "geo3d.train.loader", "geo3d.methods"])
    return found


@contextmanager
def main_hidden(hidden: bool) -> Iterator[None]:
    """Processes that are started inside do not import the script that runs: it need not be guarded by ``__name__``."""
    main = sys.modules["__main__"]
    if hidden:
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def set_up_worker(worker: int) -> None:
    """One thread each, and slow to obey: a signal to the whole group must let the training process finish its step."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_LIVE))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The loader's own watch looks at the parent by its number, which here is the server's."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
