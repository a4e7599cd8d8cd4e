"""A scene with features at every checkpoint of a run, and the command that shows it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import geo3d
from geo3d.checkpoints.loading import MODEL_CARD_KEY
from geo3d.errors import InputError
from geo3d.inference import load_encoder
from geo3d.train.checkpoint import CheckpointStore
from geo3d.visualize.explore import ALL_STAGES, explore, states
from geo3d.visualize.features import FeaturesOptions
from geo3d.visualize.similarity import SimilarityOptions
from geo3d.viz.ply import write_ply


def _silent(done: int, total: int, name: str) -> None: ...


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints, each of other weights; the second is the best."""
    folder = tmp_path_factory.mktemp("run")
    store = CheckpointStore(folder / "checkpoints", keep_last=9)
    for step, loss in ((10, 0.5), (200, 0.3), (3000, 0.4)):
        model = geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(step))
        store.save(step, loss, {}, model.state_dict(), metadata={MODEL_CARD_KEY: json.dumps(model.card())})
    return folder


def test_features_are_those_of_every_checkpoint_at_the_same_points(rooms: Path, run: Path) -> None:
    config = FeaturesOptions(data=(rooms,), checkpoint=str(run), points=1500)
    explored = explore(config, 10, _silent)
    timeline, (space,) = explored.timeline, explored.picture.spaces
    assert timeline.steps == ("fresh weights", "step 10", "step 200, the best", "step 3,000")
    assert timeline.numbers == (0, 10, 200, 3000)
    scene = geo3d.open_dataset(rooms)[0]
    cloud, points = scene.cloud(), space.points[0]
    assert len(points.xyz) == 1500
    row = {tuple(place): n for n, place in enumerate(cloud.xyz.tolist())}
    rows = [row[tuple(place)] for place in points.xyz.tolist()]
    for step, number in enumerate(timeline.numbers):
        encoder = load_encoder(run / f"checkpoints/step_{number or 3000:08d}", fresh=None if number else 0)
        out = encoder(cloud)
        # Kernels sum in another order from call to call where threads share the work.
        assert np.allclose(timeline.features(step, ALL_STAGES), out.points.numpy()[rows], atol=1e-4, equal_nan=True)
    assert [name for name in timeline.layers if name != ALL_STAGES] == [s.name for s in encoder.model.feature_info]
    last = encoder(cloud, layers=[-1]).points.numpy()[rows]
    assert np.allclose(timeline.features(3, encoder.model.feature_info[-1].name), last, atol=1e-4, equal_nan=True)

    (labels,) = explored.colorings
    classes = geo3d.open_dataset(rooms).classes
    assert [labels.name_of(n) for n in range(50)] == [
        "no label" if cloud.semantic[r] < 0 else classes[cloud.semantic[r]] for r in rows[:50]
    ]
    assert [camera.image.shape for camera in space.cameras] == [(72, 96, 3)] * 4
    assert np.allclose(space.cameras[1].world_from_camera, scene.view(1).world_from_camera)
    assert any("1,500 points of" in note for note in explored.picture.notes)


def test_of_many_checkpoints_some_are_taken_and_damaged_ones_are_left_out(run: Path, tmp_path: Path) -> None:
    config = FeaturesOptions(data=(tmp_path,), checkpoint=str(run))
    found, told = states(config, 3)
    assert [state.number for state in found] == [0, 10, 3000]
    assert told == ["2 of 3 checkpoints, see --checkpoints"]
    assert [state.number for state in states(config, 1)[0]] == [3000]
    assert [state.name for state in states(replace(config, fresh=4), 9)[0]] == ["fresh weights, seed 4"]
    of_a_file, _ = states(replace(config, checkpoint=str(run / "checkpoints" / "step_00000200")), 9)
    assert [state.config.fresh for state in of_a_file] == [0, None]
    for path in run.rglob("*"):
        target = tmp_path / path.relative_to(run)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    (tmp_path / "checkpoints/step_00000200/model.safetensors").write_bytes(b"cut off")
    found, told = states(replace(config, checkpoint=str(tmp_path)), 9)
    assert [state.number for state in found] == [0, 10, 3000]
    assert told == [
        "step_00000200 is damaged (model.safetensors has 7 bytes of {}) and left out".format(
            (run / "checkpoints/step_00000200/model.safetensors").stat().st_size
        )
    ]


