"""Small scans that several commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
from corner_scans import write_corner


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """Eleven labelled scans of a floor and a wall."""
    root = tmp_path_factory.mktemp("scannet") / "scans"
    for number in range(11):
        write_corner(root, f"scene{number:04d}_00", number)
    return root
