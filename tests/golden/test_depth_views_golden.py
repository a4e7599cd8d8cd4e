"""Depth maps and back-projection against every golden case that holds them, whatever else the case is of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from depth_views_golden import check_projection, check_views
from golden_cases import GoldenCase, case_paths

CHECKS = {"point_ops": check_projection, "i2p_mae": check_views}


@pytest.mark.skipif("GEO3D_GOLDEN" not in os.environ, reason="GEO3D_GOLDEN names no folder of golden cases")
@pytest.mark.parametrize("path", [p for p in case_paths() if GoldenCase.kind_of(p) in CHECKS], ids=lambda p: p.stem)
def test_depth_views_of_golden_cases(path: Path) -> None:
    case = GoldenCase.read(path)
    CHECKS[case.meta["kind"]](case)
