"""Runs of every recipe that take a second."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from geo3d.recipes import Run, get_recipe, pretrain
from geo3d.train import TrainConfig

#: Recipe -> changes to the method of its preset ``tiny``.
SMALL: dict[str, dict[str, Any]] = {
    "croco": {"image_size": (32, 32), "resized": 40},
    "spark": {"image_size": (64, 64), "decoder_width": 32},
    "spark3d": {"voxel_size": 0.2, "max_voxels": 200, "decoder_width": 32, "decoder_context": 1},
    "swin3d": {"voxel_size": 0.2, "max_voxels": 200},
}


def small_run(name: str, method: dict[str, Any] | None = None, **changes: Any) -> Run:
    """The preset ``tiny`` of a recipe with a small method, for two steps of two samples."""
    run = get_recipe(name).preset("tiny")
    train = TrainConfig(
        steps=2, batch_size=2, workers=0, lr=1e-3, warmup_steps=0, schedule="constant", log_every=1,
        accelerator="cpu", save_every_minutes=None, keep_last=9,
    )  # fmt: skip
    small = replace(run.method, **(SMALL[name] | (method or {})))
    return replace(run, **({"method": small, "train": train} | changes))


def records(folder: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl without what is measured by the clock."""
    clock = {"time", "seconds", "wait_seconds", "samples_per_second"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def main() -> None:
    """Run as ``small_runs.py NAME DATA OUT INIT``: a sample a process, measured after each step."""
    name, data, out, init = sys.argv[1], *map(Path, sys.argv[2:])
    run = small_run(name, data=(data,), out=out, init=init, measure_every=1)
    run.train.batch_size = 1
    pretrain(name, run)


if __name__ == "__main__":
    main()
