"""Kinds of synthetic objects: each draws a solid of its kind, in proportions of its own, z up.

Sizes are relative: objects are scaled to the unit sphere in the end. The kinds are a general vocabulary of forms and of
how parts are joined; they are not models of any data set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from geo3d.datasets.synthetic.solids import (
    Solid,
    around,
    blob,
    box,
    circle,
    cylinder,
    ellipsoid,
    extrusion,
    lathe,
    limb,
    lying,
    mirrored,
    moved,
    plate,
    polygon,
    ring,
    scaled,
    square,
    star,
    superellipse,
    swept,
    tube,
    turned,
    wing,
)

Generator = np.random.Generator
#: Name of each kind -> what draws one.
OBJECT_KINDS: dict[str, Callable[[Generator], Solid]] = {}


def _kind(draw: Callable[[Generator], Solid]) -> Callable[[Generator], Solid]:
    OBJECT_KINDS[draw.__name__.strip("_").replace("_", " ")] = draw
    return draw


def _vector(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z])


def _chance(rng: Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _section(rng: Generator) -> np.ndarray:
    """A random section of about unit size."""
    choice = rng.integers(4)
    if choice == 0:
        return circle()
    if choice == 1:
        return square() * 0.9
    if choice == 2:
        return superellipse(rng.uniform(2.5, 6))
    return polygon(int(rng.integers(3, 9)))


def _smooth(values: list[float], count: int = 16) -> np.ndarray:
    """A smooth curve (count,) through values in equal steps."""
    values = np.asarray(values, float)
    at = np.linspace(0, len(values) - 1, count)
    low = np.minimum(at.astype(int), len(values) - 2)
    share = at - low
    share = share * share * (3 - 2 * share)
    return values[low] * (1 - share) + values[low + 1] * share


def _curve(rng: Generator, points: int, bend: float, count: int = 20) -> np.ndarray:
    """A random smooth path (count, 3) that sets out along x."""
    turns = np.cumsum(rng.normal(0, bend, (points, 2)), 0)
    yaw, pitch = (_smooth(column.tolist(), count) for column in turns.T)
    step = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    return np.cumsum(step, 0) / count


def _legs(rng: Generator, x: float, y: float, height: float, thick: float, splay: float = 0.0) -> Solid:
    """Four legs below z = 0 at the corners of a rectangle (half edges x, y), of one random section."""
    section = thick * _section(rng)
    leg = extrusion(section, height, top=rng.uniform(0.5, 1.0))
    leg = turned(leg, "x", np.pi)
    leg = turned(turned(leg, "y", -splay), "x", splay)
    return mirrored(mirrored(moved(leg, (x, y, 0)), 0), 1)


# Simple forms.


@_kind
def _block(rng: Generator) -> Solid:
    return box(rng.uniform(0.3, 1, 3))


@_kind
def _ball(rng: Generator) -> Solid:
    return ellipsoid(rng.uniform(0.5, 1, 3))


@_kind
def _superquadric(rng: Generator) -> Solid:
    return ellipsoid(rng.uniform(0.3, 1, 3), roundness=tuple(rng.choice([0.8, 1, 1.3, 3, 5], 2)))


@_kind
def _cylinder(rng: Generator) -> Solid:
    return cylinder(0.5, rng.uniform(0.3, 2.5), top=rng.uniform(0.85, 1.15))


@_kind
def _cone(rng: Generator) -> Solid:
    return cylinder(0.5, rng.uniform(0.5, 2), top=rng.uniform(0, 0.5))


@_kind
def _prism(rng: Generator) -> Solid:
    return extrusion(polygon(int(rng.integers(3, 9))), rng.uniform(0.4, 3), top=rng.choice([0.0, 0.5, 1, 1]))


@_kind
def _capsule(rng: Generator) -> Solid:
    return limb((0, 0, 0), (rng.uniform(0.5, 2.5), 0, 0), 0.4, rng.uniform(0.15, 0.45))


@_kind
def _torus(rng: Generator) -> Solid:
    return ring(1, rng.uniform(0.06, 0.45), section=_section(rng), turn=rng.choice([1, 1, 1, 0.5, 0.75]))


@_kind
def _star_plate(rng: Generator) -> Solid:
    outline = star(int(rng.integers(3, 12)), rng.uniform(0.3, 0.8))
    return extrusion(outline, rng.uniform(0.1, 0.8), top=rng.uniform(0.4, 1))


@_kind
def _blob_plate(rng: Generator) -> Solid:
    return extrusion(blob(rng, 0.5), rng.uniform(0.1, 0.8), top=rng.uniform(0.6, 1.1))


@_kind
def _pebble(rng: Generator) -> Solid:
    z = np.linspace(-1, 1, 11)
    wide = np.sqrt((1 - z * z).clip(0))
    return scaled(swept(blob(rng, 0.4), z, wide, caps=False), rng.uniform(0.4, 1, 3))


@_kind
def _spindle(rng: Generator) -> Solid:
    radius = _smooth([0.02, *rng.uniform(0.1, 0.5, rng.integers(4, 9)), 0.02], 28)
    return swept(_section(rng), np.linspace(0, rng.uniform(1.5, 3), 28), radius)


@_kind
def _heap(rng: Generator) -> Solid:
    parts: Solid = []
    for _ in range(int(rng.integers(3, 8))):
        part = scaled(OBJECT_KINDS[str(rng.choice(["block", "ball", "cylinder", "prism", "torus"]))](rng), 0.5)
        parts += moved(turned(turned(part, "x", rng.uniform(0, 6)), "z", rng.uniform(0, 6)), rng.normal(0, 0.45, 3))
    return parts


# Bent and wound rods.


@_kind
def _wire(rng: Generator) -> Solid:
    return tube(_curve(rng, int(rng.integers(3, 7)), 0.9, 32), rng.uniform(0.015, 0.06), _section(rng))


@_kind
def _snake(rng: Generator) -> Solid:
    share = np.linspace(0, 1, 40)
    side = rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * rng.uniform(1, 3) * share + rng.uniform(0, 6))
    path = np.stack([2 * share, side, 0.05 * np.sin(9 * share)], 1)
    radius = rng.uniform(0.04, 0.09) * _smooth([0.7, 1, 1, 0.8, 0.1], 40)
    return tube(path, radius) + ellipsoid((0.12, 0.08, 0.06), path[0])


@_kind
def _spring(rng: Generator) -> Solid:
    turns, height = rng.uniform(3, 8), rng.uniform(0.5, 3)
    share = np.linspace(0, 1, int(12 * turns))
    angle = 2 * np.pi * turns * share
    radius = 0.5 * (1 + rng.choice([0.0, 0.0, -0.7]) * share)
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), height * share], 1)
    return tube(path, rng.uniform(0.03, 0.08), circle(6))


@_kind
def _knot(rng: Generator) -> Solid:
    p, q = [(2, 3), (3, 2), (2, 5), (3, 4)][rng.integers(4)]
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = 1 + 0.45 * np.cos(q * angle)
    path = np.stack([radius * np.cos(p * angle), radius * np.sin(p * angle), 0.5 * np.sin(q * angle)], 1)
    return tube(path, rng.uniform(0.06, 0.18), circle(7), closed=True)


@_kind
def _chain(rng: Generator) -> Solid:
    link = scaled(ring(0.3, rng.uniform(0.04, 0.09)), (1.4, 0.8, 1))
    step = 0.62
    count = int(rng.integers(3, 7))
    bend = rng.uniform(0, 0.5)
    return [
        grid
        for i in range(count)
        for grid in moved(turned(link, "x", np.pi / 2 * (i % 2)), (step * i, 0, bend * (i - count / 2) ** 2 / 4))
    ]


@_kind
def _hook(rng: Generator) -> Solid:
    angle = np.linspace(-0.5 * np.pi, rng.uniform(0.5, 1.1) * np.pi, 20)
    bow = np.stack([np.cos(angle), np.zeros(20), np.sin(angle)], 1) * 0.4
    stem = np.linspace((0, 0, rng.uniform(1, 2)), (0, 0, 0.05), 8)
    path = np.concatenate([stem, bow + _vector(0, 0, -0.4)])
    return tube(path, rng.uniform(0.05, 0.12) * _smooth([1, 1, 1, 0.5], len(path))) + ring(0.12, 0.04, stem[0])


# Vessels.


@_kind
def _vase(rng: Generator) -> Solid:
    height = rng.uniform(1.2, 2.5)
    outer = _smooth(
        [rng.uniform(0.2, 0.4), *rng.uniform(0.25, 0.75, 2), rng.uniform(0.1, 0.35), rng.uniform(0.15, 0.5)]
    )
    z = np.linspace(0, height, len(outer))
    profile = [(0, 0), *zip(outer, z), *zip(outer[::-3] * 0.9, z[::-3])]
    solid = lathe(profile)
    if _chance(rng, 0.3):
        handle = tube(_bow(outer[9], height * 0.45, height * 0.85, 0.3), 0.05)
        solid += mirrored(handle, 0) if _chance(rng, 0.6) else handle
    return solid


def _bow(radius: float, low: float, high: float, out: float) -> np.ndarray:
    """A handle's path (14, 3) in the x-z plane."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 14)
    x = radius * 0.9 + out * np.cos(angle)
    return np.stack([x, np.zeros(14), (low + high) / 2 + (high - low) / 2 * np.sin(angle)], 1)


