"""TrainConfig: everything about a run that is not the method and not the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from geo3d.config import coerce
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_below_one, check_between, check_positive, check_seed
from geo3d.train.schedule import Schedule, check_warmup

#: Fields that may differ between a checkpoint and the run that continues it: they leave the numbers as they are,
#: or only move the end of the run. Batches are compared as the samples of a step.
RESUMABLE_CHANGES = frozenset(
    {"epochs", "steps", "minutes", "batch_size", "accumulate", "workers", "strict", "max_bad_steps", "compile"}
    | {"accelerator", "devices", "strategy", "num_nodes", "usual_warmup"}
    | {"save_every_minutes", "save_every_steps", "keep_last", "keep_best", "log_every", "picture_every"}
)
#: Of a run that is too short for a warm-up that was not chosen, one part in so many is warm-up.
SHORTENED = 10
_WHERE = "train."


@dataclass
class TrainConfig:
    """How long, how fast and on what to train."""

    epochs: float = 100
    """Passes over the training items."""

    steps: int | None = None
    """Optimizer steps to train for; replaces `epochs` when given."""

    minutes: float | None = None
    """Stop after this many minutes of wall-clock time in this call, saved and ready to continue; None: no limit."""

    batch_size: int = 64
    """Samples per process (GPU) and forward pass. A step's effective batch is batch_size x accumulate x processes."""

    accumulate: int = 1
    """Forward passes whose gradients are averaged into one optimizer step."""

    workers: int = 2
    """Loader processes per training process; 0 draws samples in the training process itself. Never changes the data."""

    optimizer: Literal["adamw", "lamb"] = "adamw"
    """AdamW, or LAMB (layer-wise trust ratios, for very large batches)."""

    base_lr: float = 1.5e-4
    """Peak learning rate for an effective batch of 256; the rate used is base_lr x effective batch / 256."""

    lr: float | None = None
    """Peak learning rate as it is, whatever the batch; replaces `base_lr` when given."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment. one_cycle moves the first between 0.95 and 0.85 by itself."""

    weight_decay: float = 0.05
    """Decoupled weight decay; biases, parameters of one dimension and those the method names are left out."""

    weight_decay_end: float | None = None
    """Weight decay at the end of the schedule, reached along half a cosine; None: as at the start."""

    warmup_epochs: float = 5
    """Epochs in which the rate rises from 0 to its peak, step by step. A default or preset that is longer than the run
    is shortened to a tenth of it."""

    warmup_steps: int | None = None
    """Optimizer steps of warm-up; replaces `warmup_epochs` when given."""

    usual_warmup: Annotated[tuple[float, int | None] | None, tyro.conf.Suppress] = (5, None)
    """`warmup_epochs` and `warmup_steps` of the defaults or the preset that the config began as: as long as they are
    these, a run that is too short for them shortens them. None: they were chosen."""

    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    """Course of the learning rate: warm-up and half a cosine, one cycle as torch's OneCycleLR, or warm-up and flat."""

    schedule_epochs: float | None = None
    """Epochs over which the schedule runs, where training is to stop before its end; None: as long as the training."""

    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""

    clip_norm: float | None = None
    """Largest global norm of the gradient, longer ones are scaled down to it; None: no clipping."""

    precision: Literal["32", "bf16", "fp16"] = "32"
    """Arithmetic of the forward pass: float32, or mixed precision. Weights and optimizer state stay float32."""

    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the weights, saved beside them; None: none is kept."""

    compile: bool = False
    """Compile the forward pass with torch.compile: slower to start, faster to run."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device; auto takes a GPU where there is one."""

    devices: str = "auto"
    """How many devices on each machine ("2"), which ones ("0,3"), or auto: all GPUs, or one CPU process."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work: ddp copies the network to each, fsdp shards it. auto: ddp if several."""

    num_nodes: int = 1
    """Machines that train together; the program is started once on each, or on all by torchrun or Slurm."""

    seed: int = 0
    """Whence order, augmentation, masks and dropout are drawn, sample by sample: equal seeds give equal runs."""

    deterministic: bool = False
    """Ask torch for deterministic kernels on GPUs as well, or an error where there is none. CPU runs always are."""

    strict: Annotated[bool, tyro.conf.Suppress] = False
    """Stop at the first sample that cannot be read, instead of replacing it and naming it in quarantine.txt. Runs set
    it from their own `strict`, hence it is no option of its own."""

    save_every_minutes: float | None = 30
    """Wall-clock minutes between checkpoints; None: only by steps and at the end."""

    save_every_steps: int | None = None
    """Optimizer steps between checkpoints; None: only by minutes and at the end."""

    keep_last: int = 2
    """Newest checkpoints that are kept."""

    keep_best: bool = True
    """Also keep the best checkpoint: by what is measured while training, or else of lowest smoothed training loss."""

    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""

    picture_every: int | None = None
    """Optimizer steps between pictures; None: one at the start and one at the end."""

    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient may be infinite or not a number: they are skipped, one more ends it."""

    def check(self) -> None:
        """Raise :class:`InputError` naming the first field whose value makes no sense."""
        coerce(self, _WHERE)
        names = "batch_size", "accumulate", "keep_last", "log_every", "num_nodes"
        check_at_least(self, 1, *names, "steps", "save_every_steps", "picture_every", where=_WHERE)
        names = "weight_decay", "weight_decay_end", "warmup_epochs", "warmup_steps", "min_lr"
        check_at_least(self, 0, *names, "workers", "max_bad_steps", where=_WHERE)
        names = "minutes", "lr", "clip_norm", "schedule_epochs", "save_every_minutes"
        check_positive(self, *names, "epochs", "base_lr", where=_WHERE)
        check_seed(self, _WHERE)
        check_below_one(self, "betas", where=_WHERE)
        check_between(self, 0, 1, "ema_decay", where=_WHERE)
        if self.weight_decay_end is not None and not self.weight_decay:
            told = f"train.weight_decay_end is {self.weight_decay_end}, but train.weight_decay is 0"
            raise InputError(f"{told}; give it above 0")
        if self.schedule != "constant" and not self.has_usual_warmup:
            self._check_warmup()

    @property
    def has_usual_warmup(self) -> bool:
        """Whether the warm-up is the default or a preset's, which is made to fit the run."""
        return (self.warmup_epochs, self.warmup_steps) == self.usual_warmup

    def _check_warmup(self) -> None:
        """Tell what can be told of a warm-up of one's own before the data are there; the rest is the schedule's."""
        in_steps = self.steps is not None and self.schedule_epochs is None
        if in_steps:  # an epoch takes a step at least
            warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_epochs)
            check_warmup(warmup, self.steps, "steps")
        elif self.warmup_steps is None and self.warmup_epochs >= 1:  # shorter ones may round to no step at all
            check_warmup(self.warmup_epochs, self.schedule_epochs or self.epochs, "epochs")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def make_schedule(self, steps_per_epoch: int, effective_batch: int) -> Schedule:
        """The course of learning rate and weight decay.

        A warm-up that was not chosen is shortened to a tenth of a schedule that is too short for it.

        Args:
            steps_per_epoch: optimizer steps.
            effective_batch: samples a step.

        Raises:
            InputError: a warm-up of one's own is longer than the schedule.
        """
        epochs = self.schedule_epochs
        steps = self.total_steps(steps_per_epoch) if epochs is None else round(epochs * steps_per_epoch)
        warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_epochs * steps_per_epoch)
        if self.has_usual_warmup and self.schedule != "constant" and warmup >= steps:
            warmup = steps // SHORTENED
        decay = None if self.weight_decay_end is None else (self.weight_decay, self.weight_decay_end)
        return Schedule(self.schedule, self.peak_lr(effective_batch), steps, warmup, self.min_lr, decay)

    def peak_lr(self, effective_batch: int) -> float:
        """Highest learning rate of the run, for a step of ``effective_batch`` samples."""
        return self.lr if self.lr is not None else self.base_lr * effective_batch / 256
