"""Small labelled scans, as ScanNet lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geo3d.viz.ply import write_ply

WALL, FLOOR = 1, 2  # nyu40 ids; classes 0 and 1


def write_corner(root: Path, name: str, seed: int) -> Path:
    """A labelled scan of a floor and a wall, 2 m a side, a vertex every 10 cm."""
    rng = np.random.default_rng(seed)
    u, v = (c.ravel() for c in np.meshgrid(np.linspace(0, 2, 21), np.linspace(0, 2, 21)))
    floor, wall = np.c_[u, v, 0 * u], np.c_[u, 0 * u + 2, v + 0.1]
    xyz = np.concatenate([floor, wall]) + rng.normal(0, 0.005, (2 * len(u), 3))
    row = np.arange(20)[:, None] * 21 + np.arange(20)
    squares = np.stack([row, row + 1, row + 22, row, row + 22, row + 21], -1).reshape(-1, 3)
    faces = np.concatenate([squares, squares + len(u)])
    label = np.repeat([FLOOR, WALL], len(u)).astype(np.uint16)
    gray = np.where(label == FLOOR, 80, 200).astype(np.uint8)
    folder = root / name
    folder.mkdir(parents=True)
    columns = {axis: xyz[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    columns |= dict.fromkeys(("red", "green", "blue"), gray)
    write_ply(folder / f"{name}_vh_clean_2.ply", columns, faces)
    write_ply(folder / f"{name}_vh_clean_2.labels.ply", columns | {"label": label}, faces)
    return folder
