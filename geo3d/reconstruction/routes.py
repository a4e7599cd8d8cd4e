"""Routes: the ways from a scene to its radiance grid, behind one interface.

    >>> from geo3d.reconstruction.routes import get_route
    >>> route = get_route("depth_fusion")()
    >>> made = route.make(scene, route.config_type()(longest_side=64), print)
    >>> made.grid, made.figures

A route of one's own is a subclass of :class:`Route`, made known by :func:`register_route`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from geo3d.datasets.scene import Scene
from geo3d.geometry import Camera, VolumeGrid
from geo3d.progress import Log
from geo3d.reconstruction.depth_fusion import DepthFusionConfig, fuse_depth
from geo3d.reconstruction.scene_box import grid_sides
from geo3d.registry import Registry
from geo3d.spread import evenly_spread

#: Of the views of a scene every so many-th is kept for measuring, where there are enough of them.
HELD_OUT_EVERY, FEWEST_TO_HOLD_OUT = 8, 16

#: Colour (H, W, 3) in [0, 1] and depth (H, W) metres, 0 where unknown, of what a camera of a pose sees.
Render = Callable[[Camera, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Made:
    """What a route made of a scene.

    Args:
        grid: the radiance grid.
        render: views of what the grid was read off, where that is more than the grid; None: the grid is all there is.
        figures: what was measured, such as ``seconds``.
        held_out: numbers of views that it was not made from; empty: all were used.
        save: writes what the grid was read off to a file that novel views can be drawn from; None: there is no such.
    """

    grid: VolumeGrid
    render: Render | None = None
    figures: dict[str, float] = field(default_factory=dict)
    held_out: tuple[int, ...] = ()
    save: Callable[[Path], None] | None = None


class Route(ABC):
    """A way to make radiance grids."""

    #: One line for people.
    summary: ClassVar[str]
    #: What a scene must have.
    parts: ClassVar[tuple[str, ...]]
    #: Whether what it makes can be kept beside the grid (:attr:`Made.save`).
    keeps_field: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def config_type(cls) -> type:
        """The dataclass of its options; ``longest_side`` is one of them."""

    @abstractmethod
    def make(self, scene: Scene, config: Any, log: Log) -> Made:
        """Make the grid of a scene.

        Args:
            scene: with :attr:`parts`.
            config: one of :meth:`config_type`.
            log: takes lines about how far it is.

        Raises:
            InputError: the scene or the config cannot be used.
            BrokenScene: a file of the scene is damaged.
        """


ROUTES = Registry("route", Route)
register_route, list_routes, get_route = ROUTES.register, ROUTES.names, ROUTES.get


class DepthFusion(Route):
    """Depth maps averaged as signed distances."""

    summary = "depth maps averaged as signed distances (TSDF): seconds a scene, of scenes with depth"
    parts = ("views", "poses", "depth")

    @classmethod
    def config_type(cls) -> type:
        return DepthFusionConfig

    def make(self, scene: Scene, config: DepthFusionConfig, log: Log) -> Made:
        scene.require(*self.parts)
        start = time.perf_counter()
        held = held_out_views(len(scene.view_names), config.held_out)
        left = [index for index in range(len(scene.view_names)) if index not in held]
        views = [left[row] for row in evenly_spread(len(left), config.most_views or None)]
        grid = fuse_depth(scene, config, views)
        seconds = time.perf_counter() - start
        log(f"{scene.name}: {len(views)} depth maps fused in {seconds:.1f} s")
        return Made(grid, None, {"views": len(views), "seconds": round(seconds, 3)}, held)


class RadianceFieldRoute(Route):
    """A grid fitted to the photos by volume rendering."""

    summary = "a grid fitted to the photos by volume rendering: a minute a scene, of any posed photos"
    parts = ("views", "poses")
    keeps_field = True

    @classmethod
    def config_type(cls) -> type:
        from geo3d.reconstruction.radiance_config import RadianceFieldConfig

        return RadianceFieldConfig

    def make(self, scene: Scene, config: Any, log: Log) -> Made:
        from geo3d.reconstruction.radiance_field import fit_radiance_field

        # What is written is the box alone, and no coarser than it was fitted.
        field_ = fit_radiance_field(scene, replace(config, box_alone=True), lambda line: log(_of(scene, line)))

        def render(camera: Camera, world_from_camera: Tensor) -> tuple[Tensor, Tensor]:
            view = field_.render(camera, world_from_camera)
            return view.image, view.depth

        taken = evenly_spread(len(scene.view_names), config.photos)
        held = tuple(taken[:: config.held_out]) if config.held_out else ()
        low, high = even_box(field_.radiance.box.low, field_.radiance.box.high, config.longest_side)
        grid = field_.grid(config.longest_side, low, high)
        return Made(grid, render, dict(field_.figures), held, field_.save)


def _of(scene: Scene, line: str) -> str:
    return line if line.startswith(f"{scene.name}: ") else f"{scene.name}: {line}"


class NerfstudioRoute(Route):
    """A trained nerfstudio run, read off at the centres of voxels."""

    summary = "a trained nerfstudio run, read off at the centres of voxels; needs nerfstudio"
    parts = ("views", "poses")

    @classmethod
    def config_type(cls) -> type:
        from geo3d.reconstruction.nerfstudio import NerfstudioConfig

        return NerfstudioConfig

    def make(self, scene: Scene, config: Any, log: Log) -> Made:
        from geo3d.reconstruction.nerfstudio import scene_grid, scene_run

        start = time.perf_counter()
        run = scene_run(scene, config)
        grid = scene_grid(scene, config, lambda line: log(f"{scene.name}: {line}"), run)
        figures = {"views": len(run.names), "seconds": round(time.perf_counter() - start, 3)}
        return Made(grid, None, figures, run.held_out(scene))


register_route("depth_fusion", DepthFusion)
register_route("radiance_field", RadianceFieldRoute)
register_route("nerfstudio", NerfstudioRoute)


def even_box(low: Any, high: Any, longest: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A box, widened about its centre to whole cubic voxels as :func:`grid_sides` counts them."""
    sides = np.array(grid_sides(low, high, longest))
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    half = sides * (high - low).max() / longest / 2
    return tuple(map(float, (low + high) / 2 - half)), tuple(map(float, (low + high) / 2 + half))


def held_out_views(count: int, every: int) -> tuple[int, ...]:
    """Numbers of the views that are kept for measuring: every so many-th, of 16 and more; none where ``every`` is 0."""
    return tuple(range(0, count, every)) if every and count >= FEWEST_TO_HOLD_OUT else ()


__all__ = ["Made", "Render", "Route", "get_route", "held_out_views", "list_routes", "register_route"]
