"""SIGTERM and SIGINT as a wish to stop at the next convenient moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """Context manager in which SIGTERM and SIGINT set :attr:`received` instead of ending the program.

    A second SIGINT interrupts as usual. The handlers that were there before are put back at the end. Outside the main
    thread, which alone can receive signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
