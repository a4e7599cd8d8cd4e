"""Radiance grids read off a trained nerfstudio run: its field of density and colour, at the centres of voxels.

nerfstudio does its own loading, in the environment of whoever trained the run; geo3d imports it when it is asked to.
A run's ``config.yml`` names Python objects that are made when it is read, so that reading it executes what it says:
nothing is read before the caller says that the file is trusted.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.config import coerce
from geo3d.datasets.files import read_json
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera, VolumeGrid
from geo3d.geometry.axes import OPENGL_FROM_OPENCV
from geo3d.progress import Log
from geo3d.reconstruction.field_box import camera_box
from geo3d.reconstruction.scene_box import grid_sides, scene_box
from geo3d.spread import evenly_spread

_CONFIG = "config.yml"
_PURPOSE = "reading a nerfstudio run"
#: Where nerfstudio's models keep the field that is rendered; NeRF's coarse field only guides the samples.
_FIELDS = ("field", "field_fine")
#: The turn from COLMAP's world that nerfstudio made before it wrote it down, as its reader still assumes.
_COLMAP_TURN = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
#: nerfstudio's numbers of camera kinds (PERSPECTIVE, FISHEYE).
_PERSPECTIVE, _FISHEYE = 1, 2
#: How far cameras of a run may lie from those of the scene it is said to be of, as a share of their extent.
_ASTRAY = 1e-2


@dataclass(frozen=True)
class NerfstudioConfig:
    """A trained nerfstudio run, read off at the centres of voxels: any field with density and colour."""

    run: str = ""
    """Folder of the run, with its `config.yml`; or nerfstudio's folder of outputs, with a run for each scene's name."""
    trust: bool = False
    """Reading a run's config.yml executes what it says: say that you trust whoever made it."""
    capture: str = ""
    """Folder of the run's photos, where it no longer is the one that the run names."""
    longest_side: int = 160
    """Voxels along the longest side of the box."""
    most_views: int = 64
    """Cameras over whose directions colours are averaged; of more, so many evenly spread ones. 0: all."""
    least_opacity: float = 1e-3
    """Voxels that stop less light than this are black; the colours of the others are averaged."""
    box: str = "auto"
    """Rule for the box: `auto`, or `published` (the objects' boxes, or else the cameras)."""
    low: tuple[float, float, float] | None = None
    """Lowest corner of the box, where it is known, metres; None: by the rule."""
    high: tuple[float, float, float] | None = None
    """Highest corner of the box."""

    def __post_init__(self) -> None:
        coerce(self)
        if self.longest_side < 8:
            raise InputError(f"nerfstudio: longest_side must be at least 8, got {self.longest_side}")
        if self.most_views < 0 or not 0 <= self.least_opacity < 1:
            given = f"{self.most_views} and {self.least_opacity}"
            raise InputError(f"nerfstudio: most_views must be 0 or more and least_opacity in 0 to 1, got {given}")
        if (self.low is None) != (self.high is None):
            raise InputError("nerfstudio: give both corners of the box, low and high, or none")