@_kind
def _bowl(rng: Generator) -> Solid:
    height, power = rng.uniform(0.2, 0.7), rng.uniform(1.5, 4)
    radius = np.linspace(0.15, 1, 10)
    z = height * radius**power
    return lathe([(0, z[0]), *zip(radius, z), *zip(radius[::-1] * 0.94, z[::-1] + 0.04), (0, z[0] + 0.05)])


@_kind
def _mug(rng: Generator) -> Solid:
    height, wide = rng.uniform(0.7, 1.5), rng.uniform(0.85, 1.3)
    wall = [(0, 0), (0.45, 0), (0.45 * wide, height), (0.41 * wide, height), (0.41, 0.08), (0, 0.08)]
    handle = tube(_bow(0.45, height * 0.2, height * 0.85, rng.uniform(0.2, 0.4)), rng.uniform(0.035, 0.07))
    return lathe([*wall[:2], (0.45 * (1 + wide) / 2, height / 2), *wall[2:]]) + handle


@_kind
def _teapot(rng: Generator) -> Solid:
    flat = rng.uniform(0.7, 1)
    body = ellipsoid((0.6, 0.6, 0.6 * flat))
    spout = tube(np.linspace((0.5, 0, -0.15), (1.0, 0, 0.4), 8) + _vector(0, 0, -0.06), np.linspace(0.13, 0.06, 8))
    handle = turned(tube(_bow(0.55, -0.25, 0.3, 0.3), 0.05), "z", np.pi)
    return (
        body
        + spout
        + handle
        + ellipsoid((0.09, 0.09, 0.09), (0, 0, 0.6 * flat + 0.07))
        + cylinder(0.35, 0.1, (0, 0, -0.55 * flat))
    )


@_kind
def _bottle(rng: Generator) -> Solid:
    body, neck, height = rng.uniform(0.25, 0.45), rng.uniform(0.07, 0.15), rng.uniform(0.3, 0.7)
    shoulder = _smooth([body, neck], 7)
    z = np.linspace(1, 1 + rng.uniform(0.2, 0.5), 7)
    return lathe([(0, 0), (body, 0), (body, 0.5), *zip(shoulder, z), (neck, z[-1] + height), (0, z[-1] + height)])


@_kind
def _bucket(rng: Generator) -> Solid:
    wide, height = rng.uniform(1.1, 1.5), rng.uniform(0.7, 1.2)
    body = lathe([(0, 0), (0.4, 0), (0.4 * wide, height), (0.38 * wide, height), (0.38, 0.05), (0, 0.05)])
    angle = np.linspace(0, np.pi, 16)
    handle = 0.4 * wide * np.stack([np.cos(angle), np.zeros(16), np.sin(angle)], 1) + _vector(0, 0, height)
    return body + (tube(handle, 0.025) if _chance(rng, 0.8) else [])


@_kind
def _goblet(rng: Generator) -> Solid:
    stem, cup = rng.uniform(0.3, 1), rng.uniform(0.3, 0.5)
    rim = cup * rng.uniform(0.7, 1.3)
    return lathe(
        [
            (0, 0),
            (0.35, 0),
            (0.06, 0.08),
            (0.05, stem),
            (cup, stem + 0.3),
            (rim, stem + 0.8),
            (0.93 * rim, stem + 0.8),
            (0.9 * cup, stem + 0.33),
            (0, stem + 0.06),
        ]
    )


# Furniture and lamps.


@_kind
def _table(rng: Generator) -> Solid:
    x, y, height = rng.uniform(0.5, 1), rng.uniform(0.35, 0.8), rng.uniform(0.5, 1.2)
    top = box((2 * x, 2 * y, rng.uniform(0.04, 0.12)))
    inset, thick = rng.uniform(0.8, 0.95), rng.uniform(0.03, 0.09)
    solid = top + _legs(rng, x * inset, y * inset, height, thick, rng.choice([0, 0, 0.15]))
    if _chance(rng, 0.3):
        solid += box((1.6 * x, 1.6 * y, 0.04), (0, 0, -0.75 * height))
    return solid


@_kind
def _pedestal_table(rng: Generator) -> Solid:
    height = rng.uniform(0.6, 1.4)
    top = plate(0.8 * (circle(20) if _chance(rng, 0.7) else square()), 0.07, (0, 0, height))
    feet = around(limb((0, 0, 0.15), (0.5, 0, 0), 0.05), int(rng.integers(3, 6)))
    foot = feet if _chance(rng, 0.5) else cylinder(0.45, 0.06)
    return top + cylinder(rng.uniform(0.05, 0.12), height, (0, 0, height / 2)) + foot


def _backrest(rng: Generator, wide: float, height: float) -> Solid:
    """A chair's back that stands on z = 0 in the y-z plane."""
    choice = rng.integers(3)
    if choice == 0:
        return box((0.06, 2 * wide, height), (0, 0, height / 2))
    posts = mirrored(limb((0, wide, 0), (0, wide, height), 0.04))
    if choice == 1:
        return posts + [
            g
            for z in np.linspace(0.4, 1, int(rng.integers(2, 5)))
            for g in box((0.04, 2 * wide, 0.1), (0, 0, z * height))
        ]
    bars = [g for y in np.linspace(-wide, wide, 6) for g in limb((0, y, 0), (0, y, height), 0.02)]
    return posts + bars + limb((0, -wide, height), (0, wide, height), 0.04)


