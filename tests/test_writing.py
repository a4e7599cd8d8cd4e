"""Whatever writes: where it cannot, it says so in one line, and what was there before is as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import content, filled, short_files, small_disk

from geo3d import InputError, create_model, save_model
from geo3d.config import save_config
from geo3d.datasets.pair_index import IndexedDataset, PairIndexBuilder
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.train import TrainConfig
from geo3d.train.checkpoint import CheckpointStore
from geo3d.train.loader import BrokenSample
from geo3d.train.logger import EventFile, Logger
from geo3d.train.quarantine import SampleQuarantine
from geo3d.viz.curve import draw_loss_curve
from geo3d.viz.ply import write_ply
from geo3d.viz.sheet import write_picture
from geo3d.writing import replacing, write_text


def _model(path: Path) -> None:
    sizes = {"depths": (1, 1), "channels": (16, 16), "heads": (2, 2), "windows": (5, 5)}
    save_model(create_model("swin3d", **sizes, generator=torch.Generator().manual_seed(0)), path)


def _checkpoint(path: Path) -> None:
    store = CheckpointStore(path)
    step = len(store.all()) + 1
    store.save(step, 1.0 / step, {"a": torch.zeros(9000)}, {"w": torch.full((9000,), float(step))})


def _curve(path: Path) -> None:
    metrics = path.with_name("metrics.jsonl")
    draw_loss_curve(metrics, path)


def _log(path: Path) -> None:
    logger = Logger(path)
    path.mkdir(exist_ok=True)
    logger.open(10**6, 2 * 10**6)
    for step in range(30):
        logger.record({"step": step, "loss": 1.0, "name": 0.5 * step})
    try:
        logger.flush()
    finally:
        logger.close()


def _events(path: Path) -> None:
    events = EventFile(path, 1)
    try:
        for step in range(100):
            events.add({"loss": 0.5, "rate": 1.0}, step)
    finally:
        events.close()


def _quarantine(path: Path) -> None:
    samples = [BrokenSample(n, f"sample {n}", "cut " * 20) for n in range(40)]
    SampleQuarantine(path, lambda line: None).add(samples)


def _pairs(path: Path) -> None:
    builder = PairIndexBuilder([IndexedDataset("scannet", Path("scans"))], {})
    columns = {name: np.arange(99) for name in ("first", "second", "overlap", "angle", "score")}
    builder.add(0, "scene", [f"view {n}" for n in range(99)], columns, "depth")
    builder.build().write(path)


def _synthetic(path: Path) -> None:
    write_synthetic(SyntheticConfig(path, scenes=0, objects=1, views=2, width=64, height=48, workers=1))


#: Name of what is written -> how.
WRITERS: dict[str, Callable[[Path], None]] = {
    "model.safetensors": _model,
    "model.pth": _model,
    "checkpoints": _checkpoint,
    "config.yaml": lambda path: save_config(TrainConfig(), path),
    "points.ply": lambda path: write_ply(path, {"x": np.zeros(9000)}),
    "picture.png": lambda path: write_picture(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)),
    "loss.png": _curve,
    "run": _log,
    "events": _events,
    "quarantine.txt": _quarantine,
    "pairs.tsv": _pairs,
    "rooms": _synthetic,
}

#: Writers that add to what is there, so that a failure may leave more of it.
GROWING = ("run", "events", "quarantine.txt")
_RECORD = '{"step": 1, "loss": 1.0, "loss_smooth": 1.0, "lr": 0.1}\n'


@pytest.fixture
def disk(tmp_path: Path):
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def _fails(name: str, folder: Path) -> None:
    """A writer ends with one line that names where it wrote; no file of its own stays but whole ones."""
    before = content(folder)
    with pytest.raises(InputError) as caught:
        WRITERS[name](folder / name)
    message = str(caught.value)
    assert str(folder / name) in message
    assert "cannot be written (" in message
    assert "\n" not in message
    after = content(folder)
    if name in GROWING:
        assert all(after[path].startswith(data) for path, data in before.items())
    else:
        assert after == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_loses_nothing(name: str, disk: Path) -> None:
    (disk / "metrics.jsonl").write_text(_RECORD)
    with filled(disk):
        _fails(name, disk)
    WRITERS[name](disk / name)
    if name in ("rooms", "quarantine.txt"):  # which do nothing a second time
        return
    with filled(disk):
        _fails(name, disk)
    WRITERS[name](disk / name)


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_may_not_grow_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(_RECORD)
    with short_files(100):
        _fails(name, tmp_path)
    WRITERS[name](tmp_path / name)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("loss.png", "quarantine.txt", "run")])
def test_a_file_in_the_place_of_a_folder_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        WRITERS[name](tmp_path / "file" / name)
    assert content(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("name", [name for name in WRITERS if "." in name])
def test_a_folder_in_the_place_of_a_file_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(_RECORD)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name):
        WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [name]


def test_a_pipe_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "figures")
    reader.join()
    assert heard == ["figures"]
    assert pipe.is_fifo()
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        write_text(Path("/dev/full"), "figures")


def test_other_errors_are_not_taken_for_the_disks(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), replacing(tmp_path / "file"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())
