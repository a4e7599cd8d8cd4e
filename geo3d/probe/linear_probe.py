"""A checkpoint's features beside those of the same network with fresh weights, and beside what both are handed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from geo3d.datasets.rooms import SCENES_TO_SPARE, make_rooms, split_scenes
from geo3d.errors import InputError
from geo3d.models import create_model
from geo3d.probe.voxels import ProbeScore, VoxelProbe, input_features, network_features
from geo3d.progress import Log
from geo3d.samples.points import LabelledScenes


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Read the class of every voxel off frozen features by a linear map, and compare."""

    checkpoint: Path
    """Run folder of `pretrain.py`, one of its checkpoints, or the authors' file."""
    model: str | None = None
    """Network that the file holds; None: as it says itself, which the authors' files do not (`swin3d`)."""
    data: tuple[Path, ...] = ()
    """Folders of labelled scenes. None: the synthetic rooms that `pretrain.py` makes where it is given none."""
    test_data: tuple[Path, ...] = ()
    """Folders of scenes to measure on. None: those of `data` that a run of the same seed holds out."""
    rooms: int = 24
    """Synthetic rooms where `data` is empty (count); as in the run, so that the same ones are held out."""
    held_out: float = 0.1
    """Share of the scenes to measure on, where `test_data` is empty, of ten scenes or more; as in the run."""
    seed: int = 0
    """Seed of the rooms, of the split and of all draws; as in the run."""
    voxel_size: float | None = None
    """Edge of a voxel, metres; None: as the network was trained with."""
    voxels_per_scene: int = 1000
    """Labelled voxels of each training scene that are learnt from."""
    fresh: int = 1
    """Networks with fresh weights to compare with (count), of seeds that follow on `seed`."""
    device: str = "cpu"
    """Where the networks run, such as `cuda`."""
    out: Path | None = None
    """JSON file for the figures. None: they are only printed."""

    def __post_init__(self) -> None:
        for folder in (*self.data, *self.test_data):
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder; give the root of a dataset")
        for name in ("rooms", "voxels_per_scene", "fresh"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if self.voxel_size is not None and not self.voxel_size > 0:
            raise InputError(f"voxel_size must be positive, got {self.voxel_size}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"device {self.device!r} cannot be used here ({reason})") from error


def load_voxel_encoder(checkpoint: Path, name: str | None = None) -> nn.Module:
    """The network of a checkpoint, which must be one that has features of voxels.

    Args:
        checkpoint: as ``create_model`` takes it.
        name: of the model; what the file says when not given.

    Raises:
        InputError: no such checkpoint, a damaged one, one that does not say what it holds, or of other networks.
    """
    model = create_model(name, checkpoint=checkpoint)
    if model.kind != "voxels":
        raise InputError(
            f"{checkpoint}: {model.family} reads {model.kind}; give an encoder of voxels, such as a swin3d"
        )
    return model


def linear_probe(config: LinearProbe, log: Log = print) -> str:
    """Read out the checkpoint's features, those of fresh networks, and what they are handed.

    Returns:
        A table for people.

    Raises:
        InputError: checkpoint or scenes cannot be read, too few scenes, or scenes that lack what the network reads.
    """
    network = load_voxel_encoder(config.checkpoint, config.model)
    size = config.voxel_size or network.config.voxel_size
    train, held = _scenes(config, log)
    log(f"{len(train)} scenes to learn from, {len(held)} held out; voxels of {100 * size:g} cm")
    representations = {"checkpoint": network_features(network, config.device)}
    for seed in range(config.seed, config.seed + config.fresh):
        fresh = network.fresh(torch.Generator().manual_seed(seed))
        representations[f"fresh weights, seed {seed}"] = network_features(fresh, config.device)
    representations["input features"] = input_features(network.reads, size)
    probe = VoxelProbe(train, held, size, config.voxels_per_scene, config.seed, log)
    scores = probe.measure(representations)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({name: w.as_dict() for name, w in scores.items()}, indent=2) + "\n")
    return _table(scores)


def _scenes(config: LinearProbe, log: Log) -> tuple[LabelledScenes, LabelledScenes]:
    """Scenes to learn from, and those to measure on."""
    scenes = LabelledScenes.find(config.data or (make_rooms(config.rooms, config.seed, log),))
    if config.test_data:
        others = LabelledScenes.find(config.test_data)
        both = {scenes.describe(i) for i in range(len(scenes))} & {others.describe(i) for i in range(len(others))}
        if both:
            raise InputError(f"{min(both)} is among the scenes to learn from and among those to measure on")
        return scenes, others
    rows, held = split_scenes(scenes.group_count, config.held_out, config.seed)
    if len(held) == 0:
        raise InputError(
            f"{len(scenes)} scenes are too few to hold any out, which takes {SCENES_TO_SPARE}; "
            "give others to measure on as --test-data"
        )
    return scenes.of_groups(rows), scenes.of_groups(held)


def _table(scores: dict[str, ProbeScore]) -> str:
    """Rows of what was compared."""
    width = max(map(len, scores))
    lines = [f"{'':<{width}}  mean IoU  accuracy  features  penalty"]
    for name, w in scores.items():
        figures = f"{100 * w.miou:6.1f} %  {100 * w.accuracy:6.1f} %  {w.columns:8d}  {w.penalty:7.0e}"
        lines.append(f"{name:<{width}}  {figures}")
    first = next(iter(scores.values()))
    lines.append(f"over {first.voxels} held-out voxels; always the most frequent class: {100 * first.majority:.1f} %")
    return "\n".join(lines)


__all__ = ["LinearProbe", "linear_probe", "load_voxel_encoder"]