@_kind
def _chair(rng: Generator) -> Solid:
    x, y = rng.uniform(0.35, 0.5), rng.uniform(0.35, 0.5)
    seat = box((2 * x, 2 * y, rng.uniform(0.05, 0.15)))
    back = moved(turned(_backrest(rng, y * 0.9, rng.uniform(0.6, 1.2)), "y", -rng.uniform(0, 0.25)), (-x * 0.95, 0, 0))
    legs = _legs(rng, x * 0.9, y * 0.9, rng.uniform(0.5, 1), rng.uniform(0.03, 0.06), rng.choice([0, 0, 0.1]))
    arms = mirrored(limb((-x, y, 0.35), (x * 0.7, y, 0.35), 0.04) + limb((x * 0.7, y, 0), (x * 0.7, y, 0.35), 0.03))
    return seat + back + legs + (arms if _chance(rng, 0.35) else [])


@_kind
def _armchair(rng: Generator) -> Solid:
    wide, soft = rng.uniform(0.5, 1.5), (float(rng.uniform(3, 7)), float(rng.uniform(3, 7)))
    seat = ellipsoid((0.5, wide, 0.22), roundness=soft)
    back = ellipsoid((0.16, wide, 0.6), (-0.42, 0, 0.4), soft)
    arms = mirrored(ellipsoid((0.5, 0.13, 0.38), (0, wide, 0.12), soft))
    return seat + back + arms


@_kind
def _stool(rng: Generator) -> Solid:
    count, height = int(rng.integers(3, 6)), rng.uniform(0.5, 1.6)
    leg = limb((0.3, 0, 0), (rng.uniform(0.3, 0.5), 0, -height), 0.045)
    brace = ring(0.36, 0.025, (0, 0, -0.6 * height)) if _chance(rng, 0.5) else []
    return cylinder(0.42, rng.uniform(0.06, 0.2), (0, 0, 0.04)) + around(leg, count, np.pi / count) + brace


@_kind
def _bench(rng: Generator) -> Solid:
    length = rng.uniform(1, 2)
    slats = [
        g for x in np.linspace(-0.25, 0.25, int(rng.integers(1, 5))) for g in box((0.12, 2 * length, 0.06), (x, 0, 0))
    ]
    feet = mirrored(box((0.6, 0.1, 0.5), (0, 0.8 * length, -0.28)))
    back = turned(box((0.06, 2 * length, 0.6), (0, 0, 0.4)), "y", -0.15)
    return slats + feet + (moved(back, (-0.32, 0, 0)) if _chance(rng, 0.5) else [])


@_kind
def _bed(rng: Generator) -> Solid:
    x, y = 1.0, rng.uniform(0.5, 0.9)
    mattress = ellipsoid((x, y, 0.15), (0, 0, 0.1), (6.0, 6.0))
    head = box((0.08, 2 * y, rng.uniform(0.6, 1.1)), (-x, 0, 0.2))
    pillows = [g for side in (-0.5, 0.5) for g in ellipsoid((0.2, 0.4 * y, 0.09), (-0.72, side * y, 0.28), (3.0, 4.0))]
    return box((2 * x, 2 * y, 0.15), (0, 0, -0.1)) + mattress + head + pillows + _legs(rng, x * 0.9, y * 0.9, 0.3, 0.06)


@_kind
def _shelf(rng: Generator) -> Solid:
    x, y, height, boards = rng.uniform(0.15, 0.3), rng.uniform(0.3, 0.8), rng.uniform(1, 2), int(rng.integers(3, 7))
    sides = mirrored(box((2 * x, 0.05, height), (0, y, height / 2)))
    levels = [g for z in np.linspace(0.03, height, boards) for g in box((2 * x, 2 * y, 0.04), (0, 0, z))]
    return sides + levels + (box((0.03, 2 * y, height), (-x, 0, height / 2)) if _chance(rng, 0.5) else [])


@_kind
def _cabinet(rng: Generator) -> Solid:
    x, y, z = rng.uniform(0.3, 0.5), rng.uniform(0.4, 1), rng.uniform(0.4, 1.2)
    legs = moved(_legs(rng, x * 0.85, y * 0.9, 0.2, 0.05), (0, 0, -z))
    heights = np.linspace(-z, z, 2 * int(rng.integers(1, 5)) + 1)[1::2]
    knobs = [g for height in heights for g in ellipsoid((0.05, 0.05, 0.05), (x + 0.04, 0, height))]
    return box((2 * x, 2 * y, 2 * z)) + legs + knobs


@_kind
def _floor_lamp(rng: Generator) -> Solid:
    height, low, high = rng.uniform(1.2, 2.2), rng.uniform(0.25, 0.5), rng.uniform(0.1, 0.4)
    shade = lathe([(low, 0), (high, 0.45), (0.95 * high, 0.45), (0.95 * low, 0.0)])
    return cylinder(0.35, 0.06) + limb((0, 0, 0), (0, 0, height), 0.03) + moved(shade, (0, 0, height - 0.2))


@_kind
def _desk_lamp(rng: Generator) -> Solid:
    elbow = np.array([rng.uniform(-0.6, -0.2), 0, rng.uniform(0.6, 1)])
    head = elbow + _vector(rng.uniform(0.5, 1), 0, rng.uniform(0.1, 0.5))
    shade = moved(
        turned(lathe([(0.05, 0.25), (0.3, -0.1), (0.28, -0.1), (0.0, 0.25)]), "y", rng.uniform(-0.6, 0.3)), head
    )
    return cylinder(0.35, 0.08) + limb((0, 0, 0), elbow, 0.035) + limb(elbow, head, 0.035) + shade


@_kind
def _ladder(rng: Generator) -> Solid:
    wide, height, rungs = rng.uniform(0.2, 0.4), rng.uniform(1.5, 3), int(rng.integers(5, 11))
    rails = mirrored(box((0.06, 0.05, height), (0, wide, height / 2)))
    steps = [g for z in np.linspace(0.15, height - 0.15, rungs) for g in limb((0, -wide, z), (0, wide, z), 0.025)]
    half = turned(rails + steps, "y", rng.uniform(0.1, 0.3))
    return moved(half, (0, 0, -height)) if _chance(rng, 0.6) else mirrored(half, 0)


@_kind
def _stairs(rng: Generator) -> Solid:
    count, rise = int(rng.integers(3, 9)), rng.uniform(0.1, 0.25)
    return [g for i in range(count) for g in box((0.25, 1, rise * (i + 1)), (0.25 * i, 0, rise * (i + 1) / 2))]


@_kind
def _monitor(rng: Generator) -> Solid:
    wide, high = rng.uniform(0.7, 1.1), rng.uniform(0.4, 0.7)
    stand = limb((0, 0, -high), (-0.05, 0, -high - 0.35), 0.06) + box((0.5, 0.7, 0.05), (0, 0, -high - 0.4))
    return box((rng.uniform(0.05, 0.4), 2 * wide, 2 * high)) + stand


