"""`geo3d encode`: features of files as one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from geo3d_command import error_of, run
from PIL import Image

import geo3d

_SCENES = {"stem": 8, "depths": (1,), "channels": (16,), "voxel_size": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, a scan without colours, and photos."""
    folder = tmp_path_factory.mktemp("encode")
    generator = torch.Generator().manual_seed(0)
    for name, options in (("sparse_resnet_tiny", _SCENES), ("resnet_tiny", {"width": 8})):
        model = geo3d.create_model(name, generator=generator, **options)
        geo3d.save_model(model, folder / f"{name}.safetensors")
    xyz = np.random.default_rng(0).random((200, 3), np.float32)
    xyz[:, 2] *= 0.01
    np.save(folder / "scan.npy", xyz)
    (folder / "photos").mkdir()
    for name, size in (("b.png", (40, 33)), ("a.jpg", (64, 48))):
        Image.fromarray(np.random.default_rng(1).integers(256, size=(*size, 3), dtype=np.uint8)).save(
            folder / "photos" / name
        )
    return folder


def test_features_of_points(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    weights = "sparse_resnet_tiny.safetensors"
    run("encode", "--checkpoint", weights, "scan.npy", "-o", tmp_path / "f.npz", "--device", "cpu")
    printed = capsys.readouterr().out
    assert "scan.npy: points (200, 24), pooled (24,); colors: mid grey; normals: estimated from 16" in printed
    found = np.load(tmp_path / "f.npz")
    info = json.loads(str(found["info"]))
    assert info["stages"] == ["stage0", "stage1"]
    assert info["inputs"]["scan.npy"]["filled"]["colors"] == "mid grey"
    out = geo3d.load_encoder(weights, device="cpu")(np.load("scan.npy"))
    np.testing.assert_allclose(found["scan.npy/points"], out.points.numpy(), rtol=1e-5, atol=1e-6)  # of library calls

    half = ("--half", "--pooled-only", "--layers", "-1")
    run("encode", "--checkpoint", weights, "./scan.npy", "--out", tmp_path / "h.npz", *half)
    found = np.load(tmp_path / "h.npz")
    assert set(found) == {"scan.npy/pooled", "info"}
    assert found["scan.npy/pooled"].dtype == np.float16
    np.testing.assert_allclose(found["scan.npy/pooled"], out.pooled[8:].numpy(), rtol=1e-3, atol=1e-3)


def test_maps_of_a_folder_of_images(place: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    run(
        "encode",
        "--checkpoint",
        "resnet_tiny.safetensors",
        "photos",
        "-o",
        tmp_path / "f.npz",
        "--layers",
        "stage1",
        "-1",
    )
    found = np.load(tmp_path / "f.npz")
    assert found["photos/a.jpg/map"].shape == (256, 2, 2)
    assert found["photos/a.jpg/map.stage1"].shape == (64, 8, 6)
    assert found["photos/b.png/map.stage1"].shape == (64, 5, 5)
    assert json.loads(str(found["info"]))["inputs"]["photos/a.jpg"]["strides"] == [8, 32]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.ply"], "none.ply: there is no such file or folder"),
        (["scan.npy", "scan.npy"], "there are two inputs called scan.npy"),
        (["photos"], "photos"),
        (["scan.npy", "-o", "f.txt"], "must end in .npz"),
        (["scan.npy", "--layers", "stage7"], "there is no 'stage7'"),
        (["scan.npy", "--device", "gpu0"], "is no device"),
    ],
)
def test_what_cannot_be_encoded_is_one_line_and_leaves_no_file(
    args: list[str], message: str, place: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(place)
    out = [] if "-o" in args else ["-o", str(tmp_path / "f.npz")]
    assert message in error_of(capsys, "encode", "--checkpoint", "sparse_resnet_tiny.safetensors", *args, *out)
    assert not list(tmp_path.iterdir())
