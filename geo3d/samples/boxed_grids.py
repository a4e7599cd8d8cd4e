"""BoxedGrids: the sample source of methods that find objects in radiance grids."""

from __future__ import annotations

from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.samples.grids import GridScenes


class BoxedGrids(GridScenes):
    """Scenes whose radiance grid has a box around each object, if there are any."""

    kind = "grids with boxes"
    holds = "a radiance grid with boxes around its objects"

    def load(self, scene: Scene) -> VolumeGrid:
        grid = super().load(scene)
        if grid.boxes is None:
            raise InputError(f"scene {scene.name} ({scene.root}) has a grid without boxes around its objects")
        return grid


__all__ = ["BoxedGrids"]
