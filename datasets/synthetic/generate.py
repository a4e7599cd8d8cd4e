"""Making a synthetic data set: what is drawn for every scene, and writing them in parallel."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from geo3d.datasets.files import make_folder
from geo3d.datasets.synthetic.furniture import SMALL_OBJECTS
from geo3d.datasets.synthetic.mesh import fine_mesh
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room, furnish_tabletop
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Palette
from geo3d.datasets.synthetic.walk import orbit, walk_room
from geo3d.datasets.synthetic.write_mvimgnet import write_instance
from geo3d.datasets.synthetic.write_scannet import write_labels_table, write_scan
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera
from geo3d.random import Stream, stream_generator
from geo3d.writing import UNFINISHED, write_text, writing

#: Raised whenever the same configuration would give other files.
VERSION = 1
_MANIFEST, _UNFINISHED = "synthetic.json", "unfinished"


@dataclass(frozen=True)
class SyntheticConfig:
    """Procedural furnished rooms (written as ScanNet) and objects (written as MVImgNet)."""

    out: Path = Path("data/synthetic")
    """Folder to write; rooms go to its ``scannet`` and objects to its ``mvimgnet`` folder."""
    scenes: int = 10
    """Number of rooms: bedrooms, living rooms, offices, kitchens and bathrooms in turn."""
    objects: int = 12
    """Number of single-object captures; the classes follow in turn."""
    views: int = 20
    """Number of views a scene."""
    width: int = 320
    """Image width in pixels."""
    height: int = 240
    """Image height in pixels."""
    mesh_edge: float = 0.04
    """Longest edge of the rooms' meshes in metres."""
    seed: int = 0
    """Every other seed gives other scenes; scene i is the same whatever the number of scenes."""
    workers: int = 0
    """Number of processes; 0 takes one for each processor."""

    def __post_init__(self) -> None:
        least = {"scenes": 0, "objects": 0, "views": 2, "width": 32, "height": 32, "seed": 0, "workers": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"synthetic: {name} must be at least {bound}, got {getattr(self, name)}")
        if self.scenes + self.objects == 0:
            raise InputError("synthetic: scenes and objects are both 0; ask for one of them")
        if not 0.005 <= self.mesh_edge <= 0.5:
            raise InputError(f"synthetic: mesh_edge must lie in 0.005 to 0.5 metres, got {self.mesh_edge}")


class OfFolder(Protocol):
    """A configuration of what is made in a folder; what else it says tells whether the folder is of the same."""

    out: Path
    workers: int


class Job(NamedTuple):
    """A scene to make.

    Args:
        folder: that it is written to, relative to the output.
        write: writes scene ``index`` of a configuration into an existing folder; importable by name.
        index: number of the scene.
    """

    folder: str
    write: Callable[[Path, Any, int], None]
    index: int


@dataclass
class SyntheticSummary:
    """What :func:`write_synthetic` did.

    Args:
        out: the folder.
        written: scenes made now.
        kept: scenes that were there already.
        seconds: time that each written scene took in its process.
    """

    out: Path
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def report(self) -> str:
        """One line."""
        mean = sum(self.seconds.values()) / len(self.seconds) if self.seconds else 0.0
        return (
            f"{self.out}: {len(self.written)} scenes written, {len(self.kept)} were there already; "
            f"{mean:.2f} s a scene and process"
        )


def _room_folder(index: int) -> str:
    return f"scannet/scans/scene{index:04d}_00"


def _object_folder(index: int) -> str:
    classes = len(SMALL_OBJECTS)
    return f"mvimgnet/{index % classes}/{index // classes:08x}"


def write_room(folder: Path, config: SyntheticConfig, index: int) -> None:
    """Make room ``index`` and write it as a ScanNet scan into an existing folder."""
    rng = stream_generator(config.seed, Stream.SYNTHETIC_ROOMS, index)
    kind = list(ROOM_KINDS)[index % len(ROOM_KINDS)]
    palette = Palette(rng)
    room = furnish_room(kind, palette, rng)
    stage = Stage(room.things, palette, room.lights, rng)
    camera = Camera.from_fov(config.width, config.height, np.radians(rng.uniform(60, 68)))
    poses = walk_room(stage, room.size, camera, config.views, rng)
    yaw = rng.uniform(0, 2 * np.pi)
    scan_from_room = np.eye(4)
    scan_from_room[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    scan_from_room[:3, 3] = rng.uniform([2, 2, -0.05], [5, 5, 0.05])
    mesh = fine_mesh(stage, config.mesh_edge)
    write_scan(folder, Path(_room_folder(index)).name, stage, mesh, camera, poses, kind, scan_from_room)


def write_object(folder: Path, config: SyntheticConfig, index: int) -> None:
    """Make object capture ``index`` and write it as an MVImgNet instance into an existing folder."""
    rng = stream_generator(config.seed, Stream.SYNTHETIC_OBJECTS, index)
    object_class = list(SMALL_OBJECTS)[index % len(SMALL_OBJECTS)]
    palette = Palette(rng)
    room = furnish_tabletop(object_class, palette, rng)
    stage = Stage(room.things, palette, room.lights, rng)
    camera = Camera.from_fov(config.width, config.height, np.radians(rng.uniform(50, 60)))
    points = np.concatenate([p.corners.reshape(-1, 3) for p in room.things[-1].world_patches()])
    low, high = points.min(0), points.max(0)
    poses = orbit((low + high) / 2, float((high - low).max()), camera, config.views, rng)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    write_instance(folder, stage, camera, poses, rng.uniform(2, 12), rotation, rng)


def _make(job: Job, config: OfFolder) -> tuple[str, float]:
    """Write one scene apart, then move it to its place: a folder in its place is complete."""
    start = time.perf_counter()
    final, unfinished = config.out / job.folder, config.out / _UNFINISHED / job.folder
    try:
        with writing(final):
            if unfinished.exists():
                shutil.rmtree(unfinished)
            unfinished.mkdir(parents=True)
            job.write(unfinished, config, job.index)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished, final)
    except InputError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return job.folder, time.perf_counter() - start


