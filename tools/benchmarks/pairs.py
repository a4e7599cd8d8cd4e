"""Mining the view pairs of one scene: 300 views with 640 x 480 depth in a `.sens` stream, on one core.

The floor is reading: 300 zlib streams of a sensor's noisy depth take some 4 ms each, 1.2 s. The peer is the loop that
one writes first: for each pair, project every pixel of one view into the other and compare depths, both ways, in
numpy. It is timed on a few pairs with all depth in memory, and scaled to all pairs of the scene; so the time to read
the depth is not in it.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.race import Variant, race
from PIL import Image

from geo3d.datasets import open_dataset
from geo3d.datasets.covisibility import read_surface, surface_covisibility
from geo3d.datasets.pair_mining import PairOptions, mine_scene
from geo3d.datasets.scene import Scene
from geo3d.datasets.sens import SensFrame, write_sens
from geo3d.geometry import Camera

WIDTH, HEIGHT = 640, 480
ROOM = np.array([[-3.0, -2.5, 0.0], [3.0, 2.5, 2.6]])
BOXES = np.array(
    [[[-0.6, -0.5, 0.0], [0.7, 0.5, 0.75]], [[-3.0, 1.4, 0.0], [-2.2, 2.5, 2.0]], [[1.5, -2.5, 0], [3, -1, 0.9]]]
)
SENSOR_NOISE = 0.003  # standard deviation, share of the depth
LOOP = "numpy loop over pairs and pixels, scaled"


@dataclass
class PairsBenchmark:
    """Pair mining of one scene with depth, beside a plain loop over pairs."""

    views: int = 300
    """Views of the scene."""
    loop_pairs: int = 4
    """Pairs that the plain loop is timed on."""
    turns: int = 3
    """Timed turns of each variant; the median counts."""


def _walk(views: int) -> list[np.ndarray]:
    """Poses of a walk around the middle of the room, looking across it and about."""
    poses = []
    for turn in np.linspace(0, 2 * np.pi, views, endpoint=False):
        eye = np.array([1.8 * np.cos(turn), 1.5 * np.sin(turn), 1.5 + 0.1 * np.sin(9 * turn)])
        heading = turn + np.pi + 0.9 * np.sin(5 * turn)
        forward = np.array([np.cos(heading), np.sin(heading), -0.35])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], 1), eye
        poses.append(pose)
    return poses


def _render(pose: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Depth (H, W) of the furnished room."""
    direction, eye = (rays @ pose[:3, :3].T).astype(np.float32), pose[:3, 3].astype(np.float32)
    inverse = 1 / np.where(direction == 0, np.float32(1e-9), direction)
    depth = np.maximum((ROOM[0] - eye) * inverse, (ROOM[1] - eye) * inverse).min(-1)
    for low, high in BOXES:
        near, far = (low - eye) * inverse, (high - eye) * inverse
        enter, leave = np.minimum(near, far).max(-1), np.maximum(near, far).min(-1)
        depth = np.where((enter > 0) & (enter < leave), np.minimum(depth, enter), depth)
    return depth


def write_scene(root: Path, views: int) -> None:
    """A ScanNet folder with one furnished room in a `.sens` stream, with a sensor's noise on its depth."""
    camera = Camera(WIDTH, HEIGHT, 577.6, 578.7, 318.9, 242.7)
    rays = camera.unproject(camera.pixel_grid(), torch.ones(HEIGHT, WIDTH, dtype=torch.float64)).numpy()
    jpeg = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(jpeg, "JPEG")
    rng = np.random.default_rng(0)

    def frames():
        for pose in _walk(views):
            depth = _render(pose, rays)
            depth = depth * (1 + SENSOR_NOISE * rng.standard_normal(depth.shape, dtype=np.float32))
            yield SensFrame(jpeg.getvalue(), depth.astype(np.float32), pose)

    folder = root / "scene0000_00"
    folder.mkdir(parents=True)
    write_sens(folder / "scene0000_00.sens", color_camera=camera, depth_camera=camera, frames=frames())


def _scene(root: str) -> Scene:
    return open_dataset(root)[0]


def whole(root: str):
    """Open, read, match and choose."""
    return lambda: float(len(mine_scene(_scene(root), PairOptions())))


def reading(root: str):
    """Open and read: decode every depth map once, sample it, keep a small one."""

    def step() -> None:
        scene = _scene(root)
        read_surface(scene, range(len(scene.view_names)), PairOptions().tolerance)

    return step


def matching(root: str):
    """Overlap and angle of all pairs, from what was read."""
    scene, options = _scene(root), PairOptions()
    surface = read_surface(scene, range(len(scene.view_names)), options.tolerance)
    return lambda: float((surface_covisibility(surface, options.min_overlap, options.min_known_depth)[0] >= 0.5).sum())


def plain_loop(root: str, pairs: int):
    """Every pixel of a pair's views projected into the other."""
    scene = _scene(root)
    count = len(scene.view_names)
    depths, poses = [scene.depth(i) for i in range(count)], [scene.pose(i) for i in range(count)]
    camera = scene.depth_camera(0)
    matrix = camera.matrix.numpy()
    pixels = np.concatenate([camera.pixel_grid().numpy(), np.ones((HEIGHT, WIDTH, 1))], -1).reshape(-1, 3)
    chosen = np.random.default_rng(0).integers(0, count, (pairs, 2))

    def share(first: int, second: int) -> float:
        depth = depths[first].reshape(-1, 1)
        world = (pixels @ np.linalg.inv(matrix).T * depth) @ poses[first][:3, :3].T + poses[first][:3, 3]
        inside = (world - poses[second][:3, 3]) @ poses[second][:3, :3]
        projected = inside @ matrix.T
        u = np.round(projected[:, 0] / projected[:, 2]).astype(int)
        v = np.round(projected[:, 1] / projected[:, 2]).astype(int)
        framed = (inside[:, 2] > 0) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
        there = depths[second][v[framed], u[framed]]
        agrees = np.abs(inside[framed, 2] - there) < np.maximum(0.05, 0.03 * there)
        return agrees.sum() / (depth > 0).sum()

    return lambda: float(np.mean([min(share(i, j), share(j, i)) for i, j in chosen]))


def run(config: PairsBenchmark) -> list[dict[str, Any]]:
    """Rows of the plain loop and of geo3d with its parts."""
    module = "benchmarks.pairs"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the contestants', which start after this
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: the contestants begin as copies of this one, and its memory would count as theirs.
        writer = multiprocessing.get_context("spawn").Process(target=write_scene, args=(Path(folder), config.views))
        writer.start()
        writer.join()
        here = {"root": folder}
        variants = [
            Variant(LOOP, f"{module}:plain_loop", {**here, "pairs": config.loop_pairs}),
            Variant("geo3d: read, match and choose", f"{module}:whole", here),
            Variant("reading alone", f"{module}:reading", here),
            Variant("matching alone", f"{module}:matching", here),
        ]
        case = f"pairs of one scene, {config.views} views, depth {WIDTH} x {HEIGHT}, one core"
        rows = race(case, variants, config.turns)
    rows[0]["seconds"] *= config.views * (config.views - 1) / 2 / config.loop_pairs
    rows[0]["variant"] = f"{LOOP} from {config.loop_pairs} pairs"
    return rows
