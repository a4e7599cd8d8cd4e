"""A trained detector run over radiance grids, or over scenes that grids are made of: boxes as JSON, and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from geo3d.datasets.radiance_grids import RadianceGridScene
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.methods.checks import check_at_least, check_share
from geo3d.models.nerf_mae_downstream import NeRFMAEDetector
from geo3d.nn.anchor_free import FoundBoxes
from geo3d.nn.oriented_boxes import box_corners
from geo3d.predict.networks import load_network
from geo3d.reconstruction.captures import capture_grids
from geo3d.samples.grids import GridScenes
from geo3d.viz.boxes import boxes_from_above
from geo3d.viz.sheet import write_picture
from geo3d.writing import prepare_place, write_text

#: Objects that a picture shows, at most, unless the grid tells how many there are.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """Find objects in radiance grids."""

    grids: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="GRID ...")]
    """Files of grids (.npz), folders of them as `geo3d prepare grids` writes, or folders of scenes with posed depth
    maps or photos, of which grids are made first, under data/grids."""
    checkpoint: Path
    """Run folder of `geo3d finetune detect`, one of its checkpoints, the authors' detector of NeRF-MAE, or
    hf://owner/repository/file[@revision]."""
    out: Path = Path("detection.json")
    """JSON file to write; the pictures go beside it."""
    threshold: float = 0.3
    """Of two objects found that overlap by more than this (intersection over union) the less sure one is left out."""
    least_score: float = 0.05
    """Objects that the network is less sure of than this (0 to 1) are not told."""
    side: int = 64
    """Voxels along the longest side of grids that are made (count)."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        check_share(self, "threshold", "least_score")
        check_at_least(self, 16, "side")
        if not self.grids:
            raise InputError("grids: give one or more files of grids, or folders of grids or scenes")
        if self.out.suffix.lower() != ".json":
            raise InputError(f"out: {self.out} should end in .json")


def predict(config: DetectOptions) -> str:
    """Find objects, write their boxes and a picture of each grid from above.

    Boxes are told in voxels of their grid, and where the grid knows where it lies in its scene, also there: in metres,
    or under the name `scene_units` where it is not known that its unit is the metre.

    Returns:
        A line a grid, and where the rest is.

    Raises:
        InputError: checkpoint, grid or scene cannot be read, or nothing can be written where it is to be.
    """
    prepare_place(config.out)
    model = load_network(config.checkpoint, "detect", ("nerf_mae_detector",), "finds objects", config.device)
    scenes = [pair for path in config.grids for pair in _scenes(path, config.side)]
    found, lines = [], []
    for number, (name, scene) in enumerate(scenes):
        grid = scene.grid()
        boxes = _certain(model.detect(grid, threshold=config.threshold)[0], config.least_score)
        suffix = f"_{number + 1}" if len(scenes) > 1 else ""
        picture = config.out.with_name(f"{config.out.stem}{suffix}.png")
        write_picture(picture, _picture(model, grid, boxes))
        unit = "metres" if scene.metric else "scene_units"
        objects = [_described(grid, unit, *each) for each in zip(boxes.boxes, boxes.scores)]
        found.append({"grid": name, "objects": objects})
        best = f", the surest {float(boxes.scores[0]):.2f}" if len(boxes.scores) else ""
        lines.append(f"{name}: {len(boxes.scores)} objects{best}; picture: {picture}")
    write_text(config.out, json.dumps(found, indent=1) + "\n")
    return "\n".join([*lines, f"boxes: {config.out}"])


def _scenes(path: Path, side: int) -> list[tuple[str, Scene]]:
    """Names, and scenes with a grid, of a file, a folder of grids, or a folder of scenes of which they are made now."""
    if path.is_file():
        return [(str(path), RadianceGridScene(path.stem, path))]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a file of a grid, or a folder of grids or scenes")
    source = GridScenes.find([capture_grids(path, side, "auto", partial(print, flush=True))], strict=True)
    return [(f"{path}: {name}", source.datasets[number].open(name)) for number, name in source.scenes]


def _certain(found: FoundBoxes, least: float) -> FoundBoxes:
    kept = found.scores >= least
    return FoundBoxes(found.boxes[kept].cpu(), found.scores[kept].cpu())


def _described(grid: VolumeGrid, unit: str, box: Any, score: Any) -> dict[str, Any]:
    """A box in plain values."""
    described = {"score": round(float(score), 4), "voxels": {"centre": _rounded(box[:3]), "sides": _rounded(box[3:6])}}
    if grid.low is not None:
        voxel = grid.voxel
        described[unit] = {
            "centre": _rounded(grid.low + voxel * box[:3].double()),
            "sides": _rounded(float(voxel.mean()) * box[3:6].double()),
        }
    return described | {"yaw_radians": round(float(box[6]), 4)}


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def _picture(model: NeRFMAEDetector, grid: VolumeGrid, found: FoundBoxes) -> Any:
    """The grid from above with its objects where they are known, and with those found."""
    most = _SHOWN if grid.boxes is None else max(1, len(grid.boxes))
    panels = {} if grid.boxes is None else {"objects": grid.boxes}
    panels |= {"found": found.boxes[:most]}
    values = model.prepare(grid).values[0]
    x, y, z = grid.sides
    corners = {caption: box_corners(boxes).numpy() for caption, boxes in panels.items()}
    return boxes_from_above(values[:, :x, :y, :z].cpu(), corners)


__all__ = ["DetectOptions", "predict"]
