"""What recipes over radiance grids share: grids made of synthetic rooms, or of the captures in data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo3d.methods.checks import check_at_least
from geo3d.progress import Log
from geo3d.recipes.recipe import Recipe, RoomsRun
from geo3d.reconstruction.captures import capture_grids, capture_grids_folder, capture_route
from geo3d.reconstruction.make_grids import make_room_grids, room_grids_folder
from geo3d.reconstruction.routes import get_route
from geo3d.train.config import TrainConfig


@dataclass(kw_only=True)
class GridsRun(RoomsRun):
    """A run over radiance grids, which are made where they are not given."""

    rooms: int = 40
    """Synthetic rooms to make grids of where `data` is empty (count)."""

    grid_side: int = 64
    """Voxels along the longest side of the grids that are made, of rooms or of captures in `data` (count)."""

    route: str = "auto"
    """How grids are made, as `geo3d prepare grids` says; auto: of depth maps where there are any, else of photos."""

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        check_at_least(self, 16, "grid_side")
        if self.route != "auto":
            get_route(self.route)

    @property
    def room_route(self) -> str:
        """How grids of synthetic rooms are made: they have depth maps."""
        return "depth_fusion" if self.route == "auto" else self.route


def published_training(epochs: int, batch_size: int, lr: float) -> TrainConfig:
    """The published optimiser over grids: AdamW and one cycle, gradients clipped (section 3.5 of the supplement)."""
    return TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule="one_cycle",
        warmup_steps=0,
        betas=(0.9, 0.999),
        weight_decay=1e-3,
        clip_norm=0.1,
        workers=8,
    )


def short_training(steps: int) -> TrainConfig:
    """Minutes on a CPU, on grids of 64 voxels a side."""
    return TrainConfig(
        steps=steps,
        batch_size=2,
        lr=1e-3,
        warmup_steps=steps // 10,
        min_lr=1e-5,
        weight_decay=1e-3,
        clip_norm=1.0,
        workers=1,
    )


class GridsRecipe(Recipe):
    """A recipe over radiance grids."""

    @classmethod
    def prepare(cls, config: GridsRun, folder: Path, log: Log, fresh: bool) -> None:
        """Make grids: of synthetic rooms where no data is given, else of the captures in it."""
        super().prepare(config, folder, log, fresh)
        for root in config.data:
            capture_grids(root, config.grid_side, config.route, log, config.strict)

    @classmethod
    def made_data(cls, config: GridsRun) -> Path:
        """The folder of grids."""
        return room_grids_folder(config.rooms, config.train.seed, config.grid_side, config.room_route)

    @classmethod
    def make_data(cls, config: GridsRun, log: Log) -> Path:
        """Make grids of synthetic rooms, or find those made before."""
        return make_room_grids(config.rooms, config.train.seed, config.grid_side, log, config.room_route)

    def find_source(self) -> Any:
        """Grids as they are given, and those that were made of captures."""
        config, folders = self.config, []
        for root in config.data:
            route = capture_route(root, config.route)
            folders.append(root if route is None else capture_grids_folder(root, config.grid_side, route))
        return self.method_class.source.find(folders or (self.made_data(config),), strict=config.strict)


__all__ = ["GridsRecipe", "GridsRun", "published_training", "short_training"]
