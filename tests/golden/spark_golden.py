"""SparK's golden cases: the whole network in evaluation and training mode, and bare encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import GoldenCase
from torch import Tensor

from geo3d import create_model
from geo3d.methods.spark import fill_in, reconstruction_loss
from geo3d.nn.colors import IMAGE_MEAN, IMAGE_STD

# In float64 the stored values' rounding to float32 is what remains: 1.2e-7 of the largest was measured at most. Losses
# and gradient norms are stored in float64. In float32 the published code itself deviates by what `tolerance` says:
# sums in another order may deviate by some times that, or by 1e-5 of the largest value where it was lucky.
SHARP_RELATIVE = 5e-7
SHARP_SCALAR = 1e-9
FLOAT32_FACTOR, FLOAT32_RELATIVE = 10, 1e-5
_PLAIN = {"str": "text", "int": 224, "bool": True, "dict": {"state": {}, "param_groups": [{"lr": 2e-4}]}}


def _images(case: GoldenCase, dtype: torch.dtype) -> Tensor:
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return ((case.tensors["in.image_u8"].float() / 255 - mean) / std).to(dtype)


def _write(case: GoldenCase, path: Path) -> Path:
    """The authors' file: a training container with the published config among the weights, or a bare encoder."""
    container: Any = case.meta["container"]
    state = case.state()
    if "config" in container:
        kinds = container["layout"]
        plain = {name: _PLAIN[kind] for name, kind in kinds.items() if name != "module"}
        torch.save(plain | {"module": state | {"config": container["config"]}}, path)
    else:
        torch.save(state, path)
    return path


class _Comparison:
    """Compares tensors with those of the case, whole or at the stored positions."""

    def __init__(self, case: GoldenCase, dtype: torch.dtype) -> None:
        self.stored, self.tolerance, self.sharp = case.tensors, case.meta["tolerance"], dtype == torch.float64

    def check(self, name: str, value: Tensor) -> None:
        expected, tolerance = self.stored[f"out.{name}"].double(), self.tolerance[name]
        value = value.detach().double()
        picked = value.reshape(-1)[self.stored[f"idx.{name}"].long()] if f"idx.{name}" in self.stored else value
        scale = tolerance["max_abs_value"]
        if not self.sharp:
            allowed = max(FLOAT32_FACTOR * tolerance["max_abs_diff_fp32_vs_fp64"], FLOAT32_RELATIVE * scale)
        elif expected.ndim == 0:
            allowed = SHARP_SCALAR * scale
        else:
            allowed = SHARP_RELATIVE * scale
        error = float((picked - expected).abs().max())
        assert error <= allowed, f"{name}: {error:.1e} of {scale:.1e}, {allowed:.1e} is allowed"
        if f"chan_mean.{name}" in self.stored:
            others = [d for d in range(value.ndim) if d != 1]
            means = {"chan_mean": value.mean(others), "chan_rms": value.square().mean(others).sqrt()}
            for what, found in means.items():
                error = float((found - self.stored[f"{what}.{name}"].double()).abs().max())
                assert error <= allowed, f"{what} of {name}: {error:.1e}, {allowed:.1e} is allowed"


def _need_the_weights_of_the_case() -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("without AVX2 torch draws normal numbers of other last bits: these would not be the case's weights")


def check_spark(case: GoldenCase, folder: Path) -> None:
    """Load the authors' file through the public door and compare everything stored, in float64 and float32."""
    _need_the_weights_of_the_case()
    file = _write(case, folder / "checkpoint.pth")
    arguments = case.meta["arguments"]
    for dtype, path in ((torch.float64, "tiles"), (torch.float32, "tiles"), (torch.float32, "dense")):
        model = create_model("spark", checkpoint=file, encoder=arguments["encoder"]).to(dtype)
        assert model.config.densify_norm == (arguments["densify_norm"] or "none")
        assert model.config.decoder_width == arguments["decoder_width"]
        assert model.config.encoder.drop_path_rate == arguments["drop_path_rate"]
        _check_network(case, model, dtype, path)
    whole = create_model("spark", checkpoint=file).sparse_encoder.sp_cnn.state_dict()
    alone = create_model(arguments["encoder"], checkpoint=file).state_dict()
    assert all(torch.equal(alone[name], whole[name]) for name in whole)


def _check_network(case: GoldenCase, model, dtype: torch.dtype, path: str) -> None:
    images, active = _images(case, dtype), case.tensors["in.active"].bool()
    compared = _Comparison(case, dtype)
    with torch.no_grad():
        for number, encoded in enumerate(model.encode(images, active, path)):
            compared.check(f"enc{number}", encoded)
        output = model(images, active, path)
        for number, densified in enumerate(output.densified):
            compared.check(f"densified{number}", densified)
        compared.check("rec", output.reconstruction)
        compared.check("vis", fill_in(output.reconstruction, images, active))
        compared.check("loss_eval", reconstruction_loss(output.reconstruction, images, active))

    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        compared.check("train.enc3", model.train().encode(images, active, path)[3])
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
    output = model(images, active, path)
    compared.check("train.densified3", output.densified[3])
    compared.check("train.rec", output.reconstruction)
    loss = reconstruction_loss(output.reconstruction, images, active)
    compared.check("loss_train", loss)
    loss.backward()
    values = dict(model.named_buffers()) | {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    for name in (n.removeprefix("out.") for n in case.tensors if n.startswith(("out.after.", "out.grad."))):
        compared.check(name, values[name.removeprefix("after.")])
    parameters = dict(model.named_parameters())
    assert set(case.meta["grad_norm_names"]) == set(parameters)
    null = set(case.meta["grad_norm_null"])
    deviation = case.meta["tolerance"]["grad_norm"]["max_rel_diff_fp32_vs_fp64"]
    relative = SHARP_SCALAR if compared.sharp else FLOAT32_FACTOR * deviation
    for name, expected in zip(case.meta["grad_norm_names"], case.tensors["out.grad_norm"].tolist(), strict=True):
        if name not in null:
            norm = float(parameters[name].grad.double().norm())
            assert norm == pytest.approx(expected, rel=relative), name


def check_spark_encoder(case: GoldenCase, folder: Path) -> None:
    """The bare encoder's maps, of the network as it leaves ``create_model``."""
    _need_the_weights_of_the_case()
    arguments = case.meta["arguments"]
    assert arguments["input_size"] == case.tensors["in.image_u8"].shape[-1]
    file = _write(case, folder / "checkpoint.pth")
    for dtype in (torch.float64, torch.float32):
        model = create_model(arguments["encoder"], checkpoint=file).to(dtype)
        compared = _Comparison(case, dtype)
        with torch.no_grad():
            for number, encoded in enumerate(model.features(_images(case, dtype))):
                compared.check(f"enc{number}", encoded)
