"""Furnished rooms, and tables with one object on them: what stands where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from geo3d.datasets.synthetic import furniture
from geo3d.datasets.synthetic.furniture import SMALL_OBJECTS, Builder, Thing
from geo3d.datasets.synthetic.light import Light
from geo3d.datasets.synthetic.shapes import rectangle
from geo3d.datasets.synthetic.texture import Palette

_WALL_GAP = 0.02  # metres between a wall and what stands against it
_AISLE = 0.06  # metres kept free between groups on the floor
_TRIES = 40
_OBJECT_SCALE = 0.25  # an object seen alone is seen from close by: its patterns are finer by this factor

Group = list[Thing]  # things in one frame: footprint around the origin, back towards -y
Arrangement = Callable[[Palette, np.random.Generator], Group]


@dataclass(frozen=True)
class Footprint:
    """An upright box that something takes up: a rectangle in plan, turned by yaw, between two heights."""

    center: np.ndarray
    half: np.ndarray
    yaw: float
    low: float
    high: float

    @property
    def axes(self) -> np.ndarray:
        """(2, 2) unit vectors of the rectangle's sides, in rows."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, s], [-s, c]])

    @property
    def corners(self) -> np.ndarray:
        """(4, 2) corners in plan."""
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return self.center + (signs * self.half) @ self.axes

    def overlaps(self, other: Footprint, margin: float = 0.0) -> bool:
        """Whether the two boxes come closer than ``margin`` (separating axes in plan, then heights)."""
        if self.low >= other.high or other.low >= self.high:
            return False
        for axis in (*self.axes, *other.axes):
            a, b = self.corners @ axis, other.corners @ axis
            if a.min() > b.max() + margin or b.min() > a.max() + margin:
                return False
        return True


def footprint(things: Group) -> Footprint:
    """The upright box around things of one frame, in that frame."""
    points = np.concatenate([p.corners.reshape(-1, 3) for thing in things for p in thing.world_patches()])
    low, high = points.min(0), points.max(0)
    return Footprint((low[:2] + high[:2]) / 2, (high[:2] - low[:2]) / 2, 0.0, float(low[2]), float(high[2]))


def thing_footprint(thing: Thing) -> Footprint:
    """The upright box around one thing, turned with it."""
    low, high = thing.bounds
    middle = replace(thing, patches=[], position=tuple(((low + high) / 2).tolist()), yaw=0.0)
    center = middle.moved(np.zeros(3), thing.yaw).position + np.array(thing.position)
    z = thing.position[2]
    return Footprint(center[:2], (high - low)[:2] / 2, thing.yaw, float(low[2] + z), float(high[2] + z))


def _solo(builder: Builder) -> Arrangement:
    return lambda palette, rng: [builder(palette, rng)]


def _clutter(
    support: Thing, palette: Palette, rng: np.random.Generator, most: int, names: list[str] | None = None
) -> Group:
    """The support with up to ``most`` small objects standing on its shelf, in the support's own frame."""
    if support.shelf is None:
        return [support]
    width, depth, height = support.shelf
    group, taken = [support], []
    for _ in range(int(rng.integers(1, most + 1))):
        thing = SMALL_OBJECTS[str(rng.choice(names or list(SMALL_OBJECTS)))](palette, rng)
        reach = np.linalg.norm(np.abs(thing.bounds[:, :2]).max(0))
        room = np.array([width / 2, depth / 2]) - reach
        if (room <= 0).any():
            continue
        for _ in range(_TRIES):
            spot = rng.uniform(-room, room)
            if all(np.linalg.norm(spot - other) > reach + other_reach for other, other_reach in taken):
                taken.append((spot, reach))
                group.append(thing.moved(np.array([*spot, height]), rng.uniform(0, 2 * np.pi)))
                break
    return group


def _cluttered(builder: Builder, most: int = 3) -> Arrangement:
    return lambda palette, rng: _clutter(builder(palette, rng), palette, rng, most)


