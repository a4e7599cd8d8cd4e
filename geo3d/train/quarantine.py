"""The list of samples that could not be read, as a file for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geo3d.train.loader import BrokenSample
from geo3d.writing import writing


class SampleQuarantine:
    """Names each broken sample once, in ``quarantine.txt`` (index, name and reason, tab-separated) and in a line.

    Args:
        path: the file; samples that it names already are known.
        log: takes the lines.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._path, self._log = path, log
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        numbers = (line.split("\t")[0] for line in lines)
        self._known = {int(number) for number in numbers if number.isascii() and number.isdigit()}

    def __len__(self) -> int:
        """How many samples are named."""
        return len(self._known)

    def add(self, samples: list[BrokenSample]) -> None:
        """Take up broken samples, known ones or not.

        Raises:
            InputError: the file cannot be written.
        """
        for index, name, reason in samples:
            if index not in self._known:
                self._known.add(index)
                self._log(f"sample {name} cannot be read and is replaced: {reason}")
                columns = (str(index), *(" ".join(text.split()) for text in (name, reason)))
                with writing(self._path), self._path.open("a", encoding="utf-8", errors="replace") as file:
                    file.write("\t".join(columns) + "\n")
