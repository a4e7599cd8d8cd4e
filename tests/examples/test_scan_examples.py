"""The examples of fine-tuning on own labels and of an Open3D viewer, run on small clouds."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geo3d
from geo3d.viz.points import write_points

EXAMPLES = Path(__file__).parents[2] / "examples"
TUNE, VIEWER = EXAMPLES / "fine_tune_on_own_labels.py", EXAMPLES / "open3d_viewer.py"


def scan(seed: int) -> geo3d.PointCloud:
    """A floor (0), a wall (1) and a box (2) on the floor, each of a colour of its own; some points without a label."""
    rng = np.random.default_rng(seed)
    floor = np.c_[rng.uniform(0, 2, (900, 2)), np.zeros(900)]
    wall = np.c_[rng.uniform(0, 2, 600), np.full(600, 2.0), rng.uniform(0, 1.2, 600)]
    box = np.c_[rng.uniform(0.5, 1, (500, 2)), np.full(500, 0.4)]
    labels = np.repeat([0, 1, 2], [900, 600, 500])
    colors = np.array([[0.5, 0.4, 0.3], [0.8, 0.8, 0.7], [0.2, 0.3, 0.7]])[labels] + rng.normal(0, 0.03, (2000, 3))
    normals = np.array([[0, 0, 1], [0, -1, 0], [0, 0, 1]])[labels]
    labels[::10] = -1
    columns = (np.concatenate([floor, wall, box]), colors.clip(0, 1), normals)
    return geo3d.PointCloud(*(torch.from_numpy(c.astype(np.float32)) for c in columns), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    geo3d.save_model(geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(3)), file)
    return file


def test_fine_tuning(tmp_path, monkeypatch, capsys, encoder_file):
    scans, out = tmp_path / "scans", tmp_path / "tuned"
    scans.mkdir()
    (scans / "classes.txt").write_text("floor\nwall\nbox\n")
    for number in range(10):
        np.savez(scans / f"{number}.npz", **scan(number).to_numpy())
    (scans / "3.npz").unlink()
    cloud = scan(3)
    write_points(scans / "3.ply", cloud, **{f"n{axis}": cloud.normals[:, i].numpy() for i, axis in enumerate("xyz")},
                 label=cloud.semantic.numpy().astype(np.int16))  # fmt: skip
    options = ["--encoder", encoder_file, "--steps", 4, "--out", out, "--labels", 0.5]
    monkeypatch.setattr("sys.argv", [str(TUNE), str(scans), *map(str, options)])
    runpy.run_path(str(TUNE), run_name="__main__")
    *_, scores, last = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"pre-trained weights: mean IoU (.+)%, fresh weights: mean IoU (.+)%", scores).groups()
    assert all(0 <= float(miou) <= 100 for miou in found)
    assert last == f"voxel_segmenter of 3 classes around sparse_resnet_tiny: {out}/pre-trained"
    tuned, before = geo3d.load_encoder(out / "pre-trained"), geo3d.load_encoder(encoder_file)
    assert not torch.equal(tuned(cloud).pooled, before(cloud).pooled)
    assert np.asarray(Image.open(out / "pre-trained" / "segmentation.png")).std() > 20
    (scans / "classes.txt").unlink()
    with pytest.raises(geo3d.InputError, match="classes"):
        runpy.run_path(str(TUNE), run_name="__main__")


def test_the_viewer_without_a_display(tmp_path, encoder_file):
    pytest.importorskip("open3d", reason="needs Open3D")
    write_points(tmp_path / "scan.ply", scan(0))
    picture = tmp_path / "view.png"
    # In a process of its own: what Open3D's renderer does to a process that cannot draw stays there.
    options = ["--encoder", encoder_file, "--screenshot", picture, "--point", 0.75, 0.75, 0.4]
    command = [sys.executable, str(VIEWER), str(tmp_path / "scan.ply"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode < 0 or ("Vulkan" in done.stderr + done.stdout and not picture.exists()):
        pytest.skip(f"Open3D cannot draw here without a display: {(done.stderr or done.stdout)[-200:]}")
    assert done.returncode == 0, done.stderr
    assert "2000 points, 304 channels, filled in: {'normals'" in done.stdout
    assert re.search(r"point \d+ at 0.7\d, 0.7\d, 0.40 m: \d+ points with a cosine above 0.8", done.stdout)
    pixels = np.asarray(Image.open(picture)).astype(int)
    assert pixels.shape == (700, 1800, 3)
    for half in (pixels[:, :900], pixels[:, 900:]):
        drawn = (half < 250).any(2)
        assert 0.02 < drawn.mean() < 0.9
        assert half[drawn].std(0).max() > 20
    yellow = (abs(pixels[:, 900:] - (253, 231, 37)).sum(2) < 40).mean()
    assert yellow > 0.0005, "the point itself and its like"


#: Opens the viewer's window, clicks where a point is seen, and tells what the window says; ends as Open3D can.
_CLICK = """
import os, runpy, sys
from types import SimpleNamespace
import numpy as np
example = runpy.run_path(sys.argv[1])
gui = example["gui"]
x, y = np.meshgrid(np.linspace(0, 2, 30), np.linspace(0, 2, 30))
xyz = np.stack([x, y, 0.3 * np.sin(3 * x)], -1).reshape(-1, 3)
window = example["Window"](example["Points"](xyz, np.c_[np.sin(3 * xyz), np.cos(2 * xyz)]))
for _ in range(10):
    gui.Application.instance.run_one_tick()
view, camera = window.view, window.view.scene.camera
clip = np.asarray(camera.get_projection_matrix()) @ np.asarray(camera.get_view_matrix()) @ np.r_[xyz[400], 1]
place = (clip[:2] / clip[3] * (1, -1) + 1) / 2 * (view.frame.width, view.frame.height)
for kind in (gui.MouseEvent.Type.BUTTON_DOWN, gui.MouseEvent.Type.BUTTON_UP):
    at = {"x": round(place[0]) + view.frame.x, "y": round(place[1]) + view.frame.y}
    window.on_mouse(SimpleNamespace(type=kind, **at))
gui.Application.instance.run_one_tick()
print("told:", window.line.text, flush=True)
os._exit(0)
"""


def test_a_click_in_the_window():
    pytest.importorskip("open3d", reason="needs Open3D")
    if shutil.which("xvfb-run") is None:
        pytest.skip("needs xvfb-run, a display in memory")
    command = ["xvfb-run", "-a", sys.executable, "-c", _CLICK, str(VIEWER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "told:" not in done.stdout:
        pytest.skip(f"Open3D opens no window here: {(done.stderr or done.stdout)[-200:]}")
    assert "told: point 400 at 0.69, 0.90, 0.26 m: " in done.stdout


def test_similarity_to_a_point_of_the_viewer():
    pytest.importorskip("open3d", reason="needs Open3D")
    example = runpy.run_path(str(VIEWER))
    rng = np.random.default_rng(0)
    xyz, features = rng.uniform(0, 1, (100, 3)), rng.normal(size=(100, 8))
    features[:20] = features[0] + 0.01 * rng.normal(size=(20, 8))
    points = example["Points"](xyz, features)
    text, colors = points.similar_to(xyz[7] + 1e-4)
    assert text.startswith("point 7 at ")
    assert text.endswith("20 points with a cosine above 0.8")
    assert colors[:20, 0].min() > colors[20:, 0].max(), "yellow is where red is strong"
