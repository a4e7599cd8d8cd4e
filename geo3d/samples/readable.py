"""What is measured and cannot be read: named once, left out and counted, or an error at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from geo3d.errors import InputError, MissingExtra
from geo3d.progress import Log

Result = TypeVar("Result")


class Readable:
    """Reads items and leaves out those that cannot be read.

    Args:
        strict: whether the first one that cannot be read is an error.
        log: takes a line for each one, once.
        what: becomes of it, for the line, such as ``left out of the report``.
    """

    def __init__(self, strict: bool, log: Log, what: str) -> None:
        self.strict, self._log, self._what = strict, log, what
        #: Item -> where it is and why it cannot be read.
        self.left_out: dict[Hashable, str] = {}

    def read(self, item: Hashable, read: Callable[[], Result], describe: Callable[[], str]) -> Result | None:
        """What ``read`` makes of an item, or None where it cannot be read.

        Args:
            item: tells it from others.
            read: raises InputError where the item is broken.
            describe: says where it is.

        Raises:
            InputError: it is broken and ``strict``.
            MissingExtra: what reads it is not installed, which is no fault of the item's.
        """
        try:
            return read()
        except MissingExtra:
            raise
        except InputError as error:
            if self.strict:
                raise
            if item not in self.left_out:
                where, reason = describe(), str(error)
                self.left_out[item] = reason if where in reason else f"{where}: {reason}"
                self._log(f"{self._what}: {self.left_out[item]}")
            return None


__all__ = ["Readable"]
