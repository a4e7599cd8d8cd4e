"""Points as columns of text: one point a line, with or without names of the columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_text
from geo3d.datasets.point_columns import PointColumns, column_of, is_known, named_columns, unnamed_columns
from geo3d.datasets.quarantine import BrokenScene

_COMMENTS = ("#", "//")
_BETWEEN_NAMES = re.compile(r"[\s,;]+")
_COORDINATES = ("x", "y", "z")


def split_names(line: str) -> list[str]:
    """Names that stand between spaces, commas or semicolons."""
    return [word for word in _BETWEEN_NAMES.split(line) if word]


def text_names(path: Path, scene: str) -> list[str]:
    """Names of the columns of a text file, empty where it has none; raises as :func:`read_text_points`."""
    return _Text(path, scene).names


def read_text_points(path: Path, scene: str, columns: str | None = None) -> PointColumns:
    """Read one point a line.

    Numbers are separated by semicolons, commas or white space (whichever of these, in this order, the first point has)
    and have decimal points. Before the points may stand comments (``#``, ``//``), a line with the names of the columns,
    also as a comment, and a line with the number of points.

    Args:
        path: the file.
        scene: name for messages.
        columns: names of the columns, instead of those that the file gives.

    Raises:
        BrokenScene: the file is missing, cut or holds something else, or what a column is cannot be told.
    """
    text = _Text(path, scene)
    names = text.names if columns is None else split_names(columns)
    try:
        if not names:
            return unnamed_columns(text.table())
        wanted = [i for i, name in enumerate(names) if is_known(name)]
        table = text.table(len(names), wanted)
        return named_columns({names[i]: table[:, k] for k, i in enumerate(wanted)})
    except ValueError as error:
        raise error if isinstance(error, BrokenScene) else BrokenScene(scene, path, str(error)) from error


class _Text:
    """The lines of a file: ``names`` of the columns where it gives them, and the points."""

    def __init__(self, path: Path, scene: str) -> None:
        self.path, self.scene = path, scene
        self.lines = read_text(path, scene).removeprefix("\ufeff").splitlines()
        self.names: list[str] = []
        self.stated: int | None = None
        # Numbers of the lines that hold points, counted from 0.
        self.rows = self._skip_head([i for i, line in enumerate(self.lines) if line.strip()])
        if not self.rows:
            raise self._broken("the file holds no point")
        if self.stated is not None and self.stated != len(self.rows):
            raise self._broken(f"the file promises {self.stated} points and holds {len(self.rows)}")

    def _broken(self, reason: str) -> BrokenScene:
        return BrokenScene(self.scene, self.path, reason)

    def _skip_head(self, rows: list[int]) -> list[int]:
        """Take up what stands before the points; returns the lines after it."""
        for place, row in enumerate(rows):
            line = self.lines[row].strip()
            comment = line.startswith(_COMMENTS)
            words = split_names(line.lstrip("#/"))
            if all(column_of(words, axis) is not None for axis in _COORDINATES):
                self.names = words
            elif not comment and len(words) == 1 and words[0].isdecimal() and self.stated is None:
                self.stated = int(words[0])
            elif not comment:
                if not any(map(_is_number, words)):
                    raise self._broken(f"line {row + 1} names no columns x, y, z and holds no numbers: {line[:60]!r}")
                return [r for r in rows[place:] if not self.lines[r].lstrip().startswith(_COMMENTS)]
        return []

    def table(self, width: int | None = None, wanted: list[int] | None = None) -> np.ndarray:
        """The numbers (N, C) float64 of all columns, or those of the columns ``wanted`` of ``width``."""
        first = self.lines[self.rows[0]]
        separator = next((mark for mark in ";," if mark in first), None)
        width = len(first.split(separator)) if width is None else width
        for row in self.rows:
            found = len(self.lines[row].split(separator))
            if found != width:
                raise self._broken(f"line {row + 1} has {found} columns instead of {width}")
        points = [self.lines[row] for row in self.rows]
        try:
            return np.loadtxt(points, np.float64, comments=None, delimiter=separator, usecols=wanted, ndmin=2)
        except ValueError as error:
            read = range(width) if wanted is None else wanted
            raise self._broken(self._no_number(separator, read) or " ".join(str(error).split())) from error

    def _no_number(self, separator: str | None, wanted: Iterable[int]) -> str:
        """Which is the first word that is not a number."""
        for row in self.rows:
            words = self.lines[row].split(separator)
            bad = next((words[i] for i in wanted if not _is_number(words[i])), None)
            if bad is not None:
                return f"line {row + 1}: {bad.strip()[:40]!r} is not a number"
        return ""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
