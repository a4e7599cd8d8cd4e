"""One training step of I2P-MAE beside a plain-PyTorch twin: groups, depth maps, masks, forward, losses and backward.

What the teacher says of the depth maps is given, random numbers of its shape: its own time is the same for both, and
stands in rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from benchmarks.i2p_mae_twin import I2PMAETwin
from benchmarks.race import Variant, race
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.i2p_mae import GuidedMasking, GuidedMaskingConfig
from geo3d.models import create_model
from geo3d.models.i2p_mae import I2PMAE
from geo3d.models.registry import family_of
from geo3d.models.teachers import Teacher, TeacherOptions, TeacherOutput, create_teacher

_TWIN, _GEO3D = "plain PyTorch twin", "geo3d"
_SIDE, _CHANNELS = 224, 512  # of depth maps, and of CLIP's features
#: Both see the same weights, points and draws; float32 sums in another order move a loss by some 1e-6 of itself.
_LOSS_SPREAD = 1e-3


class StoredTeacher(Teacher):
    """Says of every batch of images the same random numbers, which take no time."""

    name, at_once, stride = "stored", 1 << 40, 16

    def __init__(self, channels: int) -> None:
        super().__init__(TeacherOptions())
        self.channels = channels
        self.said: dict[int, TeacherOutput] = {}

    def look(self, images: Tensor) -> TeacherOutput:
        """The numbers for as many images, which are not looked at."""
        count = len(images)
        if count not in self.said:
            generator = torch.Generator(device="cpu").manual_seed(1)
            side = _SIDE // self.stride
            features = torch.randn(count, self.channels, side, side, generator=generator)
            saliency = torch.rand(count, side * side, generator=generator).softmax(1).view(count, side, side)
            self.said[count] = TeacherOutput(features.to(images.device), saliency.to(images.device))
        return self.said[count]


@dataclass
class I2PMAEBenchmark:
    """One training step of I2P-MAE, beside a plain-PyTorch twin, the teacher apart."""

    model: tuple[str, ...] = ("i2p_mae_base",)
    """Networks, i2p_mae_base or i2p_mae_tiny, one case each."""
    batch: int = 4
    """Clouds a step."""
    teachers: tuple[str, ...] = ("clip_vit_b16", "hog")
    """Teachers whose own time is measured too; CLIP has random weights."""
    threads: int = 2
    """CPU threads."""
    turns: int = 5
    """Timed steps of each variant; the median counts."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""


def _clouds(batch: int, points: int, groups: int) -> dict[str, Tensor]:
    """Points on spheres with bumps, in the unit sphere, and the draws of masks, as a loader hands them out."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(batch, points, 3, generator=generator), dim=2)
    waves = 4 * torch.randn(batch, 3, 3, generator=generator)
    xyz = directions * (0.7 + 0.1 * (directions @ waves).sin().sum(2, keepdim=True))
    draws = torch.empty(batch, groups).exponential_(generator=generator)
    return {"points": xyz, "stored": xyz, "draws": draws}


def _method(model: str, embed_masked: bool | None = None) -> GuidedMasking:
    if family_of(model).network is not I2PMAE:
        raise InputError(f"this benchmark compares networks of I2P-MAE that fill in, not {model!r}")
    method = GuidedMasking(GuidedMaskingConfig(model, view_size=_SIDE))
    options = {"teacher_dim": _CHANNELS} | ({} if embed_masked is None else {"embed_masked": embed_masked})
    method.network = create_model(model, generator=torch.Generator().manual_seed(0), **options)
    method.teacher = StoredTeacher(_CHANNELS)
    return method.train()


def _twin(method: GuidedMasking) -> I2PMAETwin:
    twin = I2PMAETwin(method.network.config)
    twin.load_state_dict(method.network.state_dict())
    return twin.train()


def training_step(
    model: str, batch: int, device: str, twin: bool = False, embed_masked: bool | None = None
) -> Callable[[], float]:
    """The function to time: one forward, losses and backward; returns the loss."""
    method = _method(model, embed_masked)
    config = method.network.config
    sample = {name: value.to(device) for name, value in _clouds(batch, config.points, config.groups[-1]).items()}
    if twin:
        network, kept = _twin(method), method.visible_count
        features, saliency = StoredTeacher(_CHANNELS).look(torch.empty(3 * batch, 0, device=device))
        losses = partial(network.to(device), sample["points"], features, saliency, sample["draws"], kept)
    else:
        network = method.to(device)

        def losses() -> list[Tensor]:
            return list(network(sample).losses.values())

    def step() -> float:
        network.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # of dropped paths
        loss = sum(losses())
        loss.backward()
        return loss.item()

    return step


def teacher_pass(name: str, batch: int, device: str) -> Callable[[], None]:
    """The function to time: what a teacher says of the three depth maps of each cloud."""
    options = {"weights": "random"} if name == "clip_vit_b16" else {}
    teacher = create_teacher(name, **options).to(device)
    images = torch.rand(3 * batch, 1, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    images = images.to(device).expand(-1, 3, -1, -1)

    def look() -> None:
        teacher(images)

    return look


def run(config: I2PMAEBenchmark) -> list[dict[str, Any]]:
    """Rows of the twin and of geo3d for each network, the twin the base of the ratios, then of the teachers."""
    rows: list[dict[str, Any]] = []
    for model in config.model:
        rows += _steps(model, config)
    for name in config.teachers:
        arguments = {"name": name, "batch": config.batch, "device": config.device}
        variant = Variant(name, f"{__name__}:teacher_pass", arguments, device=config.device, threads=config.threads)
        (row,) = race(f"teacher {name} alone, {3 * config.batch} depth maps", [variant], config.turns)
        step = next(found["seconds"] for found in rows if found["variant"] == _GEO3D)
        row["columns"] = {f"share of a step of {config.model[0]}": f"{row['seconds'] / (row['seconds'] + step):.0%}"}
        rows.append(row)
    return rows


def _steps(model: str, config: I2PMAEBenchmark) -> list[dict[str, Any]]:
    network = _method(model).network.config
    forms = {_TWIN: {"twin": True}, _GEO3D: {}}
    if not network.embed_masked:  # the twin embeds them
        forms["geo3d, masked groups embedded"] = {"embed_masked": True}
    variants = [
        Variant(
            name,
            f"{__name__}:training_step",
            {"model": model, "batch": config.batch, "device": config.device} | form,
            device=config.device,
            threads=config.threads,
        )
        for name, form in forms.items()
    ]
    case = f"{model} step, batch {config.batch} x {network.points} points, {config.threads} threads"
    rows = race(case, variants, config.turns)
    expected, found = rows[0]["value"], rows[-1]["value"]
    if abs(found - expected) > _LOSS_SPREAD * abs(expected):
        raise InputError(f"the variants do not compute the same loss: {expected} and {found}")
    return rows
