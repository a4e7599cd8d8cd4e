"""The loop: what it writes, what it leaves alone, and how it takes what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toy import DrawingToyMethod, ToyMethod, ToySamples, numbers, train_toy

from geo3d.errors import InputError, MissingExtra
from geo3d.train import TrainConfig, Trainer, TrainingDiverged
from geo3d.train import logger as logger_module
from geo3d.train.checkpoint import load_checkpoint
from geo3d.train.order import epoch_order
from geo3d.viz.curve import draw_loss_curve


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch, request) -> None:
    """Spare each run TensorBoard's start, except where it is what is tested."""
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(logger_module, "require_extra", _missing)


def _missing(module: str, extra: str, purpose: str) -> None:
    raise MissingExtra(f"{purpose} needs {module}: pip install 'geo3d[{extra}]'")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return load_file(newest / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit the same numbers and weights."""
    assert numbers(one) == numbers(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_learns_and_leaves_everything_behind(tmp_path: Path, capsys) -> None:
    result = train_toy(tmp_path, DrawingToyMethod, steps=60, picture_every=25, save_every_steps=20, log_every=5)
    assert (result.steps, result.epochs, result.stopped_by, result.resumed_from) == (60, 10, "finished", 0)
    assert result.final_loss < 0.75 * result.first_loss
    assert result.best_loss <= result.final_loss
    assert (result.bad_steps, result.broken_samples) == (0, 0)
    assert result.samples_per_second > 0
    assert 0 < result.data_wait < 1
    assert result.checkpoint == tmp_path / "checkpoints" / "step_00000060"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "loss.png", "metrics.jsonl", "pictures"}
    pictures = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "pictures").iterdir()}
    assert set(pictures) == {f"step_{step:08d}.png" for step in (0, 25, 50, 60)}
    assert pictures["step_00000000.png"].shape == (2, 8, 3)
    truth = [picture[0] for picture in pictures.values()]
    assert all(np.array_equal(truth[0], row) for row in truth)  # the same batch each time
    assert not np.array_equal(pictures["step_00000000.png"][1], pictures["step_00000060.png"][1])
    with Image.open(tmp_path / "loss.png") as curve:
        assert curve.size == (800, 500)
        assert len(np.unique(np.asarray(curve.convert("L")))) > 20
    said = capsys.readouterr().err
    assert "TensorBoard is not installed" in said
    assert "step 60/60" in said
    assert "% of the time waiting for data" in said


def test_metrics_hold_every_number(tmp_path: Path) -> None:
    train_toy(tmp_path, lr=None, base_lr=0.64, clip_norm=0.01)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["epoch"] for record in records] == pytest.approx([step / 6 for step in range(1, 13)])
    for record in records:
        assert record["loss"] == pytest.approx(record["loss/masked"] + record["loss/all"], rel=1e-6)
        assert record["metric/largest"] > 0
        assert record["grad_norm"] > 0.01  # as it was before clipping
        assert record["samples_per_second"] > 0
        assert record["wait_seconds"] > 0
        assert record["bad_steps"] == 0
    peak = 0.64 * 8 / 256
    expected = [peak * s / 3 if s < 3 else peak * (1 + math.cos(math.pi * (s - 3) / 9)) / 2 for s in range(12)]
    assert [record["lr"] for record in records] == pytest.approx(expected)
    assert records[0]["loss_smooth"] == pytest.approx(records[0]["loss"])
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_toy(tmp_path)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in board.Scalars("loss")}
    assert losses == pytest.approx({record["step"]: record["loss"] for record in numbers(tmp_path)}, rel=1e-6)


def test_a_method_without_pictures_is_spared_the_passes_to_draw(tmp_path: Path, monkeypatch) -> None:
    passes, forward = [], ToyMethod.forward

    def counted(self: ToyMethod, batch: dict, generator: torch.Generator | None = None):
        passes.append(self.training)
        return forward(self, batch, generator)

    monkeypatch.setattr(ToyMethod, "forward", counted)
    train_toy(tmp_path / "plain", picture_every=1)
    assert passes == [True] * 12
    assert not (tmp_path / "plain" / "pictures").exists()
    train_toy(tmp_path / "drawn", DrawingToyMethod, picture_every=1)
    assert (passes.count(True), passes.count(False)) == (24, 13)


def test_pictures_and_saves_disturb_nothing(tmp_path: Path) -> None:
    train_toy(tmp_path / "plain")
    train_toy(tmp_path / "drawn", DrawingToyMethod, picture_every=1, save_every_steps=5)
    assert len(list((tmp_path / "drawn" / "pictures").iterdir())) == 13
    assert_same(tmp_path / "plain", tmp_path / "drawn")


def test_workers_change_nothing(tmp_path: Path) -> None:
    train_toy(tmp_path / "none", workers=0)
    train_toy(tmp_path / "two", workers=2)
    assert_same(tmp_path / "none", tmp_path / "two")


def test_seed_changes_everything(tmp_path: Path) -> None:
    for seed in (1, 2):
        train_toy(tmp_path / str(seed), seed=seed)
    assert all(a["loss"] != b["loss"] for a, b in zip(numbers(tmp_path / "1"), numbers(tmp_path / "2")))


def test_accumulated_passes_make_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    class Even(ToySamples):
        """Every mask has two entries, so that a mean of means is the mean."""

    train_toy(tmp_path / "one", samples=Even(), toy={"noisy": False}, batch_size=8)
    train_toy(tmp_path / "four", samples=Even(), toy={"noisy": False}, batch_size=2, accumulate=4)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in first:  # float32 sums in another order, a dozen steps long
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


def test_global_generators_and_handlers_are_put_back(tmp_path: Path) -> None:
    method, samples = ToyMethod(), ToySamples()
    config = TrainConfig(steps=2, batch_size=8, workers=0, warmup_steps=0, accelerator="cpu", deterministic=True)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    Trainer(method, samples, config, tmp_path).fit()
    assert torch.equal(torch.rand(2), expected)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not torch.are_deterministic_algorithms_enabled()


def test_few_samples_are_repeated_and_said_so(tmp_path: Path, capsys) -> None:
    result = train_toy(tmp_path, samples=ToySamples(5))
    assert (result.steps, result.epochs) == (12, 12)
    assert "5 samples are fewer than the 8 of a step, which repeats them" in capsys.readouterr().err


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="toy: there are no samples"):
        train_toy(tmp_path, samples=ToySamples(0))


def test_time_limit_saves_and_stops(tmp_path: Path) -> None:
    result = train_toy(tmp_path, steps=100_000, minutes=0.3 / 60)
    assert result.stopped_by == "time"
    assert 0 < result.steps < 100_000
    assert result.checkpoint.name == f"step_{result.steps:08d}"


def test_one_cycle_moves_the_first_moment_too(tmp_path: Path) -> None:
    rates = []

    class Watched(ToyMethod):
        def forward(self, batch, generator=None):
            rates.append([group["betas"] for group in trainer._engine.optimizer.param_groups])
            return super().forward(batch, generator)

    config = TrainConfig(
        steps=10, batch_size=8, workers=0, warmup_steps=3, lr=0.02, schedule="one_cycle", accelerator="cpu"
    )
    trainer = Trainer(Watched(), ToySamples(), config, tmp_path)
    trainer.fit()
    assert rates[0] == [(0.95, 0.95)] * 2
    assert rates[2] == [(pytest.approx(0.85), 0.95)] * 2


def test_schedule_may_run_beyond_the_training(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=None, epochs=2, schedule_epochs=4, warmup_steps=0)
    expected = [0.02 * (1 + math.cos(math.pi * step / 24)) / 2 for step in range(12)]
    assert [record["lr"] for record in numbers(tmp_path)] == pytest.approx(expected)


def test_moving_average_is_saved_beside_the_weights(tmp_path: Path) -> None:
    result = train_toy(tmp_path, ema_decay=0.5)
    _, model, ema = load_checkpoint(result.checkpoint)
    assert model.keys() == ema.keys()
    assert not torch.equal(model["blocks.1.weight"], ema["blocks.1.weight"])
    torch.testing.assert_close(model["blocks.1.weight"], ema["blocks.1.weight"], atol=0.05, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_near_float32(tmp_path: Path, precision: str) -> None:
    class Watched(ToyMethod):
        def forward(self, batch, generator=None):
            assert batch["x"].dtype == torch.float32  # positions and targets keep their digits
            output = super().forward(batch, generator)
            assert torch.is_autocast_enabled("cpu")
            return output

    full = train_toy(tmp_path / "32", steps=60)
    mixed = train_toy(tmp_path / precision, Watched, steps=60, precision=precision)
    # two or three digits are left in each activation, and fp16 loses its first steps to the loss scale
    assert mixed.final_loss == pytest.approx(full.final_loss, rel=0.15)
    kinds = {tensor.dtype for name, tensor in weights(tmp_path / precision).items() if "num_batches" not in name}
    assert kinds == {torch.float32}


def test_fp16_overflow_lowers_the_scale_and_is_no_bad_step(tmp_path: Path) -> None:
    class Steep(ToyMethod):
        def forward(self, batch, generator=None):
            output = super().forward(batch, generator)
            output.losses = {name: 1000 * loss for name, loss in output.losses.items()}
            return output

    result = train_toy(tmp_path, Steep, steps=20, precision="fp16", max_bad_steps=0)
    state, _, _ = load_checkpoint(result.checkpoint)
    assert state["counters"]["overflows"] > 0
    assert result.bad_steps == 0
    assert state["scaler"]["scale"] == 65536 / 2 ** state["counters"]["overflows"]
    assert state["optimizer"]["token"]["step"] == 20 - state["counters"]["overflows"]


def infinite_samples(count: int) -> tuple[int, ...]:
    """The first ``count`` samples of the third step."""
    return tuple(int(index) for index in epoch_order(5, 0, 52, 48)[16 : 16 + count])


def test_bad_step_is_skipped_and_counted(tmp_path: Path, capsys) -> None:
    class Watched(ToyMethod):
        """Notes a copy of weights and buffers before each step."""

        before: list = []  # noqa: RUF012

        def forward(self, batch, generator=None):
            if self.training:
                self.before.append({name: value.clone() for name, value in self.state_dict().items()})
            return super().forward(batch, generator)

    result = train_toy(tmp_path, Watched, ToySamples(infinite=infinite_samples(1)), steps=6, ema_decay=0.9)
    assert result.bad_steps == 1
    assert math.isfinite(result.final_loss)
    records = numbers(tmp_path)
    assert [record["loss"] is None for record in records] == [False, False, True, False, False, False]
    assert [record["bad_steps"] for record in records] == [0, 0, 1, 1, 1, 1]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    before, after = Watched.before[2], Watched.before[3]
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch statistics among them
    state, model, ema = load_checkpoint(result.checkpoint)
    assert state["optimizer"]["token"]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in [*model.values(), *ema.values()])
    assert "step 3: the loss is not finite; skipped (1 in a row)" in capsys.readouterr().err


def test_infinite_gradient_is_a_bad_step_too(tmp_path: Path) -> None:
    class Cliff(ToyMethod):
        def forward(self, batch, generator=None):
            output = super().forward(batch, generator)
            if self.passes == 3:  # finite, with an infinite slope
                output.losses["cliff"] = self.token.sum().mul(0).abs().sqrt()
            else:
                output.losses["cliff"] = self.token.sum() * 0
            return output

    result = train_toy(tmp_path, Cliff, steps=6)
    assert result.bad_steps == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_too_many_bad_steps_in_a_row_name_the_samples(tmp_path: Path) -> None:
    samples = ToySamples(infinite=tuple(int(index) for index in epoch_order(5, 0, 52, 48)[16:48:8]))
    with pytest.raises(TrainingDiverged) as caught:
        train_toy(tmp_path, samples=samples, max_bad_steps=2, save_every_steps=2)
    message = str(caught.value)
    assert "the loss has not been finite for 3 steps in a row" in message
    assert "at step 5" in message
    named = [f"toy-{index:03d}" for index in epoch_order(5, 0, 52, 48)[32:40]]
    assert all(name in message for name in named)
    assert "\n" not in message
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == ["step_00000002", "step_00000004"]
    for name in saved:
        _, model, _ = load_checkpoint(tmp_path / "checkpoints" / name)
        assert all(tensor.isfinite().all() for tensor in model.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_and_named_once(tmp_path: Path, workers: int, capsys) -> None:
    broken = tuple(int(index) for index in epoch_order(5, 0, 52, 48)[10:12])
    result = train_toy(tmp_path, samples=ToySamples(broken=broken), workers=workers)
    assert result.broken_samples >= 2
    lines = (tmp_path / "quarantine.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"{i}\ttoy-{i:03d}\ttoy-{i:03d}: cut off at byte 7" for i in broken)
    assert f"sample toy-{broken[0]:03d} cannot be read and is replaced: " in capsys.readouterr().err
    if workers:
        train_toy(tmp_path / "alone", samples=ToySamples(broken=broken), workers=0)
        assert_same(tmp_path, tmp_path / "alone")


def test_strict_stops_at_a_broken_sample(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^toy-\d+: cut off at byte 7$"):
        train_toy(tmp_path, samples=ToySamples(broken=tuple(range(10))), strict=True, workers=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "train.batch_size must be at least 1, got 0"),
        ({"steps": 0}, "train.steps must be at least 1, got 0"),
        ({"seed": -1}, "train.seed must be at least 0 and below 2.63, got -1"),
        ({"clip_norm": 0.0}, "train.clip_norm must be positive and finite, got 0.0"),
        ({"epochs": math.nan}, "train.epochs must be positive and finite, got nan"),
        ({"betas": (0.9, 1.0)}, r"train.betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"ema_decay": 1.0}, "train.ema_decay must lie between 0 and 1, got 1.0"),
        ({"warmup_steps": 12}, "the warm-up takes 12 steps of a schedule of 12"),
        ({"accelerator": "cuda"}, "cannot train with accelerator"),
        ({"devices": "zero"}, "cannot train with accelerator"),
        ({"precision": "fp16", "strategy": "fsdp"}, "fp16 does not work with train.strategy fsdp; use bf16"),
    ],
)
def test_senseless_config_is_one_clear_line(tmp_path: Path, changes: dict, message: str) -> None:
    if changes.get("accelerator") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=message) as caught:
        train_toy(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_every_field_of_the_config_is_explained() -> None:
    source = Path(sys.modules["geo3d.train.config"].__file__).read_text()
    body = source.split("class TrainConfig:")[1].split("def check")[0]
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in names:
        after = body.split(f"    {name}: ", 1)[1].split("\n", 2)[1]
        assert after.startswith('    """'), name
    assert len(names) > 30


def test_importing_the_trainer_loads_nothing_that_only_a_run_needs() -> None:
    code = (
        "import sys, geo3d.train; print(*{'lightning_fabric', 'matplotlib', 'tensorboard', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_gpu_learns_as_a_cpu_does_and_resumes(tmp_path: Path, precision: str) -> None:
    cpu = train_toy(tmp_path / "cpu", toy={"noisy": False}, steps=60)
    config = {"accelerator": "cuda", "devices": "1", "precision": precision, "workers": 1, "ema_decay": 0.9}
    first = train_toy(tmp_path / "gpu", toy={"noisy": False, "signal_at": (25, signal.SIGTERM)}, steps=60, **config)
    gpu = train_toy(tmp_path / "gpu", toy={"noisy": False}, steps=60, **config)
    assert (first.steps, gpu.resumed_from, gpu.steps) == (25, 25, 60)
    assert gpu.final_loss == pytest.approx(cpu.final_loss, rel=0.15)  # as in mixed precision on CPUs


@pytest.mark.slow
def test_compiled_run_learns_the_same_with_plain_names(tmp_path: Path) -> None:
    plain = train_toy(tmp_path / "plain", toy={"noisy": False}, steps=30)
    compiled = train_toy(tmp_path / "compiled", toy={"noisy": False}, steps=30, compile=True)
    assert compiled.final_loss == pytest.approx(plain.final_loss, rel=1e-3)  # fused kernels round differently
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_the_curve_shows_what_was_measured(tmp_path: Path) -> None:
    train_toy(tmp_path, measure_every=4)
    assert Image.open(tmp_path / "loss.png").size == (800, 500)
    with_figure = (tmp_path / "loss.png").read_bytes()
    draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "without.png", "toy")
    assert (tmp_path / "without.png").read_bytes() != with_figure
    draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "again.png", "toy", "measured/loss")
    assert (tmp_path / "again.png").read_bytes() == with_figure
