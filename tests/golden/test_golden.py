"""Every golden case in ``$GEO3D_GOLDEN`` against the package: another case dropped there is tested as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from croco_downstream_golden import check_croco_dpt, check_stereoflow_losses
from croco_golden import check_croco, check_rope2d
from dust3r_geometry_golden import check_dust3r_geometry
from dust3r_golden import check_dust3r
from golden_cases import GoldenCase, case_paths
from i2p_mae_golden import check_classifier, check_i2p_mae
from nerf_mae_downstream_golden import check_nerf_mae_fpn, check_nerf_mae_semantic
from nerf_mae_golden import check_nerf_mae
from nerf_mae_tables_golden import check_nerf_mae_tables
from point_ops_golden import check_point_ops
from spark_golden import check_spark, check_spark_encoder
from swin3d_golden import check_swin3d
from swin3d_windows_golden import check_window_partition
from tiles_golden import check_tiled_prediction
from voxel_attention_golden import check_voxel_attention

#: kind -> the check of a case of that kind.
CHECKS = {
    "croco": check_croco,
    "croco_dpt": check_croco_dpt,
    "dust3r": check_dust3r,
    "dust3r_geometry": check_dust3r_geometry,
    "i2p_mae": check_i2p_mae,
    "i2p_mae_classifier": check_classifier,
    "mast3r": check_dust3r,
    "nerf_mae": check_nerf_mae,
    "nerf_mae_fpn": check_nerf_mae_fpn,
    "nerf_mae_semantic": check_nerf_mae_semantic,
    "nerf_mae_tables": check_nerf_mae_tables,
    "point_ops": check_point_ops,
    "rope2d": check_rope2d,
    "spark": check_spark,
    "spark_encoder": check_spark_encoder,
    "stereoflow_losses": check_stereoflow_losses,
    "swin3d": check_swin3d,
    "tiled_prediction": check_tiled_prediction,
    "voxel_attention": check_voxel_attention,
    "window_partition": check_window_partition,
}

#: Kinds whose models are still to come; a case of theirs must fail until its check exists above.
LATER = {}


def _parameter(path: Path):
    kind = GoldenCase.kind_of(path)
    marks = [pytest.mark.xfail(strict=True, reason=f"{kind}: {LATER[kind]}")] if kind in LATER else []
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.skipif("GEO3D_GOLDEN" not in os.environ, reason="GEO3D_GOLDEN does not name a folder of golden cases")
@pytest.mark.parametrize("path", [_parameter(path) for path in case_paths()])
def test_golden(path: Path, tmp_path: Path) -> None:
    case = GoldenCase.read(path)
    kind = case.meta["kind"]
    check = CHECKS.get(kind)
    assert check is not None, f"{path.name}: no check for cases of kind {kind!r}"
    check(case, tmp_path)


@pytest.mark.skipif("GEO3D_GOLDEN" not in os.environ, reason="GEO3D_GOLDEN does not name a folder of golden cases")
def test_golden_folder_holds_cases() -> None:
    assert case_paths(), "GEO3D_GOLDEN is set but its public/ folder holds no case"


def test_golden_kinds_are_listed_once() -> None:
    assert not CHECKS.keys() & LATER.keys()
