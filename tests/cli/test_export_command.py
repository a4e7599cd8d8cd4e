"""`geo3d export`: what it writes and says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from geo3d_command import error_of, run

import geo3d
from geo3d.inference.export import read_card


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Files of two small encoders."""
    folder = tmp_path_factory.mktemp("weights")
    for name, options in (("resnet_tiny", {"width": 4}), ("sparse_resnet_tiny", {"depths": (1,), "channels": (8,)})):
        geo3d.save_model(geo3d.create_model(name, **options), folder / f"{name}.safetensors")
    return folder


def test_a_program_and_what_it_takes(weights: Path, tmp_path: Path, capsys) -> None:
    checkpoint, output = weights / "resnet_tiny.safetensors", tmp_path / "new" / "encoder.pt2"
    run("export", "--checkpoint", checkpoint, "-o", output, "--layers", "stage0", "-1", "--normalise", "uint8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}: resnet_tiny (program), ")
    assert lines[1] == "  takes images: (B, H, W, 3) uint8, red, green and blue; any sides"
    assert lines[2:] == [
        "  gives stage0: (B, 16, H / 4, W / 4) float32",
        "  gives stage3: (B, 128, H / 32, W / 32) float32",
    ]
    assert read_card(output)["layers"] == ["stage0", "stage3"]
    maps = torch.export.load(output).module()(torch.zeros(1, 40, 64, 3, dtype=torch.uint8))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "stage0": (1, 16, 16, 16),
        "stage3": (1, 128, 2, 2),
    }


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("sparse_resnet_tiny", ("-o", "a.onnx", "--to", "onnx"), "encoders of images alone can be exported so"),
        ("resnet_tiny", ("-o", "a.pt2", "--to", "onnx"), "ends in .onnx; name it a.onnx"),
        ("resnet_tiny", ("-o", "a.pt2", "--layers", "stage7"), "there is no 'stage7' among the 4 stages"),
        ("resnet_tiny", ("-o", "a.pt2", "--layers", "9"), "there is no 9 among the 4 stages"),
        ("resnet_tiny", ("-o", "a.pt2", "--points"), "points concerns encoders of voxels alone"),
        ("resnet_tiny", ("-o", "a.pt2", "--to", "torchscript"), "--to"),
        ("nothing", ("-o", "a.pt2"), "nothing.safetensors"),
    ],
)
def test_bad_requests_are_one_line(
    model: str, args: tuple[str, ...], message: str, weights: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, "export", "--checkpoint", weights / f"{model}.safetensors", *args)
    assert not list(tmp_path.iterdir())
