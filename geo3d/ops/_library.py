"""Finds and loads the compiled libraries: when an operator first needs one, never at import."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import torch

DISABLING_VARIABLE = "GEO3D_NO_EXTENSION"
FOLDER_VARIABLE = "GEO3D_LIBRARY_FOLDER"
# What torch calls a processor -> instruction sets for which there is a library beside the default's, best first.
_INSTRUCTION_SETS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}


class ExtensionWarning(UserWarning):
    """A compiled library that could serve is not in use; the package works on, slower."""


def _names(device_type: str) -> tuple[str, ...]:
    """File names of the libraries for ``device_type``, the same on every system, best first."""
    name = f"libgeo3d_{device_type}"
    suffixes = _INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), ()) if device_type == "cpu" else ()
    return *(f"{name}_{suffix}.so" for suffix in suffixes), f"{name}.so"


def find_library(device_type: str) -> Path | None:
    """Where the library lies: in the folder that is named for it, a wheel or an editable install; None: nowhere."""
    import geo3d.ops

    # An editable install has two folders for one package: the sources, and what CMake installed.
    named = os.environ.get(FOLDER_VARIABLE)
    folders = [named] if named else geo3d.ops.__path__
    candidates = (Path(folder) / name for name in _names(device_type) for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def _load(device_type: str) -> str | None:
    if os.environ.get(DISABLING_VARIABLE, "0") not in ("", "0"):
        return f"{DISABLING_VARIABLE} is set"
    path = find_library(device_type)
    if path is None:
        named = os.environ.get(FOLDER_VARIABLE)
        missing = f"is not in {named}, which {FOLDER_VARIABLE} names" if named else "was not built"
        return f"library {_names(device_type)[-1]} {missing}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error.__cause__ or error}"
    return None


@cache
def why_not_loaded(device_type: str) -> str | None:
    """Load the library for ``device_type``, once a process; warn if that fails.

    Returns:
        None when its kernels can be called, otherwise the reason why not.
    """
    reason = _load(device_type)
    if reason is not None:
        warnings.warn(
            f"geo3d runs without compiled {device_type} kernels ({reason}): same results, slower. To build them: "
            "`make install` in a checkout, or pip install --no-build-isolation --no-deps --force-reinstall geo3d",
            ExtensionWarning,
            stacklevel=2,
        )
    return reason
