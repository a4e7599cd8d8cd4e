"""A small furnished room that examples run on, as files of ScanNet."""

from __future__ import annotations

from pathlib import Path

from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic


def write_small_room(folder: Path, views: int = 4) -> Path:
    """One room with small photos and a coarse mesh; returns the folder that ``open_dataset`` opens."""
    config = SyntheticConfig(
        out=folder, scenes=1, objects=0, views=views, width=128, height=96, mesh_edge=0.15, workers=1
    )
    write_synthetic(config)
    return folder / "scannet"