@_kind
def _laptop(rng: Generator) -> Solid:
    deep = rng.uniform(0.6, 0.8)
    screen = turned(box((2 * deep, 2, 0.05), (deep, 0, 0)), "y", -rng.uniform(1.2, 2.2))
    return box((2 * deep, 2, 0.09), (deep, 0, 0)) + screen


# Tools and machine parts.


@_kind
def _hammer(rng: Generator) -> Solid:
    length = rng.uniform(1.2, 2.2)
    handle = swept(_section(rng) * 0.08, np.linspace(0, length, 6), _smooth([1.2, 0.8, 1], 6))
    head = turned(cylinder(0.14, rng.uniform(0.5, 0.9), top=rng.uniform(0.4, 1)), "y", np.pi / 2)
    return handle + moved(head, (0, 0, length))


@_kind
def _axe(rng: Generator) -> Solid:
    length, wide = rng.uniform(1.2, 2), rng.uniform(0.3, 0.7)
    blade = swept(
        superellipse(2.5) * [0.07, 0.16],
        np.linspace(0, 0.6, 5),
        np.stack([np.linspace(1, 0.1, 5), np.linspace(1, 1 + 3 * wide, 5)], 1),
    )
    return limb((0, 0, 0), (0, 0, length), 0.06) + moved(
        turned(turned(blade, "z", np.pi / 2), "y", np.pi / 2), (0, 0, length - 0.1)
    )


@_kind
def _screwdriver(rng: Generator) -> Solid:
    handle = swept(polygon(6), np.linspace(0, 0.8, 10), 0.17 * _smooth([0.6, 1, 0.85, 1, 0.6], 10))
    shaft = extrusion(0.045 * circle(), rng.uniform(0.6, 1.6))
    return handle + moved(shaft, (0, 0, 0.8))


@_kind
def _wrench(rng: Generator) -> Solid:
    length, opening = rng.uniform(1, 1.8), rng.uniform(0.65, 0.8)
    jaw = scaled(turned(ring(0.24, 0.09, section=square(), turn=opening), "z", np.pi * (1 - opening)), (1, 1, 0.9))
    other = ring(0.2, 0.08, (0, 0, 0), square())
    return (
        box((length, 0.16, 0.12), (length / 2 + 0.2, 0, 0))
        + turned(jaw, "z", np.pi)
        + moved(other, (length + 0.35, 0, 0))
    )


@_kind
def _pincers(rng: Generator) -> Solid:
    angle, handle, jaw = rng.uniform(0.12, 0.5), rng.uniform(1, 1.8), rng.uniform(0.3, 0.7)
    bow = rng.uniform(0, 0.25)
    share = np.linspace(0, 1, 10)
    grip = np.stack([-handle * share, bow * np.sin(np.pi * share), np.zeros(10)], 1)
    tip = np.stack([jaw * share, -0.12 * np.sin(np.pi * share), np.zeros(10)], 1)
    arm = tube(grip, np.linspace(0.1, 0.07, 10)) + tube(tip, np.linspace(0.12, 0.05, 10), square())
    return turned(arm, "z", -angle) + turned(scaled(arm, (1, -1, 1)), "z", angle) + cylinder(0.15, 0.25)


@_kind
def _scissors(rng: Generator) -> Solid:
    angle, blade = rng.uniform(0.05, 0.5), rng.uniform(0.9, 1.5)
    half = scaled(wing(0.16, 0.03, blade, 0.05, 0, 0.2), (1, 1, 1)) + limb((0, 0, 0), (0.12, -0.6, 0), 0.05)
    half += moved(scaled(ring(0.2, 0.05), (0.8, 1.2, 1)), (0.2, -0.8, 0))
    return turned(half, "z", angle) + turned(scaled(half, (-1, 1, 1)), "z", -angle) + cylinder(0.06, 0.12)


@_kind
def _gear(rng: Generator) -> Solid:
    teeth, height = int(rng.integers(8, 21)), rng.uniform(0.15, 0.5)
    outline = np.repeat(circle(2 * teeth), 2, 0) * np.repeat(np.where(np.arange(2 * teeth) % 2, 0.85, 1.0), 2)[:, None]
    outline = np.roll(outline, 1, 0)
    wall = swept(outline, [0, height], [1, 1], caps=False)
    hole = swept(np.repeat(circle(2 * teeth), 2, 0) * rng.uniform(0.15, 0.5), [0, height], [1, 1], caps=False)
    lids = [np.stack([wall[0][row], hole[0][row]]) for row in (0, 1)]
    return wall + hole + lids + (cylinder(0.3, 2.5 * height, (0, 0, height / 2)) if _chance(rng, 0.3) else [])


@_kind
def _bearing(rng: Generator) -> Solid:
    height, inner = rng.uniform(0.2, 0.5), rng.uniform(0.35, 0.6)
    middle = (1 + inner) / 2
    radius = min((1 - inner) * 0.26, height / 2)
    races = [g for low, high in ((0.88, 1.0), (inner, inner + 0.12)) for g in _pipe(low, high, height)]
    balls = around(ellipsoid((radius,) * 3, (middle, 0, height / 2)), int(rng.integers(7, 13)))
    return races + balls


def _pipe(inner: float, outer: float, height: float) -> Solid:
    """A piece of pipe on z = 0."""
    return lathe(
        [
            (inner, 0),
            (outer, 0),
            (outer, height / 2),
            (outer, height),
            (inner, height),
            (inner, height / 2),
            (inner, 0),
        ],
        28,
    )


@_kind
def _flange(rng: Generator) -> Solid:
    bore, length = rng.uniform(0.2, 0.45), rng.uniform(0.4, 2)
    bolts = around(moved(extrusion(0.09 * polygon(6), 0.25), (0.78, 0, 0)), int(rng.integers(3, 9)))
    return _pipe(bore, 1, 0.15) + _pipe(bore, bore + 0.12, length) + bolts


@_kind
def _bolt(rng: Generator) -> Solid:
    length, turns = rng.uniform(0.8, 2), rng.uniform(6, 12)
    share = np.linspace(0, 1, int(10 * turns))
    angle = 2 * np.pi * turns * share
    thread = np.stack([0.21 * np.cos(angle), 0.21 * np.sin(angle), length * 0.7 * share], 1)
    return (
        cylinder(0.2, length, (0, 0, length / 2)) + tube(thread, 0.035, circle(4)) + extrusion(0.42 * polygon(6), -0.3)
    )


@_kind
def _bracket(rng: Generator) -> Solid:
    a, b, wide = rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5), rng.uniform(0.3, 1)
    solid = box((a, wide, 0.12), (a / 2, 0, 0)) + box((0.12, wide, b), (0, 0, b / 2))
    if _chance(rng, 0.5):
        rib = np.array([[0, 0], [0.8 * a, 0], [0.4 * a, 0.4 * b], [0, 0.8 * b]])
        solid += turned(plate(rib, 0.08), "x", np.pi / 2)
    return solid + [g for x in (0.35, 0.75) for g in _pipe_at(0.06, 0.12, 0.2, (a * x, 0, 0))]


def _pipe_at(inner: float, outer: float, height: float, at: tuple[float, float, float]) -> Solid:
    return moved(_pipe(inner, outer, height), at)


