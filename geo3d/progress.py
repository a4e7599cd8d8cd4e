"""How work speaks to people: lines, and one on the terminal that says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable

#: Takes a line to be shown.
Log = Callable[[str], None]


def progress_line(noun: str) -> Callable[[int, int, str], None]:
    """A callback ``(done, total, name)`` that keeps one line on a terminal up to date, and says nothing elsewhere."""

    def show(done: int, total: int, name: str) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{noun} {done} of {total}: {name}", end=end, file=sys.stderr, flush=True)

    return show
