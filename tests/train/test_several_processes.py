"""Two processes, by Fabric's launcher or by torchrun, do what one does with the same global batch.

What is trained has a frozen teacher, and is measured meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
from test_measuring import split
from toy import TaughtToyMethod, ToyMethod, ToySamples, train_toy

from geo3d.train.checkpoint import load_checkpoint

# Sample 20 is not a number: the first process meets it in step 4, the second in step 7. Two others cannot be read.
COMMON = {"schedule_epochs": 2, "ema_decay": 0.8, "clip_norm": 0.5, "strategy": "auto"}
SAMPLES = {"infinite": (20,), "broken": (4, 30)}

pytestmark = pytest.mark.usefixtures("lean")


def alone(folder: Path, **changes: object) -> None:
    samples = ToySamples(**SAMPLES)
    train_toy(folder, TaughtToyMethod, samples, {"noisy": False}, measure_every=5, **{**COMMON, **changes})


def command(folder: Path, torchrun: bool, samples: dict, **changes: object) -> tuple[list[str], dict[str, str]]:
    options = {"train": {**COMMON, **changes}, "samples": samples, "toy": {"noisy": False}, "shard_from": 100}
    options |= {"method": "taught", "measure_every": 5}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if torchrun else []
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    line = [sys.executable, *launcher, toy.__file__, str(folder), json.dumps(options)]
    return line, environment | {"OMP_NUM_THREADS": "1"}


def assert_near(one: Path, other: Path) -> None:
    """The same course of training but for the order in which float32 numbers are summed, 12 steps long.

    Measured: losses and norms differ by 1e-7 of their size, weights by 1e-7, moments by 1e-8; bounds are 20 times that.
    """
    (first, measured), (second, other_measured) = split(one), split(other)
    assert [record["step"] for record in first] == list(range(1, 13))
    assert [record["step"] for record in measured] == [5, 10, 12]
    wanted = [record for record in other_measured if record["step"] in (5, 10, 12)]  # others end a part of a run
    for a, b in zip(measured, wanted, strict=True):
        assert a == pytest.approx(b, rel=2e-6)
    assert [record["bad_steps"] for record in first] == [record["bad_steps"] for record in second]
    assert first[-1]["bad_steps"] == 2
    assert [record["broken_samples"] for record in first] == [record["broken_samples"] for record in second]
    assert first[-1]["broken_samples"] > 2
    for key in ("loss", "loss/masked", "loss_smooth", "grad_norm"):
        for a, b in zip(first, second):
            assert (a[key] is None) == (b[key] is None) == (a["step"] in (4, 7) and key != "loss_smooth")
            assert a[key] is None or a[key] == pytest.approx(b[key], rel=2e-6)
    (state, *weights), (other_state, *other_weights) = (
        load_checkpoint(folder / "checkpoints" / "step_00000012") for folder in (one, other)
    )
    for tensors, other_tensors in zip(weights, other_weights):  # the weights, their average
        assert tensors.keys() == other_tensors.keys() == ToyMethod(noisy=False).state_dict().keys()  # without teacher
        for name in tensors:
            torch.testing.assert_close(tensors[name], other_tensors[name], rtol=0, atol=2e-6)
    for name, moments in state["optimizer"].items():
        torch.testing.assert_close(moments, other_state["optimizer"][name], rtol=0, atol=2e-7)
        assert moments["step"] == 10


def test_ddp_from_the_launcher_stopped_by_a_signal_to_one_and_continued_alone(tmp_path: Path) -> None:
    alone(tmp_path / "one")
    slow = {**SAMPLES, "seconds": 0.05}
    line, environment = command(tmp_path / "two", False, slow, batch_size=4, devices="2", strategy="ddp", workers=1)
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, limit = tmp_path / "two" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 4):
        assert time.monotonic() < limit
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "2 x cpu" in errors
    assert errors.count("steps: loss") == 1  # only the first process talks
    ends = [line.split() for line in output.splitlines() if line.startswith("signal")]
    assert len(ends) == 2  # both processes came to the end
    assert 4 <= int(ends[0][1]) < 12
    alone(tmp_path / "two")
    assert_near(tmp_path / "one", tmp_path / "two")


def test_fsdp_under_torchrun_takes_over_from_one_process_and_hands_back(tmp_path: Path) -> None:
    alone(tmp_path / "one", optimizer="lamb")
    alone(tmp_path / "two", optimizer="lamb", steps=4)
    shared = {"optimizer": "lamb", "steps": 9, "strategy": "fsdp", "batch_size": 2, "accumulate": 2}
    line, environment = command(tmp_path / "two", True, SAMPLES, **shared)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished 9") == 2
    assert "4 of 9 steps are done" in done.stderr
    assert "2 x cpu" in done.stderr
    alone(tmp_path / "two", optimizer="lamb")
    assert_near(tmp_path / "one", tmp_path / "two")