@_kind
def _pipe_fitting(rng: Generator) -> Solid:
    wide, reach = rng.uniform(0.15, 0.3), rng.uniform(0.6, 1.2)
    arms = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 0)][: int(rng.integers(2, 6))]
    if _chance(rng, 0.3):
        arms = [(1, 0, 0), (0, 0, 1)]
    ends = [g for d in arms for g in limb((0, 0, 0), reach * np.array(d), wide)]
    collars = [g for d in arms for g in tube(np.linspace(0.8, 1, 3)[:, None] * reach * np.array(d), 1.25 * wide)]
    return ends + collars


@_kind
def _wheel(rng: Generator) -> Solid:
    spokes, thick = int(rng.integers(3, 13)), rng.uniform(0.05, 0.2)
    hub = cylinder(0.18, 0.3)
    return turned(ring(1, thick) + hub + around(limb((0, 0, 0), (1, 0, 0), 0.04), spokes), "x", np.pi / 2)


@_kind
def _dumbbell(rng: Generator) -> Solid:
    ends = (
        ellipsoid((0.35,) * 3) if _chance(rng, 0.4) else turned(cylinder(0.4, rng.uniform(0.15, 0.5)), "y", np.pi / 2)
    )
    length = rng.uniform(0.5, 1)
    return mirrored(moved(ends, (length, 0, 0)), 0) + limb((-length, 0, 0), (length, 0, 0), rng.uniform(0.06, 0.15))


@_kind
def _spoon(rng: Generator) -> Solid:
    length, wide = rng.uniform(1, 1.8), rng.uniform(0.15, 0.3)
    path = np.stack([np.linspace(0, length, 10), np.zeros(10), 0.1 * np.sin(np.linspace(0, 3, 10))], 1)
    bowl = ellipsoid((1.4 * wide, wide, 0.35 * wide), (-1.2 * wide, 0, 0))
    return tube(path, _smooth([0.03, 0.03, 0.07], 10)) + bowl


@_kind
def _fork(rng: Generator) -> Solid:
    prongs, length = int(rng.integers(2, 6)), rng.uniform(0.8, 1.6)
    tines = [g for y in np.linspace(-0.2, 0.2, prongs) for g in limb((0, y, 0), (0.55, y, 0.05), 0.025, 0.01)]
    return tines + limb((0, -0.2, 0), (0, 0.2, 0), 0.05) + limb((0, 0, 0), (-length, 0, 0), 0.03, 0.06)


@_kind
def _sword(rng: Generator) -> Solid:
    length = rng.uniform(1.2, 2.4)
    blade = swept(polygon(4) * [0.12, 0.03], np.linspace(0, length, 6), _smooth([1, 1, 0.9, 0.05], 6))
    guard = limb((-0.3, 0, 0), (0.3, 0, 0), 0.05)
    return blade + guard + limb((0, 0, 0), (0, 0, -0.4), 0.06) + ellipsoid((0.09,) * 3, (0, 0, -0.5))


@_kind
def _key(rng: Generator) -> Solid:
    length, teeth = rng.uniform(0.9, 1.6), int(rng.integers(2, 5))
    bits = [
        g for x in np.linspace(0.7, 1, teeth) for g in box((0.07, 0.05, rng.uniform(0.12, 0.3)), (x * length, 0, -0.15))
    ]
    return limb((0, 0, 0), (length, 0, 0), 0.05) + moved(turned(ring(0.25, 0.06), "x", np.pi / 2), (-0.25, 0, 0)) + bits


@_kind
def _umbrella(rng: Generator) -> Solid:
    ribs, deep = int(rng.integers(6, 11)), rng.uniform(0.3, 0.7)
    radius = np.linspace(0.02, 1, 8)
    cloth = swept(polygon(ribs, 2), 1.3 - deep * radius**2, radius, caps=False)
    angle = np.linspace(0, np.pi, 10)
    crook = np.stack([0.12 - 0.12 * np.cos(angle), np.zeros(10), -0.12 * np.sin(angle)], 1)
    return cloth + limb((0, 0, 0), (0, 0, 1.4), 0.025) + tube(crook, 0.035)


@_kind
def _spectacles(rng: Generator) -> Solid:
    wide, thick, high = rng.uniform(0.35, 0.45), rng.uniform(0.02, 0.06), rng.uniform(0.6, 1)
    lens = turned(ring(wide, thick), "y", np.pi / 2)
    lens = [g * [1, 1, high] for g in lens]
    if _chance(rng, 0.3):
        lens += turned(plate(0.95 * wide * circle() * [high, 1], 0.02), "y", np.pi / 2)
    end = np.array([-rng.uniform(1, 1.4), 2 * wide + 0.08, 0])
    temple = limb((0, 2 * wide + 0.08, 0), end, thick) + limb(end, end + _vector(-0.2, 0, -0.2), thick)
    bridge = tube(np.stack([np.zeros(7), np.linspace(-0.1, 0.1, 7), 0.06 * np.sin(np.linspace(0, np.pi, 7))], 1), thick)
    return mirrored(moved(lens, (0, wide + 0.08, 0)) + temple) + bridge


# Vehicles and buildings.


@_kind
def _car(rng: Generator) -> Solid:
    length, wide, cabin = rng.uniform(1.6, 2.2), rng.uniform(0.4, 0.5), rng.uniform(0.5, 0.8)
    body = ellipsoid((length / 2, wide, 0.2), (0, 0, 0.3), (5.0, 5.0))
    top = moved(
        swept(superellipse(5), [0, 0.15, 0.3], np.outer([1, 0.92, 0.8], [cabin, 0.92 * wide])),
        (rng.uniform(-0.3, 0.1), 0, 0.45),
    )
    wheel = turned(cylinder(rng.uniform(0.16, 0.24), 0.14), "x", np.pi / 2)
    wheels = mirrored(mirrored(moved(wheel, (0.31 * length, wide, 0.15)), 0), 1)
    return body + top + wheels


@_kind
def _truck(rng: Generator) -> Solid:
    load, high = rng.uniform(1, 2), rng.uniform(0.4, 1)
    cab = ellipsoid((0.35, 0.45, 0.42), (0.4, 0, 0.6), (6.0, 6.0))
    bed = box((load, 0.9, high), (-load / 2, 0, 0.35 + high / 2))
    wheel = turned(cylinder(0.2, 0.15), "x", np.pi / 2)
    axles = (0.4, -0.3 * load, -0.8 * load)
    return cab + bed + [g for x in axles for g in mirrored(moved(wheel, (x, 0.4, 0.2)))]


@_kind
def _boat(rng: Generator) -> Solid:
    share = np.linspace(0, 1, 12)
    beam, deep = rng.uniform(0.2, 0.4), rng.uniform(0.15, 0.35)
    section = np.stack([np.cos(np.linspace(np.pi, 2 * np.pi, 13)), np.sin(np.linspace(np.pi, 2 * np.pi, 13))], 1)
    hull = swept(
        section, 2 * share, np.stack([beam * _smooth([0.7, 1, 1, 0.05], 12), deep * _smooth([0.8, 1, 1, 0.6], 12)], 1)
    )
    hull = moved(lying(hull), (-1, 0, 0))
    if _chance(rng, 0.5):
        sail = np.array([[0, 0], [0.7, 0.05], [0.3, 0.7], [0, 1.4]])
        return (
            hull
            + limb((0, 0, 0), (0, 0, 1.6), 0.03)
            + moved(turned(plate(sail, 0.02), "x", np.pi / 2), (0.03, 0, 0.15))
        )
    return hull + box((rng.uniform(0.4, 0.8), beam, 0.35), (rng.uniform(-0.4, 0.2), 0, 0.15))