def _bed_group(palette: Palette, rng: np.random.Generator) -> Group:
    bed = furniture.bed(palette, rng)
    low, high = bed.bounds
    group = [bed]
    count = 1 if bed.shelf[0] < 1.0 else 2
    for i in range(count):
        x = bed.shelf[0] * ((i + 0.5) / count - 0.5)
        group.append(
            furniture.pillow(palette, rng).moved(
                np.array([x, low[1] + 0.32, bed.shelf[2] - 0.03]), rng.uniform(-0.15, 0.15)
            )
        )
    for side in (-1, 1):
        if rng.random() < 0.7:
            stand = _clutter(furniture.nightstand(palette, rng), palette, rng, 2, ["lamp", "book", "cup", "bottle"])
            size = stand[0].bounds
            offset = np.array([side * (high[0] + size[1, 0] + 0.05), low[1] - size[0, 1], 0])
            group += [thing.moved(offset, 0.0) for thing in stand]
    return group


def _sofa_group(palette: Palette, rng: np.random.Generator) -> Group:
    sofa = furniture.couch(palette, rng)
    front = sofa.bounds[1, 1]
    table = _clutter(furniture.coffee_table(palette, rng), palette, rng, 3)
    offset = np.array([rng.uniform(-0.2, 0.2), front + 0.4 - table[0].bounds[0, 1], 0])
    return [sofa, *(thing.moved(offset, 0.0) for thing in table)]


def _dining_group(palette: Palette, rng: np.random.Generator) -> Group:
    group = _clutter(
        furniture.table(palette, rng), palette, rng, 4, ["vase", "bowl", "cup", "teapot", "bottle", "plant"]
    )
    low, high = group[0].bounds
    seat = furniture.chair(palette, rng)
    reach = seat.bounds[1, 1]
    spots = [(0, high[1], np.pi), (0, low[1], 0.0), (high[0], 0, np.pi / 2), (low[0], 0, -np.pi / 2)]
    for x, y, yaw in spots:
        if rng.random() < 0.8:
            away = np.sign([x, y]) * (reach + rng.uniform(0.06, 0.16))
            group.append(seat.moved(np.array([x + away[0], y + away[1], 0]), yaw + rng.uniform(-0.15, 0.15)))
    return group


def _desk_group(palette: Palette, rng: np.random.Generator) -> Group:
    desk = furniture.desk(palette, rng)
    width, depth, height = desk.shelf
    screen = furniture.monitor(palette, rng).moved(
        np.array([rng.uniform(-0.1, 0.1), -0.1, height]), rng.uniform(-0.2, 0.2)
    )
    group = [desk, screen]
    things = [
        SMALL_OBJECTS[str(name)](palette, rng) for name in rng.choice(["lamp", "book", "cup", "plant", "box"], 2, False)
    ]
    for thing, side in zip(things, (-1, 1)):
        reach = np.linalg.norm(np.abs(thing.bounds[:, :2]).max(0))
        x = side * (width / 2 - reach)
        if reach < depth / 2:
            group.append(
                thing.moved(np.array([x, rng.uniform(-1, 1) * (depth / 2 - reach), height]), rng.uniform(0, 2 * np.pi))
            )
    seat = furniture.office_chair(palette, rng) if rng.random() < 0.7 else furniture.chair(palette, rng)
    turned = seat.moved(np.zeros(3), np.pi + rng.uniform(-0.5, 0.5))
    reach = -thing_footprint(turned).corners[:, 1].min()
    away = np.array([rng.uniform(-0.15, 0.15), desk.bounds[1, 1] + reach + rng.uniform(0.03, 0.15), 0])
    return [*group, turned.moved(away, 0.0)]


def _tv_group(palette: Palette, rng: np.random.Generator) -> Group:
    stand = furniture.tv_stand(palette, rng)
    return [stand, furniture.tv(palette, rng).moved(np.array([0, -0.02, stand.shelf[2]]), 0.0)]


