"""What could not be read: broken scenes, remarks on readable ones, and the quarantine that collects both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geo3d.errors import InputError
from geo3d.progress import Log

_LONGEST = 2000


def printable(text: str) -> str:
    """A message as one line that any stream takes: names of files hold line breaks, and bytes that are no UTF-8.

    Of one that quotes a damaged file at length, the middle is left out.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"


class BrokenScene(InputError):
    """A scene that cannot be read: says which, in which file, at which byte and why."""

    def __init__(self, scene: str, file: Path | str, reason: str, offset: int | None = None) -> None:
        self.scene, self.file, self.reason, self.offset = scene, str(file), reason, offset
        super().__init__(f"scene {printable(scene)}: {self.detail}")

    @property
    def detail(self) -> str:
        """The message without the scene: file, byte where it is known, reason."""
        at = "" if self.offset is None else f" at byte {self.offset}"
        return printable(f"{self.file}{at}: {self.reason}")

    def __reduce__(self):  # exceptions travel from loader workers by pickling
        return type(self), (self.scene, self.file, self.reason, self.offset)


@dataclass(frozen=True)
class Remark:
    """Something in a scene was left out and the rest is used; not an error.

    Args:
        scene: name of the scene.
        file: where it was noticed.
        reason: what was left out and why.
        count: how many of them.
        offset: byte of ``file``, where it makes sense.
    """

    scene: str
    file: str
    reason: str
    count: int
    offset: int | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        return printable(f"scene {self.scene}: {self.file}{at}: {self.count} {self.reason}")


@dataclass
class Quarantine:
    """Scenes that could not be read, with file, offset and reason; and what was left out of the others."""

    entries: list[BrokenScene] = field(default_factory=list)
    strict: bool = False
    remarks: list[Remark] = field(default_factory=list)

    def add(self, broken: BrokenScene) -> None:
        """Note a broken scene once, or raise it when strict."""
        if self.strict:
            raise broken
        if str(broken) not in {str(entry) for entry in self.entries}:
            self.entries.append(broken)

    def note(self, remarks: Iterable[Remark]) -> None:
        """Note what was left out of a readable scene, each remark once."""
        self.remarks.extend(r for r in remarks if r not in self.remarks)

    def __len__(self) -> int:
        """Number of broken scenes' entries; remarks do not count."""
        return len(self.entries)

    def report(self) -> str:
        """One line for each broken scene, then one for each remark; empty when all is well."""
        return "\n".join(map(str, [*self.entries, *self.remarks]))


def log_broken(datasets: Iterable[Any], log: Log) -> None:
    """Name the broken scenes that datasets left out.

    Args:
        datasets: each with a ``quarantine``.
        log: takes the lines.
    """
    for dataset in datasets:
        if dataset.quarantine.entries:
            log(f"{len(dataset.quarantine)} broken scenes left out:\n{dataset.quarantine.report()}")
