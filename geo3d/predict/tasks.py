"""The tasks of `geo3d predict` by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from geo3d.registry import named_module

#: Name -> one line of help; each is a module of this package with a class of options and a function ``predict``.
TASKS = {
    "classify": "the class of objects or images",
    "depth": "depth of the pixels of images",
    "detect": "the objects in radiance grids, as boxes",
    "flow": "optical flow from one image to another",
    "pointmaps": "points, cameras and poses of a place from two to some fifty photos",
    "segment": "the class of every point of scenes",
    "stereo": "disparity, or depth, of a rectified pair of images",
}


class Task(NamedTuple):
    """A task: its options, and what carries it out and returns lines for people."""

    options: type
    predict: Callable[[Any], str]


def get_task(name: str) -> Task:
    """A task by its name.

    Raises:
        InputError: there is none of that name.
    """
    module = named_module("task", TASKS, "geo3d.predict", name)
    return Task(getattr(module, f"{name.capitalize()}Options"), module.predict)


__all__ = ["TASKS", "Task", "get_task"]