def _kitchen_group(palette: Palette, rng: np.random.Generator) -> Group:
    width = rng.uniform(1.6, 2.3)
    base = furniture.kitchen_cabinet(width, palette, rng)
    counter = _clutter(
        furniture.kitchen_counter(width, palette, rng), palette, rng, 4, ["bottle", "bowl", "cup", "teapot", "box"]
    )
    sink = furniture.kitchen_sink(palette, rng).moved(np.array([(width / 2 - 0.4) * rng.choice([-1, 1]), 0, 0.04]), 0.0)
    reach = np.linalg.norm(sink.bounds[1, :2])
    clear = [counter[0]]
    for thing in counter[1:]:
        if (
            np.linalg.norm(np.subtract(thing.position, sink.position)[:2])
            > reach + np.abs(thing.bounds[:, :2]).max() * 1.42
        ):
            clear.append(thing)
    height = base.bounds[1, 2]
    hung = furniture.wall_cabinet(width, palette, rng)
    hang = np.array([0, base.bounds[0, 1] - hung.bounds[0, 1], height + 0.6])
    return [base, *(thing.moved(np.array([0, 0, height]), 0.0) for thing in [*clear, sink]), hung.moved(hang, 0.0)]


def _bath_group(palette: Palette, rng: np.random.Generator) -> Group:
    tub = furniture.bathtub(palette, rng)
    low, high = tub.bounds
    cloth = furniture.shower_curtain(rng.uniform(0.7, 1.0), 1.75, palette, rng)
    x = rng.choice([low[0] + cloth.bounds[1, 0], high[0] - cloth.bounds[1, 0]])
    return [tub, cloth.moved(np.array([x, high[1] + cloth.bounds[1, 1] + 0.01, 0.2]), 0.0)]


def _window_group(palette: Palette, rng: np.random.Generator) -> Group:
    """A window at its height, with curtains in four of five cases."""
    window = furniture.window(palette, rng)
    low, high = window.bounds
    sill = rng.uniform(0.85, 0.98)
    group = [window.moved(np.array([0, -low[1], sill]), 0.0)]
    if rng.random() < 0.8:
        width = rng.uniform(0.3, 0.5)
        for side in (-1, 1):
            cloth = furniture.curtain(width, sill + high[2] + 0.05, palette, rng)
            place = np.array([side * (high[0] + width / 2 + 0.02), 0.14, 0.04])
            group.append(cloth.moved(place, 0.0))
    return group


def _hung(builder: Builder, low: float, high: float) -> Arrangement:
    """Something on a wall with its lower edge between two heights."""

    def arrange(palette: Palette, rng: np.random.Generator) -> Group:
        thing = builder(palette, rng)
        return [thing.moved(np.array([0, 0, rng.uniform(low, high) - thing.bounds[0, 2]]), 0.0)]

    return arrange


@dataclass(frozen=True)
class RoomKind:
    """What a kind of room holds.

    Args:
        size: ranges of width, depth and height in metres.
        walls: groups that stand against or hang on walls, in order of importance.
        floor: groups that stand free.
    """

    size: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    walls: list[Arrangement]
    floor: list[Arrangement] = field(default_factory=list)


_PICTURE = _hung(furniture.wall_picture, 1.25, 1.45)
_SMALL = [_solo(furniture.carton), _solo(furniture.plant), _solo(furniture.trash_can)]

