"""The list of samples that could not be read, as a file for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geo3d.train.loader import BrokenSample


class SampleQuarantine:
    """Names each broken sample once, in ``quarantine.txt`` (index, name and reason, tab-separated) and in a line.

    Args:
        path: the file; samples that it names already are known.
        log: takes the lines.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._path, self._log = path, log
        lines = path.read_text().splitlines() if path.is_file() else []
        self._known = {int(line.split("\t")[0]) for line in lines}

    def add(self, samples: list[BrokenSample]) -> None:
        """Take up broken samples, known ones or not."""
        for index, name, reason in samples:
            if index not in self._known:
                self._known.add(index)
                self._log(f"sample {name} cannot be read and is replaced: {reason}")
                with self._path.open("a") as file:
                    file.write(f"{index}\t{name}\t{' '.join(reason.split())}\n")
