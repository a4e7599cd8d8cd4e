"""A pretext task small enough to train in a moment, and runs of it, in this process or as a program of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from geo3d.errors import InputError
from geo3d.methods.method import Method, MethodOutput
from geo3d.train import RunResult, TrainConfig, Trainer, launch
from geo3d.train.measuring import Measuring

SIZE = 8


class ToySamples:
    """Vectors on a plane in 8 dimensions, each with noise and a mask drawn for the occasion.

    Args:
        count: number of items.
        broken: items that cannot be read.
        infinite: items that hold a value that is not a number.
        seconds: how long it takes to draw an item.
    """

    def __init__(
        self, count: int = 52, broken: tuple[int, ...] = (), infinite: tuple[int, ...] = (), seconds: float = 0
    ) -> None:
        self.count, self.broken, self.infinite, self.seconds = count, broken, infinite, seconds

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if index in self.broken:
            raise InputError(f"{self.describe(index)}: cut off at byte 7")
        time.sleep(self.seconds)
        plane = np.linspace(-1, 1, 2 * SIZE).reshape(2, SIZE)
        clean = np.random.default_rng(index).standard_normal(2) @ plane
        x = clean + 0.01 * rng.standard_normal(SIZE)
        if index in self.infinite:
            x[0] = np.nan
        mask = rng.permutation(SIZE) < SIZE // 4
        return {"x": torch.from_numpy(x).float(), "mask": torch.from_numpy(mask), "index": index}

    def describe(self, index: int) -> str:
        return f"toy-{index:03d}"


class ToyMethod(Method):
    """Fills in masked entries.

    Args:
        noisy: with dropout, batch statistics and noise from the step's generator, which depend on how samples are
            grouped into batches.
        signal_at: number of a forward pass, and the signal that this process sends to itself in it.
        pictures: whether it draws any.
    """

    name = "toy"

    def __init__(self, noisy: bool = True, signal_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        between = [nn.BatchNorm1d(16), nn.Dropout(0.1)] if noisy else [nn.LayerNorm(16)]
        self.token = nn.Parameter(torch.zeros(1, SIZE))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(SIZE, 16), nn.GELU(), *between), nn.Linear(16, SIZE)])
        self.noisy, self.signal_at, self.passes = noisy, signal_at, 0
        self.seen: list[list[int]] = []

    def samples(self, scenes: Sequence[Any]) -> ToySamples:
        return ToySamples(len(scenes))

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        if self.training:
            self.passes += 1
            self.seen.append(batch["index"].tolist())
            if self.signal_at and self.passes == self.signal_at[0]:
                os.kill(os.getpid(), self.signal_at[1])
        x, mask = batch["x"], batch["mask"]
        visible = torch.where(mask, self.token, x)
        if self.noisy:
            visible = visible + 0.01 * torch.randn(x.shape, generator=generator).to(x)
        y = visible
        for block in self.blocks:
            y = block(y)
        error = (y - x).square()
        masked = (error * mask).sum() / mask.sum()
        rest = 0.1 * error.mean()
        return MethodOutput({"masked": masked, "all": rest}, {"largest": y.abs().max()}, {"y": y})

    def no_weight_decay(self) -> set[str]:
        return {"token"}

    def model_card(self) -> dict[str, Any]:
        return {"name": "toy"}


class DrawingToyMethod(ToyMethod):
    """The same with pictures."""

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        assert not self.training
        torch.rand(3)  # a careless picture must not disturb training
        rows = torch.stack([batch["x"][0], output.extras["y"][0]]).clamp(-1, 1)
        gray = ((rows + 1) * 127).byte().cpu().numpy()
        return np.repeat(gray[..., None], 3, axis=2)


class TaughtToyMethod(ToyMethod):
    """The same with targets from a teacher that is never trained.

    Args:
        teacher_seed: of the teacher's weights.
        toy: as :class:`ToyMethod` takes them.
    """

    def __init__(self, teacher_seed: int = 7, **toy: Any) -> None:
        super().__init__(**toy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(teacher_seed)
            layers = [nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE), nn.Dropout(0.5)]
            self.teacher = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def frozen_modules(self) -> tuple[str, ...]:
        return ("teacher",)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        output = super().forward(batch, generator)
        taught = (output.extras["y"] - self.teacher["layers"](batch["x"])).square().mean()
        return MethodOutput(output.losses | {"taught": taught}, output.metrics, output.extras)


METHODS = {"plain": ToyMethod, "taught": TaughtToyMethod}


def toy_figures(method: ToyMethod) -> dict[str, float]:
    """Mean loss of eight items, and how many they are."""
    assert not method.training
    assert not torch.is_grad_enabled()
    samples = ToySamples()
    batch = method.collate([samples.draw(index, np.random.default_rng(index)) for index in range(8)])
    return {"loss": method(batch, torch.Generator().manual_seed(0)).loss.item(), "items": 8}


def train_toy(
    run_dir: Path,
    method: type[ToyMethod] = ToyMethod,
    samples: ToySamples | None = None,
    toy: dict[str, Any] | None = None,
    measure_every: int | None = None,
    figures: Callable[[ToyMethod], dict[str, float]] = toy_figures,
    higher_is_better: bool = False,
    **changes: Any,
) -> RunResult:
    """Train the toy for 12 steps of 8 samples (6 an epoch) with every number logged; ``changes`` go to the config."""
    config = {
        "steps": 12, "batch_size": 8, "workers": 0, "lr": 0.02, "warmup_steps": 3, "log_every": 1, "seed": 5,
        "accelerator": "cpu", "save_every_minutes": None,
    } | changes  # fmt: skip
    torch.manual_seed(1)
    samples = ToySamples() if samples is None else samples
    trained = method(**(toy or {}))
    measuring = None
    if measure_every is not None:
        measuring = Measuring(lambda: figures(trained), measure_every, "loss", higher_is_better)
    return Trainer(trained, samples, TrainConfig(**config), run_dir, measuring=measuring).fit()


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl without what is measured by the clock."""
    clock = {"time", "seconds", "wait_seconds", "samples_per_second"}
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def main() -> None:
    """Run as ``toy.py FOLDER '{"train": {...}, "toy": {...}, "samples": {...}}'``; ends like a tool.

    ``shard_from`` is the size from which FSDP makes a block a shard of its own, ``method`` one of ``METHODS``.
    """
    options = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    launch.SHARD_FROM = options.get("shard_from", launch.SHARD_FROM)
    samples = ToySamples(**options.get("samples", {}))
    method, every = METHODS[options.get("method", "plain")], options.get("measure_every")
    toy, train = options.get("toy"), options.get("train", {})
    result = train_toy(Path(sys.argv[1]), method, samples, toy, every, **train)
    sys.stdout.write(f"{result.stopped_by} {result.steps}\n")  # in one piece, beside another process
    sys.exit(0)


if __name__ == "__main__":
    main()
