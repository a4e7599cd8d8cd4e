"""NeRF-MAE's tables: what its loader makes of a file, and its augmentation; each part is a check of its own."""

from __future__ import annotations

from pathlib import Path

from golden_cases import GoldenCase
from grid_tables_golden import check_augmentation, check_loading, check_opacity
from nerf_mae_golden import check_nerf_mae_network_tables

#: The checks of the parts of a case.
PARTS = (check_opacity, check_loading, check_augmentation, check_nerf_mae_network_tables)


def check_nerf_mae_tables(case: GoldenCase, folder: Path) -> None:
    """Run the check of every part of the case."""
    for check in PARTS:
        check(case, folder)
