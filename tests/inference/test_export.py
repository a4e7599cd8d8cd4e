"""Programs of encoders: the figures of the network at sizes that were not traced, in a process without the network."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exported_sizes import ENCODERS, QUICK, inputs_of
from torch import Tensor

import geo3d
from geo3d.errors import InputError
from geo3d.inference.export import export_encoder, export_program, read_card
from geo3d.inference.programs import program_of
from geo3d.models import Encoder
from geo3d.models.grid_encoder import GridInput
from geo3d.models.point_encoder import PointInput

#: Largest difference over the largest value. Where the same kernels run it is 0; Swin3D without gradients takes others.
#: Measured: 6e-7 for the worst.
_ROUNDING = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Keeps what torch notes down for its own tools, a hundred thousand lines, out of pytest's captured log."""
    logger = logging.getLogger("torch.__trace")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def encoder(name: str) -> Encoder:
    model, options = ENCODERS[name]
    return geo3d.create_model(model, generator=torch.Generator().manual_seed(0), **options)


def require_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], rounding: float = _ROUNDING) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=0, atol=rounding * float(value.abs().max()) + 1e-12)
        else:
            assert torch.equal(found[name], value), name


@torch.no_grad()
def expected(model: Encoder, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Features as the encoder gives them without any of the program's code."""
    if model.kind == "image":
        return model.features(inputs["images"])
    if model.kind == "grid":
        values = inputs["values"]
        return model.features(GridInput(values, torch.tensor([values.shape[2:]] * len(values))))
    if model.kind == "points":
        return [tokens.feats for tokens in model.features(PointInput(**inputs))]
    return [voxels.feats for voxels in model.features(model.inputs(geo3d.PointCloud(**inputs)))]


class Robot:
    """A process that has imported torch and ``geo3d.ops``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, Path(__file__).with_name("run_programs.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)

    def run(self, path: Path, calls: list) -> tuple[list[dict[str, Tensor]], list[str]]:
        """Outputs of each call, and the rooms of geo3d that the process has imported."""
        torch.save(calls, self.folder / "inputs.pt")
        places = [str(place) for place in (path, self.folder / "inputs.pt", self.folder / "outputs.pt")]
        self.process.stdin.write(json.dumps(places) + "\n")
        self.process.stdin.flush()
        rooms = json.loads(self.process.stdout.readline())
        return torch.load(self.folder / "outputs.pt"), rooms


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> Iterator[Robot]:
    made = Robot(tmp_path_factory.mktemp("robot"))
    yield made
    made.process.stdin.close()
    assert made.process.wait() == 0


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]
)
def test_a_program_runs_without_its_encoder_and_gives_its_figures(name: str, robot: Robot, tmp_path: Path) -> None:
    model = encoder(name)
    path = tmp_path / "encoder.pt2"
    card = export_encoder(model, path)
    traced = program_of(model)
    inputs = inputs_of(traced)
    found, rooms = robot.run(path, [traced.call(each) for each in inputs])
    assert set(rooms) <= {"ops", "errors"}
    for each, outputs in zip(inputs, found, strict=True):
        assert list(outputs) == list(card["outputs"])
        for stage, wanted in zip(card["layers"], expected(model, each), strict=True):
            require_equal({stage: outputs[stage]}, {stage: wanted})
    assert read_card(path) == card
    assert not model.training


def compare(model: Encoder, **options) -> None:
    """A program against the same function run eagerly, at several sizes."""
    traced, program = program_of(model, **options), export_program(model, **options).module()
    for inputs in inputs_of(traced):
        args, named = traced.call(inputs)
        with torch.no_grad():
            require_equal(program(*args, **named), traced(*args, **named))


@pytest.mark.slow
@pytest.mark.parametrize("normalise", ["float", "uint8"])
def test_photographs_of_any_size_are_normalised_inside(normalise: str) -> None:
    model = encoder("resnet")
    compare(model, normalise=normalise)
    traced = program_of(model, normalise=normalise)
    for inputs in inputs_of(traced):
        with torch.no_grad():
            wanted = model.features(model.prepare(inputs["images"]))
            require_equal(traced(**inputs), dict(zip(traced.names, wanted)))


@pytest.mark.slow
def test_grids_of_bytes_are_filled_up_inside() -> None:
    model = encoder("nerf_mae")
    compare(model, normalise="uint8", layers=["stage1"])
    traced = program_of(model, normalise="uint8")
    for inputs in inputs_of(traced):
        with torch.no_grad():
            wanted = model.features(model.prepare(inputs["values"], resolution=0))
            require_equal(traced(**inputs), dict(zip(traced.names, wanted)))


@pytest.mark.slow
def test_clouds_of_any_unit_are_scaled_inside() -> None:
    model = encoder("i2p_mae")
    compare(model, normalise="float", layers=[-1])
    traced = program_of(model, normalise="float")
    for inputs in inputs_of(traced)[1:]:
        clouds = [cloud * 70 + 5 for cloud in inputs["xyz"].split(inputs["offsets"].diff().tolist())]
        with torch.no_grad():
            wanted = model.features(model.prepare(clouds, points=0))
            found = traced(torch.cat(clouds), inputs["offsets"])
        require_equal({"level2": found["level2"]}, {"level2": wanted[2].feats})


def test_points_have_the_features_of_their_voxels() -> None:
    model = encoder("sparse_resnet")
    options = {"points": True, "normalise": "uint8", "layers": [2, 0], "voxel_size": 0.2}
    compare(model, **options)
    traced = program_of(model, **options)
    inputs = inputs_of(traced)[-1]
    args, named = traced.call(inputs)
    with torch.no_grad():
        found = traced(*args, **named)
        cloud = geo3d.PointCloud(**inputs | {"colors": inputs["colors"].float() / 255})
        prepared = model.prepare(cloud, voxel_size=0.2)
        columns = model.voxel_features(prepared).split(model.channels, 1)
    require_equal({"points": found["points"]}, {"points": torch.cat([columns[2], columns[0]], 1)[prepared.inverse]})


def test_a_decoder_is_left_out_and_its_licence_told_on(tmp_path: Path) -> None:
    model = encoder("croco_v2")
    model.licence = "CC-BY-NC-SA-4.0"
    program = export_program(model, layers=["block1"])
    assert not [name for name in program.state_dict if ".dec" in name or "prediction_head" in name]
    card = export_encoder(model, tmp_path / "croco.pt2", layers=["block0"])
    assert (card["licence"], card["layers"], card["side_multiple"]) == ("CC-BY-NC-SA-4.0", ["block0"], 8)
    kept = torch.export.load(tmp_path / "croco.pt2").state_dict
    assert not [name for name in kept if "enc_blocks.1.mlp" in name]  # which the first block does not need
    assert card["mean"] == [0.485, 0.456, 0.406]


def test_what_goes_wrong_is_told_when_the_program_runs() -> None:
    program = export_program(encoder("sparse_resnet"), layers=[0]).module()
    xyz, offsets = torch.rand(5, 3), torch.tensor([0, 5])
    parts = {"colors": torch.rand(5, 3), "normals": torch.rand(5, 3)}
    with pytest.raises(InputError, match="points are not finite"):
        program(xyz.index_fill(0, torch.tensor([1, 3]), torch.nan), offsets, **parts)
    with pytest.raises(RuntimeError, match="size"):
        program(xyz, torch.tensor([0, 4]), **parts)
    with pytest.raises(AssertionError, match="colors"):
        program(xyz, offsets, colors=parts["colors"][:3], normals=parts["normals"])


@pytest.mark.parametrize(
    ("name", "path", "options", "message"),
    [
        ("sparse_resnet", "a.onnx", {"to": "onnx"}, "ONNX knows no operators for an encoder of voxels"),
        ("resnet", "a.pt2", {"to": "onnx"}, r"a file of onnx ends in \.onnx; name it a\.onnx"),
        ("resnet", "a.pth", {}, r"a file of program ends in \.pt2"),
        ("resnet", "a.pt2", {"to": "torchscript"}, "to must be one of program, aoti, onnx, got 'torchscript'"),
        ("resnet", "a.pt2", {"layers": ["stage9"]}, "there is no 'stage9' among the 4 stages"),
        ("resnet", "a.pt2", {"layers": []}, "layers names no stage"),
        ("resnet", "a.pt2", {"points": True}, "points concerns encoders of voxels alone"),
        ("resnet", "a.pt2", {"voxel_size": 0.1}, "voxel_size concerns encoders of voxels alone"),
        ("sparse_resnet", "a.pt2", {"voxel_size": -1.0}, "voxel_size must be positive"),
        ("i2p_mae", "a.pt2", {"normalise": "uint8"}, "normalise must be no or float for an encoder of points"),
    ],
)
def test_bad_requests_are_one_line(name: str, path: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        export_encoder(encoder(name), tmp_path / path, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_card_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    with pytest.raises(InputError, match="carries no card"):
        read_card(tmp_path / "a.pt2")
    with pytest.raises(InputError, match="there is no such file"):
        read_card(tmp_path / "b.pt2")


@pytest.mark.parametrize(
    "name",
    ["croco_v2", "resnet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("croco_v1", "convnext", "spark"))],
)
def test_onnx_runtime_gives_the_encoders_figures(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the ONNX files")
    pytest.importorskip("onnxscript", reason="writes them")
    model = encoder(name)
    normalise = "uint8" if name == "resnet" else "no"
    card = export_encoder(model, tmp_path / "a.onnx", "onnx", normalise=normalise)
    assert read_card(tmp_path / "a.onnx") == card
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    traced = program_of(model, normalise=normalise)
    for inputs in inputs_of(traced):
        found = session.run(card["layers"], {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            wanted = traced(**inputs)
        # Another library's convolutions; angles in float32. Measured: 9e-7 of the largest value at most.
        require_equal({n: torch.from_numpy(v) for n, v in zip(card["layers"], found)}, wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "croco_v2", "convnext", "sparse_resnet", "swin3d", "i2p_mae"])
def test_aotinductor_gives_the_encoders_figures(name: str, tmp_path: Path) -> None:
    model = encoder(name)
    card = export_encoder(model, tmp_path / "a.pt2", "aoti")
    assert read_card(tmp_path / "a.pt2") == card
    program, traced = torch._inductor.aoti_load_package(str(tmp_path / "a.pt2")), program_of(model)
    for inputs in inputs_of(traced):
        args, named = traced.call(inputs)
        with torch.no_grad():
            require_equal(program(*args, **named), traced(*args, **named))


@pytest.mark.slow
def test_what_aotinductor_does_not_compile_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"AOTInductor does not compile this encoder .* take --to program") as caught:
        export_encoder(encoder("nerf_mae"), tmp_path / "a.pt2", "aoti")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", geo3d.list_models())
def test_every_named_model_can_be_exported(name: str) -> None:
    model = geo3d.create_model(name, generator=torch.Generator().manual_seed(0))
    compare(model, layers=[-1])