@_kind
def _aeroplane(rng: Generator) -> Solid:
    length, thick = rng.uniform(1.6, 2.4), rng.uniform(0.09, 0.18)
    share = np.linspace(-0.5, 0.5, 14)
    path = np.stack([length * share, np.zeros(14), np.zeros(14)], 1)
    body = tube(path, thick * _smooth([0.15, 0.7, 1, 1, 0.9, 0.1], 14), circle(12))
    span, sweep = rng.uniform(0.7, 1.2), rng.uniform(-0.1, 0.6)
    main = moved(
        wing(rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.3), span, sweep, rng.uniform(-0.05, 0.15)),
        (0.1, 0, rng.choice([-0.5, 0.8]) * thick),
    )
    tail = moved(wing(0.25, 0.12, 0.35, 0.15, 0), (-0.44 * length, 0, 0))
    fin = turned(moved(wing(0.28, 0.12, 0.35, 0.18, 0), (-0.44 * length, 0, 0)), "x", np.pi / 2)
    engine = (
        tube(np.linspace((0.3, 0.45 * span, -0.1), (-0.05, 0.45 * span, -0.1), 4), rng.uniform(0.05, 0.09))
        if _chance(rng, 0.5)
        else []
    )
    return body + mirrored(main + tail + moved(engine, (-0.4 * sweep, 0, 0))) + fin


@_kind
def _helicopter(rng: Generator) -> Solid:
    body, blades = ellipsoid((0.5, 0.28, 0.3)), int(rng.integers(2, 6))
    boom = limb((-0.3, 0, 0.1), (-1.4, 0, 0.2), 0.09, 0.04)
    rotor = moved(around(box((rng.uniform(0.8, 1.2), 0.1, 0.02), (0.5, 0, 0)), blades), (0, 0, 0.5))
    skids = mirrored(
        limb((-0.5, 0.25, -0.42), (0.5, 0.25, -0.42), 0.03) + limb((0, 0.2, -0.1), (0, 0.25, -0.42), 0.025)
    )
    small = moved(turned(around(box((0.25, 0.05, 0.02), (0.12, 0, 0)), 3), "x", np.pi / 2), (-1.4, 0.08, 0.25))
    return body + boom + rotor + limb((0, 0, 0.2), (0, 0, 0.5), 0.04) + skids + small


@_kind
def _rocket(rng: Generator) -> Solid:
    body, thick = rng.uniform(1, 2), rng.uniform(0.15, 0.3)
    hull = lathe(
        [
            (0, 0),
            (thick, 0),
            (thick, body),
            *((thick * np.cos(a), body + 0.6 * np.sin(a)) for a in np.linspace(0.2, np.pi / 2, 7)),
        ]
    )
    fin = turned(moved(wing(0.5, 0.25, 0.35, 0.3, 0), (0.1, thick * 0.9, 0)), "y", -np.pi / 2)
    return hull + around(moved(fin, (0, 0, 0.2)), int(rng.integers(3, 6)))


@_kind
def _bicycle(rng: Generator) -> Solid:
    reach, thick = rng.uniform(0.85, 1.1), rng.uniform(0.025, 0.05)
    wheel = turned(ring(0.5, 0.04) + around(limb((0, 0, 0), (0.5, 0, 0), 0.012), 8), "x", np.pi / 2)
    seat, head = np.array([-0.15, 0, 0.75]), np.array([reach * 0.4, 0, 0.75])
    rear, front, crank = np.array([-reach / 2, 0, 0]), np.array([reach / 2, 0, 0]), np.array([0, 0, 0.02])
    bars = [
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, head),
        (seat, head),
        (head + _vector(-0.03, 0, 0.15), front),
    ]
    frame = [g for a, b in bars for g in limb(a, b, thick)]
    handle = limb(head + _vector(-0.05, -0.25, 0.15), head + _vector(-0.05, 0.25, 0.15), thick)
    return (
        moved(wheel, rear)
        + moved(wheel, front)
        + frame
        + handle
        + ellipsoid((0.16, 0.08, 0.04), seat + _vector(0, 0, 0.08))
    )


@_kind
def _house(rng: Generator) -> Solid:
    x, y, high, roof = rng.uniform(0.6, 1), rng.uniform(0.4, 0.7), rng.uniform(0.4, 1), rng.uniform(0.2, 0.6)
    gable = np.array([[-y * 1.1, 0], [0, 0], [y * 1.1, 0], [0, roof]])
    top = moved(turned(turned(extrusion(gable, 2.2 * x), "x", np.pi / 2), "z", np.pi / 2), (-1.1 * x, 0, high))
    chimney = box((0.12, 0.12, roof + 0.2), (0.5 * x, 0.5 * y, high + roof / 2)) if _chance(rng, 0.6) else []
    return box((2 * x, 2 * y, high), (0, 0, high / 2)) + top + chimney


@_kind
def _tower(rng: Generator) -> Solid:
    section, floors = _section(rng), int(rng.integers(2, 6))
    solid, z, wide = [], 0.0, 0.5
    for _ in range(floors):
        high = rng.uniform(0.3, 0.8)
        solid += moved(extrusion(wide * section, high, top=rng.uniform(0.8, 1)), (0, 0, z))
        z, wide = z + high, wide * rng.uniform(0.7, 0.95)
    return solid + moved(extrusion(wide * section, rng.uniform(0.2, 0.8), top=0.02), (0, 0, z))


@_kind
def _guitar(rng: Generator) -> Solid:
    waist, neck = rng.uniform(0.6, 0.8), rng.uniform(1, 1.5)
    angle = np.arange(28) * (2 * np.pi / 28)
    radius = 0.5 * (1 - (1 - waist) * np.cos(2 * angle - np.pi) ** 2 * (np.abs(np.sin(angle)) > 0.5))
    outline = np.stack([radius * np.cos(angle) * 1.4, radius * np.sin(angle)], 1)
    body = plate(outline, rng.uniform(0.08, 0.25))
    return body + box((neck, 0.12, 0.06), (0.6 + neck / 2, 0, 0.06)) + box((0.25, 0.2, 0.05), (0.7 + neck, 0, 0.05))


# Living things.


@_kind
def _bird(rng: Generator) -> Solid:
    body = ellipsoid((0.5, rng.uniform(0.15, 0.25), 0.2))
    head = np.array([0.6, 0, rng.uniform(0.1, 0.35)])
    flap = rng.uniform(-0.2, 0.6)
    spread = moved(
        wing(rng.uniform(0.3, 0.5), 0.08, rng.uniform(0.7, 1.3), rng.uniform(-0.1, 0.4), flap, 0.08), (0.05, 0.1, 0.08)
    )
    tail = wing(0.3, 0.35, 0.12, 0.1, 0, 0.1)
    beak = limb(head, head + _vector(rng.uniform(0.15, 0.4), 0, -0.03), 0.05, 0.01)
    neck = limb((0.35, 0, 0.05), head, 0.09)
    legs = mirrored(limb((0, 0.08, -0.1), (0.02, 0.1, -0.45), 0.02)) if _chance(rng, 0.4) else []
    return (
        body + neck + ellipsoid((0.13, 0.11, 0.11), head) + beak + mirrored(spread + moved(tail, (-0.6, 0, 0))) + legs
    )


