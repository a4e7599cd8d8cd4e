"""One thread for these small networks: quicker, and the same sums in every process that a test compares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from geo3d.errors import MissingExtra
from geo3d.train import logger, trainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lean(monkeypatch) -> None:
    """Without TensorBoard and curves, which cost more than these runs."""

    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingExtra("not wanted here")

    monkeypatch.setattr(logger, "require_extra", missing)
    monkeypatch.setattr(trainer, "draw_loss_curve", lambda *_: None)