ROOM_KINDS: dict[str, RoomKind] = {
    "bedroom": RoomKind(
        ((3.4, 4.8), (3.4, 4.6), (2.4, 2.8)),
        [
            *[_solo(furniture.door), _bed_group, _window_group, _solo(furniture.wardrobe), _desk_group],
            *[_cluttered(furniture.dresser), _solo(furniture.bookshelf), _PICTURE, _PICTURE, _PICTURE, *_SMALL],
        ],
        [_solo(furniture.ottoman), _solo(furniture.rug)],
    ),
    "living room": RoomKind(
        ((4.0, 5.6), (3.8, 5.2), (2.5, 2.9)),
        [
            *[_solo(furniture.door), _sofa_group, _window_group, _tv_group, _solo(furniture.bookshelf), _window_group],
            *[_cluttered(furniture.cabinet), _solo(furniture.armchair), _solo(furniture.floor_lamp)],
            *[_cluttered(furniture.end_table, 2), _PICTURE, _PICTURE, _PICTURE, _PICTURE, *_SMALL],
        ],
        [_dining_group, _solo(furniture.armchair), _solo(furniture.rug), _solo(furniture.ottoman)],
    ),
    "office": RoomKind(
        ((3.6, 5.4), (3.6, 5.0), (2.5, 2.9)),
        [
            *[_solo(furniture.door), _desk_group, _window_group, _desk_group, _solo(furniture.bookshelf), _desk_group],
            *[_hung(furniture.whiteboard, 0.95, 1.05), _cluttered(furniture.cabinet), _solo(furniture.bookshelf)],
            *[_PICTURE, _PICTURE, _solo(furniture.floor_lamp), *_SMALL],
        ],
        [_dining_group, _solo(furniture.carton), _solo(furniture.rug)],
    ),
    "kitchen": RoomKind(
        ((3.4, 4.8), (3.2, 4.4), (2.4, 2.7)),
        [
            *[_solo(furniture.door), _kitchen_group, _solo(furniture.refrigerator), _window_group],
            *[_cluttered(furniture.cabinet), _PICTURE, _PICTURE, _PICTURE, _solo(furniture.chair), *_SMALL],
        ],
        [_dining_group, _solo(furniture.bath_mat)],
    ),
    "bathroom": RoomKind(
        ((2.6, 3.4), (2.6, 3.4), (2.4, 2.6)),
        [
            *[_solo(furniture.door), _bath_group, _solo(furniture.toilet), _solo(furniture.washbasin)],
            *[_hung(furniture.towel, 0.8, 1.0), _cluttered(furniture.cabinet, 2), _hung(furniture.towel, 0.8, 1.0)],
            *[_PICTURE, _PICTURE, _solo(furniture.trash_can)],
        ],
        [_solo(furniture.bath_mat)],
    ),
}


@dataclass(frozen=True)
class Room:
    """A furnished room, centred at the origin in plan, its floor at z = 0.

    Args:
        kind: a key of :data:`ROOM_KINDS`, or ``tabletop``.
        size: (3,) metres.
        things: everything in it, walls and floor included.
        taken: the footprint of every placed group.
        lights: what lights it.
    """

    kind: str
    size: np.ndarray
    things: list[Thing]
    taken: list[Footprint]
    lights: list[Light]


def _shell(size: np.ndarray, palette: Palette) -> list[Thing]:
    """Floor, four walls and ceiling, facing inwards."""
    x, y, z = size[0] / 2, size[1] / 2, size[2]
    wall, accent = palette.wall(), palette.wall()
    floor = rectangle((-x, -y, 0), (2 * x, 0, 0), (0, 2 * y, 0), palette.floor())
    ceiling = rectangle((-x, y, z), (2 * x, 0, 0), (0, -2 * y, 0), palette.plain(np.array([235, 235, 230.0]), 0.12))
    sides = [
        rectangle((x, -y, 0), (-2 * x, 0, 0), (0, 0, z), wall),
        rectangle((x, y, 0), (0, -2 * y, 0), (0, 0, z), accent),
        rectangle((-x, y, 0), (2 * x, 0, 0), (0, 0, z), wall),
        rectangle((-x, -y, 0), (0, 2 * y, 0), (0, 0, z), wall),
    ]
    return [Thing("floor", [floor]), *(Thing("wall", [side]) for side in sides), Thing("ceiling", [ceiling])]