@pytest.mark.parametrize("name", ["croco_tiny", "resnet_tiny", "i2p_mae_tiny", "swin3d_tiny"])
def test_encoders_of_images_and_of_points_show_their_features_in_3d(rooms: Path, name: str) -> None:
    config = SimilarityOptions(data=(rooms,), model=name, fresh=1, points=500, views=2, at=(1.0, 1.0, 0.5))
    explored = explore(config, 5, _silent)
    (points,) = explored.picture.spaces[0].points
    layers = list(explored.timeline.layers)
    assert len(explored.timeline) == len(points.xyz)
    assert explored.timeline.steps == ("fresh weights, seed 1",)
    assert np.isfinite(explored.timeline.features(0, layers[0])).all(1).mean() > 0.9
    nearest = np.linalg.norm(points.xyz - np.array(config.at), axis=1).argmin()
    assert explored.selected == nearest


def test_grids_show_the_features_of_their_voxels(tmp_path: Path) -> None:
    values = np.zeros((24, 20, 12, 4), np.float32)
    values[:2], values[:, :, :2] = 0.9, 0.6
    np.savez(tmp_path / "g.npz", rgbsigma=values, bbox_min=np.zeros(3), bbox_max=np.array([4.8, 4.0, 2.4]))
    config = FeaturesOptions(data=(tmp_path / "g.npz",), model="nerf_mae_tiny", fresh=0)
    explored = explore(config, 5, _silent)
    assert len(explored.timeline) == len(explored.picture.spaces[0].points[0].xyz)
    assert (
        sum(part.stop - part.start for part in list(explored.timeline.layers.values())[1:])
        == (explored.timeline.features(0, ALL_STAGES).shape[1])
    )


def test_what_cannot_be_explored_is_one_line(rooms: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        columns = rng.uniform(0, 3, (300, 3)).astype(np.float32)
        write_ply(tmp_path / f"{name}.ply", {axis: columns[:, i] for i, axis in enumerate("xyz")})
    clouds = (tmp_path / "a.ply", tmp_path / "b.ply")
    options = {"model": "sparse_resnet_tiny", "fresh": 0}
    with pytest.raises(InputError, match="show one scene"):
        explore(FeaturesOptions(data=clouds, **options), 5, _silent)
    with pytest.raises(InputError, match="only views with depth and poses"):
        explore(FeaturesOptions(data=clouds[:1], model="resnet_tiny", fresh=0), 5, _silent)
    with pytest.raises(InputError, match="checkpoints must be 1 or more"):
        FeaturesOptions(data=clouds, checkpoints=0, **options)
    with pytest.raises(InputError, match="port must lie between"):
        FeaturesOptions(data=clouds, port=70000, **options)


def test_the_command_serves_until_ctrl_c_and_writes_the_file(tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install 'geo3d[web]'")
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'geo3d[rerun]'")
    xyz = np.random.default_rng(0).uniform(0, 3, (500, 3)).astype(np.float32)
    write_ply(tmp_path / "scan.ply", {axis: xyz[:, i] for i, axis in enumerate("xyz")})
    command = [sys.executable, "-m", "geo3d", "visualize", "scene", "--data", "scan.ply", "--web", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    with subprocess.Popen([*command, "--rerun", "scan.rrd"], cwd=tmp_path, env=environment, **pipes) as process:
        try:
            assert process.stdout.readline() == "file: scan.rrd; `rerun scan.rrd` opens it\n"
            line = process.stdout.readline()
            assert line.startswith("page: http://localhost:")
            assert line.endswith(" (Ctrl-C ends it)\n")
            with urllib.request.urlopen(line.split()[1], timeout=30) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 0
    assert (tmp_path / "scan.rrd").stat().st_size > 1000


def test_options_of_still_pictures_are_refused_beside_a_page(tmp_path: Path) -> None:
    from geo3d.visualize.viewers import show

    config = FeaturesOptions(
        data=(tmp_path,), web=True, out=tmp_path / "a.png", renderer="own", projection=tmp_path / "p.npz"
    )
    with pytest.raises(InputError, match="--out, --projection, --renderer: of still pictures"):
        show(config, lambda _: None, print)
