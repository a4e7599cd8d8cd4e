"""Rectified stereo pairs with disparity, and pairs with optical flow, rendered in synthetic rooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from geo3d.datasets.disparity_files import write_flow, write_pfm
from geo3d.datasets.files import make_folder
from geo3d.datasets.synthetic.generate import Job, SyntheticSummary, write_scenes
from geo3d.datasets.synthetic.render import Rendering, render
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import MixedPalette, Palette
from geo3d.datasets.synthetic.walk import walk_room
from geo3d.datasets.synthetic.write_scannet import encode_jpeg
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera
from geo3d.geometry.flow import moved_points
from geo3d.geometry.rotation import turn_matrix
from geo3d.random import Stream, stream_generator

#: Share of the image's width by which the nearest surfaces are apart in the two images: from narrow to wide baselines.
_SHIFT = {"stereo": (0.04, 0.18), "flow": (0.0, 0.12)}
#: Of the nearest surfaces: so many of the pixels may be nearer.
_NEAREST = 0.02
#: Largest turn between two images of a flow pair, radians.
_TURN = 0.1
#: Of the way to the next surface, the camera moves so far at most.
_OF_FREE_WAY = 0.7
_FOV = (55, 75)  # degrees
#: Folders of a scene.
FOLDERS = {"stereo": ("left", "right", "disparity"), "flow": ("first", "second", "flow")}


@dataclass(frozen=True)
class StereoFlowConfig:
    """Pairs of images of synthetic rooms with exact disparity or optical flow, in plain folders of files."""

    out: Path = Path("data/stereo")
    """Folder to write; each room is a folder in it: left, right, disparity; or first, second, flow."""
    task: Literal["stereo", "flow"] = "stereo"
    """Rectified pairs with disparity, or pairs from any two near places with optical flow."""
    scenes: int = 16
    """Number of rooms: bedrooms, living rooms, offices, kitchens and bathrooms in turn."""
    pairs: int = 12
    """Number of pairs a room."""
    width: int = 256
    """Image width in pixels."""
    height: int = 192
    """Image height in pixels."""
    textures: Literal["furnished", "mixed"] = "mixed"
    """What surfaces look like: as in `geo3d prepare synthetic`, or any pattern in any colours and size on everything,
    which leaves fewer places without anything to match."""
    seed: int = 0
    """Every other seed gives other scenes; scene i is the same whatever the number of scenes."""
    workers: int = 0
    """Number of processes; 0 takes one for each processor."""

    def __post_init__(self) -> None:
        least = {"scenes": 1, "pairs": 1, "width": 32, "height": 32, "seed": 0, "workers": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"stereo and flow pairs: {name} must be at least {bound}, got {getattr(self, name)}")


def write_stereo_flow(
    config: StereoFlowConfig, progress: Callable[[int, int, str], None] | None = None
) -> SyntheticSummary:
    """Write rooms of pairs; those that are there already are kept.

    Disparity and flow come from the depth of what the first image shows. They are dense: pixels that the second image
    does not see, since something stands before them or they leave it, have theirs too, as in the usual training sets.

    Args:
        config: what to make and where.
        progress: called with (scenes done, scenes in all, name of the scene) after each scene.

    Raises:
        InputError: the folder holds something else, or was made with another configuration.
        MissingExtra: embreex is not installed (extra ``synthetic``).
    """
    require_extra("embreex", "synthetic", "making synthetic scenes")
    return write_scenes(config, [Job(f"room{i:04d}", _write_room, i) for i in range(config.scenes)], progress)


def _write_room(folder: Path, config: StereoFlowConfig, index: int) -> None:
    rng = stream_generator(config.seed, Stream.SYNTHETIC_PAIRS, index)
    palette = (MixedPalette if config.textures == "mixed" else Palette)(rng)
    room = furnish_room(list(ROOM_KINDS)[index % len(ROOM_KINDS)], palette, rng)
    stage = Stage(room.things, palette, room.lights, rng)
    camera = Camera.from_fov(config.width, config.height, np.radians(rng.uniform(*_FOV)))
    first, second, target = (make_folder(folder / name) for name in FOLDERS[config.task])
    for number, pose in enumerate(walk_room(stage, room.size, camera, config.pairs, rng)):
        image = render(stage, camera, pose)
        if config.task == "stereo":
            moved, baseline = stereo_pose(stage, camera, pose, image.depth, rng)
            write_pfm(target / f"{number:04d}.pfm", disparity_of(image, camera, baseline))
        else:
            moved = flow_pose(stage, camera, pose, image.depth, rng)
            write_flow(target / f"{number:04d}.flo", flow_of(image, camera, pose, moved))
        for place, view in ((first, image), (second, render(stage, camera, moved))):
            (place / f"{number:04d}.jpg").write_bytes(encode_jpeg(view.color))


def stereo_pose(
    stage: Stage, camera: Camera, pose: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Pose of the right camera of a rectified pair, and its baseline, metres.

    Args:
        stage: the room.
        camera: of both images.
        pose: ``world_from_camera`` of the left one.
        depth: (H, W) of the left image, metres.
        rng: draws the largest disparity, 4 to 18 % of the width.
    """
    baseline = _step(camera, depth, _SHIFT["stereo"], rng)
    baseline = min(baseline, _free_way(stage, pose[:3, 3], pose[:3, 0]))
    moved = pose.copy()
    moved[:3, 3] += baseline * pose[:3, 0]
    return moved, baseline


def flow_pose(
    stage: Stage, camera: Camera, pose: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Pose of a camera that has moved a little, in any direction, and turned about any axis; arguments as above."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    step = min(_step(camera, depth, _SHIFT["flow"], rng), _free_way(stage, pose[:3, 3], direction))
    axis = rng.standard_normal(3)
    axis *= rng.uniform(0, _TURN) / np.linalg.norm(axis)
    moved = pose.copy()
    moved[:3, :3] = pose[:3, :3] @ turn_matrix(torch.from_numpy(axis)).numpy()
    moved[:3, 3] += step * direction
    return moved


def disparity_of(image: Rendering, camera: Camera, baseline: float) -> np.ndarray:
    """(H, W) float32 pixels of the left image of a pair; NaN where nothing is seen."""
    seen = image.depth > 0
    return np.where(seen, camera.fx * baseline / np.where(seen, image.depth, 1), np.nan).astype(np.float32)


def flow_of(image: Rendering, camera: Camera, pose: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32 pixels from an image to that of a camera that has moved; NaN where nothing is seen."""
    grid = camera.pixel_grid()
    place, _ = moved_points(
        torch.from_numpy(image.depth), grid, camera, camera, torch.from_numpy(np.linalg.inv(moved) @ pose)
    )
    return (place - grid).float().numpy()


def _step(camera: Camera, depth: np.ndarray, shares: tuple[float, float], rng: np.random.Generator) -> float:
    """Metres to the side by which the nearest surfaces move by a share of the image's width."""
    nearest = float(np.quantile(depth[depth > 0], _NEAREST)) if (depth > 0).any() else 1.0
    return rng.uniform(*shares) * camera.width * nearest / camera.fx


def _free_way(stage: Stage, origin: np.ndarray, direction: np.ndarray) -> float:
    """Metres that a camera may move without passing, or coming close to, a surface."""
    return _OF_FREE_WAY * float(stage.tracer.distance(origin[None], direction[None])[0])


__all__ = ["FOLDERS", "StereoFlowConfig", "write_stereo_flow"]
