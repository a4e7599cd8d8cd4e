"""What makes two calls the same run, so that one may continue what the other saved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from geo3d.errors import InputError
from geo3d.train.config import RESUMABLE_CHANGES, TrainConfig
from geo3d.train.order import StepPlan


def run_identity(config: TrainConfig, plan: StepPlan, run_config: dict[str, Any]) -> dict[str, Any]:
    """Plain values that say what a run is; they are kept in its checkpoints."""
    return {
        "train_config": json.loads(json.dumps(dataclasses.asdict(config))),
        "effective_batch": plan.effective_batch,
        "samples": plan.size,
        "run_config": run_config,
    }


def check_same_run(run_dir: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise :class:`InputError` naming what differs between two identities and would change the numbers.

    Fields that only one of them knows, since another version of geo3d wrote it, are not compared.
    """
    pairs = [(name, saved[name], now[name]) for name in ("effective_batch", "samples")]
    for prefix, before, after in (
        ("", saved["train_config"], now["train_config"]),
        ("method.", saved["run_config"].get("method", {}), now["run_config"].get("method", {})),
    ):
        names = [name for name in after if name in before and (prefix or name not in RESUMABLE_CHANGES)]
        pairs += [(prefix + name, before[name], after[name]) for name in names]
    changes = [f"{name} ({before} -> {after})" for name, before, after in pairs if before != after]
    if changes:
        raise InputError(
            f"{run_dir} holds a run with other settings: {', '.join(changes)}; "
            "set them back to continue it, or choose another run folder"
        )
