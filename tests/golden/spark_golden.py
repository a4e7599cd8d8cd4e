"""SparK's golden cases: the whole network in evaluation and training mode, and bare encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from golden_cases import GoldenCase
from golden_comparison import Comparison, need_the_weights_of_the_case
from torch import Tensor

from geo3d import create_model
from geo3d.methods.spark import fill_in, reconstruction_loss
from geo3d.nn.colors import IMAGE_MEAN, IMAGE_STD

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


def check_spark(case: GoldenCase, folder: Path) -> None:
    """Load the authors' file through the public door and compare everything stored, in float64 and float32."""
    need_the_weights_of_the_case()
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
    compared = Comparison(case, dtype)
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
    compared.check_gradients(model)


def check_spark_encoder(case: GoldenCase, folder: Path) -> None:
    """The bare encoder's maps, of the network as it leaves ``create_model``."""
    need_the_weights_of_the_case()
    arguments = case.meta["arguments"]
    assert arguments["input_size"] == case.tensors["in.image_u8"].shape[-1]
    file = _write(case, folder / "checkpoint.pth")
    for dtype in (torch.float64, torch.float32):
        model = create_model(arguments["encoder"], checkpoint=file).to(dtype)
        compared = Comparison(case, dtype)
        with torch.no_grad():
            for number, encoded in enumerate(model.features(_images(case, dtype))):
                compared.check(f"enc{number}", encoded)
