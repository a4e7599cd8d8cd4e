"""Logger: metrics.jsonl, TensorBoard, and what a person sees while a run goes on."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from geo3d.errors import MissingExtra, require_extra
from geo3d.writing import write_text

#: Seconds between movements of the progress bar, and between progress lines where there is no terminal for a bar.
SECONDS_BETWEEN_REFRESHES, SECONDS_BETWEEN_LINES = 0.2, 10.0


class Logger:
    """Where a run reports to; on other processes than the first it does nothing.

    Args:
        folder: the run's folder.
        enabled: whether this is the process that reports.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.metrics = folder / "metrics.jsonl"
        self._folder, self._enabled = folder, enabled
        self._file = self._board = self._bar = self._task = None
        self._last_shown = -math.inf

    def log(self, line: str) -> None:
        """One line for a person."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def open(self, step: int, total: int) -> None:
        """Begin, or go on after ``step`` of ``total`` steps: what was logged of later steps is dropped."""
        if not self._enabled:
            return
        keep_metrics(self.metrics, step)
        self._file = self.metrics.open("a")
        try:
            require_extra("tensorboard", "tensorboard", "the TensorBoard log")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1)
        except MissingExtra:
            self.log(
                "TensorBoard is not installed (pip install 'geo3d[tensorboard]'); metrics go to metrics.jsonl alone"
            )
        if sys.stderr.isatty():
            self._open_bar(step, total)

    def record(self, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl and the same numbers to TensorBoard."""
        if not self._enabled:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                if value is not None and key not in ("step", "time"):
                    self._board.add_scalar(key, value, values["step"])

    def progress(self, step: int, total: int, epoch: float, loss: float, rate: float, remaining: float) -> None:
        """Move the bar, or print a line now and then.

        Args:
            step: steps done.
            total: steps to do.
            epoch: epochs done.
            loss: smoothed loss.
            rate: samples per second.
            remaining: seconds to the end.
        """
        pause = SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_REFRESHES
        if not self._enabled or (time.monotonic() - self._last_shown < pause and step < total):
            return
        self._last_shown = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, rate=rate, remaining=_duration(remaining))
            self._bar.refresh()
        else:
            numbers = f"epoch {epoch:.2f}  loss {loss:.4f}  {rate:.1f} samples/s"
            self.log(f"step {step}/{total}  {numbers}  {_duration(remaining)} left")

    def flush(self) -> None:
        """Bring metrics.jsonl to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the bar and close the files."""
        if self._bar is not None:
            self._bar.stop()
        for open_file in (self._file, self._board):
            if open_file is not None:
                open_file.close()
        self._file = self._board = self._bar = None

    def _open_bar(self, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        text = "loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} samples/s  {task.fields[remaining]} left"
        columns = BarColumn(), MofNCompleteColumn(), TextColumn(text)
        # Refreshed by hand, when there is something new.
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self._task = self._bar.add_task("", total=total, completed=step, loss=float("nan"), rate=0.0, remaining="?")
        self._bar.start()


def keep_metrics(path: Path, step: int) -> None:
    """Drop the records of a metrics.jsonl that come after ``step``, and a last line that was cut off."""
    if not path.is_file():
        return
    with path.open() as file:
        kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text(path, "".join(kept))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
