"""Numbers that a change of structure must not change: `python tools/frozen.py write FILE` before, `compare FILE` after.

Of every registered model at a fixed seed: its weights and the features of all stages. Of every recipe's first preset:
the losses of 20 steps, and the weights after them. Compared bit for bit, so only on one machine and one torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import geo3d
from geo3d.cli import command_line
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.recipes import get_recipe, list_recipes, pretrain

COMMANDS = {"write": "write the numbers of this state to a file", "compare": "compare this state with a file"}
STEPS, OBJECTS = 20, 100


def digest(tensors: Iterable[Tensor]) -> str:
    """A fingerprint of shapes and bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def inputs() -> dict[str, Any]:
    """Kind of encoder -> something that it prepares."""
    rng = np.random.default_rng(0)
    xyz, colors, normals = (torch.from_numpy(rng.random((60, 3), dtype=np.float32)) for _ in range(3))
    cloud = PointCloud(xyz, colors, torch.nn.functional.normalize(normals, dim=1), offsets=torch.tensor([0, 59, 60]))
    return {"image": rng.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8), "voxels": cloud, "points": cloud}


@torch.no_grad()
def model_numbers(name: str) -> dict[str, str]:
    """Fingerprints of a model's weights and features."""
    model = geo3d.create_model(name, generator=torch.Generator().manual_seed(0))
    size = {"voxel_size": 0.1} if model.kind == "voxels" else {}
    features = model.features(model.prepare(inputs()[model.kind], **size))
    tensors = [feature if isinstance(feature, Tensor) else feature.feats for feature in features]
    return {"weights": digest(model.state_dict().values()), "features": digest(tensors)}


def recipe_numbers(name: str) -> dict[str, Any]:
    """Losses of the first steps of a recipe's first preset, and the weights after them."""
    run = get_recipe(name).preset(next(iter(get_recipe(name).presets)))
    run.train.steps, run.train.warmup_steps, run.train.log_every = STEPS, 5, 1
    if hasattr(run, "objects"):
        run.objects = OBJECTS
    with tempfile.TemporaryDirectory() as folder:
        run.out = Path(folder)
        result, _ = pretrain(name, run, log=lambda line: None)
        records = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
        content = geo3d.checkpoints.read_weight_file(result.checkpoint).content
    losses = [record["loss"] for record in records if "loss" in record]
    return {"losses": losses, "weights": digest(content[key] for key in sorted(content))}


def numbers() -> dict[str, Any]:
    """All numbers of this state."""
    found = {f"model {name}": model_numbers(name) for name in geo3d.list_models()}
    return found | {f"recipe {name}": recipe_numbers(name) for name in list_recipes()}


def main(args: list[str], program: str) -> None:
    """Write the numbers, or say which differ and exit with 1."""
    command, rest = command_line.choose(args, COMMANDS, program)
    if len(rest) != 1:
        raise InputError(f"{program} {command} takes one file")
    file = Path(rest[0])
    if command == "write":
        file.write_text(json.dumps(numbers(), indent=1) + "\n")
        return
    if not file.is_file():
        raise InputError(f"{file}: no such file; write it from the state to compare with")
    before, now = json.loads(file.read_text()), json.loads(json.dumps(numbers()))
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    for name in differing:
        parts = [part for part in before.get(name, {}) if before[name][part] != now.get(name, {}).get(part)]
        print(f"{name}: {', '.join(parts) or 'is new'} differ" if name in now else f"{name}: is gone")
    print(f"{len(before) - len(differing)} of {len(before)} are the same")
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, "frozen.py")
