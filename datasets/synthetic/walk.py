"""Camera paths: a walk through a room, and an orbit around an object."""

from __future__ import annotations

import numpy as np

from geo3d.datasets.synthetic.render import pixel_rays
from geo3d.datasets.synthetic.stage import Stage
from geo3d.geometry import Camera

_CLEARANCE = 0.35  # metres between the camera and any surface
_RADII = np.linspace(0, 0.85, 18)  # distance from the room's middle, relative to the half-size
_VIEWS_A_ROUND = 20  # neighbours are 18 degrees apart, so that they overlap
_WALKS = 5  # how many walks are tried; the one that sees most furniture is kept


def look_at(position: np.ndarray, target: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Poses ``world_from_camera`` (N, 4, 4) at positions (N, 3) looking at targets (N, 3), rolled (N,) radians."""
    forward = target - position
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    pose = np.zeros((len(position), 4, 4))
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = c * right + s * down, c * down - s * right, forward
    pose[:, :3, 3], pose[:, 3, 3] = position, 1
    return pose


def _wander(count: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth curve (count,) between two values: a few slow sines."""
    t = np.linspace(0, 1, count)
    curve = sum(np.sin(2 * np.pi * (k * t + rng.uniform())) / k for k in (1, 2, 3))
    return low + (high - low) * (0.5 + 0.5 * np.tanh(curve))


def _hand_roll(count: int, rng: np.random.Generator) -> np.ndarray:
    """Roll (count,) in radians of a camera held by hand: up to 4 degrees."""
    return _wander(count, -0.07, 0.07, rng)


def _sphere(count: int) -> np.ndarray:
    """Evenly spread directions (count, 3)."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, 2.399963 * k
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], -1)


def clearance(stage: Stage, position: np.ndarray) -> np.ndarray:
    """Distance (N,) in metres from positions (N, 3) to the nearest surface, by rays all around."""
    directions = _sphere(64)
    origins = np.repeat(position, len(directions), 0)
    return stage.tracer.distance(origins, np.tile(directions, (len(position), 1))).reshape(len(position), -1).min(1)


def _free_path(free: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Radius numbers (T,) that change little from step to step and stay clear (dynamic programming).

    Args:
        free: (T, R) clearance at every step and radius.
        wanted: (T,) radius that the walk would take in an empty room.
    """
    blocked = np.maximum(_CLEARANCE - free, 0) * 1e3
    step = 40 * (_RADII[:, None] - _RADII) ** 2
    cost = blocked[0] + (_RADII - wanted[0]) ** 2
    came_from = []
    for t in range(1, len(free)):
        through = cost[:, None] + step
        came_from.append(through.argmin(0))
        cost = through.min(0) + blocked[t] + (_RADII - wanted[t]) ** 2
    path = [int(cost.argmin())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1])


def walk_room(stage: Stage, size: np.ndarray, camera: Camera, count: int, rng: np.random.Generator) -> np.ndarray:
    """A walk around the middle of a room that looks across it.

    Args:
        stage: the furnished room, centred at the origin in plan.
        size: (3,) metres.
        camera: intrinsics, for judging what is in view.
        count: number of views.
        rng: draws the path.

    Returns:
        (count, 4, 4) poses, 1.2 to 1.8 m above the floor, neighbours overlapping.
    """
    walks = [_walk_once(stage, size, count, rng) for _ in range(_WALKS)]
    return max(walks, key=lambda poses: _interest(stage, camera, poses))


def _walk_once(stage: Stage, size: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    step = rng.choice([-1, 1]) * 2 * np.pi / _VIEWS_A_ROUND
    angle = rng.uniform(0, 2 * np.pi) + step * np.arange(count)
    around = np.stack([np.cos(angle), np.sin(angle)], -1) * size[:2] / 2
    height = np.minimum(_wander(count, 1.2, 1.8, rng), size[2] - 0.5)
    spots = np.concatenate(
        [_RADII[None, :, None] * around[:, None], np.broadcast_to(height[:, None, None], (count, len(_RADII), 1))], -1
    )
    free = clearance(stage, spots.reshape(-1, 3)).reshape(count, -1)
    radius = _free_path(free, _wander(count, 0.3, 0.75, rng))
    position = spots[np.arange(count), radius]
    across = angle + np.pi + _wander(count, -0.7, 0.7, rng)
    reach = 0.7 * np.stack([np.cos(across), np.sin(across)], -1) * size[:2] / 2
    target = np.concatenate([reach, _wander(count, 0.3, 1.0, rng)[:, None]], -1)
    return look_at(position, target, _hand_roll(count, rng))


def _interest(stage: Stage, camera: Camera, poses: np.ndarray) -> float:
    """How much of the views is furniture, less a fine for views close to a surface."""
    rays = pixel_rays(camera.resized(16, 12))
    directions = np.einsum("vij,rj->vri", poses[:, :3, :3], rays)
    origins = np.broadcast_to(poses[:, None, :3, 3], directions.shape)
    hit = stage.tracer.cast(origins.reshape(-1, 3), directions.reshape(-1, 3))
    category = stage.semantic[stage.instance[stage.triangle_patch[hit["primID"]]]].reshape(len(poses), -1)
    furniture = ~np.isin(category, [1, 2, 22])
    nearest = hit["tfar"].reshape(len(poses), -1).min(1)
    return float(
        furniture.mean(1).clip(0, 0.7).mean() + 0.5 * furniture.mean(1).min() - 2 * (nearest < _CLEARANCE).mean()
    )


def orbit(center: np.ndarray, extent: float, camera: Camera, count: int, rng: np.random.Generator) -> np.ndarray:
    """A partial or full turn around an object.

    Args:
        center: (3,) metres, the object's middle.
        extent: metres, the object's largest dimension.
        camera: intrinsics; the object fills about half of the image's height.
        count: number of views.
        rng: draws start, sweep, elevation and distance.

    Returns:
        (count, 4, 4) poses.
    """
    widest = 2 * np.pi * min(1, count / _VIEWS_A_ROUND)
    sweep = rng.uniform(0.5, 1) * widest * rng.choice([-1, 1])
    azimuth = rng.uniform(0, 2 * np.pi) + np.linspace(0, sweep, count)
    elevation = np.radians(_wander(count, 12, 50, rng))
    fit = extent * camera.fy / (0.6 * camera.height)
    distance = np.maximum(fit * _wander(count, 0.9, 1.25, rng), 0.3)
    offset = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    aim = center + extent * rng.normal(0, 0.03, (count, 3))
    return look_at(center + distance[:, None] * offset, aim, _hand_roll(count, rng))
