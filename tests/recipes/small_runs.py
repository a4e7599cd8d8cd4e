"""Runs of every recipe that take a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from geo3d.datasets.pair_mining import PairOptions
from geo3d.recipes import Run, get_recipe, pretrain
from geo3d.train import TrainConfig, launch

_POINTS = ("groups=[16, 8, 4]", "neighbors=[4, 4, 2]", "dims=[12, 12, 24]", "embed_dim=8")
#: Recipe -> changes to the method of its preset ``tiny``.
SMALL: dict[str, dict[str, Any]] = {
    "classify": {"model": "i2p_mae_tiny", "points": 64, "model_options": _POINTS},
    "croco": {"image_size": (32, 32), "resized": 40},
    "depth": {"image_size": (32, 32), "resized": 40},
    "flow": {"image_size": (32, 48)},
    "i2p_mae": {"points": 300, "view_size": 64},
    "multiview": {"image_size": (32, 32), "resized": 40, "views": 3},
    "nerf_mae": {"side": 32},
    "detect": {"side": 32, "least_volume": 0.0},
    "segment": {"voxel_size": 0.2, "max_voxels": 200, "width": 16},
    "segment_grids": {"side": 32},
    "pointmaps": {"image_size": (32, 32), "further_sizes": ((16, 32), (24, 32))},
    "spark": {"image_size": (64, 64), "decoder_width": 32},
    "spark3d": {"voxel_size": 0.2, "max_voxels": 200, "decoder_width": 32, "decoder_context": 1},
    "stereo": {"image_size": (32, 48), "resized": 40},
    "swin3d": {"voxel_size": 0.2, "max_voxels": 200},
}
#: Recipe -> fixture of the small data that it reads, where this is not `rooms`.
DATA = {"stereo": "stereo_rooms"}
#: Recipe -> changes to its run.
RUNS: dict[str, dict[str, Any]] = {
    "croco": {"mining": PairOptions()},  # these rooms have few views, far from each other
    "multiview": {"mining": PairOptions()},
    "nerf_mae": {"grid_side": 32},
    "detect": {"grid_side": 32},
    "segment_grids": {"grid_side": 32},
}


def small_run(name: str, method: dict[str, Any] | None = None, **changes: Any) -> Run:
    """The preset ``tiny`` of a recipe with a small method, for two steps of two samples."""
    run = get_recipe(name).preset("tiny")
    train = TrainConfig(
        steps=2, batch_size=2, workers=0, lr=1e-3, warmup_steps=0, schedule="constant", log_every=1,
        accelerator="cpu", save_every_minutes=None, keep_last=9,
    )  # fmt: skip
    small = replace(run.method, **(SMALL[name] | (method or {})))
    changes = RUNS.get(name, {}) | changes
    return replace(run, **({"method": small, "train": train} | changes))


def records(folder: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl without what is measured by the clock."""
    clock = {"time", "seconds", "wait_seconds", "samples_per_second"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def two_processes(name: str, data: Path, out: Path, init: Path | None = None, strategy: str = "auto") -> str:
    """Run a recipe in two processes, a sample a process, measured after each step; what they said."""
    program = [__file__, name, str(data), str(out), str(init or ""), strategy]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*launcher, *program], capture_output=True, text=True, timeout=180, env=environment | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    """Run as ``small_runs.py NAME DATA OUT INIT STRATEGY``, see :func:`two_processes`."""
    name, data, out, init, strategy = sys.argv[1:]
    run = small_run(name, data=(Path(data),), out=Path(out), init=Path(init) if init else None, measure_every=1)
    run.train.batch_size, run.train.strategy = 1, strategy
    launch.SHARD_FROM = 1000  # so that blocks of these small networks are sharded too
    pretrain(name, run)


if __name__ == "__main__":
    main()
