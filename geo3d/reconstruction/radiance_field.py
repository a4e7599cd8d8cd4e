"""Radiance fields fitted to the photos of a scene: a dense voxel grid, by volume rendering, coarse to fine.

>>> field = fit_radiance_field(scene, RadianceFieldConfig(seconds=60), print)
>>> field.figures["psnr"], field.render(camera, pose).image, field.grid(160)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.geometry import Camera, View, VolumeGrid
from geo3d.progress import Log
from geo3d.reconstruction import radiance_file
from geo3d.reconstruction.fit_schedule import TICKS
from geo3d.reconstruction.radiance_config import RadianceFieldConfig
from geo3d.reconstruction.radiance_fit import RadianceFit, photos_psnr, read_state, write_state
from geo3d.reconstruction.radiance_grid import RadianceGrid
from geo3d.reconstruction.scene_rays import camera_directions
from geo3d.reconstruction.turn_table import write_turn_table

#: Looks at held-out photos over a fit.
_LOOKS = 16
#: PSNR that counts as a gain.
_GAINED = 0.02


@dataclass
class RenderedView(View):
    """A view as a field shows it: ``image``, ``depth`` where at least half of the light is stopped, and opacity.

    Args:
        opacity: (H, W) float32 in [0, 1], the share of light that is stopped.
    """

    opacity: Tensor | None = None


@dataclass
class RadianceField:
    """A fitted field.

    Args:
        radiance: its grid.
        config: of the fit.
        cameras, poses: of the photos it was fitted to; (V, 4, 4) ``world_from_camera``.
        pace: step of each tick of the fit, see :class:`geo3d.reconstruction.fit_schedule.Pace`.
        figures: what was measured: ``steps``, ``seconds``, ``rays_per_second``, ``samples_per_ray``, ``psnr_seen`` of
            photos fitted, and of those held out ``psnr`` and, with exposure, ``psnr_own_gain``, where the gain of each
            is fitted too.
        gains: (V, 3) how much brighter each photo is than the field; None without exposure.
    """

    radiance: RadianceGrid
    config: RadianceFieldConfig
    cameras: list[Camera]
    poses: np.ndarray
    pace: tuple[int, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    gains: Tensor | None = None

    def render(self, camera: Camera, world_from_camera: Tensor | np.ndarray, name: str = "rendered") -> RenderedView:
        """What a camera sees, its lens' distortion included.

        Args:
            camera: of any size and place.
            world_from_camera: (4, 4) pose, metres.
            name: of the view.

        Returns:
            ``image`` (H, W, 3), ``depth`` (H, W) metres along z, 0 where less than half of the light is stopped, and
            ``opacity`` (H, W), on the CPU.

        Raises:
            ValueError: a pose that is not (4, 4).
        """
        pose = torch.as_tensor(world_from_camera, dtype=torch.float64)
        view = RenderedView(name, camera, pose)
        device = self.radiance.values.device
        towards = camera_directions(camera)
        directions = (towards @ pose[:3, :3].T).float().to(device)
        origins = pose[:3, 3].float().to(device).expand_as(directions)
        seen = self.radiance.see(origins, directions)
        size = (camera.height, camera.width)
        view.image = seen.colours.clamp(0, 1).reshape(*size, 3).cpu()
        view.depth = (seen.distances.cpu() * towards[:, 2].float()).reshape(size)
        view.opacity = seen.opacity.reshape(size).cpu()
        return view

    def grid(
        self,
        longest_side: int | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> VolumeGrid:
        """Colours and opacity of a box in it; see :meth:`geo3d.reconstruction.radiance_grid.RadianceGrid.to_volume`."""
        return self.radiance.to_volume(longest_side, low, high)

    def turn_table(self, folder: Path, frames: int = 48, longest_side: int = 320, seconds: float = 0.1) -> Path:
        """Write a loop through it as PNG frames and a GIF; see :mod:`geo3d.reconstruction.turn_table`."""
        return write_turn_table(self, self.cameras, self.poses, folder, frames, longest_side, seconds)

    def save(self, path: Path) -> None:
        """Write it as one safetensors file.

        Raises:
            InputError: the file cannot be written.
        """
        described = {"cameras": self.cameras, "pace": list(self.pace), "figures": self.figures}
        tensors = {"poses": torch.from_numpy(self.poses)} | ({} if self.gains is None else {"gains": self.gains})
        radiance_file.write_field(path, self.radiance, self.config, described, tensors)

    @classmethod
    def load(cls, path: Path) -> RadianceField:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, a damaged one, or one of something else.
        """
        radiance, config, described, tensors = radiance_file.read_field(path)
        cameras = [radiance_file.camera_of(fields, path) for fields in described["cameras"]]
        poses, pace, figures = tensors["poses"].numpy(), tuple(described["pace"]), described["figures"]
        return cls(radiance, config, cameras, poses, pace, figures, tensors.get("gains"))


