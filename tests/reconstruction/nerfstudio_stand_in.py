"""A stand-in for nerfstudio: as much as reading a run needs, with the interfaces of version 1.1.5.

Its ``eval_setup`` loads as that one does: YAML whose tags make Python objects, and ``torch.load`` by PyTorch's own
defaults. Fields are analytic, so that the grid of a run is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

_CHECKPOINT = "step-{:09d}.ckpt"


class FieldHeadNames(Enum):
    RGB = "rgb"
    DENSITY = "density"
    SDF = "sdf"


@dataclass
class Frustums:
    origins: Tensor
    directions: Tensor
    starts: Tensor
    ends: Tensor
    pixel_area: Tensor

    def get_positions(self) -> Tensor:
        return self.origins + self.directions * (self.starts + self.ends) / 2


@dataclass
class RaySamples:
    frustums: Frustums
    camera_indices: Tensor | None = None
    deltas: Tensor | None = None


@dataclass
class Cameras:
    """Values of V cameras; poses in OpenGL's axes, pixels counted from the picture's corner."""

    camera_to_worlds: Tensor
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor
    width: Tensor
    height: Tensor
    camera_type: Tensor
    distortion_params: Tensor | None = None


class BoxField(nn.Module):
    """An even box whose colour leans on the direction; its corners and density come from the checkpoint."""

    sees_density = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("corners", torch.zeros(2, 3))
        self.register_buffer("density", torch.zeros(()))
        self.asked: list[Tensor] = []

    def forward(self, samples: RaySamples) -> dict[FieldHeadNames, Tensor]:
        shape = samples.frustums.directions.shape
        assert len(shape) == 3, "TensoRF takes rays of samples alone"
        assert samples.camera_indices is not None
        assert samples.camera_indices.shape == (*shape[:-1], 1)
        torch.testing.assert_close(samples.deltas, samples.frustums.ends - samples.frustums.starts, atol=1e-5, rtol=0)
        places = samples.frustums.get_positions()
        inside = ((places > self.corners[0]) & (places < self.corners[1])).all(-1, keepdim=True)
        colours = 0.5 + 0.4 * samples.frustums.directions
        self.asked.append(samples.camera_indices.reshape(-1))
        found = {FieldHeadNames.RGB: colours, FieldHeadNames.DENSITY: self.density * inside}
        return found if self.sees_density else {FieldHeadNames.SDF: colours[..., :1], FieldHeadNames.RGB: colours}


class DistanceField(BoxField):
    sees_density = False


@dataclass
class StandInConfig:
    """What a run's ``config.yml`` holds, with the names of nerfstudio's."""

    method_name: str = "box"
    relative_model_dir: Path = Path("nerfstudio_models")
    output_dir: Path = Path("outputs")
    load_dir: Path | None = None
    pipeline: Any = None
    field: str = "field"
    kind: type = BoxField
    temporal_distortion: bool = False


@dataclass
class ParserConfig:
    data: Path = Path()


@dataclass
class ManagerConfig:
    data: Path | None = None
    dataparser: ParserConfig = field(default_factory=ParserConfig)


@dataclass
class PipelineConfig:
    datamanager: ManagerConfig = field(default_factory=ManagerConfig)


class Nerfstudio:
    """The dataparser of ``transforms.json``: poses turned, shifted and scaled, and what an earlier step applied."""

    def __init__(self, config: ParserConfig) -> None:
        self.config = config

    def outputs(self) -> SimpleNamespace:
        file = self.config.data if self.config.data.suffix == ".json" else self.config.data / "transforms.json"
        meta = json.loads(file.read_text())
        turned = torch.tensor(TURN, dtype=torch.float32)
        poses = torch.tensor([frame["transform_matrix"] for frame in meta["frames"]], dtype=torch.float32)
        poses = turned @ poses
        poses[:, :3, 3] *= SCALE
        transform = turned
        if "applied_transform" in meta:
            applied = torch.tensor([*meta["applied_transform"], [0, 0, 0, 1]], dtype=torch.float32)
            transform = turned @ applied
        count = len(poses)
        values = {key: torch.full((count, 1), float(meta[name])) for key, name in _SHARED.items()}
        sizes = {key: torch.full((count, 1), int(meta[name])) for key, name in (("width", "w"), ("height", "h"))}
        kind = torch.full((count, 1), 2 if meta.get("camera_model") == "OPENCV_FISHEYE" else 1)
        cameras = Cameras(poses[:, :3], **values, **sizes, camera_type=kind, distortion_params=torch.zeros(count, 6))
        return SimpleNamespace(
            image_filenames=[file.parent / frame["file_path"] for frame in meta["frames"]],
            cameras=cameras,
            dataparser_transform=transform[:3],
            dataparser_scale=SCALE * meta.get("applied_scale", 1.0),
        )


_SHARED = {"fx": "fl_x", "fy": "fl_y", "cx": "cx", "cy": "cy"}
#: What the dataparser does to the capture: a turn about an odd axis and a shift, and then a scale.
_AXIS = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
_CROSS = np.cross(np.eye(3), _AXIS)
_ROTATION = np.eye(3) + np.sin(0.7) * _CROSS + (1 - np.cos(0.7)) * _CROSS @ _CROSS
TURN = np.vstack([np.hstack([_ROTATION, [[0.4], [-1.1], [0.25]]]), [0, 0, 0, 1]])
SCALE = 0.37


def eval_setup(
    config_path: Path,
    eval_num_rays_per_chunk: int | None = None,
    test_mode: str = "test",
    update_config_callback: Callable[[StandInConfig], StandInConfig] | None = None,
) -> tuple[StandInConfig, SimpleNamespace, Path, int]:
    config = yaml.load(config_path.read_text(), Loader=yaml.Loader)
    assert isinstance(config, StandInConfig)
    if update_config_callback is not None:
        config = update_config_callback(config)
    config.load_dir = Path(config.output_dir / "box/box/time" / config.relative_model_dir)
    assert test_mode == "inference", "photos would be read"
    manager = config.pipeline.datamanager
    if manager.data is not None:
        manager.dataparser.data = Path(manager.data)
    parser = Nerfstudio(manager.dataparser)
    names = {} if not config.field else {config.field: config.kind()}
    model = SimpleNamespace(temporal_distortion=object() if config.temporal_distortion else None, **names)
    step = sorted(int(path.name[5:14]) for path in config.load_dir.iterdir())[-1]
    state = torch.load(config.load_dir / _CHECKPOINT.format(step), map_location="cpu")
    if config.field:
        names[config.field].load_state_dict(state["pipeline"])
    managed = SimpleNamespace(train_dataparser_outputs=parser.outputs(), dataparser=parser)
    return config, SimpleNamespace(model=model, datamanager=managed), config.load_dir, step


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it what ``import nerfstudio`` finds."""
    modules = {
        "nerfstudio": {},
        "nerfstudio.utils": {},
        "nerfstudio.utils.eval_utils": {"eval_setup": eval_setup},
        "nerfstudio.cameras": {},
        "nerfstudio.cameras.rays": {"Frustums": Frustums, "RaySamples": RaySamples},
        "nerfstudio.field_components": {},
        "nerfstudio.field_components.field_heads": {"FieldHeadNames": FieldHeadNames},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


def write_run(folder: Path, capture: Path, corners: np.ndarray, density: float, **config: Any) -> Path:
    """A run of the stand-in, as nerfstudio writes one; its field is a box.

    Args:
        folder: of the run.
        capture: folder of the photos.
        corners: (2, 3) of the box, in the field's frame.
        density: per length of the field's frame.
        **config: more of :class:`StandInConfig`.
    """
    (folder / "nerfstudio_models").mkdir(parents=True)
    managed = ManagerConfig(data=capture)
    (folder / "config.yml").write_text(yaml.dump(StandInConfig(pipeline=PipelineConfig(managed), **config)))
    state = {"corners": torch.from_numpy(corners).float(), "density": torch.tensor(float(density))}
    # nerfstudio's schedules leave a number of numpy's in the checkpoint, which PyTorch since 2.6 refuses by default.
    content = {"step": 7, "pipeline": state, "schedulers": {"last_lr": [np.float64(0.01)]}}
    torch.save(content, folder / "nerfstudio_models" / _CHECKPOINT.format(7))
    return folder
