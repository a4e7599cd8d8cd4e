"""Furniture and small objects, built from primitives.

Everything stands in its own frame: footprint centred at the origin, floor at z = 0, front along +y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from geo3d.datasets.synthetic.shapes import Patch, box, cylinder, disc, drape, ellipsoid, lathe, placed, rectangle
from geo3d.datasets.synthetic.texture import Palette

#: ScanNet's raw category -> nyu40 id, for everything that a room can hold.
CATEGORIES = {
    "wall": 1,
    "floor": 2,
    "cabinet": 3,
    "kitchen cabinet": 3,
    "bed": 4,
    "chair": 5,
    "office chair": 5,
    "armchair": 5,
    "couch": 6,
    "table": 7,
    "end table": 7,
    "door": 8,
    "window": 9,
    "bookshelf": 10,
    "picture": 11,
    "kitchen counter": 12,
    "desk": 14,
    "curtain": 16,
    "dresser": 17,
    "pillow": 18,
    "mat": 20,
    "ceiling": 22,
    "book": 23,
    "refrigerator": 24,
    "tv": 25,
    "towel": 27,
    "shower curtain": 28,
    "box": 29,
    "whiteboard": 30,
    "nightstand": 32,
    "toilet": 33,
    "sink": 34,
    "lamp": 35,
    "bathtub": 36,
    "coffee table": 39,
    "wardrobe": 39,
    "trash can": 39,
    "ottoman": 39,
    "ball": 40,
    "bottle": 40,
    "bowl": 40,
    "cup": 40,
    "monitor": 40,
    "plant": 40,
    "teapot": 40,
    "toy": 40,
    "vase": 40,
}


@dataclass(frozen=True)
class Thing:
    """One labelled object.

    Args:
        category: a key of :data:`CATEGORIES`.
        patches: its surfaces, in its own frame.
        position: (3,) metres where its own origin stands.
        yaw: radians about z.
        shelf: (width, depth, height) in metres of a flat top on which small objects may stand.
    """

    category: str
    patches: list[Patch]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    shelf: tuple[float, float, float] | None = None

    @property
    def bounds(self) -> np.ndarray:
        """(2, 3) lower and upper corner in its own frame."""
        points = np.concatenate([p.corners.reshape(-1, 3) for p in self.patches])
        return np.stack([points.min(0), points.max(0)])

    def moved(self, position: np.ndarray, yaw: float) -> Thing:
        """The same thing after a turn by ``yaw`` about the frame's z axis and a move by ``position``."""
        c, s = np.cos(yaw), np.sin(yaw)
        x, y, z = self.position
        turned = np.array([c * x - s * y, s * x + c * y, z]) + position
        return replace(self, position=tuple(turned.tolist()), yaw=self.yaw + yaw)

    def world_patches(self) -> list[Patch]:
        """Its surfaces where it stands."""
        return placed(self.patches, self.position, self.yaw)


def _legs(width: float, depth: float, height: float, thickness: float, texture: int) -> list[Patch]:
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    patches = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        patches += box((thickness, thickness, height), (sx * x, sy * y, 0), texture)
    return patches


def _basin(size: tuple[float, float, float], wall: float, depth: float, base: tuple, texture: int) -> list[Patch]:
    """A box with a hollow that narrows downwards: a bathtub or a sink."""
    sx, sy, sz = size
    base = np.asarray(base, float)

    def ring(inset: float, height: float) -> np.ndarray:
        x, y = sx / 2 - inset, sy / 2 - inset
        return np.array([[-x, -y, height], [x, -y, height], [x, y, height], [-x, y, height]]) + base

    rings = [ring(0, 0), ring(0, sz), ring(wall, sz), ring(2 * wall, sz - depth)]
    patches = []
    for lower, upper in pairwise(rings):
        for i in range(4):
            j = (i + 1) % 4
            corners = np.array([[lower[i], lower[j]], [upper[i], upper[j]]])
            width, height = np.linalg.norm(lower[j] - lower[i]), np.linalg.norm(upper[i] - lower[i])
            patches.append(Patch(corners, np.array([[[0, 0], [width, 0]], [[0, height], [width, height]]]), texture))
    floor = rings[-1]
    return [*patches, rectangle(floor[0], floor[1] - floor[0], floor[3] - floor[0], texture)]


def _fronts(
    width: float, height: float, y: float, z: float, columns: int, rows: int, texture: int, knob: int
) -> list[Patch]:
    """Doors or drawers with handles on the +y side of a body."""
    patches = []
    w, h = width / columns, height / rows
    for i in range(columns):
        for j in range(rows):
            x, low = -width / 2 + (i + 0.5) * w, z + j * h
            patches += box((w - 0.012, 0.018, h - 0.012), (x, y + 0.009, low + 0.006), texture)
            beside = 0.0 if h < w else (0.5 * w - 0.06) * (1 if i % 2 == 0 else -1)
            bar = (0.14, 0.02, 0.02) if h < w else (0.02, 0.02, 0.14)
            patches += box(bar, (x + beside, y + 0.03, low + 0.5 * h - 0.5 * bar[2]), knob)
    return patches