def fit_radiance_field(
    scene: Scene,
    config: RadianceFieldConfig | None = None,
    log: Log = print,
    state: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RadianceField:
    """Fit a radiance field to the photos of a scene.

    Coarse to fine: a fifth, two fifths, three fifths, then the whole of ``longest_side``, at 7, 20 and 35 % of the way.
    The same seed and steps (or pace) give the same bits on one machine, whatever the number of threads, on the CPU.

    Args:
        scene: with views and poses; depth and masks are used as the config says.
        config: options; None: the defaults.
        log: told how far it is, with rays a second and PSNR.
        state: file that the fit is kept in on its way, 8 times; where it is there already, the fit goes on from it, to
            the same bits as if it had never stopped. When done it is left there, and the next call ends at once.
        clock: tells seconds; another one than the machine's for tests and shared machines.

    Raises:
        InputError: the scene lacks a part, its photos or poses cannot be used, no box can be found, or ``state`` is
            that of another fit.
    """
    config = RadianceFieldConfig() if config is None else config
    start = clock()
    fit = RadianceFit(scene, config, log)
    if state is not None and Path(state).exists():
        read_state(Path(state), fit)
        log(f"going on from {state}: step {fit.step}")
    start -= fit.seconds
    last_step, last_clock = fit.step, clock()
    tick = fit.pace.tick(fit.step)
    looked, saved = _LOOKS * tick // TICKS, 8 * tick // TICKS
    done = _flat(fit)  # of a fit that ended early before
    while not done:
        now = clock() - start
        tick = fit.pace.advance(fit.step, now, config.seconds) if fit.by_clock else fit.pace.tick(fit.step)
        if _LOOKS * tick // TICKS > looked and fit.step > last_step:
            looked = _LOOKS * tick // TICKS
            rate = (fit.step - last_step) * config.rays / max(clock() - last_clock, 1e-9)
            shown = ""
            if fit.held is not None:
                fit.history.append((fit.step, fit.look()))
                shown = f", PSNR {fit.history[-1][1]:.2f} dB of held-out photos"
            longest = max(fit.grid.values.shape[:3])
            log(f"{100 * tick // TICKS} %, step {fit.step}, grid {longest}, {rate / 1e3:.0f} k rays/s{shown}")
            last_step, last_clock = fit.step, clock()
            if _flat(fit):
                log(f"ends early at step {fit.step}: held-out photos have gained nothing at {config.patience} looks")
                done = True
        done = done or tick >= TICKS
        if state is not None and (done or 8 * tick // TICKS > saved):
            saved, fit.seconds = 8 * tick // TICKS, clock() - start
            write_state(Path(state), fit)
        if not done:
            fit.advance(tick)
    fit.seconds = clock() - start
    return _finished(fit, log)


def _flat(fit: RadianceFit) -> bool:
    """Whether held-out photos have gained nothing for as many looks as the config is patient, on the last grid."""
    begun = fit.step - fit.stage_step
    patience, found = fit.config.patience, [value for step, value in fit.history if step > begun]
    fine = fit.grid.values.shape[:3] == fit.box.sides(fit.longest_side)
    if not (patience and fine and len(found) > patience):
        return False
    return max(found[-patience:]) < max(found[:-patience]) + _GAINED


def _finished(fit: RadianceFit, log: Log) -> RadianceField:
    config, grid = fit.config, fit.grid
    grid.look_for_empty_cells()
    figures = {
        "steps": fit.step,
        "seconds": round(fit.seconds, 3),
        "rays_per_second": round(fit.step * config.rays / max(fit.seconds, 1e-9)),
        "samples_per_ray": round(fit.samples / max(fit.step * config.rays, 1), 2),
        "psnr_seen": round(photos_psnr(grid, fit.rays.some(range(0, fit.rays.photos, 8)), config.exposure), 3),
    }
    if fit.held is not None:
        figures["psnr"] = round(photos_psnr(grid, fit.held), 3)
        if config.exposure:
            figures["psnr_own_gain"] = round(photos_psnr(grid, fit.held, own_gain=True), 3)
    told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
    log(f"fitted: {told}")
    gains = fit.exposure.gains() if config.exposure else None
    pace = (*fit.pace.starts, *[fit.step] * (TICKS + 1 - len(fit.pace.starts)))  # of one that ended early
    return RadianceField(grid, config, fit.rays.cameras, fit.rays.poses, pace, figures, gains)


__all__ = ["RadianceField", "RadianceFieldConfig", "RenderedView", "fit_radiance_field", "photos_psnr"]
