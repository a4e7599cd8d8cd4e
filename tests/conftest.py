"""Fixtures and rules that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_MAX_THREADS = 2  # enough for these sizes; more only makes timings and neighbours worse


def _folder_of(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder of {what}")
    folder = Path(value)
    assert folder.is_dir(), f"{variable}={value} is not a folder"
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real captures in their own formats, from GEO3D_TEST_DATA; skips where that is unset."""
    return _folder_of("GEO3D_TEST_DATA", "real captures")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Folder of golden numbers, from GEO3D_GOLDEN; skips where that is unset."""
    return _folder_of("GEO3D_GOLDEN", "golden numbers")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(torch.get_num_threads(), _MAX_THREADS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)
