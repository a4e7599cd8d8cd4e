"""Writing files such that a crash at any moment leaves the old one or the new one whole, and a failure is one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from geo3d.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".unfinished-"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Context in which a file or folder is written.

    Raises:
        InputError: it cannot be: the disk is full, nothing may be written there, or something else is in its place.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise InputError(
            f"{path}: cannot be written ({reason}); make room or give another place, what was there is as it was"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block succeeds, and vanishes when it does not.

    Where ``path`` is a device or a pipe, such as ``/dev/stdout``, it is that which is written.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            raise InputError(f"{path}: cannot be written (it is a folder); give the name of a file")
        if path.exists() and not path.is_file():
            yield path
            return
        temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
        try:
            yield temporary
            to_disk(temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        to_disk(path.parent)


def prepare_place(path: Path) -> Path:
    """Make the folders above a file that is to be written, so that a wrong place is told before the work.

    Raises:
        InputError: nothing can be written there.
    """
    with writing(path):
        if path.is_dir() or not path.name:
            raise InputError(f"{path}: cannot be written (it is a folder); give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def write_text(path: Path, text: str) -> None:
    """Replace a file's content; raises as :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_torch(path: Path, value: Any) -> None:
    """``torch.save``, through a file of Python's, whose errors tell why nothing more can be written."""
    import torch

    with path.open("wb") as file:
        torch.save(value, file)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """``safetensors.torch.save_file``, which writes a file of its own beside ``path`` first."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata)


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    """Delete a temporary file if there is one; where it cannot be, it could not be made either."""
    try:
        temporary.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return


def _reason(error: BaseException | None) -> str | None:
    """Why something could not be written, in the system's words; None where an error is of another kind."""
    while error is not None:
        if isinstance(error, FileExistsError | NotADirectoryError):
            return f"{error.filename or 'what is above it'} is a file, where a folder should be"
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, SafetensorError):
            told = re.search(r"I/O error: (.*?)(?: \(os error \d+\)|$)", str(error))
            return told[1] if told else str(error)
        error = error.__context__
    return None


__all__ = [
    "UNFINISHED",
    "prepare_place",
    "replacing",
    "to_disk",
    "write_tensors",
    "write_text",
    "write_torch",
    "writing",
]
