"""Small scans that several commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
from corner_scans import write_corner
from geo3d_command import run


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """Eleven labelled scans of a floor and a wall."""
    root = tmp_path_factory.mktemp("scannet") / "scans"
    for number in range(11):
        write_corner(root, f"scene{number:04d}_00", number)
    return root


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    """The folder of a run of the recipe, and on the data, that the module names as ``FINISHED``, with its ``QUICK``."""
    recipe, data = request.module.FINISHED
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("pretrain", recipe, "--data", request.getfixturevalue(data), "--out", folder, *request.module.QUICK)
    return folder
