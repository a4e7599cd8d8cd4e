"""Trainer: the loop that serves every pre-training method."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from geo3d.checkpoints.loading import MODEL_CARD_KEY
from geo3d.config import typed_value
from geo3d.errors import InputError
from geo3d.methods.method import DrawsPictures, Method, MethodOutput, SampleSet
from geo3d.train.checkpoint import CheckpointStore, load_checkpoint, loss_of, taking_up
from geo3d.train.config import TrainConfig
from geo3d.train.engine import Engine
from geo3d.train.identity import check_same_run, run_identity
from geo3d.train.launch import first_process, gather, has_fast_bfloat16, launch
from geo3d.train.loader import Batch, BrokenSample, DrawnBatches, load_batches
from geo3d.train.logger import Logger
from geo3d.train.measuring import MEASURED, Measuring, undisturbed
from geo3d.train.meter import Meter, Timer
from geo3d.train.order import BatchKey, StepPlan, step_seed
from geo3d.train.quarantine import SampleQuarantine
from geo3d.train.result import RunResult, RunState, StoppedBy
from geo3d.train.signals import StopSignals
from geo3d.viz.curve import draw_loss_curve
from geo3d.viz.sheet import write_picture
from geo3d.writing import writing

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: Samples named at most when training has diverged.
NAMES_IN_AN_ERROR = 64


class TrainingDiverged(InputError):
    """Loss or gradient stayed infinite or not a number for longer than the config allows."""


class Agreed(NamedTuple):
    """What any of the processes wants all to do after a step."""

    signal: bool
    late: bool
    save: bool
    broken: bool


class Trainer:
    """Trains a method on its samples, writes checkpoints, metrics and pictures, and takes up an interrupted run.

    A run lives in a folder. Where that holds checkpoints, training goes on from the newest whole one, and then yields
    bit for bit what it would have without the interruption (on CPUs in float32, with as many threads and processes).

    Args:
        method: network and loss, newly built; seed torch before building it to have equal runs.
        samples: what it trains on.
        config: how.
        run_dir: the run's folder; made if need be.
        run_config: plain values that describe the whole run, stored in the checkpoints; its entry ``method``, where
            there is one, must be the same when a run is continued.
        fabric: processes that :func:`launch` has started; started by :meth:`fit` when not given.
        measuring: what is measured while training, by which the best checkpoint is told; None: the smoothed loss alone.

    Raises:
        InputError: the config makes no sense, or there are no samples.
    """

    def __init__(
        self,
        method: Method,
        samples: SampleSet,
        config: TrainConfig,
        run_dir: str | Path,
        run_config: dict[str, Any] | None = None,
        fabric: Fabric | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        config.check()
        if len(samples) == 0:
            raise InputError(f"{method.name}: there are no samples to train on")
        self.method, self.samples, self.config = method, samples, dataclasses.replace(config)
        self.run_dir = Path(run_dir)
        self._given_fabric, self._measuring = fabric, measuring
        self.run_config = json.loads(json.dumps(run_config or {}, default=str))

    def fit(self) -> RunResult:
        """Train to the end of the run, a signal or the time limit, and save.

        Under a launcher every process returns the result.

        Raises:
            InputError: the devices are not there; or the run folder holds another run, or damaged checkpoints alone.
            TrainingDiverged: too many bad steps in a row; the checkpoints hold the weights from before.
        """
        with StopSignals() as self._signals, _torch_settings(self.config.deterministic):
            self._prepare()
            try:
                with self._load() as batches:
                    self._log.open(self._state.step, self._total)
                    stopped_by = self._run(batches)
                return self._finish(stopped_by)
            finally:
                self._log.close()

    def _prepare(self) -> None:
        config = self.config
        self._fabric = self._given_fabric or launch(config)
        self._main = self._fabric.global_rank == 0
        self.run_dir = self._fabric.broadcast(self.run_dir)
        self._log = Logger(self.run_dir, self._main)
        self._plan = StepPlan(len(self.samples), config.batch_size, config.accumulate, self._fabric.world_size)
        self._total = config.total_steps(self._plan.steps_per_epoch)
        self._identity = run_identity(config, self._plan, self.run_config)
        self._schedule = config.make_schedule(self._plan.steps_per_epoch, self._plan.effective_batch)
        self._batches = DrawnBatches(self.samples, self.method.collate, self._plan, config.seed, config.strict)
        self._store = CheckpointStore(self.run_dir / "checkpoints", config.keep_last, config.keep_best)
        self._engine = Engine(self._fabric, self.method, config)
        self._state = RunState()
        self._saved: Path | None = None
        self._saved_step = 0
        self._measured: dict[str, float] | None = None
        self._resume()
        self._resumed_from = self._state.step
        self._greet()

    def _greet(self) -> None:
        plan, fabric = self._plan, self._fabric
        weights = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        self._log.log(
            f"{self.method.name}: {weights / 1e6:.1f} M weights; {plan.size} samples, {plan.effective_batch} a step, "
            f"{plan.steps_per_epoch} steps an epoch, {self._total} steps; learning rate {self._schedule.peak:.2e}; "
            f"{fabric.world_size} x {fabric.device.type}, precision {self.config.precision}"
        )
        if plan.size < plan.effective_batch:
            self._log.log(
                f"{plan.size} samples are fewer than the {plan.effective_batch} of a step, which repeats them"
            )
        config, schedule = self.config, self._schedule
        usual = config.warmup_steps if config.warmup_steps is not None else config.warmup_epochs * plan.steps_per_epoch
        if schedule.warmup < round(usual):
            self._log.log(f"the warm-up is shortened from {usual:g} to {schedule.warmup} of {schedule.steps} steps")
        if self.config.precision == "bf16" and fabric.device.type == "cpu" and not has_fast_bfloat16():
            self._log.log("this CPU has no matrix units for bfloat16 (AMX): train.precision 32 may be faster")

    # The loop

    def _load(self) -> AbstractContextManager[Iterator[Batch]]:
        workers = self.config.workers if self._state.step < self._total else 0
        pinned = self._fabric.device.type == "cuda"
        rank = self._fabric.global_rank
        return load_batches(self._batches, self._state.step, self._total, rank, workers, pinned)

    def _run(self, batches: Iterator[Batch]) -> StoppedBy:
        state, config = self._state, self.config
        self._limit, self._save_timer = Timer(config.minutes), Timer(config.save_every_minutes)
        if state.step == 0:
            self._draw_picture()
        self._meter = Meter(self._plan.effective_batch)
        if self._measure():  # what a signal did not leave the time for
            self._save()
        while state.step < self._total:
            agreed = self._train_step(batches)
            if agreed.signal and state.step < self._total:  # to be saved before anything that takes its time
                return "signal"
            if config.picture_every and state.step % config.picture_every == 0 and state.step < self._total:
                self._draw_picture()
            best = self._measure()
            if state.step < self._total and agreed.late:
                return "time"
            if agreed.save or best or (config.save_every_steps and state.step % config.save_every_steps == 0):
                self._save()
                self._save_timer.restart()
        return "finished"

    def _train_step(self, batches: Iterator[Batch]) -> Agreed:
        """One optimizer step; returns what all processes agree on."""
        state, config = self._state, self.config
        lr = self._schedule.lr(state.step)
        self._engine.set_rates(lr, self._schedule.beta1(state.step), self._schedule.decay(state.step))
        self._engine.remember_buffers()
        passes, taken = [], []
        for number in range(1, config.accumulate + 1):
            taken.append(self._next(batches))
            generator = self._seed_pass(taken[-1].key)
            passes.append(self._engine.forward_backward(taken[-1].data, generator, number == config.accumulate))
        values, agreed = self._share(passes, taken)
        norm, outcome = self._engine.update(values["loss"])
        state.count_step(outcome, values["loss"])
        self._meter.count_step()
        if agreed.broken:
            self._set_aside([broken for batch in taken for broken in batch.broken])
        if outcome == "bad":
            self._complain(values["loss"], passes, taken)
        if outcome == "bad" or state.step % config.log_every == 0 or state.step == self._total:
            self._log.record(self._record(values, lr, norm))
        rate = self._meter.overall_rate
        remaining = (self._total - state.step) * self._plan.effective_batch / rate
        self._log.progress(state.step, self._total, self._epochs, state.smooth_loss, rate, remaining)
        return agreed

    def _measure(self) -> bool:
        """Measure where it is time to; whether the best checkpoint is to be saved. Every process must call it."""
        state, measuring, self._measured = self._state, self._measuring, None
        if measuring is None or state.measured_step == state.step or not measuring.due(state.step, self._total):
            return False
        with undisturbed(self.method):
            self._measured = self._fabric.broadcast(measuring.figures())  # the best is the same for every process
        state.measured_step = state.step
        figure = measuring.figure(self._measured[measuring.best])
        best = figure.at_least_as_good_as(measuring.figure(state.best_measured))
        if best:
            state.best_measured = figure.value
        named = {MEASURED + name: value for name, value in self._measured.items()}
        self._log.record(_finite({"step": state.step, "epoch": self._epochs, **named, "time": time.time()}))
        self._log.log(f"step {state.step}: {figure.name} {figure.value:.4f}{', the best so far' if best else ''}")
        return best and self.config.keep_best

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with self._meter.waiting():
            batch = next(batches)
        if batch.error:
            raise InputError(batch.error)
        return batch

    def _seed_pass(self, key: BatchKey) -> torch.Generator:
        """The generator of a forward pass; torch's global one is seeded alike, for layers such as nn.Dropout."""
        seed = step_seed(self.config.seed, key.step, key.first)
        torch.manual_seed(seed)
        return torch.Generator().manual_seed(seed)

    def _share(self, passes: list[dict[str, Tensor]], taken: list[Batch]) -> tuple[dict[str, float], Agreed]:
        """Means of all scalars over passes and processes, and what holds if it does on any process."""
        fabric = self._fabric
        own = Agreed(
            signal=self._signals.received is not None,
            late=self._main and self._limit.over,
            save=self._main and (self._save_timer.over or self._log.failed),  # which tells all processes
            broken=any(batch.broken for batch in taken),
        )
        means = [torch.stack(values).mean() for values in zip(*(some.values() for some in passes))]
        packed = torch.cat([torch.stack(means), torch.tensor(own, dtype=torch.float32, device=fabric.device)])
        if fabric.world_size > 1:
            packed = fabric.all_reduce(packed, reduce_op="mean")
        numbers = packed.tolist()
        return dict(zip(passes[0], numbers)), Agreed(*(number > 0 for number in numbers[-len(own) :]))

    def _complain(self, loss: float, passes: list[dict[str, Tensor]], taken: list[Batch]) -> None:
        """Report a bad step, and end the run when there were too many in a row; every process must call it."""
        state, limit = self._state, self.config.max_bad_steps
        what = "gradient" if math.isfinite(loss) else "loss"
        self._log.log(f"step {state.step}: the {what} is not finite; skipped ({state.bad_in_row} in a row)")
        if state.bad_in_row <= limit:
            return
        suspects = [b for b, values in zip(taken, passes) if math.isfinite(loss) or not values["loss"].isfinite()]
        names = gather(self._fabric, [self.samples.describe(index) for batch in suspects for index in batch.indices])
        more = f" and {len(names) - NAMES_IN_AN_ERROR} more" if len(names) > NAMES_IN_AN_ERROR else ""
        raise TrainingDiverged(
            f"the {what} has not been finite for {state.bad_in_row} steps in a row, more than train.max_bad_steps "
            f"({limit}), at step {state.step}; lower the learning rate or look at these samples: "
            f"{', '.join(names[:NAMES_IN_AN_ERROR])}{more}"
        )

    def _set_aside(self, broken: list[BrokenSample]) -> None:
        """Count and name the broken samples of all processes; every process must call it."""
        broken = gather(self._fabric, broken)
        self._state.broken += len(broken)
        first_process(self._fabric, lambda: self._quarantine.add(broken))

    def _broken_samples(self) -> str:
        """How often a sample had to be replaced, and how many these were; in the first process."""
        if not self._state.broken or not self._main:
            return "no broken samples"
        return f"{self._state.broken} draws replaced, of {len(self._quarantine)} samples that cannot be read"

    @property
    def _epochs(self) -> float:
        return self._state.step / self._plan.steps_per_epoch

    def _record(self, values: dict[str, float], lr: float, norm: float | None) -> dict[str, Any]:
        state = self._state
        record = {
            "step": state.step,
            "epoch": self._epochs,
            **values,
            "loss_smooth": state.smooth_loss,
            "lr": lr,
            "grad_norm": norm,
            "bad_steps": state.bad_steps,
            "broken_samples": state.broken,
            **self._meter.since_last_record(),
            "seconds": state.seconds + self._meter.seconds,
            "time": time.time(),
        }
        return _finite(record)

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint and the loss curve; every process must call it."""
        state = self._engine.state()
        self._saved = first_process(self._fabric, lambda: self._write(state))
        self._saved_step = self._state.step

    def _write(self, state: dict[str, Any]) -> Path:
        """In the first process: write what :meth:`Engine.state` gave, and the loss curve."""
        counters = dataclasses.replace(self._state, seconds=self._state.seconds + self._meter.seconds)
        self._log.flush()
        weights, ema = state.pop("model"), state.pop("ema")
        state |= {"counters": counters.as_dict(), "steps": self._total, "identity": self._identity}
        head = {"format": "pt", "method": self.method.name, "step": str(counters.step)}
        head["run_config"] = json.dumps(self.run_config)
        head[MODEL_CARD_KEY] = json.dumps(self.method.model_card())
        figure = self._measuring.figure((self._measured or {}).get(self._measuring.best)) if self._measuring else None
        saved = self._store.save(counters.step, counters.smooth_loss, state, weights, ema, head, figure)
        draw_loss_curve(self._log.metrics, self.run_dir / "loss.png", self.method.name, figure and figure.name)
        return saved

    def _resume(self) -> None:
        """Take up the newest whole checkpoint of the run folder, if there is any."""
        path = first_process(self._fabric, self._find_checkpoint)
        if path is None:
            return
        state, weights, ema = load_checkpoint(path)
        with taking_up(path):
            check_same_run(self.run_dir, state["identity"], self._identity)
            self._engine.load_state(state | {"model": weights, "ema": ema})
            self._state = typed_value(RunState, state["counters"], "counters")
        first_process(self._fabric, lambda: self._store.mark_again(path))
        self._saved, self._saved_step = path, self._state.step
        self._log.log(f"continuing from {path}: {self._state.step} of {self._total} steps are done")
        if state.get("steps", self._total) != self._total and self.config.schedule_epochs is None:
            self._log.log(f"the schedule now runs over {self._total} steps instead of {state['steps']}")

    def _find_checkpoint(self) -> Path | None:
        with writing(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
        self._store.clean()
        self._quarantine = SampleQuarantine(self.run_dir / "quarantine.txt", self._log.log)
        return self._store.newest_valid(self._log.log)

    # Pictures

    def _draw_picture(self) -> None:
        """What the network makes of the first batch of epoch 0, drawn anew each time; every process must call it."""
        if not isinstance(self.method, DrawsPictures):
            return
        key = BatchKey(0, 0, 0, self.config.batch_size)
        batch = self._batches[key]
        if batch.error:
            raise InputError(batch.error)
        path = self.run_dir / "pictures" / f"step_{self._state.step:08d}.png"

        def write(data: Any, output: MethodOutput) -> None:
            with writing(path):
                path.parent.mkdir(exist_ok=True)
            write_picture(path, self.method.picture(data, output))

        with self._engine.predict(batch.data, self._seed_pass(key)) as predicted:
            first_process(self._fabric, lambda: write(*predicted))

    def _finish(self, stopped_by: StoppedBy) -> RunResult:
        state, meter = self._state, self._meter
        if state.step > self._resumed_from and stopped_by != "signal":
            self._draw_picture()
        if self._saved is None or self._saved_step < state.step:
            self._save()
        first_process(self._fabric, self._log.flush)
        best = self._fabric.broadcast(self._store.best() or self._saved)
        reason = {"signal": f" at {self._signals.received}", "time": " at the time limit", "finished": ""}[stopped_by]
        self._log.log(
            f"stopped{reason} after {state.step} of {self._total} steps: loss {state.smooth_loss:.4f}, "
            f"{meter.overall_rate:.1f} samples/s, {100 * meter.wait_share:.1f} % of the time waiting for data, "
            f"{state.bad_steps} bad steps, {self._broken_samples()}; saved to {self._saved}"
        )
        return RunResult(
            steps=state.step,
            epochs=self._epochs,
            stopped_by=stopped_by,
            checkpoint=self._saved,
            best_checkpoint=best,
            first_loss=state.first_loss if state.first_loss is not None else float("nan"),
            final_loss=state.smooth_loss,
            best_loss=loss_of(best),
            bad_steps=state.bad_steps,
            broken_samples=state.broken,
            resumed_from=self._resumed_from,
            seconds=meter.seconds,
            samples_per_second=meter.overall_rate,
            data_wait=meter.wait_share,
            measured=self._measured,
            best_measured=state.best_measured,
        )


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """A record without numbers that JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


@contextmanager
def _torch_settings(deterministic: bool) -> Iterator[None]:
    """Put torch's global generators back as they were; ask for deterministic kernels meanwhile."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
