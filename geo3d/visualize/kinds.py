"""The kinds of pictures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from geo3d.registry import named_module
from geo3d.viz.picture import Picture3D

#: Name -> one line of help; each is a module of this package with a class of options and a function ``draw``.
KINDS = {
    "scene": "points or mesh, cameras, labels and views of scenes, scans and captures",
    "features": "features as colours, the same projection across scenes and views",
    "similarity": "likeness of all points or views to one point or pixel",
    "attention": "a query and the weights of what it looks at",
    "reconstruction": "what the network of a run fills in",
    "pairs": "view pairs, mined or found",
    "matches": "mutual nearest neighbours of two views, right and wrong ones",
    "grid": "slices, rendering and voxels of radiance grids",
}


class Kind(NamedTuple):
    """A kind: its options, and what makes a picture of them."""

    options: type
    draw: Callable[[Any], Picture3D]


def get_kind(name: str) -> Kind:
    """A kind by its name.

    Raises:
        InputError: there is none of that name.
    """
    module = named_module("kind", KINDS, "geo3d.visualize", name)
    return Kind(getattr(module, f"{name.capitalize()}Options"), module.draw)


__all__ = ["KINDS", "Kind", "get_kind"]
