"""The commands and snippets of README and docs, as they stand there."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A block of a page.

    Args:
        page: its file.
        line: of the page on which the block's text begins, from 1.
        language: ``bash``, ``python`` and so on.
        text: of the block.
        not_run: why it is not run; empty where it is.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; a line that ends in a backslash goes on in the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def snippets(page: Path) -> list[Snippet]:
    """Blocks of a page in their order. ```` ```python no-run: reason ```` marks one that is not run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text[: match.start(3)].count("\n") + 1
        told = match[2].strip()
        assert not told or re.fullmatch(r"no-run: \S.*", told), f"{page.name}:{line}: {told!r} is not understood"
        found.append(Snippet(page, line, match[1], match[3], told.removeprefix("no-run: ")))
    return found
