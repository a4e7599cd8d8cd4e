"""Finds and loads the compiled libraries, at the first call of an operator and never at import."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import torch

DISABLING_VARIABLE = "GEO3D_NO_EXTENSION"


class ExtensionWarning(UserWarning):
    """A compiled library is not in use where it could be; the package works on, slower."""


def library_name(device_type: str) -> str:
    """File name of the library that holds the kernels for ``device_type``; the same on every system."""
    return f"libgeo3d_{device_type}.so"


def find_library(device_type: str) -> Path | None:
    """Where the library lies, in a wheel or in an editable install; None where it was not built."""
    import geo3d.ops

    # An editable install has two folders for one package: the sources and what CMake installed.
    candidates = (Path(folder) / library_name(device_type) for folder in geo3d.ops.__path__)
    return next((path for path in candidates if path.is_file()), None)


@cache
def why_not_loaded(device_type: str) -> str | None:
    """Load the library for ``device_type`` unless that was tried before.

    Returns:
        None when its kernels can be called, otherwise the reason why not.
    """
    if os.environ.get(DISABLING_VARIABLE, "0") not in ("", "0"):
        return f"{DISABLING_VARIABLE} is set"
    if device_type == "cuda" and torch.version.cuda is None:
        return "this torch was built without CUDA"
    path = find_library(device_type)
    if path is None:
        return f"{library_name(device_type)} was not built"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path} does not load: {error}"
    return None


@cache
def warn_once(device_type: str, reason: str) -> None:
    """Say once a process that tensors on ``device_type`` go the slower way, and what to do about it."""
    warnings.warn(
        f"geo3d runs without its compiled kernels for {device_type} ({reason}): results are the same, speed is not. "
        "To build them: pip install --no-build-isolation --force-reinstall --no-deps geo3d (or its checkout); "
        "see docs/building.md",
        ExtensionWarning,
        stacklevel=2,
    )
