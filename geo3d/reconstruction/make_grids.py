"""Folders of radiance grids, made of the scenes of any datasets, and of synthetic rooms where there is no data."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from geo3d.config import coerce
from geo3d.datasets.quarantine import BrokenScene, Quarantine, Remark
from geo3d.datasets.rooms import make_rooms, rooms_folder
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.progress import Log
from geo3d.reconstruction.annotate import annotate
from geo3d.reconstruction.grid_file import PRECISIONS, VERSION, grid_path, write_classes, write_grid
from geo3d.reconstruction.preview import preview
from geo3d.reconstruction.routes import Made, Route, get_route, list_routes
from geo3d.reconstruction.scene_rays import without_broken_views
from geo3d.viz.sheet import write_picture
from geo3d.writing import write_text, writing

#: Called after each scene with the number of scenes done, of all scenes, and the scene's name.
Progress = Callable[[int, int, str], None]
_MANIFEST = "grids.json"
#: Options that do not change what is made, only how fast.
_OF_NO_CONSEQUENCE = ("device",)


@dataclass(frozen=True)
class GridsConfig:
    """Radiance grids of all scenes of some datasets, in the form that NeRF-MAE published; goes on where it stopped."""

    data: tuple[Path, ...]
    """Folders of datasets whose scenes have what the route needs."""
    out: Path
    """Folder to write: a .npz of each scene in `features`, with its picture and figures beside it."""
    route: str = "radiance_field"
    """How grids are made: radiance_field (any posed photos), depth_fusion (scenes with depth), nerfstudio."""
    split: Path | None = None
    """Text file with one scene name a line; only those scenes are used."""
    annotate: bool = True
    """Give voxels the classes of labelled scenes, and put boxes around their objects."""
    previews: bool = True
    """Draw slices and renderings of each grid, and measure its PSNR."""
    keep_field: bool = False
    """Keep the fitted field too, as `features/<scene>.safetensors`, to draw novel views and turn-tables of later."""
    precision: str = "float16"
    """float16 or float32."""
    strict: bool = False
    """Stop at the first broken scene or view, rather than make grids of what can be read."""

    def __post_init__(self) -> None:
        coerce(self)
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")


@dataclass
class GridsSummary:
    """What :func:`prepare_grids` did.

    Args:
        out: the folder.
        made, kept: names of scenes made now, and of those that were there already.
        broken: what could not be made, a line each.
        seconds: time of all of it.
        psnr: of each scene whose preview was drawn, dB.
        passed: scenes that have not what the route needs.
        remarks: what was left out of scenes whose grids were made, a line each.
    """

    out: Path
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    psnr: list[float] = field(default_factory=list)
    passed: int = 0
    remarks: list[str] = field(default_factory=list)

    def report(self) -> str:
        """A few lines for people."""
        each = f", {self.seconds / len(self.made):.1f} s a scene" if self.made else ""
        lines = [f"{self.out}: {len(self.made)} grids made, {len(self.kept)} were there already{each}"]
        if self.psnr:
            mean = sum(self.psnr) / len(self.psnr)
            lines.append(f"PSNR of what the grids show of photos: {mean:.2f} dB, the lowest {min(self.psnr):.2f}")
        if self.passed:
            lines.append(f"{self.passed} scenes have not what the route needs")
        if self.broken:
            lines += [f"{len(self.broken)} scenes left out:", *self.broken]
        lines += self.remarks
        return "\n".join(lines)


def prepare_grids(
    config: GridsConfig, options: Any = None, log: Log = print, progress: Progress | None = None
) -> GridsSummary:
    """Make the grids of all scenes that have what the route needs.

    Args:
        config: what of, where to, and how.
        options: those of the route, one of its ``config_type()``; None: its defaults.
        log: takes lines about how far a scene is.
        progress: told after each scene.

    Raises:
        InputError: a folder that is no dataset, an unknown route or one without the field that is to be kept, an output
            that was made otherwise, two scenes of one name, or no grid at all.
        BrokenScene: the first broken scene, where ``config.strict``.
    """
    route = get_route(config.route)()
    if config.keep_field and not route.keeps_field:
        able = ", ".join(name for name in list_routes() if get_route(name).keeps_field)
        raise InputError(f"keep_field: {config.route} fits no field that could be kept; take the route {able}")
    options = type(route).config_type()() if options is None else options
    if not config.data:
        raise InputError("no data: give one or more folders of datasets")
    strict, split = config.strict, config.split
    datasets = [open_dataset(root, quarantine=Quarantine(strict=strict), split=split) for root in config.data]
    _claim(config, options)
    summary, start = GridsSummary(config.out), time.perf_counter()
    known: dict[Path, SceneDataset] = {}
    total, done = sum(len(dataset) for dataset in datasets), 0
    for dataset in datasets:
        for name in dataset.scene_names:
            path, done = grid_path(config.out, name), done + 1
            if path in known:
                first = known[path].root
                raise InputError(f"{first} and {dataset.root} both have a scene {name}; give each an output of its own")
            known[path] = dataset
            if path.is_file():
                summary.kept.append(name)
            else:
                _try(dataset, name, route, options, config, summary, log)
            if progress is not None:
                progress(done, total, name)
    summary.seconds = time.perf_counter() - start
    for dataset in datasets:
        summary.broken += [str(entry) for entry in dataset.quarantine.entries]
        summary.remarks += [str(remark) for remark in dataset.quarantine.remarks]
    if not summary.made and not summary.kept:
        lacking = f"none has all that {config.route} needs: {', '.join(type(route).parts)}"
        why = summary.broken[0] if summary.broken else f"{lacking}; other routes are {', '.join(list_routes())}"
        raise InputError(f"{', '.join(map(str, config.data))}: no grid could be made of {total} scenes; {why}")
    return summary


def _try(
    dataset: SceneDataset,
    name: str,
    route: Route,
    options: Any,
    config: GridsConfig,
    summary: GridsSummary,
    log: Log,
) -> None:
    """Make the grid of one scene; a broken one goes to the quarantine, of one with broken views the others are used."""
    try:
        scene = dataset.open(name)
        if not set(type(route).parts) <= scene.parts:
            summary.passed += 1
            return
        try:
            figures = _make(dataset, scene, route, options, config, log)
        except BrokenScene as broken:
            if config.strict or isinstance(broken, _Unfit):
                raise
            scene, left_out = without_broken_views(scene)
            if not left_out:
                raise
            figures = _make(dataset, scene, route, options, config, log)
            reason = f"views left out, which cannot be read; the first: {left_out[0].detail}"
            dataset.quarantine.note([Remark(name, str(scene.root), reason, len(left_out))])
        dataset.quarantine.note(scene.remarks)
    except BrokenScene as broken:
        dataset.quarantine.add(broken)
        return
    summary.made.append(name)
    if "psnr" in figures:
        summary.psnr.append(figures["psnr"])


class _Unfit(BrokenScene):
    """A scene whose files are whole, and whose views do not do."""


def _make(
    dataset: SceneDataset, scene: Scene, route: Route, options: Any, config: GridsConfig, log: Log
) -> dict[str, Any]:
    """Make and write the grid of a scene; returns its figures.

    Raises:
        BrokenScene: a file of the scene is damaged, or the route takes no such views: those of others it may.
        InputError: nothing can be written.
    """
    try:
        made = route.make(scene, options, log)
    except BrokenScene:
        raise
    except InputError as error:
        raise _Unfit(scene.name, dataset.root, str(error)) from error
    return write_made(scene, made, dataset.classes or (), config)


def write_made(scene: Scene, made: Made, classes: tuple[str, ...], config: GridsConfig) -> dict[str, Any]:
    """Write a grid with its preview and figures; the grid last, so that one that is there is complete.

    Returns:
        The figures.

    Raises:
        BrokenScene: labels or photos of the scene are damaged.
        InputError: nothing can be written, or the folder's grids are labelled by other classes.
    """
    path, figures = grid_path(config.out, scene.name), dict(made.figures)
    if config.annotate and "labels" in scene.parts:
        made.grid = annotate(made.grid, scene, classes)
        if classes:
            write_classes(config.out, classes)
        figures["boxes"] = 0 if made.grid.boxes is None else len(made.grid.boxes)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if config.previews:
        picture, measured = preview(scene, made, classes)
        figures |= measured
        write_picture(path.with_suffix(".png"), picture)
    if config.keep_field and made.save is not None:
        made.save(path.with_suffix(".safetensors"))
    figures |= {"scene": scene.name, "route": config.route, "sides": list(made.grid.sides)}
    write_text(path.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
    grid = made.grid
    if grid.low is not None and grid.high is not None and scene.origin.any():
        origin = torch.from_numpy(scene.origin)
        grid = dataclasses.replace(grid, low=grid.low + origin, high=grid.high + origin)
    write_grid(path, grid, precision=config.precision, metric=scene.metric, made_by=config.route)
    return figures


def _claim(config: GridsConfig, options: Any) -> None:
    """Look that the output is new or was made in the same way, and note how.

    Raises:
        InputError: it was made otherwise, or cannot be written.
    """
    chosen = {k: v for k, v in dataclasses.asdict(options).items() if k not in _OF_NO_CONSEQUENCE}
    wanted = {"version": VERSION, "route": config.route, "annotate": config.annotate, "precision": config.precision}
    wanted |= {"keep_field": config.keep_field, "options": chosen}
    wanted = json.loads(json.dumps(wanted, default=str))
    path = config.out / _MANIFEST
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or not any(grid_path(config.out, "any").parent.glob("*.npz")):
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = {"keep_field": False} | json.loads(path.read_text(encoding="utf-8"))  # which older ones do not name
        flat_found, flat_wanted = ({**f.pop("options", {}), **f} for f in (dict(found), dict(wanted)))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: says not how the grids were made ({error}); give another output") from error
    keys = [key for key in sorted({*flat_found, *flat_wanted}) if flat_found.get(key) != flat_wanted.get(key)]
    if keys:
        keys = ["route"] if "route" in keys else keys
        changes = ", ".join(f"{key} {flat_found.get(key)} instead of {flat_wanted.get(key)}" for key in keys)
        raise InputError(f"{config.out}: grids were made otherwise ({changes}); give another output")


def room_grids_folder(rooms: int, seed: int, longest_side: int, route: str = "depth_fusion") -> Path:
    """Where :func:`make_room_grids` puts its grids."""
    return rooms_folder(rooms, seed).parent / f"grids_{route}_{longest_side}"


def make_room_grids(
    rooms: int, seed: int, longest_side: int, log: Log, route: str = "depth_fusion", options: Any = None
) -> Path:
    """Make radiance grids of synthetic rooms, labelled and with boxes, or find those made before; returns their folder.

    Args:
        rooms: how many.
        seed: of the rooms.
        longest_side: voxels along the longest side of each.
        log: takes lines.
        route: one of the routes.
        options: those of the route but for ``longest_side``; None: its defaults.

    Raises:
        InputError: the folder holds grids that were made otherwise.
    """
    scans = make_rooms(rooms, seed, log)
    out = room_grids_folder(rooms, seed, longest_side, route)
    kind = get_route(route).config_type()
    options = dataclasses.replace(kind() if options is None else options, longest_side=longest_side)
    log(f"making radiance grids of them in {out}")
    config = GridsConfig((scans,), out, route, previews=False)
    log(prepare_grids(config, options, lambda _: None).report())
    return out


__all__ = ["GridsConfig", "GridsSummary", "make_room_grids", "prepare_grids", "room_grids_folder", "write_made"]