def bed(palette: Palette, rng: np.random.Generator) -> Thing:
    width, length, height = rng.uniform(0.95, 1.7), rng.uniform(1.95, 2.1), rng.uniform(0.24, 0.34)
    wood, cover, sheet = palette.wood(), palette.fabric(), palette.white()
    thick, foot = rng.uniform(0.16, 0.24), 0.62 * length
    patches = _legs(width, length, height - 0.12, 0.07, wood)
    patches += box((width, length, 0.12), (0, 0, height - 0.12), wood)
    patches += box((width - 0.06, length - 0.08, thick), (0, 0.02, height), sheet)
    patches += box((width - 0.01, foot, thick - 0.03), (0, (length - foot) / 2 + 0.01, height + 0.06), cover)
    patches += box((width + 0.06, 0.06, height + rng.uniform(0.5, 0.8)), (0, -length / 2 - 0.03, 0), wood)
    return Thing("bed", patches, shelf=(width - 0.2, 0.35 * length, height + thick + 0.03))


def pillow(palette: Palette, rng: np.random.Generator) -> Thing:
    x, y, z = rng.uniform(0.22, 0.3), rng.uniform(0.15, 0.2), rng.uniform(0.05, 0.08)
    return Thing("pillow", [ellipsoid((x, y, z), (0, 0, z), palette.fabric(), 0.5)])


def chair(palette: Palette, rng: np.random.Generator) -> Thing:
    width, seat, back = rng.uniform(0.4, 0.48), rng.uniform(0.42, 0.48), rng.uniform(0.38, 0.55)
    frame = palette.wood() if rng.random() < 0.6 else palette.metal()
    cloth = palette.fabric() if rng.random() < 0.6 else frame
    thickness = rng.uniform(0.03, 0.045)
    patches = _legs(width, width, seat - 0.04, thickness, frame)
    patches += box((width, width, 0.04), (0, 0, seat - 0.04), cloth)
    y = -(width - thickness) / 2
    for side in (-1, 1):
        patches += box((thickness, thickness, back), (side * (width - thickness) / 2, y, seat), frame)
    inner = width - 2 * thickness
    if rng.random() < 0.5:
        patches += box((inner, 0.025, 0.6 * back), (0, y, seat + 0.37 * back), cloth)
    else:
        for k in range(3):
            patches += box((inner, 0.02, 0.16 * back), (0, y, seat + (0.25 + 0.28 * k) * back), frame)
    return Thing("chair", patches)


def office_chair(palette: Palette, rng: np.random.Generator) -> Thing:
    metal, cloth = palette.metal(), palette.fabric()
    seat = rng.uniform(0.45, 0.52)
    patches = cylinder(0.03, seat - 0.14, (0, 0, 0.08), metal, 10)
    for k in range(5):
        foot = box((0.045, 0.28, 0.035), (0, 0.15, 0.06), metal)
        foot.append(ellipsoid((0.03, 0.03, 0.03), (0, 0.27, 0.03), metal))
        patches += placed(foot, (0, 0, 0), 2 * np.pi * k / 5)
    patches += [ellipsoid((0.25, 0.24, 0.05), (0, 0.01, seat), cloth, 0.4)]
    patches += box((0.06, 0.03, 0.3), (0, -0.25, seat - 0.03), metal)
    patches += [ellipsoid((0.23, 0.04, 0.28), (0, -0.23, seat + 0.42), cloth, 0.5)]
    for side in (-1, 1):
        patches += box((0.03, 0.03, 0.2), (side * 0.27, 0, seat), metal) + box(
            (0.05, 0.26, 0.025), (side * 0.27, 0, seat + 0.2), metal
        )
    return Thing("office chair", patches)


def _seating(category: str, seats: int, palette: Palette, rng: np.random.Generator) -> Thing:
    """A couch, or an armchair where it has one seat."""
    cloth, cushion = palette.fabric(), palette.fabric()
    cushion = cloth if rng.random() < 0.6 else cushion
    each, depth, seat = rng.uniform(0.58, 0.68), rng.uniform(0.8, 0.92), rng.uniform(0.36, 0.42)
    arm, back = rng.uniform(0.12, 0.2), rng.uniform(0.38, 0.48)
    inner = seats * each
    width = inner + 2 * arm
    patches = _legs(width - 0.04, depth - 0.04, 0.08, 0.05, palette.wood())
    patches += box((width, depth, seat - 0.18), (0, 0, 0.08), cloth)
    patches += box((width, 0.2, back + 0.12), (0, 0.1 - depth / 2, seat - 0.1), cloth)
    for side in (-1, 1):
        patches += box((arm, depth - 0.2, 0.32), (side * (inner + arm) / 2, 0.1, seat - 0.1), cloth)
    for i in range(seats):
        x = -inner / 2 + (i + 0.5) * each
        patches.append(ellipsoid((each / 2, (depth - 0.2) / 2, 0.09), (x, 0.1, seat - 0.03), cushion, 0.3))
        patches.append(ellipsoid((each / 2 - 0.01, 0.08, 0.2), (x, 0.27 - depth / 2, seat + 0.24), cushion, 0.4))
    return Thing(category, patches)


