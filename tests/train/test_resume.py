"""A run that was interrupted, however rudely, yields bit for bit what it would have otherwise."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import toy
from full_disk import content, filled, short_files, small_disk
from safetensors.torch import load_file
from toy import ToyMethod, ToySamples, numbers, train_toy

from geo3d.errors import InputError
from geo3d.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("lean")


def assert_same_run(one: Path, other: Path, steps: int = 12) -> None:
    """The same numbers at each step once, and the same weights, averages, moments and counters at the end."""
    assert [record["step"] for record in numbers(one)] == list(range(1, steps + 1))
    assert numbers(one) == numbers(other)
    states = [load_checkpoint(folder / "checkpoints" / f"step_{steps:08d}") for folder in (one, other)]
    (state, model, ema), (other_state, other_model, other_ema) = states
    assert_equal(model, other_model)
    assert_equal(ema, other_ema)
    assert_equal(state["optimizer"], other_state["optimizer"])
    assert_equal(state["scaler"], other_state["scaler"])
    clock = {"seconds"}
    assert_equal(*({k: v for k, v in s["counters"].items() if k not in clock} for s in (state, other_state)))


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


VARIANTS = {
    "adamw": {},
    "adamw, workers": {"workers": 2},
    "lamb, workers, accumulation, average": {
        "optimizer": "lamb", "workers": 2, "accumulate": 2, "batch_size": 4, "ema_decay": 0.9, "clip_norm": 0.5,
    },
    "adamw, accumulation, average, one cycle": {
        "accumulate": 3, "batch_size": 2, "ema_decay": 0.5, "schedule": "one_cycle",
    },
    "fp16": {"precision": "fp16"},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [2, 7])  # early, and in the middle of the second epoch
def test_stopped_by_a_signal_and_continued(tmp_path: Path, variant: str, stop: int, capsys) -> None:
    config = VARIANTS[variant]
    train_toy(tmp_path / "whole", **config)
    passes = stop * config.get("accumulate", 1)
    first = train_toy(tmp_path / "cut", toy={"signal_at": (passes, signal.SIGTERM)}, **config)
    assert (first.stopped_by, first.steps) == ("signal", stop)
    assert [record["step"] for record in numbers(tmp_path / "cut")] == list(range(1, stop + 1))
    capsys.readouterr()
    second = train_toy(tmp_path / "cut", **config)
    assert (second.stopped_by, second.steps, second.resumed_from) == ("finished", 12, stop)
    assert f"continuing from {first.checkpoint}: {stop} of 12 steps are done" in capsys.readouterr().err
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_stopped_at_every_step_in_turn(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", ema_decay=0.9)
    for step in range(1, 12):
        result = train_toy(tmp_path / "cut", toy={"signal_at": (1, signal.SIGINT)}, ema_decay=0.9)
        assert (result.stopped_by, result.steps) == ("signal", step)
    assert train_toy(tmp_path / "cut", ema_decay=0.9).stopped_by == "finished"
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_bad_steps_and_broken_samples_are_counted_on(tmp_path: Path) -> None:
    samples = ToySamples(infinite=(3, 17), broken=(4, 30))
    whole = train_toy(tmp_path / "whole", samples=samples)
    for passes in (3, 4):
        train_toy(tmp_path / "cut", samples=samples, toy={"signal_at": (passes, signal.SIGTERM)})
    result = train_toy(tmp_path / "cut", samples=samples)
    assert result.bad_steps == whole.bad_steps > 0
    assert result.broken_samples == whole.broken_samples > 2
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    quarantined = [(tmp_path / name / "quarantine.txt").read_text() for name in ("cut", "whole")]
    assert quarantined[0] == quarantined[1]
    assert len(quarantined[0].splitlines()) == 2


def test_signal_in_the_last_step_ends_a_finished_run(tmp_path: Path) -> None:
    assert train_toy(tmp_path, toy={"signal_at": (12, signal.SIGTERM)}).stopped_by == "finished"


def test_a_finished_run_is_left_as_it_is_and_can_be_made_longer(tmp_path: Path, capsys) -> None:
    train_toy(tmp_path / "whole", steps=18, schedule="constant")
    done = train_toy(tmp_path / "cut", schedule="constant")
    before = (done.checkpoint / "manifest.json").stat().st_mtime_ns
    again = train_toy(tmp_path / "cut", schedule="constant", workers=2)
    assert (again.steps, again.resumed_from, again.stopped_by) == (12, 12, "finished")
    assert again.checkpoint == done.checkpoint
    assert (done.checkpoint / "manifest.json").stat().st_mtime_ns == before
    capsys.readouterr()
    longer = train_toy(tmp_path / "cut", steps=18, schedule="constant", keep_last=5, batch_size=4, accumulate=2)
    assert (longer.steps, longer.resumed_from) == (18, 12)
    assert "the schedule now runs over 18 steps instead of 12" in capsys.readouterr().err
    assert numbers(tmp_path / "cut")[:12] == numbers(tmp_path / "whole")[:12]


@pytest.mark.parametrize("hurt", ["model.safetensors", "state.pt"])
def test_truncated_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, hurt: str, capsys) -> None:
    train_toy(tmp_path / "whole")
    stopped = train_toy(tmp_path / "cut", toy={"signal_at": (9, signal.SIGTERM)}, save_every_steps=5)
    file = stopped.checkpoint / hurt
    file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    result = train_toy(tmp_path / "cut", save_every_steps=5)
    assert result.resumed_from == 5
    said = capsys.readouterr().err
    assert re.search(rf"checkpoint step_00000009 is damaged \({hurt} has 100 bytes of \d+\); using step_00000005", said)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    result = train_toy(tmp_path)
    (result.checkpoint / "state.pt").unlink()
    with pytest.raises(InputError, match="none of 1 checkpoints is whole"):
        train_toy(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, r"holds a run with other settings: seed \(5 -> 6\);"),
        ({"batch_size": 4}, r"effective_batch \(8 -> 4\);"),
        ({"optimizer": "lamb", "lr": 0.1}, r"optimizer \(adamw -> lamb\), lr \(0.02 -> 0.1\);"),
        ({"betas": (0.9, 0.999)}, r"betas \(\[0.9, 0.95\] -> \[0.9, 0.999\]\);"),
        ({"ema_decay": 0.9}, r"ema_decay \(None -> 0.9\);"),
        ({"samples": ToySamples(53)}, r"samples \(52 -> 53\);"),
        ({"toy": {"noisy": False}}, "the checkpoint holds another network"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changes: dict, message: str) -> None:
    train_toy(tmp_path, steps=2, warmup_steps=0)
    with pytest.raises(InputError, match=message) as caught:
        train_toy(tmp_path, **({"steps": 4, "warmup_steps": 0} | changes))
    assert "\n" not in str(caught.value)


def test_another_method_config_is_refused_by_name(tmp_path: Path) -> None:
    config = toy.TrainConfig(steps=2, batch_size=8, workers=0, warmup_steps=0, accelerator="cpu")
    before = {"method": {"mask": 0.9, "size": (2, 3)}, "out": Path("runs/x")}
    toy.Trainer(ToyMethod(), ToySamples(), config, tmp_path, before).fit()
    toy.Trainer(ToyMethod(), ToySamples(), config, tmp_path, {**before, "out": "elsewhere"}).fit()
    with pytest.raises(InputError, match=r"method.mask \(0.9 -> 0.5\);"):
        toy.Trainer(ToyMethod(), ToySamples(), config, tmp_path, {"method": {"mask": 0.5, "size": [2, 3]}}).fit()


def test_metrics_of_a_run_without_checkpoint_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')
    train_toy(tmp_path)
    assert [record["step"] for record in numbers(tmp_path)] == list(range(1, 13))
    assert numbers(tmp_path)[0]["loss"] != 9


def start(folder: Path, **options: dict) -> subprocess.Popen:
    """The toy as a program of its own, slowed down so that it can be caught in the middle."""
    command = [sys.executable, toy.__file__, str(folder), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_line(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl has the line of ``step``."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        path = folder / "metrics.jsonl"
        if path.is_file() and path.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    pytest.fail(f"no step {step} within a minute")


def processes_below(pid: int) -> list[int]:
    """Children and theirs: loader workers, and the server that they are forked from."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *processes_below(int(child))]
    return found


