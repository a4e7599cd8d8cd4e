"""Grids of nerfstudio's own models, made by nerfstudio itself; where it is installed (tried with 1.1.5)."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic_scenes import look_at
from PIL import Image

from geo3d.errors import InputError
from geo3d.reconstruction.nerfstudio import NerfstudioRun, load_run, nerfstudio_grid

pytest.importorskip("nerfstudio", reason="nerfstudio is not installed: an environment of its own has it")

_CENTRE, _HALF = np.array([3.0, -2.0, 1.2]), np.array([0.5, 0.4, 0.3])
_SIZE, _FOCAL = 16, 12.0
_APPLIED = [[0.0, 1.0, 0.0, 0.5], [1.0, 0.0, 0.0, -1.0], [0.0, 0.0, -1.0, 0.25]]


class _NoMetric(torch.nn.Module):
    """In place of a metric whose weights would be fetched from the net."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lpip = pytest.importorskip("torchmetrics.image.lpip")
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", _NoMetric)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "capture"
    (root / "images").mkdir(parents=True)
    frames = []
    for view in range(10):
        turn = 2 * np.pi * view / 10
        eye = _CENTRE + np.array([2.1 * np.cos(turn), 1.9 * np.sin(turn), 0.4 + 0.05 * view])
        pose = look_at(eye, _CENTRE) @ np.diag([1.0, -1, -1, 1])
        Image.new("RGB", (_SIZE, _SIZE), (25 * view, 90, 40)).save(root / f"images/{view}.png")
        frames.append({"file_path": f"images/{view}.png", "transform_matrix": pose.tolist()})
    shared = {"w": _SIZE, "h": _SIZE, "fl_x": _FOCAL, "fl_y": _FOCAL, "cx": _SIZE / 2, "cy": _SIZE / 2}
    content = {**shared, "camera_model": "OPENCV", "applied_transform": _APPLIED, "frames": frames}
    (root / "transforms.json").write_text(json.dumps(content))
    return root


def _make_run(method: str) -> Path:
    """A run of random weights, written as nerfstudio's trainer writes one, with paths relative to where it was made."""
    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    config = deepcopy(method_configs[method])
    config.experiment_name, config.timestamp = "box", "time"
    config.data = config.pipeline.datamanager.data = Path("capture")
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    if method == "nerfacto":
        config.pipeline.model.implementation = "torch"
        config.pipeline.model.log2_hashmap_size = 12
        config.pipeline.model.max_res = 128
        config.pipeline.model.average_init_density = 1.0
    config.save_config()
    torch.manual_seed(0)
    pipeline = deepcopy(config).pipeline.setup(device="cpu", test_mode="inference")
    generator = torch.Generator().manual_seed(0)
    for name in ("field", "field_fine"):
        for value in getattr(getattr(pipeline.model, name, None), "parameters", list)():
            with torch.no_grad():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    folder = config.get_checkpoint_dir()
    folder.mkdir(parents=True)
    # The learning rate as ExponentialDecayScheduler computes it: a number of numpy's.
    content = {"step": 3, "pipeline": pipeline.state_dict(), "schedulers": {"fields": {"_last_lr": [np.float64(0.01)]}}}
    torch.save(content, folder / "step-000000003.ckpt")
    return folder.parent