def couch(palette: Palette, rng: np.random.Generator) -> Thing:
    return _seating("couch", int(rng.integers(2, 4)), palette, rng)


def armchair(palette: Palette, rng: np.random.Generator) -> Thing:
    return _seating("armchair", 1, palette, rng)


def ottoman(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, height = rng.uniform(0.22, 0.3), rng.uniform(0.34, 0.44)
    cloth = palette.fabric()
    side = lathe([(0.9 * radius, 0), (radius, 0.3 * height), (radius, 0.8 * height), (0.9 * radius, height)], cloth)
    return Thing("ottoman", [side, disc(0.9 * radius, (0, 0, height), cloth)])


def _flat_table(category: str, size: tuple[float, float, float], palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth, height = size
    top = palette.wood() if rng.random() < 0.75 else palette.paint()
    legs = palette.metal() if rng.random() < 0.4 else top
    patches = _legs(width - 0.04, depth - 0.04, height - 0.035, rng.uniform(0.04, 0.07), legs)
    patches += box((width, depth, 0.035), (0, 0, height - 0.035), top)
    return Thing(category, patches, shelf=(width - 0.1, depth - 0.1, height))


def table(palette: Palette, rng: np.random.Generator) -> Thing:
    if rng.random() < 0.3:
        radius, height, wood = rng.uniform(0.45, 0.65), rng.uniform(0.7, 0.76), palette.wood()
        patches = cylinder(radius, 0.035, (0, 0, height - 0.035), wood, 28)
        patches += cylinder(0.05, height - 0.075, (0, 0, 0.04), wood) + cylinder(0.45 * radius, 0.04, (0, 0, 0), wood)
        return Thing("table", patches, shelf=(1.3 * radius, 1.3 * radius, height))
    return _flat_table("table", (rng.uniform(1.0, 1.7), rng.uniform(0.75, 0.95), rng.uniform(0.7, 0.76)), palette, rng)


def coffee_table(palette: Palette, rng: np.random.Generator) -> Thing:
    size = (rng.uniform(0.7, 1.1), rng.uniform(0.45, 0.6), rng.uniform(0.36, 0.46))
    return _flat_table("coffee table", size, palette, rng)


def end_table(palette: Palette, rng: np.random.Generator) -> Thing:
    return _flat_table("end table", (*rng.uniform(0.4, 0.55, 2), rng.uniform(0.5, 0.6)), palette, rng)


def desk(palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.75), rng.uniform(0.71, 0.76)
    thing = _flat_table("desk", (width, depth, height), palette, rng)
    body, knob = palette.wood(), palette.metal()
    drawers = box((0.38, depth - 0.12, height - 0.12), (0, 0, 0.08), body)
    drawers += _fronts(0.38, height - 0.12, (depth - 0.12) / 2, 0.08, 1, 3, body, knob)
    side = (width / 2 - 0.3) * (1 if rng.random() < 0.5 else -1)
    return replace(thing, patches=thing.patches + placed(drawers, (side, 0, 0)))


def _cupboard(
    category: str, size: tuple[float, float, float], grid: tuple[int, int], palette: Palette, rng: np.random.Generator
) -> Thing:
    """A closed body with ``grid`` (columns, rows) of doors or drawers."""
    width, depth, height = size
    body = palette.wood() if rng.random() < 0.65 else palette.paint()
    front = body if rng.random() < 0.5 else palette.wood()
    patches = box((width - 0.04, depth - 0.04, 0.06), (0, -0.02, 0), body)
    patches += box((width, depth, height - 0.06), (0, 0, 0.06), body)
    patches += _fronts(width - 0.02, height - 0.1, depth / 2, 0.08, *grid, front, palette.metal())
    return Thing(category, patches, shelf=(width - 0.1, depth - 0.1, height))


def cabinet(palette: Palette, rng: np.random.Generator) -> Thing:
    size = (rng.uniform(0.7, 1.3), rng.uniform(0.36, 0.48), rng.uniform(0.75, 1.15))
    return _cupboard("cabinet", size, (int(rng.integers(2, 4)), 1), palette, rng)


def tv_stand(palette: Palette, rng: np.random.Generator) -> Thing:
    return _cupboard("cabinet", (rng.uniform(1.1, 1.6), 0.42, rng.uniform(0.45, 0.55)), (3, 1), palette, rng)


def wardrobe(palette: Palette, rng: np.random.Generator) -> Thing:
    thing = _cupboard("wardrobe", (rng.uniform(0.9, 1.4), 0.56, rng.uniform(1.85, 2.1)), (2, 1), palette, rng)
    return replace(thing, shelf=None)


def dresser(palette: Palette, rng: np.random.Generator) -> Thing:
    size = (rng.uniform(0.8, 1.2), rng.uniform(0.42, 0.5), rng.uniform(0.8, 1.0))
    return _cupboard("dresser", size, (2, int(rng.integers(3, 5))), palette, rng)


def nightstand(palette: Palette, rng: np.random.Generator) -> Thing:
    return _cupboard("nightstand", (rng.uniform(0.4, 0.5), 0.4, rng.uniform(0.45, 0.58)), (1, 2), palette, rng)


def bookshelf(palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth, height = rng.uniform(0.75, 1.2), rng.uniform(0.28, 0.34), rng.uniform(1.5, 2.05)
    wood, board, shelves = palette.wood(), 0.025, int(rng.integers(4, 6))
    spines = [palette.paint() for _ in range(7)]
    patches = box((width, 0.015, height), (0, 0.0075 - depth / 2, 0), wood)
    for side in (-1, 1):
        patches += box((board, depth, height), (side * (width - board) / 2, 0, 0), wood)
    step = (height - board) / shelves
    for i in range(shelves + 1):
        patches += box((width - 2 * board, depth - 0.02, board), (0, 0.005, i * step), wood)
    for i in range(shelves):
        x, end = -width / 2 + board + 0.01, width / 2 - board - rng.uniform(0.02, 0.35)
        while (thick := rng.uniform(0.02, 0.06)) + x < end:
            size = (thick - 0.003, rng.uniform(0.16, depth - 0.06), rng.uniform(0.55, 0.85) * step)
            patches += box(
                size, (x + thick / 2, 0.015 - depth / 2 + size[1] / 2 + 0.02, i * step + board), int(rng.choice(spines))
            )
            x += thick
    return Thing("bookshelf", patches)


def refrigerator(palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth, height, split = (
        rng.uniform(0.6, 0.75),
        rng.uniform(0.58, 0.66),
        rng.uniform(1.5, 1.85),
        rng.uniform(0.55, 0.7),
    )
    skin = palette.white() if rng.random() < 0.6 else palette.metal()
    handle = palette.metal()
    patches = box((width, depth, height), (0, 0, 0), skin)
    for low, high in ((0.04, split), (split + 0.01, 0.99)):
        span = (high - low) * height
        patches += box((width - 0.01, 0.05, span), (0, depth / 2 + 0.025, low * height), skin)
        patches += box((0.03, 0.04, 0.4 * span), (0.42 * width, depth / 2 + 0.07, low * height + 0.3 * span), handle)
    note = palette.picture((0.2, 0.28), "page")
    patches += box((0.2, 0.004, 0.28), (-0.1 * width, depth / 2 + 0.052, 0.8 * height), skin, note)
    return Thing("refrigerator", patches)


def kitchen_cabinet(width: float, palette: Palette, rng: np.random.Generator) -> Thing:
    return replace(
        _cupboard("kitchen cabinet", (width, 0.58, 0.86), (max(2, round(width / 0.5)), 1), palette, rng), shelf=None
    )


def wall_cabinet(width: float, palette: Palette, rng: np.random.Generator) -> Thing:
    return replace(
        _cupboard("kitchen cabinet", (width, 0.34, 0.6), (max(2, round(width / 0.5)), 1), palette, rng), shelf=None
    )


def kitchen_counter(width: float, palette: Palette, rng: np.random.Generator) -> Thing:
    tone = rng.uniform(90, 220) * rng.uniform(0.9, 1, 3)
    stone = palette.tiled(str(rng.choice(["terrazzo", "marble", "fine"])), 0.6 * tone, tone, 1.2, 0.2)
    patches = box((width, 0.62, 0.04), (0, 0.02, 0), stone) + box((width, 0.02, 0.12), (0, -0.28, 0.04), stone)
    return Thing("kitchen counter", patches, shelf=(width - 0.1, 0.4, 0.04))


def _tap(y: float, z: float, texture: int) -> list[Patch]:
    return cylinder(0.015, 0.16, (0, y, z), texture, 8) + box((0.022, 0.14, 0.022), (0, y + 0.06, z + 0.15), texture)


def kitchen_sink(palette: Palette, rng: np.random.Generator) -> Thing:
    metal = palette.plain(np.full(3, rng.uniform(150, 200)), 0.2)
    patches = _basin((rng.uniform(0.5, 0.62), 0.4, 0.06), 0.02, 0.055, (0, 0.03, 0), metal)
    return Thing("sink", patches + _tap(-0.2, 0, metal))


def washbasin(palette: Palette, rng: np.random.Generator) -> Thing:
    white, height = palette.white(), rng.uniform(0.78, 0.85)
    width, depth = rng.uniform(0.5, 0.62), rng.uniform(0.42, 0.48)
    patches = [lathe([(0.11, 0), (0.08, 0.3), (0.09, height - 0.16)], white, (0, -0.04, 0))]
    patches += _basin((width, depth, 0.17), 0.05, 0.13, (0, 0, height - 0.17), white)
    patches += [rectangle((-width / 2, depth / 2, height - 0.17), (width, 0, 0), (0, -depth, 0), white)]
    return Thing("sink", patches + _tap(-depth / 2 + 0.03, height, palette.metal()))


def toilet(palette: Palette, rng: np.random.Generator) -> Thing:
    white, seat = palette.white(), palette.white() if rng.random() < 0.5 else palette.wood()
    stretch = rng.uniform(1.15, 1.35)
    profile = [(0.12, 0), (0.11, 0.12), (0.19, 0.34), (0.2, 0.38), (0.14, 0.38), (0.07, 0.2), (0.0, 0.18)]
    ring = [(0.21, 0.385), (0.21, 0.41), (0.13, 0.41), (0.13, 0.385)]
    patches = []
    for outline, texture in ((profile, white), (ring, seat)):
        turned = lathe(outline, texture)
        patches.append(replace(turned, corners=turned.corners * [1, stretch, 1] + [0, 0.08, 0]))
    patches += box((0.2, 0.26, 0.36), (0, -0.2, 0), white)
    patches += box((rng.uniform(0.38, 0.44), 0.18, 0.38), (0, -0.28, 0.38), white)
    patches += box((0.46, 0.2, 0.03), (0, -0.28, 0.76), white)
    lid = box((0.38, 0.02, 0.4), (0, -0.17, 0.42), seat)
    return Thing("toilet", patches + lid)


def bathtub(palette: Palette, rng: np.random.Generator) -> Thing:
    white, length, width = palette.white(), rng.uniform(1.5, 1.7), rng.uniform(0.7, 0.8)
    patches = _basin((length, width, rng.uniform(0.5, 0.58)), 0.07, 0.4, (0, 0, 0), white)
    tap = placed(_tap(0, 0, palette.metal()), (-length / 2 + 0.035, 0, 0.55), -np.pi / 2)
    return Thing("bathtub", patches + tap)


def curtain(width: float, height: float, palette: Palette, rng: np.random.Generator) -> Thing:
    cloth = palette.fabric()
    return Thing(
        "curtain", drape(width, height, (0, 0, 0), cloth, max(2, round(width / 0.14)), rng.uniform(0.06, 0.09))
    )


def shower_curtain(width: float, height: float, palette: Palette, rng: np.random.Generator) -> Thing:
    return replace(curtain(width, height, palette, rng), category="shower curtain")


def door(palette: Palette, rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(0.8, 0.92), rng.uniform(1.98, 2.08)
    leaf, frame = (palette.wood(), palette.white()) if rng.random() < 0.6 else (palette.paint(), palette.white())
    patches = box((width, 0.03, height), (0, 0, 0), leaf)
    for side in (-1, 1):
        patches += box((0.08, 0.05, height + 0.08), (side * (width + 0.08) / 2, 0.01, 0), frame)
    patches += box((width, 0.05, 0.08), (0, 0.01, height), frame)
    for low, high in ((0.08, 0.45), (0.52, 0.93)):
        patches += box((0.68 * width, 0.015, (high - low) * height), (0, 0.0225, low * height), leaf)
    patches += box((0.12, 0.025, 0.025), (0.4 * width, 0.06, 1.0), palette.metal())
    return Thing("door", patches)


def window(palette: Palette, rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(0.9, 1.7), rng.uniform(0.9, 1.25)
    frame = palette.white()
    patches = box((width, 0.01, height), (0, -0.015, 0), frame, palette.picture((width, height), "landscape", glow=1.1))
    for side in (-1, 1):
        patches += box((0.07, 0.06, height + 0.14), (side * (width + 0.07) / 2, 0.01, -0.07), frame)
    for z in (-0.07, height):
        patches += box((width, 0.06, 0.07), (0, 0.01, z), frame)
    patches += box((0.05, 0.04, height), (0, 0.01, 0), frame)
    patches += box((width + 0.24, 0.14, 0.03), (0, 0.05, -0.1), frame)
    return Thing("window", patches)


def wall_picture(palette: Palette, rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(0.35, 1.0), rng.uniform(0.35, 0.75)
    frame = palette.wood() if rng.random() < 0.5 else palette.metal()
    border = rng.uniform(0.02, 0.05)
    patches = box((width, 0.012, height), (0, 0, border), frame, palette.picture((width, height)))
    for side in (-1, 1):
        patches += box((border, 0.03, height + 2 * border), (side * (width + border) / 2, 0.005, 0), frame)
    for z in (0, height + border):
        patches += box((width, 0.03, border), (0, 0.005, z), frame)
    return Thing("picture", patches)


def whiteboard(palette: Palette, rng: np.random.Generator) -> Thing:
    width, height, metal = rng.uniform(1.2, 1.9), rng.uniform(0.8, 1.0), palette.metal()
    patches = box((width, 0.02, height), (0, 0, 0), metal, palette.picture((width, height), "page"))
    return Thing("whiteboard", patches + box((width, 0.07, 0.02), (0, 0.025, -0.02), metal))


def towel(palette: Palette, rng: np.random.Generator) -> Thing:
    cloth = drape(rng.uniform(0.4, 0.55), rng.uniform(0.5, 0.75), (0, 0, 0), palette.fabric(), 3, 0.03)
    return Thing("towel", cloth)


def tv(palette: Palette, rng: np.random.Generator) -> Thing:
    width = rng.uniform(0.8, 1.2)
    height, black = 0.57 * width, palette.plain(np.full(3, 35.0))
    screen = palette.picture((width - 0.04, height - 0.04), glow=0.7)
    patches = box((0.4 * width, 0.2, 0.015), (0, 0, 0), black) + box((0.08, 0.04, 0.07), (0, 0, 0.015), black)
    patches += box((width, 0.04, height), (0, 0, 0.06), black)
    return Thing("tv", patches + box((width - 0.04, 0.004, height - 0.04), (0, 0.022, 0.08), black, screen))


def monitor(palette: Palette, rng: np.random.Generator) -> Thing:
    screen = tv(palette, rng)
    scale = 0.5
    small = [replace(p, corners=p.corners * [scale, 0.7, scale]) for p in screen.patches]
    return Thing("monitor", small)


def floor_lamp(palette: Palette, rng: np.random.Generator) -> Thing:
    metal, height, radius = palette.metal(), rng.uniform(1.45, 1.7), rng.uniform(0.16, 0.24)
    patches = cylinder(0.15, 0.025, (0, 0, 0), metal) + cylinder(0.014, height - 0.225, (0, 0, 0.025), metal, 8)
    shade = palette.shade()
    patches += [lathe([(radius, 0), (0.6 * radius, 0.26)], shade, (0, 0, height - 0.26))]
    return Thing(
        "lamp",
        [*patches, disc(0.6 * radius, (0, 0, height), shade), disc(radius, (0, 0, height - 0.26), shade, up=False)],
    )


def table_lamp(palette: Palette, rng: np.random.Generator) -> Thing:
    foot, shade, height, radius = palette.paint(), palette.shade(), rng.uniform(0.36, 0.48), rng.uniform(0.1, 0.14)
    bulge = rng.uniform(0.04, 0.07)
    patches = [lathe([(0.07, 0), (0.07, 0.015), (0.02, 0.03), (bulge, 0.1), (0.02, 0.2), (0.012, height - 0.16)], foot)]
    patches += [
        lathe([(radius, height - 0.17), (0.65 * radius, height)], shade),
        disc(0.65 * radius, (0, 0, height), shade),
    ]
    return Thing("lamp", [*patches, disc(radius, (0, 0, height - 0.17), shade, up=False)])


def ceiling_lamp(palette: Palette, rng: np.random.Generator) -> Thing:
    """Hangs: its origin is the point at the ceiling."""
    shade, radius, drop = palette.shade(), rng.uniform(0.18, 0.28), rng.uniform(0.08, 0.2)
    patches = [lathe([(0, -drop), (0.6 * radius, 0.02 - drop), (radius, 0.07 - drop), (radius, 0)], shade)]
    return Thing("lamp", patches)


def rug(palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth = rng.uniform(1.2, 2.0), rng.uniform(0.9, 1.4)
    return Thing("mat", box((width, depth, 0.012), (0, 0, 0), palette.fabric()))


def bath_mat(palette: Palette, rng: np.random.Generator) -> Thing:
    return Thing("mat", box((rng.uniform(0.6, 0.8), rng.uniform(0.4, 0.5), 0.015), (0, 0, 0), palette.fabric()))


def place_mat(palette: Palette, rng: np.random.Generator) -> Thing:
    width, depth = rng.uniform(0.5, 0.65), rng.uniform(0.4, 0.5)
    print_on = palette.picture((width, depth)) if rng.random() < 0.5 else palette.fabric()
    sheet = box((width, depth, 0.004), (0, 0, 0), palette.fabric())
    sheet[4] = replace(sheet[4], texture=print_on)
    return Thing("mat", sheet)


def trash_can(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, height, skin = rng.uniform(0.12, 0.17), rng.uniform(0.28, 0.42), palette.paint()
    profile = [(0.8 * radius, 0), (radius, height), (0.94 * radius, height), (0.76 * radius, 0.02), (0, 0.02)]
    return Thing("trash can", [lathe(profile, skin)])


def plant(palette: Palette, rng: np.random.Generator) -> Thing:
    size = rng.uniform(0.5, 1.3)
    return _plant(size, 0.16 * size**0.5, palette, rng)


def small_plant(palette: Palette, rng: np.random.Generator) -> Thing:
    return _plant(rng.uniform(0.22, 0.34), 0.06, palette, rng)


def _plant(height: float, pot: float, palette: Palette, rng: np.random.Generator) -> Thing:
    clay, earth = palette.paint(), palette.plain(np.array([70, 50, 35.0]))
    green = rng.uniform([40, 100, 30], [90, 160, 70])
    leaf = palette.tiled("plaid", 0.6 * green, 1.2 * green, 0.3, 0.5)
    patches = [
        lathe([(0.7 * pot, 0), (pot, 1.5 * pot), (0.9 * pot, 1.5 * pot)], clay),
        disc(0.92 * pot, (0, 0, 1.42 * pot), earth),
    ]
    patches += cylinder(0.05 * height**2 + 0.006, 0.35 * height, (0, 0, 1.4 * pot), earth, 6)
    for k in range(14):
        length = rng.uniform(0.2, 0.34) * height
        angle, lift = 2.4 * k, rng.uniform(-0.2, 1.2)
        blade = ellipsoid((length, 0.25 * length, 0.02 * length), (length, 0, 0), leaf)
        c, s = np.cos(lift), np.sin(lift)
        tilt = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        start = (0, 0, 1.4 * pot + rng.uniform(0.15, 0.4) * height)
        patches += placed([replace(blade, corners=blade.corners @ tilt.T)], start, angle)
    return Thing("plant", patches)


def carton(palette: Palette, rng: np.random.Generator) -> Thing:
    size = rng.uniform([0.25, 0.25, 0.2], [0.55, 0.45, 0.45])
    brown = np.array([180, 140, 95]) * rng.uniform(0.8, 1.1)
    return Thing("box", _printed_box(size, palette.plain(brown), palette))


def _printed_box(size: np.ndarray, skin: int, palette: Palette) -> list[Patch]:
    """A box with a print on front and back."""
    print_size = (0.7 * size[0], 0.7 * size[2])
    patches = box(size, (0, 0, 0), skin)
    for yaw in (0, np.pi):
        sheet = rectangle(
            (print_size[0] / 2, size[1] / 2 + 0.001, 0.15 * size[2]),
            (-print_size[0], 0, 0),
            (0, 0, print_size[1]),
            palette.picture(print_size),
        )
        patches += placed([sheet], (0, 0, 0), yaw)
    return patches


def small_box(palette: Palette, rng: np.random.Generator) -> Thing:
    size = rng.uniform([0.1, 0.06, 0.08], [0.24, 0.16, 0.26])
    return Thing("box", _printed_box(size, palette.paint(), palette))


def _label(radius: float, low: float, high: float, palette: Palette) -> Patch:
    """A printed band around a cylinder."""
    size = (2 * np.pi * radius, high - low)
    return lathe([(radius + 0.0008, low), (radius + 0.0008, high)], palette.picture(size), segments=28)


def bottle(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, height, skin = rng.uniform(0.03, 0.045), rng.uniform(0.2, 0.32), palette.glaze()
    neck = 0.35 * radius
    profile = [
        (0, 0),
        (radius, 0.004),
        (radius, 0.6 * height),
        (0.7 * radius, 0.72 * height),
        (neck, 0.8 * height),
        (neck, 0.95 * height),
    ]
    cap = cylinder(1.25 * neck, 0.07 * height, (0, 0, 0.93 * height), palette.paint(), 14)
    return Thing(
        "bottle", [lathe(profile, skin, segments=28), _label(radius, 0.15 * height, 0.52 * height, palette), *cap]
    )


def cup(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, height, skin = rng.uniform(0.036, 0.046), rng.uniform(0.085, 0.11), palette.glaze()
    profile = [(0, 0), (radius, 0.002), (radius, height), (0.9 * radius, height), (0.88 * radius, 0.008), (0, 0.008)]
    angle = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 9)
    around = np.linspace(0, 2 * np.pi, 9)
    ring, thick = 0.32 * height, 0.007
    reach = ring + thick * np.cos(around)[None]
    corners = np.stack(
        [
            0.97 * radius + reach * np.cos(angle)[:, None],
            np.repeat(thick * np.sin(around)[None], 9, 0),
            0.5 * height + reach * np.sin(angle)[:, None],
        ],
        -1,
    )
    uv = np.stack(np.broadcast_arrays(thick * around[None], ring * angle[:, None]), -1)
    handle = Patch(corners, uv, skin)
    return Thing(
        "cup", [lathe(profile, skin, segments=28), _label(radius, 0.12 * height, 0.85 * height, palette), handle]
    )


def vase(palette: Palette, rng: np.random.Generator) -> Thing:
    height, belly, neck = rng.uniform(0.18, 0.34), rng.uniform(0.05, 0.09), rng.uniform(0.02, 0.04)
    t = np.linspace(0, 1, 12)
    radius = neck + (belly - neck) * np.sin(np.pi * np.minimum(t**0.8 * 1.15, 1)) ** 1.2 + 0.015 * t**4
    radius[0] = 0.6 * belly
    outside = list(zip(radius.tolist(), (height * t).tolist()))
    inside = [(0.85 * radius[-1], height), (0.8 * neck, 0.7 * height), (0, 0.68 * height)]
    return Thing("vase", [lathe([(0, 0), *outside, *inside], palette.glaze(), segments=28)])


def bowl(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, height, skin = rng.uniform(0.08, 0.13), rng.uniform(0.05, 0.08), palette.glaze()
    t = np.linspace(0, 0.5 * np.pi, 7)
    outside = np.stack([0.4 * radius + 0.6 * radius * np.sin(t), height * (1 - np.cos(t))], 1).tolist()
    inside = (
        np.stack([0.36 * radius + 0.58 * radius * np.sin(t), 0.008 + (height - 0.008) * (1 - np.cos(t))], 1)[::-1]
    ).tolist()
    patches = [lathe([(0, 0), *outside, *inside, (0, 0.008)], skin, segments=28)]
    for k in range(int(rng.integers(2, 5))):
        r = rng.uniform(0.25, 0.33) * radius
        place = 0.36 * radius * np.array([np.cos(2.1 * k), np.sin(2.1 * k)])
        patches.append(ellipsoid((r, r, r), (*place, 0.012 + r), palette.paint()))
    return Thing("bowl", patches)


def ball(palette: Palette, rng: np.random.Generator) -> Thing:
    radius = rng.uniform(0.06, 0.12)
    return Thing("ball", [ellipsoid((radius, radius, radius), (0, 0, radius), palette.fabric())])


def books(palette: Palette, rng: np.random.Generator) -> Thing:
    patches, z = [], 0.0
    for _ in range(int(rng.integers(2, 6))):
        size = rng.uniform([0.14, 0.19, 0.015], [0.2, 0.26, 0.045])
        paper = palette.plain(np.array([235, 230, 215.0]), 0.15)
        cover = palette.paint()
        volume = box((size[0] - 0.008, size[1] - 0.008, size[2] - 0.006), (0.004, 0, 0.003), paper)
        volume += box((size[0], size[1], 0.003), (0, 0, 0), cover) + box(
            (0.003, size[1], size[2]), (-size[0] / 2, 0, 0), cover
        )
        lid = box((size[0], size[1], 0.003), (0, 0, size[2] - 0.003), cover)
        lid[4] = replace(lid[4], texture=palette.picture((size[0], size[1])))
        patches += placed(volume + lid, (0, 0, z), rng.uniform(-0.3, 0.3))
        z += size[2]
    return Thing("book", patches)


def teapot(palette: Palette, rng: np.random.Generator) -> Thing:
    radius, skin = rng.uniform(0.07, 0.09), palette.glaze()
    height = 1.3 * radius
    body = [
        (0, 0),
        (0.6 * radius, 0),
        (0.95 * radius, 0.35 * height),
        (radius, 0.55 * height),
        (0.75 * radius, 0.9 * height),
        (0.45 * radius, height),
    ]
    lid = [
        (0.47 * radius, height),
        (0.3 * radius, 1.12 * height),
        (0.06 * radius, 1.15 * height),
        (0.12 * radius, 1.26 * height),
        (0, 1.3 * height),
    ]
    patches = [lathe(body, skin, segments=28), lathe(lid, palette.paint(), segments=28)]
    t = np.linspace(0, 1, 8)[:, None]
    around = np.linspace(0, 2 * np.pi, 9)[None]
    for bend, tube, side in ((0.0, (0.02, 0.011), 1), (1.0, (0.008, 0.008), -1)):
        r = tube[0] + (tube[1] - tube[0]) * t
        x = 0.85 * radius + (0.75 * radius * t if bend == 0 else 0.6 * radius * np.sin(np.pi * t))
        z = height * (0.35 + 0.6 * t if bend == 0 else 0.25 + 0.55 * t)
        corners = np.stack(
            np.broadcast_arrays(side * (x + 0 * around), r * np.cos(around), z + side * r * np.sin(around)), -1
        )
        uv = np.stack(np.broadcast_arrays(r * around, radius * t), -1)
        patches.append(Patch(corners, uv, skin))
    return Thing("teapot", patches)


def toy_car(palette: Palette, rng: np.random.Generator) -> Thing:
    length, width = rng.uniform(0.18, 0.26), rng.uniform(0.09, 0.11)
    paint, glass, rubber = palette.glaze(), palette.plain(np.array([90, 120, 140.0])), palette.plain(np.full(3, 40.0))
    r = 0.13 * length
    patches = box((length, width, 0.2 * length), (0, 0, 0.8 * r), paint, palette.picture((length, 0.2 * length)))
    cabin = box((0.5 * length, 0.9 * width, 0.16 * length), (-0.05 * length, 0, 0.8 * r + 0.2 * length), glass)
    roof = box((0.46 * length, 0.86 * width, 0.02 * length), (-0.05 * length, 0, 0.8 * r + 0.36 * length), paint)
    wheel = cylinder(r, 0.022, (0, 0, -0.011), rubber, 16)
    upright = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    for x in (-0.3, 0.3):
        for y in (-0.5, 0.5):
            turned = [replace(p, corners=p.corners @ upright.T) for p in wheel]
            patches += placed(turned, (x * length, y * width, r))
    return Thing("toy", patches + cabin + roof)


def toy_tower(palette: Palette, rng: np.random.Generator) -> Thing:
    patches, z = [], 0.0
    side = rng.uniform(0.09, 0.12)
    for _ in range(int(rng.integers(3, 6))):
        block = box((side, side, 0.6 * side), (0, 0, 0), palette.glaze(), palette.picture((side, 0.6 * side), "shapes"))
        patches += placed(block, (*rng.uniform(-0.01, 0.01, 2), z), rng.uniform(0, 2 * np.pi))
        z += 0.6 * side
        side *= rng.uniform(0.75, 0.95)
    return Thing("toy", patches)


Builder = Callable[[Palette, np.random.Generator], Thing]

#: What stands about on tables, and is photographed alone for MVImgNet: class name -> builder.
SMALL_OBJECTS: dict[str, Builder] = {
    "bottle": bottle,
    "cup": cup,
    "vase": vase,
    "bowl": bowl,
    "ball": ball,
    "book": books,
    "box": small_box,
    "teapot": teapot,
    "toy car": toy_car,
    "toy blocks": toy_tower,
    "plant": small_plant,
    "lamp": table_lamp,
}
