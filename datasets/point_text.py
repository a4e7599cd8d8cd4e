"""Points as columns of text: one point a line, with or without names of the columns."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np

from geo3d.datasets.files import read_plain
from geo3d.datasets.plain_text import decode_plain, to_count, to_number
from geo3d.datasets.point_columns import PointColumns, column_of, is_known, named_columns, unnamed_columns
from geo3d.datasets.quarantine import BrokenScene

_COMMENTS = ("#", "//")
_LAST_COMMENT = re.compile(r"(?<=\S)\s+(#|//).*")
_COORDINATES = ("x", "y", "z")


# Columns of Leica's PTS files, which have no names, by their number.
_PTS = {4: "x y z intensity", 6: "x y z r g b", 7: "x y z intensity r g b"}


def split_names(line: str) -> list[str]:
    """Names that stand between semicolons or commas, or else white space."""
    words = line.split(_separator(line))
    while len(words) > 1 and not words[-1].strip():
        words.pop()
    return [word.strip() for word in words]


def _separator(line: str) -> str | None:
    return next((mark for mark in ";," if mark in line), None)


def text_names(path: Path, scene: str) -> list[str]:
    """Names of the columns of a text file, empty where it has none; raises as :func:`read_text_points`."""
    return _Text(path, scene).names


def read_text_points(path: Path, scene: str, columns: str | None = None) -> PointColumns:
    """Read one point a line.

    Numbers are separated by semicolons, commas or white space (whichever of these, in this order, the first point has)
    and have decimal points; numbers as Microsoft's C or Fortran print them are read too. Before the points may stand
    comments (``#``, ``//``), a line with the names of the columns, also as a comment, and a line with the number of
    points. PTS files without names are laid out as Leica's: x y z, then intensity, then r g b.

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
        if not names and path.suffix.lower() == ".pts":
            names = _PTS.get(text.width, "").split()
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
        data = read_plain(path, scene)
        if b"\0" in data:
            raise self._broken("is not text: it holds bytes that are 0")
        # Unlike str.splitlines, at the ends of lines alone, not at form feeds and the like.
        plain = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b'"', b"")
        self.lines = decode_plain(plain).split("\n")
        if b"#" in plain or b"//" in plain:
            self.lines = [_LAST_COMMENT.sub("", line) for line in self.lines]
        self.names: list[str] = []
        self.stated: int | None = None
        # Numbers of the lines that hold points, counted from 0.
        self.rows = self._skip_head([i for i, line in enumerate(self.lines) if line.strip()])
        if self.stated is not None and self.stated != len(self.rows):
            raise self._broken(f"the file promises {self.stated} points and holds {len(self.rows)}")
        if not self.rows:
            raise self._broken("the file holds no point")

    def _broken(self, reason: str) -> BrokenScene:
        return BrokenScene(self.scene, self.path, reason)

    def _skip_head(self, rows: list[int]) -> list[int]:
        """Take up what stands before the points; returns the lines after it."""
        commented = False
        for place, row in enumerate(rows):
            line = self.lines[row].strip()
            comment = line.startswith(_COMMENTS)
            words = split_names(line.lstrip("#/ "))
            if all(column_of(words, axis) is not None for axis in _COORDINATES):
                self.names, commented = words, comment
            elif comment:
                continue
            elif self.stated is None and (count := _count(words)) is not None:
                self.stated = count
            else:
                if not any(map(_is_number, re.split(r"[\s,;]+", line))):
                    raise self._broken(f"line {row + 1} names no columns x, y, z and holds no numbers: {line[:60]!r}")
                points = [r for r in rows[place:] if not self.lines[r].lstrip().startswith(_COMMENTS)]
                if commented and len(self.names) != len(self._words(points[0])):
                    self.names = []  # a remark that has x, y and z in it
                return points
        return []

    @cached_property
    def separator(self) -> str | None:
        """What stands between numbers; None: white space."""
        return _separator(self.lines[self.rows[0]])

    def _words(self, row: int, width: int | None = None) -> list[str]:
        """The words of a line; a separator after the last of them may be left out."""
        separator = _separator(self.lines[row]) if width is None else self.separator
        words = self.lines[row].split(separator)
        if len(words) != width and len(words) > 1 and not words[-1].strip():
            words.pop()
        return words

    @property
    def width(self) -> int:
        """Number of columns of the first point."""
        return len(self._words(self.rows[0]))

    def table(self, width: int | None = None, wanted: list[int] | None = None) -> np.ndarray:
        """The numbers (N, C) float64 of all columns, or those of the columns ``wanted`` of ``width``."""
        width = self.width if width is None else width
        for row in self.rows:
            found = len(self._words(row, width))
            if found != width:
                raise self._broken(f"line {row + 1} has {found} columns instead of {width}")
        wanted = list(range(width)) if wanted is None else wanted
        points = [self.lines[row] for row in self.rows]
        try:
            return np.loadtxt(points, np.float64, comments=None, delimiter=self.separator, usecols=wanted, ndmin=2)
        except ValueError:
            return np.array([self._numbers(row, wanted) for row in self.rows]).reshape(len(points), len(wanted))

    def _numbers(self, row: int, wanted: list[int]) -> list[float]:
        words = self.lines[row].split(self.separator)
        try:
            return [to_number(words[i]) for i in wanted]
        except ValueError as error:
            commas = self.separator == "," and any(len(word.split()) > 1 for word in words)
            advice = "; if its commas are decimal ones, write points" if commas else ""
            raise self._broken(f"line {row + 1}: {error}{advice}") from error


def _count(words: list[str]) -> int | None:
    """The number of points that a line states; None if it is none."""
    try:
        return to_count(words[0]) if len(words) == 1 else None
    except ValueError:
        return None


def _is_number(word: str) -> bool:
    try:
        to_number(word)
    except ValueError:
        return False
    return True
