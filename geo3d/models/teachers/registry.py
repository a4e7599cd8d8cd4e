"""The teachers by name, those of geo3d and those that other packages bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geo3d.checkpoints.hub import resolve
from geo3d.config import typed_value
from geo3d.models.teachers.teacher import Teacher
from geo3d.registry import Registry

TEACHERS = Registry("teacher", Teacher)
register_teacher, list_teachers, get_teacher = TEACHERS.register, TEACHERS.names, TEACHERS.get


def create_teacher(name: str = "hog", checkpoint: str | Path | None = None, **options: Any) -> Teacher:
    """Make a teacher, frozen and in evaluation mode, on the CPU.

    Args:
        name: one of :func:`list_teachers`.
        checkpoint: file of weights, for those that read one; or hf://owner/repository/file[@revision].
        options: fields of the teacher's ``Options``, such as ``stride=16``.

    Raises:
        InputError: an unknown name or option, a value of the wrong type, a file that is missing or does not fit.
        MissingExtra: a package that brings the network or its weights is not installed.

    Example:
        >>> teacher = create_teacher("efficientnet_lite0", stride=16)
        >>> features, saliency = teacher(depth_views(points, offsets).colors())
    """
    kind = get_teacher(name)
    chosen = typed_value(kind.Options, options, f"teacher {name}")
    return kind(chosen, None if checkpoint is None else resolve(checkpoint)).freeze()
