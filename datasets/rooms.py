"""What recipes and probes share: synthetic rooms where no data is given, and scenes kept out of training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from geo3d.errors import InputError
from geo3d.progress import Log, progress_line
from geo3d.random import Stream, stream_generator

SYNTHETIC = Path("data") / "synthetic"
#: With fewer scenes than this none is held out: the report then tells of training scenes, and says so.
SCENES_TO_SPARE = 10


def rooms_folder(rooms: int, seed: int) -> Path:
    """Where :func:`make_rooms` puts its scans."""
    return SYNTHETIC / f"rooms_{rooms}_seed_{seed}" / "scannet"


def make_rooms(rooms: int, seed: int, log: Log) -> Path:
    """Make synthetic rooms, or find those made before; returns the folder of their scans."""
    from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

    scans = rooms_folder(rooms, seed)
    log(f"making {rooms} synthetic rooms in {scans.parent}")
    config = SyntheticConfig(out=scans.parent, scenes=rooms, objects=0, seed=seed)
    log(write_synthetic(config, progress_line("room")).report())
    return scans


def pairs_folder(task: Literal["stereo", "flow"], rooms: int, seed: int) -> Path:
    """Where :func:`make_pairs` puts its rooms."""
    return SYNTHETIC / f"{task}_{rooms}_seed_{seed}"


def make_pairs(task: Literal["stereo", "flow"], rooms: int, seed: int, log: Log) -> Path:
    """Make pairs with disparity or flow in synthetic rooms, or find those made before; returns their folder."""
    from geo3d.datasets.synthetic.stereo_flow import StereoFlowConfig, write_stereo_flow

    folder = pairs_folder(task, rooms, seed)
    log(f"making {task} pairs of {rooms} synthetic rooms in {folder}")
    config = StereoFlowConfig(out=folder, task=task, scenes=rooms, seed=seed)
    log(write_stereo_flow(config, progress_line("room")).report())
    return folder


def split_scenes(scenes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes to train on, and those held out: none where there are too few to spare any.

    Args:
        scenes: how many there are, or other groups of samples that are held out together, such as photographs; of
            fewer than :data:`SCENES_TO_SPARE` none is spared.
        share: of them to hold out, 0 to 1.
        seed: of the run.

    Returns:
        Two ascending arrays of scene numbers.

    Raises:
        InputError: the share leaves no scene to train on.
    """
    every = np.arange(scenes)
    if share == 0 or scenes < SCENES_TO_SPARE:
        return every, every[:0]
    count = max(1, round(share * scenes))
    if count == scenes:
        raise InputError(f"held_out {share} leaves none of {scenes} scenes to train on; make it smaller")
    held = np.sort(stream_generator(seed, Stream.HOLD_OUT).permutation(scenes)[:count])
    return np.setdiff1d(every, held), held