def _try_place(
    group: Group, size: np.ndarray, taken: list[Footprint], against_wall: bool, rng: np.random.Generator
) -> Group | None:
    """The group moved to a free place, or None when none was found; notes the place as taken."""
    local = footprint(group)
    for _ in range(_TRIES):
        if against_wall:
            side = int(rng.integers(4))
            yaw = side * np.pi / 2
            inward, along = np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])
            across = abs(inward @ size[:2]) / 2
            slack = abs(along @ size[:2]) / 2 - local.half[0] - _WALL_GAP
            if slack < 0:
                continue
            center = along * rng.uniform(-slack, slack) - inward * (across - _WALL_GAP - local.half[1])
        else:
            yaw = rng.uniform(0, 2 * np.pi)
            reach = np.linalg.norm(local.half)
            slack = size[:2] / 2 - reach - 0.1
            if (slack < 0).any():
                return None
            center = rng.uniform(-slack, slack)
        spot = Footprint(center, local.half, yaw, local.low, local.high)
        if not any(spot.overlaps(other, _AISLE) for other in taken):
            taken.append(spot)
            c, s = np.cos(yaw), np.sin(yaw)
            offset = np.array([*(center - np.array([[c, -s], [s, c]]) @ local.center), 0.0])
            return [thing.moved(offset, yaw) for thing in group]
    return None


def _lights(size: np.ndarray, things: list[Thing], rng: np.random.Generator) -> list[Light]:
    """A warm ceiling light and daylight from every window."""
    warm = rng.uniform(1.6, 2.4) * rng.uniform([1.0, 0.92, 0.78], [1.0, 0.98, 0.94])
    center = np.array([*rng.uniform(-0.1, 0.1, 2) * size[:2], size[2] - 0.4])
    lights = [Light(center, 0.15, warm)]
    for thing in things:
        if thing.category == "window":
            facing = np.array([-np.sin(thing.yaw), np.cos(thing.yaw), 0.0])
            middle = np.array(thing.position) + 0.2 * facing + [0, 0, 0.55]
            lights.append(Light(middle, 0.5, rng.uniform(1.5, 3.0) * np.array([0.92, 0.97, 1.0]), facing))
    return lights


def furnish_room(kind: str, palette: Palette, rng: np.random.Generator) -> Room:
    """A room of one kind of :data:`ROOM_KINDS`, furnished as far as there is place."""
    plan = ROOM_KINDS[kind]
    size = np.array([rng.uniform(*span) for span in plan.size])
    things, taken = _shell(size, palette), []
    for arrangements, against_wall in (
        (plan.walls[:4], True),
        (plan.floor[:1], False),
        (plan.walls[4:], True),
        (plan.floor[1:], False),
    ):
        for arrange in arrangements:
            placed = _try_place(arrange(palette, rng), size, taken, against_wall, rng)
            if placed is not None:
                things += placed
    lights = _lights(size, things, rng)
    things.append(furniture.ceiling_lamp(palette, rng).moved(np.array([*lights[0].center[:2], size[2]]), 0.0))
    return Room(kind, size, things, taken, lights)


def furnish_tabletop(object_class: str, palette: Palette, rng: np.random.Generator) -> Room:
    """One object of :data:`SMALL_OBJECTS`, the last thing, on a table in the middle of a plainly furnished room."""
    size = rng.uniform([3.4, 3.4, 2.4], [4.4, 4.4, 2.8])
    things, taken = _shell(size, palette), [Footprint(np.zeros(2), np.full(2, 0.9), 0.0, 0.0, size[2])]
    for arrange in (
        _solo(furniture.door),
        _window_group,
        _solo(furniture.bookshelf),
        _cluttered(furniture.cabinet),
        _PICTURE,
        _PICTURE,
        _PICTURE,
    ):
        placed = _try_place(arrange(palette, rng), size, taken, True, rng)
        if placed is not None:
            things += placed
    lights = _lights(size, things, rng)
    things.append(furniture.ceiling_lamp(palette, rng).moved(np.array([*lights[0].center[:2], size[2]]), 0.0))
    near = replace(palette, scale=_OBJECT_SCALE)
    stand = furniture.table(near, rng)
    things.append(stand)
    cloth = furniture.place_mat(palette, rng)
    height = stand.shelf[2]
    things.append(cloth.moved(np.array([0, 0, height]), rng.uniform(0, 2 * np.pi)))
    thing = SMALL_OBJECTS[object_class](near, rng)
    height += cloth.bounds[1, 2]
    things.append(thing.moved(np.array([*rng.uniform(-0.04, 0.04, 2), height]), rng.uniform(0, 2 * np.pi)))
    return Room("tabletop", size, things, taken, lights)
