"""A network over points that is no more than statistics and a random layer, and objects that it tells apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geo3d
from geo3d.models import Family, StageInfo, registry


@dataclass(frozen=True)
class StatisticsConfig:
    """Sizes of the network of statistics."""

    width: int = 12
    """Features of a cloud; twice as many where two poolings are joined."""


class Statistics(geo3d.Encoder):
    """Random directions of points and of their squares, pooled."""

    family = "statistics"
    kind = "points"

    def __init__(self, config: StatisticsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(6, config.width)
        nn.init.normal_(self.layer.weight, generator=generator)
        nn.init.zeros_(self.layer.bias)

    @property
    def feature_info(self) -> list[StageInfo]:
        return [StageInfo("points", self.config.width, 1)]

    def prepare(self, clouds: Sequence[Tensor]) -> list[Tensor]:
        assert all(cloud.shape[1:] == (3,) and cloud.dtype == torch.float32 for cloud in clouds)
        assert not torch.is_grad_enabled()
        assert not self.training
        return [cloud.to(self.device) for cloud in clouds]

    def features(self, inputs: Any, layers: Sequence[int | str] | None = None) -> list[Any]:
        return [[self.layer(torch.cat([xyz, xyz.square()], 1)).relu() for xyz in inputs]]

    def pooled(self, inputs: Any, pooling: str = "max") -> Tensor:
        (tokens,) = self.features(inputs)
        pools = {"max": lambda t: t.amax(0), "mean": lambda t: t.mean(0)}
        return torch.stack([torch.cat([pools[name](t) for name in pooling.split("+")]) for t in tokens])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of thousands of small operations, which more threads make no faster, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def statistics(monkeypatch, tmp_path: Path, one_thread) -> Path:
    """A checkpoint of the network of statistics, whose family is known while a test runs."""
    for table in ("_FAMILIES", "_MODELS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    presets = {"statistics": StatisticsConfig()}
    geo3d.models.register_family(Family("statistics", "none", Statistics, StatisticsConfig, presets))
    path = tmp_path / "statistics.safetensors"
    geo3d.save_model(geo3d.create_model("statistics", generator=torch.Generator().manual_seed(3)), path)
    return path


def _write_objects(folder: Path, classes: Sequence[str] = ("stick", "plate", "ball"), count: int = 6) -> Path:
    """Sticks, plates and balls along the axes, 300 points each, as one file of labelled clouds."""
    rng = np.random.default_rng(8)
    shapes = {"stick": (0.1, 0.1, 2), "plate": (2, 2, 0.1), "ball": (1, 1, 1)}
    label = np.repeat(np.arange(len(classes)), count)
    scale = np.array([shapes[name] for name in classes])[label] * rng.uniform(0.8, 1.2, (len(label), 3))
    direction = rng.normal(size=(len(label), 300, 3))
    points = direction / np.linalg.norm(direction, axis=2, keepdims=True) * scale[:, None] + [5, -3, 1]
    folder.mkdir(exist_ok=True)
    np.savez(folder / "objects.npz", points=points.astype(np.float32), label=label, classes=np.array(classes))
    return folder


@pytest.fixture
def write_objects() -> Callable[..., Path]:
    """Writes sticks, plates and balls into a folder: ``write_objects(folder, classes, count)``."""
    return _write_objects


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Eighteen objects of three classes."""
    return _write_objects(tmp_path / "objects")
