"""Errors that a person can mend: bad input, and an extra that is not installed."""

from __future__ import annotations

import difflib
import importlib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType


class InputError(ValueError):
    """Something that was handed in is wrong. The message is one line: what, where, why, what to do.

    Tools print it and exit with code 2; everything else is a bug and keeps its traceback.
    """


class MissingExtra(InputError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra."""


class NonCommercialWeights(UserWarning):
    """Weights were loaded that their authors license for non-commercial use alone.

    Silence it with ``warnings.simplefilter("ignore", geo3d.NonCommercialWeights)``.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of some known names, as the end of an error's line; empty where none is near.

    Args:
        name: what was asked for.
        known: what there is.
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: what to import, such as ``pyarrow``.
        extra: the extra of geo3d that brings it, such as ``parquet``.
        purpose: what it is needed for, for the message.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with _own_signals():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra(f"{purpose} needs {module}: pip install 'geo3d[{extra}]'") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Handlers stay in force: pycolmap takes SIGTERM for itself, and a run could not save when it is told to end."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if (handler := signal.getsignal(number)) is not None:  # None: not of Python's making
                    signal.signal(number, handler)
