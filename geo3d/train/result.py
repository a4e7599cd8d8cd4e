"""RunState, what a run has done so far, and RunResult, what comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

StoppedBy = Literal["finished", "signal", "time"]

#: What became of a step: ``overflow`` is one in which the fp16 loss scale was too high.
Outcome = Literal["updated", "overflow", "bad"]

#: Weight of the past in the smoothed loss.
SMOOTHING = 0.98


@dataclass
class RunState:
    """Counters of a run; all of it goes into checkpoints.

    Args:
        step: optimizer steps done, skipped ones among them.
        first_loss: loss of the first good step.
        bad_in_row: bad steps up to now without a good one between.
        bad_steps: steps skipped since loss or gradient was not finite.
        overflows: steps skipped since the fp16 loss scale was too high.
        broken: samples that could not be read and were replaced.
        seconds: wall-clock time in training, over all calls.
        best_measured: best measured figure.
        measured_step: step after which was last measured.
    """

    step: int = 0
    first_loss: float | None = None
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    bad_in_row: int = 0
    bad_steps: int = 0
    overflows: int = 0
    broken: int = 0
    seconds: float = 0.0
    best_measured: float | None = None
    measured_step: int = 0

    def count_step(self, outcome: Outcome, loss: float) -> None:
        """Count a step and take its loss into the smoothed loss, unless it is bad."""
        self.step += 1
        if outcome == "bad":
            self.bad_steps += 1
            self.bad_in_row += 1
            return
        self.bad_in_row = 0
        self.overflows += outcome == "overflow"
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.loss_sum = SMOOTHING * self.loss_sum + (1 - SMOOTHING) * loss
        self.loss_weight = SMOOTHING * self.loss_weight + (1 - SMOOTHING)

    @property
    def smooth_loss(self) -> float:
        """Mean loss with weights that fade over some fifty steps; nan before the first good step."""
        return self.loss_sum / self.loss_weight if self.loss_weight else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``RunState(**values)`` takes them back."""
        return asdict(self)


@dataclass(frozen=True)
class RunResult:
    """What :meth:`Trainer.fit` returns.

    Args:
        steps: optimizer steps done, over all calls.
        epochs: passes over the data done.
        stopped_by: ``finished``, ``signal`` (SIGTERM or SIGINT) or ``time`` (``TrainConfig.minutes``).
        checkpoint: folder of the last checkpoint; ``model.safetensors`` in it holds the weights.
        best_checkpoint: folder of the one of best measured figure, or of lowest smoothed loss where none is measured.
        first_loss: loss of the first step.
        final_loss: smoothed loss at the end.
        best_loss: smoothed loss of the best checkpoint.
        bad_steps: steps skipped since loss or gradient was not finite.
        broken_samples: samples that could not be read and were replaced; ``quarantine.txt`` names them.
        resumed_from: step at which this call took up the run; 0 for a new one.
        seconds: wall-clock seconds of this call's steps.
        samples_per_second: over this call's steps, all processes together.
        data_wait: share of this call's time spent waiting for data, in [0, 1], its first step (in which the
            workers start) left out.
        measured: figures measured after the last step, where this call took it and measures.
        best_measured: best figure that was measured in the run.
    """

    steps: int
    epochs: float
    stopped_by: StoppedBy
    checkpoint: Path
    best_checkpoint: Path
    first_loss: float
    final_loss: float
    best_loss: float
    bad_steps: int
    broken_samples: int
    resumed_from: int
    seconds: float
    samples_per_second: float
    data_wait: float
    measured: dict[str, float] | None = None
    best_measured: float | None = None
