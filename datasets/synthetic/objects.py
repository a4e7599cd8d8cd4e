"""Synthetic objects: labelled clouds of random solids, for methods that learn from objects where no data is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geo3d.datasets.synthetic.object_kinds import OBJECT_KINDS
from geo3d.datasets.synthetic.solids import triangles
from geo3d.errors import InputError
from geo3d.geometry.surface import sample_surface
from geo3d.progress import Log, progress_line
from geo3d.random import Stream, stream_generator
from geo3d.writing import prepare_place, replacing

#: Raised whenever the same number and seed would give other objects.
OBJECTS_VERSION = 1
#: Points of each object.
OBJECT_POINTS = 4096
_PLAIN = 0.4  # share of the objects that are not deformed
_EVERY = 100  # objects between reports of progress


def objects_folder(count: int, seed: int) -> Path:
    """Where :func:`make_objects` puts its objects."""
    return Path("data") / "synthetic" / f"objects_{count}_seed_{seed}"


def make_objects(count: int, seed: int, log: Log) -> Path:
    """Make synthetic objects, or find those made before; returns their folder, which :func:`open_dataset` opens.

    Object i is of kind i modulo the number of kinds, and the same whatever the number of objects. Takes about 4 ms an
    object on one core, and 25 kB of disk.

    Args:
        count: how many.
        seed: every other seed gives other objects.
        log: takes a line of what is done.

    Raises:
        InputError: ``count`` is below 1 or ``seed`` below 0, or the file cannot be written.
    """
    if count < 1 or seed < 0:
        raise InputError(f"synthetic objects: count must be at least 1 and seed 0, got {count} and {seed}")
    folder = objects_folder(count, seed)
    file = folder / f"objects_v{OBJECTS_VERSION}.npz"
    if file.is_file():
        log(f"{count} synthetic objects are in {folder}")
        return folder
    log(f"making {count} synthetic objects in {folder}")
    prepare_place(file)
    for old in folder.glob("objects_v*.npz"):
        old.unlink()
    kinds, show = list(OBJECT_KINDS), progress_line("object")
    points = np.empty((count, OBJECT_POINTS, 3), np.float16)
    for index in range(count):
        points[index] = object_points(index, seed)
        if (index + 1) % _EVERY == 0 or index + 1 == count:
            show(index + 1, count, kinds[index % len(kinds)])
    label = (np.arange(count) % len(kinds)).astype(np.int64)
    with replacing(file) as unfinished, unfinished.open("wb") as opened:
        np.savez(opened, points=points, label=label, classes=np.array(kinds))
    return folder


def object_points(index: int, seed: int, points: int = OBJECT_POINTS) -> np.ndarray:
    """One synthetic object: points spread evenly over the surfaces of all its parts, in random order.

    Args:
        index: of the object, which tells its kind.
        seed: as :func:`make_objects` takes it.
        points: how many.

    Returns:
        (points, 3) float32 in the unit sphere about their mean, z up.
    """
    rng = stream_generator(seed, Stream.SYNTHETIC_SHAPES, index)
    vertices, faces = triangles(list(OBJECT_KINDS.values())[index % len(OBJECT_KINDS)](rng))
    if rng.random() > _PLAIN:
        vertices = _deformed(vertices, rng)
    face, weights = sample_surface(vertices, faces, points, rng)
    xyz = (vertices[faces[face]] * weights[:, :, None]).sum(1)
    if rng.random() < 0.15:
        xyz = xyz + rng.uniform(0.002, 0.012) * np.ptp(xyz, 0).max() * rng.standard_normal(xyz.shape)
    xyz -= xyz.mean(0)
    xyz /= np.linalg.norm(xyz, axis=1).max()
    return rng.permutation(xyz).astype(np.float32)


def _deformed(vertices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vertices (V, 3) stretched, and some of them tapered, twisted, bent or dented."""
    low, high = vertices.min(0), vertices.max(0)
    size = float((high - low).max())
    unit = (vertices - (low + high) / 2) * (2 / size)  # within -1 and 1
    unit = unit * np.exp(rng.normal(0, 0.15, 3))
    if rng.random() < 0.4:
        taper, twist = rng.uniform(-0.35, 0.35), rng.choice([0, 1]) * rng.uniform(-0.6, 0.6)
        unit = _along(unit, int(rng.integers(3)), taper, twist)
    if rng.random() < 0.3:
        unit = _bent(unit, rng)
    if rng.random() < 0.4:
        wave, phase = rng.normal(0, 2.2, (3, 3)), rng.uniform(0, 2 * np.pi, 3)
        unit = unit + rng.uniform(0.02, 0.08) * np.sin(unit @ wave + phase)
    return unit


def _along(unit: np.ndarray, axis: int, taper: float, twist: float) -> np.ndarray:
    """Points made wider along an axis by ``taper`` a unit, and turned about it by ``twist`` radians a unit."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    factor, angle = 1 + taper * unit[:, axis], twist * unit[:, axis]
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    changed = unit.copy()
    changed[:, first] = cos * unit[:, first] - sin * unit[:, second]
    changed[:, second] = sin * unit[:, first] + cos * unit[:, second]
    return changed


def _bent(unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points bent into an arc: an axis becomes part of a circle, which lies towards another axis."""
    axis, towards = rng.permutation(3)[:2]
    curvature = rng.uniform(0.15, 0.7) * rng.choice([-1, 1])
    angle, radius = curvature * unit[:, axis], 1 / curvature - unit[:, towards]
    changed = unit.copy()
    changed[:, axis] = radius * np.sin(angle)
    changed[:, towards] = 1 / curvature - radius * np.cos(angle)
    return changed