def _similarity(run: NerfstudioRun, capture: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Turn, shift and scale from the file's world to the field's frame, of the poses on both sides alone."""
    frames = json.loads((capture / "transforms.json").read_text())["frames"]
    outside = {Path(frame["file_path"]).name: np.array(frame["transform_matrix"]) for frame in frames}
    world = np.stack([outside[Path(name).name] for name in run.names])
    inside = run.cameras.camera_to_worlds.double().numpy()
    turn = inside[0, :, :3] @ world[0, :3, :3].T
    scale = np.linalg.norm(inside[0, :, 3] - inside[5, :, 3]) / np.linalg.norm(world[0, :3, 3] - world[5, :3, 3])
    return turn, inside[0, :, 3] - scale * turn @ world[0, :3, 3], float(scale)


@pytest.mark.parametrize("method", ["nerfacto", "vanilla-nerf", "tensorf"])
def test_the_grid_is_what_the_field_says(capture: Path, method: str) -> None:
    from nerfstudio.cameras.rays import Frustums, RaySamples
    from nerfstudio.field_components.field_heads import FieldHeadNames

    path = _make_run(method)
    run = load_run(path, trust=True)
    grid = run.grid(_CENTRE - _HALF, _CENTRE + _HALF, 8, least_opacity=0, samples=300)
    assert grid.sides == (8, 6, 4)
    assert float(grid.opacity.max()) > 0.001
    turn, shift, scale = _similarity(run, capture)
    centres = grid.centres().reshape(-1, 3).numpy()
    places = torch.from_numpy(scale * centres @ turn.T + shift).float()
    eyes = run.cameras.camera_to_worlds[:, :, 3]
    # Cameras 2 m away see all of a box of 1 m by a picture of 67 degrees.
    to = (places[:, None] - eyes).float()
    zeros = torch.zeros(*to.shape[:2], 1)
    frustums = Frustums(
        origins=places[:, None].expand_as(to).contiguous(),
        directions=torch.nn.functional.normalize(to, dim=-1),
        starts=zeros,
        ends=zeros,
        pixel_area=zeros + 1,
    )
    numbers = torch.arange(len(eyes)).expand(len(places), -1).unsqueeze(-1).contiguous()
    with torch.no_grad():
        outputs = run.field(RaySamples(frustums=frustums, camera_indices=numbers))
    density, rgb = outputs[FieldHeadNames.DENSITY], outputs[FieldHeadNames.RGB]
    side = float(grid.voxel.mean()) * scale
    opacity = 1 - torch.exp(-density[:, 0, 0].double() * side)
    torch.testing.assert_close(grid.opacity.reshape(-1).double(), opacity, atol=_ATOL, rtol=0)
    torch.testing.assert_close(grid.rgb.reshape(-1, 3), rgb.clamp(0, 1).mean(1), atol=_ATOL, rtol=0)
    assert float(grid.rgb.std()) > 1e-3


#: Places differ by float32's rounding (2e-7), which features of up to 2^8 periods (NeRF) make 1e-4.
_ATOL = 1e-3


def test_the_world_is_that_of_the_file(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _make_run("nerfacto").absolute()
    monkeypatch.chdir("/")  # the paths in the run's file are relative to where it was trained
    with pytest.raises(InputError, match="its capture capture is not there"):
        load_run(path, trust=True)
    run = load_run(path, trust=True, capture=capture)
    frames = json.loads((capture / "transforms.json").read_text())["frames"]
    outside = {Path(frame["file_path"]).name: np.array(frame["transform_matrix"]) for frame in frames}
    world = np.stack([outside[Path(name).name] for name in run.names]) @ np.diag([1.0, -1, -1, 1])
    assert len(world) == 9  # nerfstudio keeps a tenth to evaluate
    np.testing.assert_allclose(run.poses, world, atol=5e-6)  # nerfstudio's poses are float32
    up = run.upright().poses[:, :3, 1].mean(0)
    np.testing.assert_allclose(up / np.linalg.norm(up), [0, 0, -1], atol=0.05)  # but for the tenth camera


def test_integrated_encodings_are_met_with_whole_samples(capture: Path) -> None:
    grid = nerfstudio_grid(_make_run("mipnerf"), _CENTRE - _HALF, _CENTRE + _HALF, 8, trust=True, least_opacity=0)
    assert bool(torch.isfinite(grid.values).all())
    assert float(grid.opacity.std()) > 0


def test_gaussians_are_refused(capture: Path) -> None:
    path = _make_run("splatfacto")
    with pytest.raises(InputError, match="SplatfactoModel has no field of density and colour"):
        nerfstudio_grid(path, _CENTRE - _HALF, _CENTRE + _HALF, 8, trust=True)