@_kind
def _fish(rng: Generator) -> Solid:
    deep, flat = rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.7)
    share = np.linspace(0, 1, 14)
    height = deep * _smooth([0.1, 0.9, 1, 0.6, 0.25], 14)
    body = swept(circle(14), 1.6 * share, np.stack([height, height * flat], 1))
    body = lying(turned(body, "z", np.pi / 2))
    tail = turned(mirrored(wing(0.25, 0.2, rng.uniform(0.25, 0.5), -0.25, 0, 0.08)), "x", np.pi / 2)
    tail = moved(tail, (1.65, 0, 0))
    back = turned(moved(wing(0.5, 0.25, 0.25, -0.15, 0, 0.06), (0.7, deep * 0.8, 0)), "x", np.pi / 2)
    side = mirrored(moved(wing(0.2, 0.1, 0.3, -0.15, -0.15, 0.1), (0.5, deep * flat * 0.7, -0.1)))
    return body + tail + back + side


@_kind
def _quadruped(rng: Generator) -> Solid:
    length, thick, leg = rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.3), rng.uniform(0.4, 0.9)
    body = limb((-length / 2, 0, 0), (length / 2, 0, 0), thick, thick * rng.uniform(0.8, 1.2))
    head = np.array([length / 2 + rng.uniform(0.25, 0.5), 0, rng.uniform(0.1, 0.8)])
    neck = limb((length / 2, 0, 0.05), head, thick * 0.6, thick * 0.4)
    snout = ellipsoid((thick * 0.9, thick * 0.5, thick * 0.5), head + _vector(0.1, 0, 0)) + mirrored(
        ellipsoid((0.03, 0.03, 0.1), head + _vector(-0.03, 0.08, 0.15))
    )
    legs: Solid = []
    for x in (-length / 2, length / 2):
        for y in (-1, 1):
            knee = np.array([x + rng.uniform(-0.15, 0.15), y * thick * 0.7, -leg / 2 - thick * 0.3])
            legs += limb((x, y * thick * 0.6, 0), knee, thick * 0.4, 0.06)
            legs += limb(knee, knee + _vector(rng.uniform(-0.1, 0.1), 0, -leg / 2), 0.06, 0.05)
    tail = tube(
        _curve(rng, 3, 0.4, 8) * [-0.6, 0.3, 0.6] + [-length / 2 - thick * 0.7, 0, 0.05], np.linspace(0.05, 0.02, 8)
    )
    return body + neck + snout + legs + tail


@_kind
def _figure(rng: Generator) -> Solid:
    wide, lean = rng.uniform(0.16, 0.26), rng.uniform(0.8, 1.3)
    torso = swept(
        superellipse(2.5),
        np.linspace(0, 0.6, 6),
        np.outer(_smooth([0.85, 0.75, 1.05, 0.6], 6), [0.6 * wide * lean, wide]),
    )
    head = limb((0, 0, 0.6), (0, 0, 0.72), 0.06) + ellipsoid((0.11, 0.1, 0.14), (0.02, 0, 0.82))
    limbs: Solid = []
    for side in (-1, 1):
        lift, forward = rng.uniform(-0.2, 1.6), rng.normal(0, 0.4)
        shoulder = np.array([0, side * wide * 1.05, 0.54])
        elbow = shoulder + 0.3 * np.array([np.sin(forward), side * np.sin(lift), -np.cos(lift)])
        bend = lift + rng.uniform(-0.2, 0.8)
        hand = elbow + 0.28 * np.array([np.sin(forward + 0.3), side * np.sin(bend), -np.cos(bend)])
        limbs += limb(shoulder, elbow, 0.06, 0.045) + limb(elbow, hand, 0.045, 0.035)
        stride, spread = rng.normal(0, 0.3), rng.uniform(0, 0.3)
        hip = np.array([0, side * wide * 0.5, 0])
        knee = hip + 0.42 * np.array([np.sin(stride), side * np.sin(spread), -np.cos(stride)])
        foot = knee + 0.42 * np.array([np.sin(stride - rng.uniform(0, 0.5)), side * np.sin(spread) * 0.5, -1])
        limbs += (
            limb(hip, knee, 0.09, 0.06)
            + limb(knee, foot, 0.06, 0.045)
            + limb(foot, foot + _vector(0.15, 0, -0.02), 0.045)
        )
    return torso + head + limbs


@_kind
def _plush(rng: Generator) -> Solid:
    plump = rng.uniform(0.35, 0.5)
    body = ellipsoid((plump * 0.9, plump, 0.5))
    head = ellipsoid((0.3, 0.33, 0.3), (0.05, 0, 0.68)) + ellipsoid((0.12, 0.12, 0.1), (0.32, 0, 0.62))
    ears = mirrored(ellipsoid((0.06, 0.12, rng.uniform(0.1, 0.3)), (0.02, 0.25, 0.95)))
    arms = mirrored(
        limb(
            (0.05, plump * 0.8, 0.3), (rng.uniform(0, 0.4), plump + rng.uniform(0.1, 0.4), rng.uniform(-0.1, 0.5)), 0.13
        )
    )
    legs = mirrored(
        limb((0.1, 0.2, -0.35), (rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.5), -rng.uniform(0.4, 0.8)), 0.16)
    )
    return body + head + ears + arms + legs


@_kind
def _head_on_shoulders(rng: Generator) -> Solid:
    face = ellipsoid((rng.uniform(0.32, 0.42), 0.3, 0.42), (0.03, 0, 0.75))
    nose = limb((0.36, 0, 0.8), (0.45, 0, 0.68), 0.05, 0.07)
    ears = mirrored(ellipsoid((0.06, 0.03, 0.1), (0, 0.32, 0.75)))
    chest = swept(
        superellipse(2.5),
        np.linspace(-0.4, 0.3, 7),
        np.outer(_smooth([rng.uniform(0.6, 1), 1.05, 0.75, 0.3], 7), [0.38, 0.7]),
    )
    base = extrusion(0.4 * _section(rng), -0.25) if _chance(rng, 0.5) else []
    return face + nose + ears + limb((0, 0, 0.2), (0, 0, 0.5), 0.17) + chest + moved(base, (0, 0, -0.4))


@_kind
def _octopus(rng: Generator) -> Solid:
    arms, reach = int(rng.integers(5, 10)), rng.uniform(0.8, 1.4)
    solid = ellipsoid((0.35, 0.35, rng.uniform(0.35, 0.6)), (0, 0, 0.3))
    for i in range(arms):
        share = np.linspace(0, 1, 14)
        wave = rng.uniform(0.05, 0.25) * np.sin(share * rng.uniform(3, 7) + rng.uniform(0, 6)) * share
        path = np.stack([0.2 + reach * share, wave, -0.35 * share ** rng.uniform(0.4, 1.5)], 1)
        solid += turned(tube(path, np.linspace(0.11, 0.02, 14)), "z", 2 * np.pi * i / arms)
    return solid


