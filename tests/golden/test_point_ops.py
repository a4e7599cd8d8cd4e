"""The parts of golden cases of point operators that are there, while the kind waits for the rest of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from golden_cases import GoldenCase, case_paths
from point_ops_golden import PARTS


@pytest.mark.skipif("GEO3D_GOLDEN" not in os.environ, reason="GEO3D_GOLDEN does not name a folder of golden cases")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in case_paths() if GoldenCase.kind_of(p) == "point_ops"]
)
def test_part(path: Path, part: str) -> None:
    PARTS[part](GoldenCase.read(path))
