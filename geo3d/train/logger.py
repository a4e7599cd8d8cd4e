"""Logger: metrics.jsonl, TensorBoard, and what a person sees while a run goes on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from geo3d.errors import InputError, MissingExtra, require_extra
from geo3d.viz.curve import metrics_lines
from geo3d.writing import write_text, writing

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
        self._failure: InputError | None = None
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
        with writing(self.metrics):
            self._file = self.metrics.open("a")
        try:
            require_extra("tensorboard", "tensorboard", "the TensorBoard log")
            self._board = EventFile(self._folder / "tensorboard", step + 1)
        except MissingExtra:
            self.log(
                "TensorBoard is not installed (pip install 'geo3d[tensorboard]'); metrics go to metrics.jsonl alone"
            )
        if sys.stderr.isatty():
            self._open_bar(step, total)

    def record(self, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl and the same numbers to TensorBoard.

        Where that fails nothing more is written, and :meth:`flush` raises why: only this process knows of it.
        """
        if not self._enabled or self.failed:
            return
        try:
            with writing(self.metrics):
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()
            if self._board is not None:
                numbers = {k: v for k, v in values.items() if v is not None and k not in ("step", "time")}
                self._board.add(numbers, values["step"])
        except InputError as error:
            self._failure = error

    @property
    def failed(self) -> bool:
        """Whether something could not be written."""
        return self._failure is not None

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
        """Bring metrics.jsonl to the disk.

        Raises:
            InputError: something could not be written since it was opened; says which file and why.
        """
        if self._failure is not None:
            raise self._failure
        if self._file is not None:
            with writing(self.metrics):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the bar and close the files."""
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what could not be written, which flush has told
                self._file.close()
        if self._board is not None:
            self._board.close()
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


class EventFile:
    """A log of scalars as TensorBoard reads them, written at once: by no thread, and with errors where they happen.

    Args:
        folder: of the log.
        first_step: what the log holds of this step and later ones, from before, is not shown.

    Raises:
        InputError: the log cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            now = time.time_ns()
            self._file = (folder / f"events.out.tfevents.{now // 10**9}.{os.getpid()}.{now % 10**9}").open("wb")
            self._records = RecordWriter(self._file)
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Write named numbers of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with writing(self._folder):
            self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file; of what could not be written :meth:`add` has told."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()


def keep_metrics(path: Path, step: int) -> None:
    """Drop the records of a metrics.jsonl that come after ``step``, and a last line that was cut off.

    Raises:
        InputError: a line is damaged, or the file cannot be written.
    """
    if path.is_file():
        write_text(path, "".join(line for line, record in metrics_lines(path) if record["step"] <= step))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
