"""Small rooms that all tests of recipes read, and one thread for these small networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import DATA

from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.datasets.synthetic.stereo_flow import StereoFlowConfig, write_stereo_flow
from geo3d.errors import MissingExtra
from geo3d.train import logger


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Three small rooms with views, depth, points and labels."""
    folder = tmp_path_factory.mktemp("rooms")
    write_synthetic(
        SyntheticConfig(folder, scenes=3, objects=0, views=3, width=64, height=48, mesh_edge=0.2, workers=1)
    )
    return folder / "scannet"


@pytest.fixture(scope="session")
def stereo_rooms(tmp_path_factory) -> Path:
    """Three small rooms with rectified pairs."""
    folder = tmp_path_factory.mktemp("stereo")
    write_stereo_flow(StereoFlowConfig(folder, scenes=3, pairs=3, width=64, height=48, workers=1))
    return folder


@pytest.fixture
def data(name: str, request: pytest.FixtureRequest) -> Path:
    """Small data that the recipe of a name reads."""
    return request.getfixturevalue(DATA.get(name, "rooms"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path_factory) -> Iterator[None]:
    """One thread, no TensorBoard, and what is kept under ``data`` in a folder of the test's own."""

    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingExtra("not wanted here")

    monkeypatch.setattr(logger, "require_extra", missing)
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
