"""What a person and other programs see of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo3d.errors import MissingExtra
from geo3d.train import logger as logger_module
from geo3d.train.logger import Logger, keep_metrics
from geo3d.viz.curve import draw_loss_curve, read_metrics


@pytest.fixture
def logger(tmp_path: Path, monkeypatch) -> Logger:
    """A logger without TensorBoard."""

    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingExtra("not wanted here")

    monkeypatch.setattr(logger_module, "require_extra", missing)
    return Logger(tmp_path)


def test_records_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 6)) + '{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4, 5]
    keep_metrics(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    keep_metrics(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_records_are_on_disk_line_by_line(logger: Logger) -> None:
    logger.open(0, 10)
    for step in (1, 2):
        logger.record({"step": step, "loss": 0.5})
        assert [json.loads(line)["step"] for line in logger.metrics.read_text().splitlines()][-1] == step
    logger.close()


def test_lines_come_now_and_then_where_there_is_no_terminal(logger: Logger, capsys) -> None:
    logger.open(0, 100)
    for step in range(1, 101):
        logger.progress(step, 100, step / 10, loss=0.25, rate=12.5, remaining=3661)
    logger.close()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    expected = "step {}/100  epoch {:.2f}  loss 0.2500  12.5 samples/s  1:01:01 left"
    assert said == [expected.format(1, 0.1), expected.format(100, 10)]


def test_a_terminal_has_a_bar_and_lines_above_it(logger: Logger, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logger.open(3, 8)
    logger.progress(4, 8, 0.5, loss=0.25, rate=12.5, remaining=61)
    logger.log("[a line] in brackets")
    logger.progress(8, 8, 1.0, loss=0.125, rate=12.5, remaining=0)
    logger.close()
    said = capsys.readouterr().err
    for expected in ("4/8", "loss 0.2500  12.5 samples/s  0:01:01 left", "[a line] in brackets", "8/8", "loss 0.1250"):
        assert expected in said, expected


def test_other_processes_keep_silent(tmp_path: Path, capsys) -> None:
    logger = Logger(tmp_path / "nowhere", enabled=False)
    logger.open(0, 3)
    logger.record({"step": 1})
    logger.progress(3, 3, 1.0, 0.5, 1.0, 0.0)
    logger.log("a line")
    logger.close()
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "nowhere").exists()


def test_curve_has_gaps_for_bad_steps_and_none_for_no_steps(tmp_path: Path) -> None:
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    draw_loss_curve(metrics, picture)
    assert not picture.exists()
    losses = [3.0, 2.0, None, 1.0]
    lines = [
        {"step": i, "loss": v, "loss_smooth": v, "loss/a": v, "loss/b": 0.1, "lr": 0.1} for i, v in enumerate(losses)
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_loss_curve(metrics, picture, "toy")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (500, 800, 3)
    blue = (pixels[..., 2].astype(int) - pixels[..., 0]) > 50
    assert blue.sum() > 100