def wait_until_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 20
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < limit, f"still there: {left}"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_without_warning(tmp_path: Path, workers: int) -> None:
    samples = {"seconds": 0.02}
    config = {"steps": 40, "workers": workers, "save_every_steps": 4, "ema_decay": 0.9}
    process = start(tmp_path / "cut", train=config, samples=samples)
    wait_for_line(tmp_path / "cut", 10, process)
    orphans = processes_below(process.pid)
    assert len(orphans) >= workers
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    wait_until_gone(orphans)
    result = train_toy(tmp_path / "cut", **config)
    assert 8 <= result.resumed_from < 40
    assert result.resumed_from % 4 == 0
    train_toy(tmp_path / "whole", **config)
    assert_same_run(tmp_path / "cut", tmp_path / "whole", steps=40)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_sigterm_to_the_whole_group_saves_and_exits_0(tmp_path: Path) -> None:
    config = {"steps": 40, "workers": 2}
    process = start(tmp_path / "cut", train=config, samples={"seconds": 0.02})
    wait_for_line(tmp_path / "cut", 5, process)
    workers = processes_below(process.pid)
    assert len(workers) >= 3, "two workers and their server"
    began = time.monotonic()
    for pid in [*workers, process.pid]:
        os.kill(pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert time.monotonic() - began < 15  # a moment, on a machine that does nothing else
    reason, steps = output.split()
    assert reason == "signal"
    assert "Traceback" not in errors
    assert f"stopped at SIGTERM after {steps} of 40 steps" in errors
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step_*"))[-1]
    assert newest.name == f"step_{int(steps):08d}"
    assert load_file(newest / "model.safetensors")
    train_toy(tmp_path / "cut", **config)
    train_toy(tmp_path / "whole", **config)
    assert_same_run(tmp_path / "cut", tmp_path / "whole", steps=40)


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    class Impatient(ToyMethod):
        def forward(self, batch, generator=None):
            if self.passes == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(batch, generator)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would inherit SIG_IGN
    try:
        with pytest.raises(KeyboardInterrupt):
            train_toy(tmp_path, Impatient)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("size", [None, 700, 6000])
@pytest.mark.usefixtures("capsys")  # whose output goes to no file
def test_a_full_disk_ends_a_run_with_one_line_until_it_goes_on(tmp_path: Path, size: int | None, monkeypatch) -> None:
    """Whether the metrics or the checkpoint are the first that cannot be written."""
    monkeypatch.setattr("geo3d.train.trainer.draw_loss_curve", lambda *_: None)
    whole = train_toy(tmp_path / "whole", save_every_steps=4)

    def broken_off(folder: Path, full: AbstractContextManager) -> None:
        train_toy(folder, toy={"signal_at": (5, signal.SIGTERM)}, save_every_steps=4)
        kept = content(folder / "checkpoints")
        with full, pytest.raises(InputError, match=r"/cut/.*: cannot be written \((No space|File too large)"):
            train_toy(folder, save_every_steps=4)
        assert content(folder / "checkpoints") == kept
        assert train_toy(folder, save_every_steps=4).resumed_from == 5
        assert numbers(folder) == numbers(tmp_path / "whole")
        assert_equal(load_file(whole.checkpoint / "model.safetensors"), _newest(folder))

    if size is None:
        with small_disk(tmp_path / "disk") as disk:
            broken_off(disk / "cut", filled(disk))
    else:
        broken_off(tmp_path / "cut", short_files(size))


def _newest(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step_00000012" / "model.safetensors")
