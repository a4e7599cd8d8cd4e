"""A fit of a radiance field that is under way: its step, its looks at held-out photos, and its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.metrics import psnr
from geo3d.ops import padded_grid, radiance_gradient, radiance_step
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator
from geo3d.reconstruction.exposure import Exposure, best_gain
from geo3d.reconstruction.field_box import find_box
from geo3d.reconstruction.fit_schedule import Pace, Stages, falling
from geo3d.reconstruction.radiance_config import RadianceFieldConfig
from geo3d.reconstruction.radiance_file import read_field, write_field
from geo3d.reconstruction.radiance_grid import RadianceGrid
from geo3d.reconstruction.scene_rays import SceneRays, gather_rays

#: Rays looked at each time that held-out photos are.
_LOOKED_AT = 8192
#: Steps between two looks for empty cells.
_EMPTIED_EVERY = 32
#: Total variation is added every so many steps, so many times as strong.
_SMOOTHED_EVERY = 4
#: Reach of the depth error: metres, or a share of the longest half side where a scene has no metres.
_REACH, _REACH_SHARE = 0.2, 0.05
_LOWER_RATE = 0.1
#: Total variation of raw densities and colours at first, from colour alone and with depth, which needs less of it; and
#: the share that is left at the end.
_SMOOTHNESS, _SMOOTHNESS_WITH_DEPTH = (1e-7, 1e-7), (3e-9, 3e-8)
_SMOOTHNESS_LEFT, _SMOOTHNESS_LEFT_WITH_DEPTH = 0.003, 0.03


class RadianceFit:
    """A fit that is under way: all that a step changes, and the step."""

    def __init__(self, scene: Scene, config: RadianceFieldConfig, log: Log) -> None:
        self.config, self.log = config, log
        with_depth = config.depth and "depth" in scene.parts
        rays = gather_rays(scene, config.photo_side, config.photos, with_depth, config.masks)
        self.box, whence = find_box(scene, rays, config.low, config.high, config.border)
        held = list(range(0, rays.photos, config.held_out)) if config.held_out else []
        kept = [photo for photo in range(rays.photos) if photo not in held]
        self.rays, self.held = rays.some(kept), rays.some(held) if held else None
        side = 2 * self.box.half
        log(
            f"{scene.name}: {len(kept)} photos to fit, {len(held)} held out; box {whence}: "
            f"{side[0]:.2f} x {side[1]:.2f} x {side[2]:.2f} m, surroundings {self.box.border:g}"
        )
        self.reach = _REACH if scene.metric else _REACH_SHARE * float(self.box.half.max())
        self.longest_side = config.longest_side
        if config.box_alone:
            self.longest_side = round((1 + self.box.border) * config.longest_side)
        self.stages = Stages(self.longest_side)
        given = (config.density_smoothness, config.colour_smoothness)
        usual = _SMOOTHNESS_WITH_DEPTH if with_depth else _SMOOTHNESS
        self.smoothness = tuple(b if a is None else a for a, b in zip(given, usual, strict=True))
        self.smoothness_left = config.smoothness_left
        if self.smoothness_left is None:
            self.smoothness_left = _SMOOTHNESS_LEFT_WITH_DEPTH if with_depth else _SMOOTHNESS_LEFT
        self.pace = Pace()
        if config.steps is not None:
            self.pace = Pace.of_steps(config.steps)
        elif config.pace is not None:
            self.pace = Pace.given(config.pace)
        self.by_clock = config.steps is None and config.pace is None
        self.exposure = Exposure(self.rays.photos)
        self.step = self.stage_step = 0
        self.history: list[tuple[int, float]] = []  # (step, PSNR) of each look
        self.seconds = 0.0  # spent before a resume
        self.samples = 0
        self._use(RadianceGrid.empty(self.box, self.stages.at(0), config.device))

    def _use(self, grid: RadianceGrid) -> None:
        """Go on with a grid, the moments anew."""
        self.grid, self.stage_step = grid, 0
        sides, device = grid.values.shape, grid.values.device
        self.gradient = padded_grid(self.config.parts, *sides, device=device)
        self.mean, self.square = padded_grid(*sides, device=device), padded_grid(*sides, device=device)

    def resume(self, grid: RadianceGrid, tensors: dict[str, Tensor]) -> None:
        """Go on with a grid and what else a file of state holds."""
        here = RadianceGrid(self.box, padded_grid(*grid.values.shape, device=self.config.device))
        here.values.copy_(grid.values)
        here.occupancy = None if grid.occupancy is None else grid.occupancy.to(self.config.device)
        self._use(here)
        self.mean.copy_(tensors["mean"])
        self.square.copy_(tensors["square"])
        self.exposure.products, self.exposure.squares = tensors["exposure_products"], tensors["exposure_squares"]

    def advance(self, tick: int) -> None:
        """One step."""
        config = self.config
        longest = self.stages.at(tick)
        if self.grid.values.shape[:3] != self.box.sides(longest):
            self._use(self.grid.refined(longest))
            self.grid.look_for_empty_cells()
        elif self.stage_step % _EMPTIED_EVERY == 0 and self.grid.occupancy is not None:
            self.grid.look_for_empty_cells()
        rng = stream_generator(config.seed, Stream.RADIANCE_FIELD, self.step)
        # In order of their places, so that neighbours in a photo share what a processor has at hand.
        pixels = np.sort(rng.integers(0, self.rays.pixels, config.rays))
        jitter = torch.from_numpy(rng.random(config.rays, dtype=np.float32))
        rays = self.rays.at(torch.from_numpy(pixels))
        target, background = rays.colours, (0.0, 0.0, 0.0)
        wanted = target / self.exposure.gains()[rays.photo] if config.exposure else target
        if rays.inside is not None:
            background = tuple(map(float, rng.random(3)))
            target, wanted = (torch.where(rays.inside[:, None], c, torch.tensor(background)) for c in (target, wanted))
        device = self.grid.values.device
        origins, directions = self.grid.within(rays.origins.to(device), rays.directions.to(device))
        colour, *_, samples = radiance_gradient(
            self.gradient,
            self.grid.values,
            origins,
            directions,
            wanted.to(device),
            target_depth=None if rays.distances is None else self._reachable(rays, device),
            jitter=jitter.to(device),
            occupancy=self.grid.occupancy,
            depth_reach=self.reach,
            background=background,
            colour_error_weight=config.sample_colour * falling(1.0, config.sample_colour_left)(tick),
            depth_error_weight=0.0 if rays.distances is None else config.depth_weight,
            **self.grid.numbers(),
        )
        self.samples += int(samples.sum())
        if config.exposure:
            self.exposure.update(rays.photo, colour, target)
        rate = falling(1.0, _LOWER_RATE)(tick)
        smooth = 0.0
        if self.stage_step % _SMOOTHED_EVERY == 0:
            smooth = _SMOOTHED_EVERY * falling(1.0, self.smoothness_left)(tick)
        self.stage_step += 1
        radiance_step(
            self.grid.values,
            self.gradient,
            self.mean,
            self.square,
            number=self.stage_step,
            density_rate=rate * config.density_rate,
            colour_rate=rate * config.colour_rate,
            density_smoothness=smooth * self.smoothness[0],
            colour_smoothness=smooth * self.smoothness[1],
            occupancy=self.grid.occupancy,
        )
        self.step += 1

    def _reachable(self, rays, device) -> Tensor:
        """Distances to surfaces; 0, not known, where they lie outside of a grid without surroundings."""
        distances = rays.distances
        if self.box.border == 0:
            low, high = (torch.tensor(corner, dtype=torch.float32) for corner in (self.box.low, self.box.high))
            points = rays.origins + distances[:, None] * rays.directions
            distances = torch.where(((points > low) & (points < high)).all(1), distances, 0.0)
        return distances.to(device)

    def look(self) -> float:
        """PSNR of some pixels of the held-out photos, the mean over photos."""
        assert self.held is not None
        each = max(1, _LOOKED_AT // self.held.photos)
        found = []
        for photo in range(self.held.photos):
            first, end = int(self.held.first[photo]), int(self.held.first[photo + 1])
            pixels = torch.from_numpy(np.linspace(first, end - 1, min(each, end - first)).astype(np.int64))
            found.append(_psnr_of(self.grid, self.held.at(pixels), self.config.exposure))
        return float(np.mean(found))


def _psnr_of(grid: RadianceGrid, rays, own_gain: bool) -> float:
    device = grid.values.device
    seen = grid.see(rays.origins.to(device), rays.directions.to(device)).colours.cpu()
    target = rays.colours if rays.inside is None else rays.colours * rays.inside[:, None]
    if own_gain:
        seen = seen * best_gain(seen, target)
    return psnr(seen.clamp(0, 1), target)


def photos_psnr(grid: RadianceGrid, rays: SceneRays, own_gain: bool = False) -> float:
    """PSNR of each whole photo, averaged, dB; with the gain of each channel fitted to the photo if asked for."""
    return float(np.mean([_psnr_of(grid, rays.of_photo(photo), own_gain) for photo in range(rays.photos)]))


def write_state(path: Path, fit: RadianceFit) -> None:
    """Write a fit that is under way; a crash leaves the state before whole."""
    described = {
        "step": fit.step,
        "stage_step": fit.stage_step,
        "pace": fit.pace.starts,
        "history": fit.history,
        "seconds": fit.seconds,
        "samples": fit.samples,
        "photos": fit.rays.names,
    }
    tensors = {
        "mean": fit.mean,
        "square": fit.square,
        "exposure_products": fit.exposure.products,
        "exposure_squares": fit.exposure.squares,
    }
    write_field(path, fit.grid, fit.config, described, tensors)


def read_state(path: Path, fit: RadianceFit) -> None:
    """Put a fit where :func:`write_state` left it.

    Raises:
        InputError: the file is damaged or that of another fit: says what differs.
    """
    grid, config, described, tensors = read_field(path)
    if "step" not in described:
        raise InputError(f"{path}: is a fitted field, not the state of a fit; give another file")
    # How long it may take is free to change; all else would make another fit of it.
    ours, theirs = (dataclasses.replace(c, seconds=1.0, patience=0) for c in (fit.config, config))
    differs = [f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
    if differs or described["photos"] != fit.rays.names or grid.box != fit.box:
        what = ", ".join(differs) or "the photos or the box"
        raise InputError(f"{path}: is the state of another fit, of which {what} differ; remove it or give another file")
    fit.resume(grid, tensors)
    fit.step, fit.stage_step = described["step"], described["stage_step"]
    fit.history = [(int(step), float(value)) for step, value in described["history"]]
    fit.seconds, fit.samples = described["seconds"], described["samples"]
    if fit.by_clock:
        fit.pace = Pace([int(step) for step in described["pace"]])


__all__ = ["RadianceFit", "photos_psnr", "read_state", "write_state"]
