"""Radiance fields fitted to photos: quality of held-out views after a time, on a capture and on synthetic rooms.

Every eighth photo is held out, from the first, and was never looked at to choose settings: these were chosen on other
photos of the same scenes. The time of a fit includes reading the photos, not the figures made of it afterwards.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.datasets import open_dataset
from geo3d.datasets.scene import Scene
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.errors import InputError
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.metrics import psnr
from geo3d.progress import progress_line
from geo3d.reconstruction.radiance_field import RadianceField, RadianceFieldConfig, fit_radiance_field
from geo3d.reconstruction.scene_rays import SceneRays, gather_rays
from geo3d.viz.animation import depth_picture
from geo3d.viz.sheet import write_picture

HELD_OUT = 8
_ROOM_KINDS = ("bedroom", "living room", "office")  # of synthetic rooms, in their order
_VIEWS, _WIDTH, _HEIGHT = 40, 160, 120


@dataclass
class RadianceFieldBenchmark:
    """Held-out views of a capture and of synthetic rooms after a fit of so many seconds."""

    data: Path | None = None
    """A capture with views and poses, such as a folder with transforms.json. None: synthetic rooms alone."""
    seconds: tuple[float, ...] = (60, 180)
    """Times of fits of the capture."""
    photo_side: int = 480
    """Longest side of the capture's photos, pixels."""
    rooms: int = 3
    """Synthetic rooms: a bedroom, a living room, an office."""
    room_seconds: float = 40
    """Time of a fit of a room, from colour alone and with depth."""
    longest_side: int = 160
    """Voxels along the longest side."""
    sample_colour_left: float = 1.0
    """Share of the weight of single samples' colour error that is left at the end of fits of the capture."""
    threads: int = 2
    """CPU threads."""
    clock: Literal["wall", "cpu"] = "wall"
    """What the time is told by: cpu counts the process's own, for a machine that is busy with other work."""
    pictures: Path | None = None
    """Folder for pictures of held-out views beside the photos, with depth: good colours can hide torn walls."""

    def __post_init__(self) -> None:
        if self.rooms not in range(len(_ROOM_KINDS) + 1):
            raise InputError(f"radiance_field: rooms must lie in 0 to {len(_ROOM_KINDS)}, got {self.rooms}")
        if self.data is None and self.rooms == 0:
            raise InputError("radiance_field: nothing to fit; give data or rooms")


def halved(image: Tensor) -> Tensor:
    """(H, W, 3) averaged 2 x 2; an odd row or column at the end is left out."""
    return F.avg_pool2d(image.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)


def held_out_figures(field: RadianceField, scene: Scene, rays: SceneRays, picture: Path | None) -> dict[str, float]:
    """Means over the held-out photos: PSNR, PSNR of halved images, and the median depth error in metres."""
    whole, half, errors, rows = [], [], [], []
    for photo in range(0, rays.photos, HELD_OUT):
        view, truth = field.render(rays.cameras[photo], rays.poses[photo]), rays.image(photo)
        whole.append(psnr(view.image, truth))
        half.append(psnr(halved(view.image), halved(truth)))
        panels = [byte_color_tensor(image).numpy() for image in (truth, view.image)]
        if "depth" in scene.parts:
            depth = scene.depth(photo)
            known = (depth > 0) & (view.depth.numpy() > 0)
            errors.append(np.abs(view.depth.numpy() - depth)[known])
            near, far = np.quantile(depth[depth > 0], (0.01, 0.99))
            panels += [depth_picture(depth, near, far), depth_picture(view.depth.numpy(), near, far)]
        else:
            panels.append(depth_picture(view.depth.numpy()))
        rows.append(np.concatenate(panels, 1))
    if picture is not None:
        write_picture(picture, np.concatenate(rows[:6]))
    found = {"psnr": statistics.fmean(whole), "half": statistics.fmean(half)}
    return found | ({"depth": float(np.median(np.concatenate(errors)))} if errors else {})


def _row(case: str, variant: str, seconds: float, found: dict[str, float], steps: float | None) -> dict[str, Any]:
    columns = {"held-out PSNR": f"{found['psnr']:.2f} dB", "halved": f"{found['half']:.2f} dB"}
    if "depth" in found:
        columns["depth error"] = f"{100 * found['depth']:.2f} cm"
    if steps is not None:
        columns["steps"] = f"{steps:.0f}"
    return {
        "case": case, "variant": variant, "device": "cpu", "dtype": "float32", "seconds": seconds, "peak_mb": None,
        "columns": columns,
    }  # fmt: skip


def _fit(
    scene: Scene, config: RadianceFieldConfig, clock: Callable[[], float], picture: Path | None
) -> tuple[RadianceField, dict[str, float]]:
    field = fit_radiance_field(scene, config, lambda line: None, clock=clock)
    rays = gather_rays(scene, config.photo_side, config.photos)
    return field, held_out_figures(field, scene, rays, picture)


def run(config: RadianceFieldBenchmark) -> list[dict[str, Any]]:
    """Rows of the capture after each time, then of each room and their mean, from colour alone and with depth."""
    torch.set_num_threads(config.threads)
    clock = time.monotonic if config.clock == "wall" else time.process_time
    if config.pictures is not None:
        config.pictures.mkdir(parents=True, exist_ok=True)
    picture = (lambda name: None) if config.pictures is None else (lambda name: config.pictures / f"{name}.png")
    rows = []
    base = RadianceFieldConfig(longest_side=config.longest_side, held_out=HELD_OUT, patience=0)
    if config.data is not None:
        scene = next(iter(open_dataset(config.data).readable("views", "poses")), None)
        if scene is None:
            raise InputError(f"{config.data}: holds no scene with views and poses")
        for seconds in config.seconds:
            options = {
                "seconds": seconds, "photo_side": config.photo_side, "sample_colour_left": config.sample_colour_left,
            }  # fmt: skip
            field, found = _fit(scene, _changed(base, options), clock, picture(f"{scene.name}_{seconds:g}"))
            told = f"{seconds:g} s"
            rows.append(_row(f"{scene.name}, {config.threads} threads", told, seconds, found, field.figures["steps"]))
    with tempfile.TemporaryDirectory() as folder:
        if config.rooms:
            made = SyntheticConfig(Path(folder), config.rooms, 0, _VIEWS, _WIDTH, _HEIGHT, workers=1)
            write_synthetic(made, progress_line("room"))
        for depth in (False, True) if config.rooms else ():
            case = f"rooms, {'colour and depth' if depth else 'colour alone'}, {config.threads} threads"
            every = []
            for kind, scene in zip(_ROOM_KINDS, open_dataset(Path(folder) / "scannet"), strict=False):
                options = {"seconds": config.room_seconds, "depth": depth, "photo_side": None}
                name = f"{kind.replace(' ', '_')}_{'depth' if depth else 'colour'}"
                field, found = _fit(scene, _changed(base, options), clock, picture(name))
                rows.append(_row(case, kind, config.room_seconds, found, field.figures["steps"]))
                every.append(found)
            mean = {name: statistics.fmean(found[name] for found in every) for name in every[0]}
            rows.append(_row(case, "mean", config.room_seconds, mean, None))
    return rows


def _changed(config: RadianceFieldConfig, options: dict[str, Any]) -> RadianceFieldConfig:
    return dataclasses.replace(config, **options)