def _manifest(config: OfFolder) -> dict:
    content = asdict(config)
    del content["out"], content["workers"]
    return {"version": VERSION, **content}


def _claim(config: OfFolder) -> None:
    """Check that the folder is new or was made with the same configuration, and write its manifest.

    Raises:
        InputError: it holds something else, or cannot be made.
    """
    path = config.out / _MANIFEST
    wanted = _manifest(config)
    if path.exists():
        _compare(path, wanted)
        return
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    foreign = [entry for entry in config.out.iterdir() if not entry.name.startswith(UNFINISHED)]
    if foreign:
        reason = f"holds {foreign[0].name}, which is not synthetic data; give a new or empty folder as output"
        raise InputError(f"{config.out}: {reason}")
    write_text(path, json.dumps(wanted, indent=1) + "\n")


def _compare(path: Path, wanted: dict) -> None:
    """Raise :class:`InputError` unless the manifest at ``path`` says ``wanted``."""
    advice = "delete the folder or give another output"
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not a manifest of synthetic data ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a manifest of synthetic data; {advice}")
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if keys:
        changes = ", ".join(f"{key} {found.get(key)} instead of {wanted.get(key)}" for key in keys)
        raise InputError(f"{path.parent}: was made with another configuration ({changes}); {advice}")


def _write_lists(config: SyntheticConfig) -> None:
    """The data sets' own lists: label table and splits, class names."""
    if config.scenes:
        root = config.out / "scannet"
        make_folder(root)
        write_labels_table(root)
        names = [Path(_room_folder(i)).name for i in range(config.scenes)]
        held_out = max(1, config.scenes // 5) if config.scenes > 1 else 0
        for split, members in (("train", names[: len(names) - held_out]), ("val", names[len(names) - held_out :])):
            write_text(root / f"scannetv2_{split}.txt", "".join(f"{name}\n" for name in members))
    if config.objects:
        root = config.out / "mvimgnet"
        make_folder(root)
        lines = [f"{label},{name}\n" for label, name in enumerate(SMALL_OBJECTS)]
        write_text(root / "mvimgnet_category.txt", "".join(lines))


def write_synthetic(
    config: SyntheticConfig, progress: Callable[[int, int, str], None] | None = None
) -> SyntheticSummary:
    """Write a synthetic data set; scenes that are there already are kept, unfinished ones are made anew.

    The files depend on the configuration alone, not on the number of workers.

    Args:
        config: what to make and where.
        progress: called with (scenes done, scenes in all, name of the scene) after each scene.

    Raises:
        InputError: the folder holds something else, or was made with another configuration.
        MissingExtra: embreex is not installed (extra ``synthetic``).
    """
    rooms = [Job(_room_folder(i), write_room, i) for i in range(config.scenes)]
    objects = [Job(_object_folder(i), write_object, i) for i in range(config.objects)]
    return write_scenes(config, rooms + objects, progress, _write_lists)


def write_scenes(
    config: OfFolder,
    jobs: Sequence[Job],
    progress: Callable[[int, int, str], None] | None = None,
    write_lists: Callable[[Any], None] | None = None,
) -> SyntheticSummary:
    """Make scenes in parallel; those that are there already are kept, unfinished ones are made anew.

    Args:
        config: what to make and where; written as the folder's manifest.
        jobs: the scenes.
        progress: called with (scenes done, scenes in all, name of the scene) after each scene.
        write_lists: writes what lies beside the scenes.

    Raises:
        InputError: the folder holds something else, or was made with another configuration.
        MissingExtra: embreex is not installed (extra ``synthetic``).
    """
    require_extra("embreex", "synthetic", "making synthetic scenes")
    _claim(config)
    if write_lists is not None:
        write_lists(config)
    summary = SyntheticSummary(config.out)
    summary.kept = [job.folder for job in jobs if (config.out / job.folder).is_dir()]
    missing = [job for job in jobs if not (config.out / job.folder).is_dir()]

    def note(name: str, seconds: float) -> None:
        summary.written.append(name)
        summary.seconds[name] = seconds
        if progress is not None:
            progress(len(summary.kept) + len(summary.written), len(jobs), name)

    workers = min(config.workers or os.cpu_count() or 1, len(missing))
    try:
        if workers <= 1:
            for job in missing:
                note(*_make(job, config))
        else:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                try:
                    for done in as_completed([pool.submit(_make, job, config) for job in missing]):
                        note(*done.result())
                except BrokenProcessPool as error:
                    raise InputError(
                        f"{config.out}: a process that made scenes was ended from outside, perhaps for want of "
                        "memory; fewer workers need less"
                    ) from error
                except BaseException:  # an interrupt, or a full disk: do not make the scenes that wait
                    pool.shutdown(cancel_futures=True)
                    raise
            summary.written.sort()
    finally:
        shutil.rmtree(config.out / _UNFINISHED, ignore_errors=True)
    return summary