@_kind
def _insect(rng: Generator) -> Solid:
    legs, length = int(rng.integers(3, 5)), rng.uniform(0.9, 1.4)
    parts = [(-0.45, 0.28), (0.05, 0.17), (0.4, 0.16)] if _chance(rng, 0.6) else [(-0.25, 0.35), (0.25, 0.2)]
    body = [g for x, r in parts for g in ellipsoid((r * 1.3, r, r), (x * length, 0, 0))]
    solid = body + limb((-0.4 * length, 0, 0), (0.4 * length, 0, 0), 0.06)
    for i in range(legs):
        root = np.array([0.05 + 0.15 * (i - (legs - 1) / 2), 0.1, 0])
        knee = root + _vector(0.35 * (i - (legs - 1) / 2), rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.35))
        foot = knee + _vector(0.2 * (i - (legs - 1) / 2), rng.uniform(0.2, 0.4), -rng.uniform(0.5, 0.7))
        solid += mirrored(limb(root, knee, 0.035, 0.025) + limb(knee, foot, 0.025, 0.015))
    feelers = limb((0.45 * length, 0.05, 0.08), (0.75 * length, 0.25, rng.uniform(0, 0.4)), 0.02)
    return solid + (mirrored(feelers) if _chance(rng, 0.7) else [])


@_kind
def _butterfly(rng: Generator) -> Solid:
    fold = rng.uniform(0, 0.9)
    upper = moved(plate(blob(rng, 0.15) * [0.4, 0.55], 0.02), (0.3, 0.55, 0))
    lower = moved(plate(blob(rng, 0.15) * [0.3, 0.4], 0.02), (-0.35, 0.4, 0))
    return (
        mirrored(turned(upper + lower, "x", fold))
        + limb((-0.5, 0, 0), (0.5, 0, 0), 0.07)
        + mirrored(limb((0.5, 0, 0), (0.9, 0.2, 0.1), 0.015))
    )


@_kind
def _open_hand(rng: Generator) -> Solid:
    palm = ellipsoid((0.12, 0.35, 0.4), roundness=(3.0, 4.0))
    solid = palm + limb((0, 0, -0.3), (0, 0, -0.8), 0.16, 0.14)
    for i, (y, length) in enumerate(zip((-0.27, -0.09, 0.09, 0.27), (0.45, 0.55, 0.5, 0.38))):
        curl, spread = rng.uniform(0, 0.9), (i - 1.5) * rng.uniform(0, 0.15)
        root = np.array([0, y, 0.33])
        joint = root + 0.5 * length * np.array([np.sin(curl), np.sin(spread), np.cos(curl)])
        tip = joint + 0.5 * length * np.array([np.sin(2 * curl), np.sin(spread), np.cos(2 * curl)])
        solid += limb(root, joint, 0.085, 0.075) + limb(joint, tip, 0.075, 0.06)
    joint = np.array([rng.uniform(0, 0.2), -0.5, 0.1])
    return solid + limb((0, -0.25, -0.15), joint, 0.1, 0.08) + limb(joint, joint + _vector(0.1, -0.1, 0.25), 0.08, 0.06)


@_kind
def _tree(rng: Generator) -> Solid:
    height = rng.uniform(0.8, 1.6)
    solid = limb((0, 0, 0), (0, 0, height), 0.12, 0.06)
    round_crown = _chance(rng, 0.5)
    for _ in range(int(rng.integers(4, 9))):
        angle, rise = rng.uniform(0, 6.28), rng.uniform(0.4, 0.9)
        root = np.array([0, 0, height * rng.uniform(0.5, 1)])
        tip = root + _vector(0.6 * np.cos(angle), 0.6 * np.sin(angle), rise * 0.6)
        solid += limb(root, tip, 0.05, 0.02)
        solid += (
            ellipsoid(rng.uniform(0.15, 0.35, 3), tip) if round_crown else limb(tip, tip + rng.normal(0, 0.25, 3), 0.02)
        )
    return solid


@_kind
def _fir(rng: Generator) -> Solid:
    tiers, wide = int(rng.integers(2, 6)), rng.uniform(0.4, 0.8)
    cones = [
        g
        for i in range(tiers)
        for g in moved(extrusion(wide * (1 - i / (tiers + 1)) * circle(16), 0.7, top=0.02), (0, 0, 0.4 + 0.4 * i))
    ]
    return cones + cylinder(0.1, 0.6, (0, 0, 0.2))


@_kind
def _cactus(rng: Generator) -> Solid:
    height = rng.uniform(1, 1.8)
    solid = limb((0, 0, 0), (0, 0, height), 0.2)
    for _ in range(int(rng.integers(1, 4))):
        angle, z = rng.uniform(0, 6.28), height * rng.uniform(0.25, 0.6)
        out = 0.45 * np.array([np.cos(angle), np.sin(angle), 0]) + _vector(0, 0, z)
        solid += limb((0, 0, z), out, 0.11) + limb(out, out + _vector(0, 0, rng.uniform(0.3, 0.7)), 0.11)
    return solid + (cylinder(0.35, 0.3, (0, 0, -0.25), top=1.2) if _chance(rng, 0.5) else [])


@_kind
def _mushroom(rng: Generator) -> Solid:
    cap, flat, stem = rng.uniform(0.4, 0.8), rng.uniform(0.3, 1), rng.uniform(0.4, 1)
    angle = np.linspace(0, np.pi / 2, 9)
    dome = [(cap * np.cos(a), stem + cap * flat * np.sin(a)) for a in angle]
    return lathe([(0, 0), (0.15, 0), (0.11, stem * 0.5), (0.12, stem), *dome])


@_kind
def _flower(rng: Generator) -> Solid:
    petals, tilt = int(rng.integers(4, 11)), rng.uniform(-0.2, 0.9)
    petal = turned(moved(ellipsoid((0.3, rng.uniform(0.08, 0.2), 0.03)), (0.4, 0, 0)), "y", -tilt)
    stem = tube(_curve(rng, 3, 0.15, 10)[:, [2, 1, 0]] * [1, 1, -1.4], 0.03)
    leaf = turned(moved(ellipsoid((0.25, 0.08, 0.02)), (0.25, 0, 0)), "y", -0.5)
    return ellipsoid((0.16, 0.16, 0.1)) + around(petal, petals) + stem + moved(around(leaf, 2), (0, 0, -0.8))


@_kind
def _monster(rng: Generator) -> Solid:
    """Any body with any limbs."""
    solid = scaled(OBJECT_KINDS[str(rng.choice(["ball", "superquadric", "pebble", "capsule", "block"]))](rng), 0.6)
    for _ in range(int(rng.integers(1, 5))):
        root = rng.normal(0, 0.25, 3)
        joint = root + rng.normal(0, 0.6, 3)
        tip = joint + rng.normal(0, 0.5, 3)
        thick = rng.uniform(0.04, 0.16)
        arm = limb(root, joint, thick, thick * 0.8) + limb(joint, tip, thick * 0.8, thick * 0.5)
        arm += ellipsoid(rng.uniform(1, 2.5, 3) * thick, tip) if _chance(rng, 0.4) else []
        solid += mirrored(arm) if _chance(rng, 0.7) else arm
    return solid
