"""A furnished room as a mesh in memory, for whoever needs one without files."""

from __future__ import annotations

import numpy as np

from geo3d.datasets.scene import Mesh
from geo3d.datasets.synthetic.mesh import fine_mesh
from geo3d.datasets.synthetic.room import ROOM_KINDS, furnish_room
from geo3d.datasets.synthetic.stage import Stage
from geo3d.datasets.synthetic.texture import Palette


def furnished_stage(number: int) -> Stage:
    """A synthetic room to look at, the same at each call, centred at the origin in plan.

    Args:
        number: of the room; its kind goes by it too.

    Raises:
        MissingExtra: the extra ``synthetic`` is not installed.
    """
    rng = np.random.default_rng(number)
    palette = Palette(rng)
    room = furnish_room(list(ROOM_KINDS)[number % len(ROOM_KINDS)], palette, rng)
    return Stage(room.things, palette, room.lights, rng)


def furnished_mesh(number: int, edge: float = 0.03) -> Mesh:
    """The surfaces of a synthetic room, lit and coloured, the same at each call; their least corner is the origin.

    Args:
        number: of the room; its kind goes by it too.
        edge: metres, of its triangles at most.

    Raises:
        MissingExtra: the extra ``synthetic`` is not installed.
    """
    fine = fine_mesh(furnished_stage(number), edge)
    vertices = fine.vertices - fine.vertices.min(0)
    return Mesh(vertices, fine.faces.astype(np.int64), fine.colors / np.float32(255))


__all__ = ["furnished_mesh", "furnished_stage"]