@dataclass
class NerfstudioRun:
    """The field of a trained run, its training cameras, and where the capture lies in its frame.

    Of a point x of the capture's world, the place in the field is ``scale * (transform @ [x, 1])``.

    Args:
        field: nerfstudio's ``Field``: called with ray samples, it gives density and colour.
        cameras: nerfstudio's ``Cameras`` of the training views, in the field's frame.
        names: (V) paths of their photos, as nerfstudio read them.
        transform: (3, 4) float64, turn and shift from the capture's world.
        scale: lengths in the field's frame per length of the capture.
        config: path of the run's configuration.
        model: nerfstudio's ``Model``, which renders.
    """

    field: Any
    cameras: Any
    names: Sequence[str]
    transform: np.ndarray
    scale: float
    config: Path
    model: Any = None

    @cached_property
    def poses(self) -> np.ndarray:
        """(V, 4, 4) float64 ``world_from_camera`` of the training views in the capture's world, axes as OpenCV's."""
        inside = np.tile(np.eye(4), (len(self.cameras.camera_to_worlds), 1, 1))
        inside[:, :3] = self.cameras.camera_to_worlds.detach().cpu().double().numpy()
        inside[:, :3, 3] /= self.scale
        return np.linalg.inv(np.vstack([self.transform, [0, 0, 0, 1]])) @ inside @ OPENGL_FROM_OPENCV

    def upright(self) -> NerfstudioRun:
        """The run in nerfstudio's own axes, which by default are z-up by the photos, and in the capture's lengths.

        For captures whose world is not z-up, such as COLMAP's; what lies in the capture's world, such as its mesh,
        does not fit to the grid then.
        """
        return NerfstudioRun(self.field, self.cameras, self.names, np.eye(4)[:3], self.scale, self.config, self.model)

    def check_scene(self, scene: Scene) -> int:
        """See that the run's cameras are those of a scene.

        Returns:
            How many photos they share.

        Raises:
            InputError: none, or their cameras lie elsewhere.
        """
        shared = self._shared(scene)
        if not shared:
            raise InputError(
                f"{self.config}: the run shares no photo with scene {scene.name} ({scene.root}); give the run of it"
            )
        here = np.stack([self.poses[row, :3, 3] for row, _ in shared])
        there = np.stack([scene.pose(index)[:3, 3] + scene.origin for _, index in shared])
        astray = float(np.linalg.norm(here - there, axis=1).max())
        extent = float(np.linalg.norm(there.max(0) - there.min(0))) or 1.0
        if astray > _ASTRAY * extent:
            raise InputError(
                f"{self.config}: the run's cameras lie up to {astray:.3g} from those of scene {scene.name}, whose "
                f"extent is {extent:.3g}; it is of another capture, or its dataparser does not tell where this lies"
            )
        return len(shared)

    def held_out(self, scene: Scene) -> tuple[int, ...]:
        """Numbers of the views of a scene that the run was not trained on."""
        trained = {number for _, number in self._shared(scene)}
        return tuple(number for number in range(len(scene.view_names)) if number not in trained)

    def _shared(self, scene: Scene) -> list[tuple[int, int]]:
        """Row of each photo that a scene has too, and its number there; told by the end of its path.

        Where no path ends as a view is named, the file's name decides, unless two views share it.
        """
        ends = {Path(name).parts: number for number, name in enumerate(scene.view_names)}
        names = Counter(parts[-1] for parts in ends)
        files = {parts[-1]: number for parts, number in ends.items() if names[parts[-1]] == 1}
        found = []
        for row, name in enumerate(self.names):
            parts = Path(name).parts
            number = next((ends[parts[at:]] for at in range(len(parts)) if parts[at:] in ends), files.get(parts[-1]))
            if number is not None:
                found.append((row, number))
        return found

    def grid(
        self,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        longest_side: int = 160,
        most_views: int = 64,
        least_opacity: float = 1e-3,
        samples: int = 1 << 16,
        log: Log | None = None,
    ) -> VolumeGrid:
        """Read the grid of a box off the field; see :func:`nerfstudio_grid`."""
        if (low is None) != (high is None):
            raise InputError("nerfstudio: give both corners of the box, low and high, or none")
        if low is None or high is None:
            box = camera_box(self.poses)
            low, high = box.low, box.high
        lower, upper = np.asarray(low, np.float64), np.asarray(high, np.float64)
        sides = grid_sides(lower, upper, longest_side)
        grid = VolumeGrid(
            torch.zeros(*sides, 3), torch.zeros(sides), torch.from_numpy(lower.copy()), torch.from_numpy(upper.copy())
        )
        side = float(grid.voxel.mean()) * self.scale  # in the field's lengths, of which its density is
        places = grid.centres().reshape(-1, 3)
        used = torch.tensor(evenly_spread(len(self.poses), most_views or None))
        query = _Query(self, side, samples)
        nearest = query.nearest(places, used)
        density, colours = query.samples(places, nearest)
        opacity = -torch.expm1(-density.clamp_min(0) * side)
        solid = torch.nonzero(opacity >= least_opacity).squeeze(1)
        rgb = torch.zeros_like(colours)
        rgb[solid], unseen = query.mean_colours(places[solid], used)
        if not (bool(torch.isfinite(opacity).all()) and bool(torch.isfinite(rgb).all())):
            raise InputError(f"{self.config}: the field gives no numbers at places of the box; its training diverged")
        if log is not None:
            share = unseen / max(1, len(solid))
            log(
                f"{len(solid)} of {len(places)} voxels stop {least_opacity:.1%} of light or more, {share:.1%} of them "
                f"in no photo; colours averaged over {len(used)} cameras"
            )
        grid.opacity.copy_(opacity.reshape(sides))
        grid.rgb.copy_(rgb.reshape(*sides, 3))
        return grid


