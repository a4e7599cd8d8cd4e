"""Golden cases of DUSt3R's and MASt3R's networks: the authors' file and the same weights as a folder of the Hub."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from golden_cases import GoldenCase
from safetensors.torch import save_file
from torch import Tensor

from geo3d import create_model
from geo3d.models.dust3r import DUSt3R, Pointmap
from geo3d.nn.colors import CENTRED, normalise

# The published float32 run lies 6e-7 of the largest token and 1.3e-6 (linear) to 2e-5 (DPT) a pixel from the float64
# one, this code as far; ten times that is allowed, which is within what the cases suggest (5e-5 and 2e-4). Gradients
# are taken in float64, where 5e-8 was measured: in float32 a ReLU of a DPT head that is nearly 0 may tip over, which
# the case dust3r_dpt shows (norms 1.1e-3 off, also in float64 where its images are brightened by 1e-7).
TOKEN_RELATIVE = 5e-6
PIXEL_RELATIVE = 2e-4
DESCRIPTOR_ABSOLUTE = 5e-6
SUMMARY_RELATIVE = 2e-5
GRADIENT_NORM_RELATIVE = 1e-6
_POINTS = ("pts3d", "pts3d_in_other_view")


def check_dust3r(case: GoldenCase, folder: Path) -> None:
    """Load the authors' file, compare everything stored for every run, and the hub folder's weights with the file's."""
    model = create_model(case.meta["kind"], checkpoint=case.write_checkpoint(folder / "checkpoint.pth"))
    _check_hub_folder(case, model, folder / "hub")
    for run in case.meta["runs"]:
        stored = _of(case.tensors, run["name"])
        images = [normalise(stored[f"view{n}.image"].movedim(1, -1), CENTRED) for n in (1, 2)]
        shapes = [stored.get(f"view{n}.true_shape") for n in (1, 2)]
        with torch.no_grad():
            pair, levels = model(*images, *shapes), model.levels(*images, *shapes)
        for view, maps, tokens in zip(("view1", "view2"), pair, levels, strict=True):
            _check_tokens(tokens, _of(stored, view), f"{run['name']}.{view}")
            _check_maps(maps, _of(stored, view), f"{run['name']}.{view}")
        if "grad_norm" in stored:
            names = case.meta["tensors"][f"{run['name']}.grad_norm"]["parameters"]
            _check_gradients(model, [image.double() for image in images], stored, names)


def _of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a run or of a view, under what their names go on with."""
    return {name.removeprefix(f"{part}."): v for name, v in tensors.items() if name.startswith(f"{part}.")}


def _check_tokens(tokens: list[Tensor], stored: dict[str, Tensor], where: str) -> None:
    for name, expected in stored.items():
        kind, _, block = name.partition(".")
        if kind in ("encoder", "decoder"):
            found = tokens[int(block or 0)][:, stored["tokens"]]
            error = (found - expected).abs().max() / expected.abs().max()
            assert error < TOKEN_RELATIVE, f"{where}.{name}: {error:.1e}"


def _at_pixels(maps: Pointmap, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps at the pixels of a case, by its names."""
    fields = [None if field is None else field.flatten(1, 2) for field in maps.fields()]
    named = dict(zip((_POINTS[0], "conf", "desc", "desc_conf"), fields, strict=True))
    named[_POINTS[1]] = named[_POINTS[0]]
    return {
        name: values[:, stored["pixels"][: stored[name].shape[1]]]
        for name, values in named.items()
        if name in stored and values is not None
    }


def _check_maps(maps: Pointmap, stored: dict[str, Tensor], where: str) -> None:
    found = _at_pixels(maps, stored)
    assert found.keys() == stored.keys() & {*_POINTS, "conf", "desc", "desc_conf"}, where
    for name, values in found.items():
        difference, expected = values.detach() - stored[name], stored[name]
        if name in _POINTS:
            difference, expected = difference.norm(dim=-1), expected.norm(dim=-1)
        error = (difference.abs() / (1 + expected.abs())).max()
        allowed = DESCRIPTOR_ABSOLUTE if name == "desc" else PIXEL_RELATIVE
        assert error < allowed, f"{where}.{name}: {error:.1e}"
    expected = stored["summary"]
    error = ((_summary(maps) - expected).abs() / (1 + expected.abs())).max()
    assert error < SUMMARY_RELATIVE, f"{where}.summary: {error:.1e}"


def _summary(maps: Pointmap) -> Tensor:
    """Means over all pixels, by which a case tells what lies between its pixels."""
    distance = maps.points.norm(dim=-1, keepdim=True)
    columns = [distance.log1p(), maps.points / (1 + distance), maps.confidence.log().unsqueeze(-1)]
    if maps.descriptors is not None:
        columns += [maps.descriptor_confidence.log().unsqueeze(-1), maps.descriptors]
    return torch.cat(columns, -1).detach().mean((1, 2))


def _raw(points: Tensor) -> Tensor:
    """What a head gave for points in the mode ``exp``: (..., 3) of length log(1 + distance)."""
    distance = points.norm(dim=-1, keepdim=True)
    return points / distance.clamp(min=1e-8) * torch.log1p(distance)


def _check_gradients(model: DUSt3R, images: list[Tensor], stored: dict[str, Tensor], names: list[str]) -> None:
    """Norms of the gradients of all outputs, weighed by the stored numbers; the exponential undone."""
    double = copy.deepcopy(model).double()
    total = torch.zeros((), dtype=torch.float64)
    for view, maps in zip(("view1", "view2"), double(*images), strict=True):
        own = _of(stored, view)
        for name, values in _at_pixels(maps, own).items():
            undone = _raw(values) if name in _POINTS else values if name == "desc" else values.log()
            total = total + (undone * stored[f"upstream.{view}.{name}"]).mean()
    total.backward()
    parameters = dict(double.named_parameters())
    for name, expected in zip(names, stored["grad_norm"].tolist(), strict=True):
        assert float(parameters[name].grad.norm()) == pytest.approx(expected, rel=GRADIENT_NORM_RELATIVE), name


def _check_hub_folder(case: GoldenCase, model: DUSt3R, folder: Path) -> None:
    folder.mkdir()
    state = {name: value for name, value in case.state().items() if name not in case.meta["aliases"]}
    save_file(state, folder / "model.safetensors")
    arguments = {name: _as_numbers(value) for name, value in case.meta["arguments"].items()}
    (folder / "config.json").write_text(json.dumps(arguments))
    other = create_model(case.meta["kind"], checkpoint=folder)
    assert other.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def _as_numbers(value):
    """Infinities, which the case writes as text, as the numbers that the Hub's files hold."""
    if isinstance(value, list):
        return [_as_numbers(v) for v in value]
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value


__all__ = ["check_dust3r"]
