"""What recipes over radiance grids share: grids made of synthetic rooms, or of the captures in data."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo3d.datasets.scene import Scene, open_dataset
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.progress import Log
from geo3d.recipes.recipe import Recipe, RoomsRun
from geo3d.reconstruction.make_grids import GridsConfig, make_room_grids, prepare_grids, room_grids_folder
from geo3d.reconstruction.routes import get_route, list_routes

#: Where grids are put that are made of captures.
CAPTURES = Path("data") / "grids"
_AUTO, _BY_DEPTH, _BY_PHOTOS = "auto", "depth_fusion", "radiance_field"


@dataclass(kw_only=True)
class GridsRun(RoomsRun):
    """A run over radiance grids, which are made where they are not given."""

    rooms: int = 40
    """Synthetic rooms to make grids of where `data` is empty (count)."""

    grid_side: int = 64
    """Voxels along the longest side of the grids that are made, of rooms or of captures in `data` (count)."""

    route: str = _AUTO
    """How grids are made, as `geo3d prepare grids` says; auto: of depth maps where there are any, else of photos."""

    def check(self) -> None:
        """As :meth:`Run.check`."""
        super().check()
        check_at_least(self, 16, "grid_side")
        if self.route not in (_AUTO, *list_routes()):
            raise InputError(f"route must be one of {', '.join((_AUTO, *list_routes()))}, got {self.route!r}")


class GridsRecipe(Recipe):
    """A recipe over radiance grids."""

    @classmethod
    def prepare(cls, config: GridsRun, folder: Path, log: Log, fresh: bool) -> None:
        """Make grids: of synthetic rooms where no data is given, else of the captures in it."""
        super().prepare(config, folder, log, fresh)
        for root in config.data:
            out = captures_folder(root, config.grid_side, config.route)
            if out != root:
                route = _route(root, config.route)
                log(f"making radiance grids of {root} in {out} ({route})")
                options = dataclasses.replace(get_route(route).config_type()(), longest_side=config.grid_side)
                made = prepare_grids(
                    GridsConfig((root,), out, route, previews=False, strict=config.strict), options, log
                )
                log(made.report())

    @classmethod
    def made_data(cls, config: GridsRun) -> Path:
        """The folder of grids."""
        return room_grids_folder(config.rooms, config.train.seed, config.grid_side, _room_route(config))

    @classmethod
    def make_data(cls, config: GridsRun, log: Log) -> Path:
        """Make grids of synthetic rooms, or find those made before."""
        return make_room_grids(config.rooms, config.train.seed, config.grid_side, log, _room_route(config))

    def find_source(self) -> Any:
        """Grids as they are given, and those that were made of captures."""
        config = self.config
        folders = [captures_folder(root, config.grid_side, config.route) for root in config.data]
        return self.method_class.source.find(folders or (self.made_data(config),), strict=config.strict)


def captures_folder(root: Path, longest_side: int, route: str) -> Path:
    """Where the grids of a folder of captures are put; the folder itself where its scenes hold grids already."""
    scene = _first_scene(root)
    if scene is None or "grid" in scene.parts:
        return root
    number = zlib.crc32(str(root.resolve()).encode())
    return CAPTURES / f"{root.name}_{number:08x}_{_route(root, route)}_{longest_side}"


def _first_scene(root: Path) -> Scene | None:
    """A scene of a dataset that can be opened."""
    return next(iter(open_dataset(root).readable()), None)


def _route(root: Path, route: str) -> str:
    """The route that is taken for a folder of captures."""
    scene = _first_scene(root)
    by_depth = scene is not None and "depth" in scene.parts
    return (_BY_DEPTH if by_depth else _BY_PHOTOS) if route == _AUTO else route


def _room_route(config: GridsRun) -> str:
    """The route that is taken for synthetic rooms, which have depth."""
    return _BY_DEPTH if config.route == _AUTO else config.route


__all__ = ["CAPTURES", "GridsRecipe", "GridsRun", "captures_folder"]