class _Query:
    """Asks the field: places of the world, seen from cameras of the run, in blocks.

    A sample is the piece of a camera's ray, one voxel long, about the place: so a field gets what it was trained on,
    and one that looks at the whole piece (mip-NeRF) has it.
    """

    def __init__(self, run: NerfstudioRun, side: float, block: int) -> None:
        self._run, self._side, self._block = run, side, block
        self._rays = require_extra("nerfstudio.cameras.rays", "nerfstudio", _PURPOSE)
        heads = require_extra("nerfstudio.field_components.field_heads", "nerfstudio", _PURPOSE)
        self._names = heads.FieldHeadNames
        self._device = next((value.device for value in run.field.parameters()), torch.device("cpu"))
        self._transform = torch.from_numpy(np.asarray(run.transform, np.float64))
        cameras = run.cameras
        self._from_camera = cameras.camera_to_worlds.detach().cpu().double()
        self._eyes = self._from_camera[:, :, 3]
        flat = {name: getattr(cameras, name).detach().cpu().double().reshape(-1) for name in ("fx", "fy", "cx", "cy")}
        self._focal = torch.stack([flat["fx"], flat["fy"]], -1)
        self._middle = torch.stack([flat["cx"], flat["cy"]], -1)
        self._size = torch.stack([cameras.width.reshape(-1), cameras.height.reshape(-1)], -1).cpu().double()
        self._kind = cameras.camera_type.reshape(-1).cpu()
        bent = cameras.distortion_params
        self._bent = None if bent is None else bent.detach().cpu().double().reshape(len(self._eyes), -1)

    def _inside(self, places: Tensor) -> Tensor:
        """Places (N, 3) float64 of the world in the field's frame."""
        return (places @ self._transform[:, :3].T + self._transform[:, 3]) * self._run.scale

    def nearest(self, places: Tensor, used: Tensor) -> Tensor:
        """(N,) the nearest of the cameras ``used`` to each place."""
        eyes = self._eyes[used].float()
        parts = [torch.cdist(self._inside(part).float(), eyes).argmin(1) for part in places.split(self._block)]
        return used[torch.cat(parts)]

    @torch.no_grad()
    def samples(self, places: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,), in the field's lengths, and colour (N, 3) of places, each seen from a camera (N,)."""
        found = [self._samples(part, seen) for part, seen in zip(places.split(self._block), cameras.split(self._block))]
        return torch.cat([density for density, _ in found]), torch.cat([colour for _, colour in found])

    def _samples(self, places: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
        eyes = self._eyes[cameras]
        away = self._inside(places) - eyes
        distance = away.norm(dim=-1, keepdim=True)
        forward = -self._from_camera[cameras, :, 2]  # for a voxel about the camera itself
        direction = torch.where(distance > 0, away / distance.clamp_min(1e-300), forward)
        area = 1 / self._focal[cameras].prod(-1, keepdim=True)

        def shaped(values: Tensor) -> Tensor:  # rays of one sample each: TensoRF takes no other shape
            return values.float().unsqueeze(1).to(self._device)

        half = self._side / 2
        frustums = self._rays.Frustums(
            origins=shaped(eyes),
            directions=shaped(direction),
            starts=shaped(distance - half),
            ends=shaped(distance + half),
            pixel_area=shaped(area),
        )
        deltas = shaped(torch.full_like(distance, self._side))
        numbers = cameras.reshape(-1, 1, 1).to(self._device)
        outputs = self._run.field(self._rays.RaySamples(frustums=frustums, camera_indices=numbers, deltas=deltas))
        given = [self._names.DENSITY in outputs, self._names.RGB in outputs]
        if not all(given):
            lacks = "density" if not given[0] else "colour"
            told = ", ".join(str(getattr(name, "value", name)) for name in outputs)
            raise InputError(
                f"{self._run.config}: the field {type(self._run.field).__name__} gives no {lacks} (it gives: {told}); "
                "a radiance grid needs a field of density and colour, such as nerfacto's"
            )
        density = outputs[self._names.DENSITY].reshape(len(places)).float().cpu()
        colour = outputs[self._names.RGB].reshape(len(places), 3).float().cpu().clamp(0, 1)
        return density, colour

    def seen(self, places: Tensor, used: Tensor) -> Tensor:
        """(N, U) bool: whether a place lies in the picture of a camera, whatever stands before it.

        Distortion of perspective lenses is not counted, which is a few pixels at the rim, nor what a fisheye sees at 90
        degrees and more from its axis; panoramas see all.
        """
        inside = self._inside(places)
        found = []
        for camera in used.tolist():
            local = (inside - self._eyes[camera]) @ self._from_camera[camera, :, :3]
            x, y, depth = local[:, 0], -local[:, 1], -local[:, 2]
            kind = int(self._kind[camera])
            if kind not in (_PERSPECTIVE, _FISHEYE):
                found.append(torch.ones(len(places), dtype=torch.bool))
                continue
            front = depth > 1e-9
            xyz = torch.stack([x, y, torch.where(front, depth, torch.ones_like(depth))], -1)
            (fx, fy), (cx, cy) = self._focal[camera].tolist(), self._middle[camera].tolist()
            width, height = self._size[camera].tolist()
            bent = (0.0,) * 4 if self._bent is None else tuple(self._bent[camera, :4].tolist())
            model = ("OPENCV_FISHEYE", bent) if kind == _FISHEYE else ("PINHOLE", ())
            uv = Camera(int(width), int(height), fx, fy, cx, cy, *model).project(xyz)
            within = (uv >= 0).all(-1) & (uv[:, 0] <= width) & (uv[:, 1] <= height)
            found.append(front & within)
        return torch.stack(found, -1)

    def mean_colours(self, places: Tensor, used: Tensor) -> tuple[Tensor, int]:
        """Colours (N, 3) averaged over the cameras that see each place, and how many places none sees.

        Those take the mean over all the cameras.
        """
        rgb, unseen = torch.zeros(len(places), 3), 0
        rows = max(1, self._block // len(used))
        for first in range(0, len(places), rows):
            part = places[first : first + rows]
            seen = self.seen(part, used)
            blind = ~seen.any(-1)
            unseen += int(blind.sum())
            place, camera = torch.nonzero(seen | blind.unsqueeze(-1), as_tuple=True)
            _, colours = self.samples(part[place], used[camera])
            total = torch.zeros(len(part), 3).index_add_(0, place, colours)
            rgb[first : first + rows] = total / torch.bincount(place, minlength=len(part)).unsqueeze(-1)
        return rgb, unseen


def find_run(run: str | Path, scene: str = "") -> Path:
    """The ``config.yml`` of a run.

    Args:
        run: the file itself, its folder, or a folder of nerfstudio's outputs.
        scene: name of a scene, whose newest run is looked for in a folder of outputs
            (``outputs/<scene>/<method>/<time>``).

    Raises:
        InputError: there is none.
    """
    path = Path(run)
    if path.name == _CONFIG and path.is_file():
        return path.absolute()
    if (path / _CONFIG).is_file():
        return (path / _CONFIG).absolute()
    if not path.exists():
        raise InputError(f"{path}: there is no such run; give the folder of a nerfstudio run, with its {_CONFIG}")
    below = sorted((path / scene).glob(f"*/*/{_CONFIG}" if not scene else f"**/{_CONFIG}"), key=lambda p: p.parent.name)
    if scene and below:
        return below[-1].absolute()
    hint = f", such as {below[-1].parent}" if below else ""
    of_scene = f" of scene {scene}" if scene else ""
    raise InputError(f"{path}: no {_CONFIG}{of_scene}; give the folder of one nerfstudio run{hint}")


def load_run(run: str | Path, trust: bool = False, capture: str | Path | None = None, field: str = "") -> NerfstudioRun:
    """Load a trained run by nerfstudio's own ``eval_setup``; no photo is read.

    The checkpoint is read without executing anything (PyTorch's ``weights_only``); ``config.yml`` cannot be.

    Args:
        run: folder of the run, or its ``config.yml``. It may have been moved: the checkpoint is looked for beside it.
        trust: whoever made the run is trusted: reading its ``config.yml`` executes what it says.
        capture: the photos' folder, where it is no longer the one that the run names.
        field: attribute of the model that is its field; by default ``field``, or ``field_fine`` of NeRF.

    Raises:
        InputError: no ``config.yml``, not trusted, no checkpoint, no capture, a model without a field or one that
            moves in time, or a file that nerfstudio cannot load.
        MissingExtra: nerfstudio is not installed.
    """
    config = find_run(run)
    if not trust:
        raise InputError(
            f"{config}: reading a nerfstudio run executes what its {_CONFIG} says; if you trust whoever made it, say "
            "trust=True (--trust)"
        )
    require_extra("nerfstudio", "nerfstudio", _PURPOSE)
    with _errors(config), _numbers_allowed():
        setup = require_extra("nerfstudio.utils.eval_utils", "nerfstudio", _PURPOSE).eval_setup
        _, pipeline, _, _ = setup(
            config, test_mode="inference", update_config_callback=lambda found: _moved(found, config, capture)
        )
    model, manager = pipeline.model, pipeline.datamanager
    if getattr(model, "temporal_distortion", None) is not None:
        raise InputError(f"{config}: the scene of {type(model).__name__} moves, and a grid holds one moment of it")
    fields = [getattr(model, name, None) for name in ((field,) if field else _FIELDS)]
    found = next((value for value in fields if value is not None), None)
    if found is None:
        raise InputError(
            f"{config}: {type(model).__name__} has no {field or 'field'} of density and colour (Gaussians have none); "
            "give the run of a method that has, such as nerfacto"
        )
    parsed = manager.train_dataparser_outputs
    transform, scale = _capture_frame(parsed, manager.dataparser, config)
    names = [str(path) for path in parsed.image_filenames]
    return NerfstudioRun(found, parsed.cameras, names, transform, scale, config, model)


def nerfstudio_grid(
    run: str | Path,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    longest_side: int = 160,
    *,
    trust: bool = False,
    capture: str | Path | None = None,
    most_views: int = 64,
    least_opacity: float = 1e-3,
    field: str = "",
    upright: bool = False,
    samples: int = 1 << 16,
    log: Log | None = None,
) -> VolumeGrid:
    """A radiance grid of a trained nerfstudio run (NeRF-MAE, sec. 3: density and colour at the centres of voxels).

    Opacity is ``1 - exp(-density * side)``, ``side`` the mean side of a voxel in the field's lengths; density is that
    seen from the nearest training camera, which matters to fields that look at cones alone (mip-NeRF). Colour is
    averaged over the directions from the training cameras in whose pictures the voxel lies (occlusion is not looked
    at), or over those of all where it lies in none. Scene contraction is the field's own affair. Corners and lengths
    are those of the capture: of its ``transforms.json``, or of what else the run's dataparser read.

    Args:
        run: folder of the run, or its ``config.yml``.
        low, high: (3,) corners in the capture's world; by default :func:`~geo3d.reconstruction.field_box.camera_box`:
            where the training cameras look, or around them.
        longest_side: voxels along the longest side.
        trust: whoever made the run is trusted: reading its ``config.yml`` executes what it says.
        capture: the photos' folder, where it is no longer the one that the run names.
        most_views: cameras whose directions are averaged; of more, so many evenly spread ones. 0: all.
        least_opacity: voxels that stop less light than this are black, which saves most of the work.
        field: attribute of the model that is its field; by default ``field``, or ``field_fine`` of NeRF.
        upright: by nerfstudio's own axes (see :meth:`NerfstudioRun.upright`).
        samples: how many samples the field is asked for at once.
        log: called with a line of progress.

    Returns:
        Grid with corners, on the CPU.

    Raises:
        InputError: as :func:`load_run`, a box that is none, or a field without density or without colour.
        MissingExtra: nerfstudio is not installed.
    """
    loaded = load_run(run, trust, capture, field)
    loaded = loaded.upright() if upright else loaded
    return loaded.grid(low, high, longest_side, most_views, least_opacity, samples, log)


def scene_run(scene: Scene, config: NerfstudioConfig) -> NerfstudioRun:
    """The nerfstudio run of a scene's photos.

    Args:
        scene: with poses; the run was trained on its photos.
        config: which run it is.

    Raises:
        InputError: as :func:`load_run`, no run is named, or it is of another capture.
        MissingExtra: nerfstudio is not installed.
    """
    if not config.run:
        raise InputError(f"scene {scene.name}: say which nerfstudio run is its (run)")
    scene.require("views", "poses")
    run = load_run(find_run(config.run, scene.name), config.trust, config.capture or None)
    run.check_scene(scene)
    return run


def scene_grid(
    scene: Scene, config: NerfstudioConfig, log: Log | None = None, run: NerfstudioRun | None = None
) -> VolumeGrid:
    """The grid of a scene, read off the nerfstudio run of its photos, in the scene's box.

    Args:
        scene: with poses; the run was trained on its photos.
        config: which run, and how it is read; corners are less the scene's origin, as those of the grid are.
        log: called with a line of progress.
        run: that of :func:`scene_run`, where it is loaded already.

    Raises:
        InputError: as :func:`scene_run` and :func:`nerfstudio_grid`.
        MissingExtra: nerfstudio is not installed.
    """
    run = scene_run(scene, config) if run is None else run
    corners = scene_box(scene, config.box) if config.low is None else (config.low, config.high)
    low, high = (np.asarray(corner, np.float64) + scene.origin for corner in corners)
    grid = run.grid(low, high, config.longest_side, config.most_views, config.least_opacity, log=log)
    origin = torch.from_numpy(scene.origin)
    return VolumeGrid(grid.rgb, grid.opacity, grid.low - origin, grid.high - origin)


def _moved(found: Any, config: Path, capture: str | Path | None) -> Any:
    """nerfstudio's configuration of the run, of files where they are now."""
    checkpoints = config.parent / found.relative_model_dir
    if not list(checkpoints.glob("step-*.ckpt")):
        raise InputError(f"{checkpoints}: no checkpoint (step-*.ckpt) of the run beside its {_CONFIG}; train it first")
    found.relative_model_dir = checkpoints.absolute()
    manager = found.pipeline.datamanager
    named = manager.data if manager.data is not None else manager.dataparser.data
    path = Path(named if capture is None else capture)
    if not path.exists():
        raise InputError(f"{config}: its capture {path} is not there; say where it is: capture=FOLDER (--capture)")
    manager.data = manager.dataparser.data = path
    return found


@contextlib.contextmanager
def _errors(config: Path) -> Iterator[None]:
    """What nerfstudio raises for a run that it cannot load, as one line."""
    import yaml

    try:
        yield
    except InputError:
        raise
    except (
        yaml.YAMLError,
        pickle.UnpicklingError,
        AssertionError,
        AttributeError,
        ImportError,
        KeyError,
        OSError,
        RuntimeError,
        SystemExit,
    ) as error:
        line = next(iter(str(error).strip().splitlines()), "")
        told = f"{type(error).__name__}: {line:.300}" if line else type(error).__name__
        raise InputError(f"{config}: nerfstudio cannot load the run: {told}; see that ns-eval loads it") from error


@contextlib.contextmanager
def _numbers_allowed() -> Iterator[None]:
    """Let PyTorch read numpy's numbers, which nerfstudio's schedules write into checkpoints.

    Since 2.6 it refuses them, and nerfstudio (1.1.5) cannot load its own checkpoints. They execute nothing.
    """
    make, _ = np.float64(0).__reduce__()
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals(
        [*names, np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]
    ):
        yield


def _capture_frame(parsed: Any, dataparser: Any, config: Path) -> tuple[np.ndarray, float]:
    """Turn and shift (3, 4) from the capture's world to the field's axes, and the scale that follows.

    nerfstudio's own dataparser counts from before the turn that a ``transforms.json`` says was applied to its poses;
    the capture's world is that of the file.
    """
    transform = np.vstack([parsed.dataparser_transform.detach().cpu().double().numpy(), [0, 0, 0, 1]])
    scale = float(parsed.dataparser_scale)
    if any(kind.__name__ == "Nerfstudio" for kind in type(dataparser).__mro__):
        data = Path(dataparser.config.data)
        file = data if data.suffix == ".json" else data / "transforms.json"
        try:
            content = read_json(file, file.name)
        except BrokenScene as error:
            raise InputError(f"{config}: {error}") from error
        applied = content.get("applied_transform")
        if applied is None and (data / "colmap/sparse/0").exists():
            applied = _COLMAP_TURN
        if applied is not None:
            transform = transform @ np.linalg.inv(np.vstack([np.array(applied, np.float64)[:3], [0, 0, 0, 1]]))
        scale /= float(content.get("applied_scale", 1.0))
    return transform[:3], scale


__all__ = ["NerfstudioConfig", "NerfstudioRun", "find_run", "load_run", "nerfstudio_grid", "scene_grid", "scene_run"]
