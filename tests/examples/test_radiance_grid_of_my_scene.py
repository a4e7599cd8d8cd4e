"""The example that makes a radiance grid of a scene of one's own: run on a small capture."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, BoxScene, orbit
from PIL import Image

from geo3d.datasets import read_grid
from geo3d.geometry import Camera
from geo3d.reconstruction.radiance_config import RadianceFieldConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "radiance_grid_of_my_scene.py"


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Photos of boxes, as nerfstudio and instant-ngp have them."""
    scene = BoxScene(orbit(12, 40.0), BOXES, camera=Camera.from_fov(24, 18, 1.2))
    root, camera, frames = tmp_path / "boxes", scene.camera(0), []
    root.mkdir()
    for view in range(12):
        Image.fromarray(np.array(scene.image(view))).save(root / f"{view}.png")
        pose = scene.pose(view) @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"{view}.png", "transform_matrix": pose.tolist()})
    shared = {"w": 24, "h": 18, "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx + 0.5, "cy": camera.cy + 0.5}
    (root / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
    return root


def test_the_example_makes_a_grid_and_its_pictures(capture: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    config = RadianceFieldConfig(steps=12, longest_side=24, rays=512)
    grid = example["make_grid"](str(capture), tmp_path / "out", config)
    assert 16 <= max(grid.sides) <= 24
    written = read_grid(tmp_path / "out" / "grid.npz")
    assert written.sides == grid.sides
    torch.testing.assert_close(written.rgb, grid.rgb.clamp(0, 1), atol=1e-3, rtol=0)  # float16
    picture = np.asarray(Image.open(tmp_path / "out" / "photo_and_field.png"))
    assert picture.shape == (18, 3 * 28, 3)  # photo, colours, depth, each with a margin of 4
    with Image.open(capture / "0.png") as photo:
        np.testing.assert_array_equal(picture[:, :24], np.asarray(photo))
    assert Image.open(tmp_path / "out" / "slices.png").width == sum(
        side + 4 for side in (grid.sides[1], grid.sides[0], grid.sides[0])
    )


def test_a_folder_without_poses_is_told(tmp_path: Path) -> None:
    (tmp_path / "cloud.xyz").write_text("0 0 0\n1 0 0\n")
    example = runpy.run_path(str(EXAMPLE))
    with pytest.raises(SystemExit, match="none of its scenes has photos with poses"):
        example["make_grid"](str(tmp_path), tmp_path / "out", RadianceFieldConfig(steps=1))
