"""Detection and segmentation over grids: samples, batches, losses that fall, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from memory_grids import MemoryGrids
from torch import Tensor

from geo3d import create_model
from geo3d.errors import InputError
from geo3d.geometry import VolumeGrid
from geo3d.methods.grid_detection import GridDetection, GridDetectionConfig, own_boxes
from geo3d.methods.grid_segmentation import GridSegmentation, GridSegmentationConfig
from geo3d.methods.method import Method
from geo3d.models.nerf_mae_downstream import published_cross_entropy
from geo3d.nn.oriented_boxes import aligned_iou, box_iou

_CLASSES = ("red", "green")
_BOXES = torch.tensor([[10.0, 12, 8, 12, 8, 10, 0], [24.0, 20, 6, 10, 10, 8, 0], [28.0, 4, 3, 2, 2, 2, 0]])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread for these small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _grid(boxes: Tensor = _BOXES, sides: tuple[int, int, int] = (32, 28, 16)) -> VolumeGrid:
    """Solid boxes in an empty room, red and green in turns, and labelled so."""
    rgb, opacity = torch.zeros(*sides, 3), torch.zeros(sides)
    labels = torch.full(sides, -1)
    for number, (x, y, z, w, l, h, _) in enumerate(boxes.tolist()):  # noqa: E741
        place = tuple(slice(math.ceil(c - s / 2), math.ceil(c + s / 2)) for c, s in ((x, w), (y, l), (z, h)))
        rgb[place], opacity[place], labels[place] = 0.2, 1.0, number % 2
        rgb[(*place, number % 2)] = 0.9
    return VolumeGrid(rgb, opacity, labels=labels, boxes=boxes)


def _batch(method: Method, *grids: VolumeGrid) -> dict[str, Any]:
    samples = method.samples(MemoryGrids(*grids))
    return method.collate([samples.draw(n, np.random.default_rng(n)) for n in range(len(grids))])


def _small(method: Method, **options: Any) -> Any:
    """The network of a method in a size that learns in seconds."""
    sizes = {"embed_dim": 24, "depths": (1, 1, 1, 1), "heads": (2, 2, 2, 2)}
    small = create_model(method.config.model, generator=torch.Generator().manual_seed(0), **sizes, **options)
    small.classes = method.network.classes
    return small


def _detection(**changes: Any) -> GridDetection:
    config = GridDetectionConfig(**({"side": 32, "turn": 0.0, "mirror": 0.0} | changes))
    method = GridDetection(config, torch.Generator().manual_seed(0))
    method.network = _small(method, pyramid_channels=32, tower_depth=1)
    return method


def _segmentation(**changes: Any) -> GridSegmentation:
    config = GridSegmentationConfig(**({"side": 32, "turn": 0.0, "mirror": 0.0} | changes))
    method = GridSegmentation(config, _CLASSES, torch.Generator().manual_seed(0))
    method.network = _small(method, num_classes=len(method.network.classes))
    return method


def _train(method: Method, batch: dict[str, Any], steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(method.parameters(), rate)
    losses = []
    for _ in range(steps):
        output = method.train()(batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    return losses


def test_batches_of_boxes() -> None:
    method = _detection()
    nothing = _grid(_BOXES[:0], (40, 10, 8))
    batch = _batch(method, _grid(), nothing)
    assert batch["values"].shape == (2, 4, 32, 32, 32)  # of the larger one a part was taken
    assert batch["sizes"].tolist() == [[32, 28, 16], [32, 10, 8]]
    # the last object is smaller than a patch
    assert [len(boxes) for boxes in own_boxes(batch)] == [2, 0]
    assert len(own_boxes(_batch(_detection(least_volume=0.0), _grid()))[0]) == 3
    output = method(batch)
    assert set(output.losses) == {"objectness", "box", "bounds", "corners", "centrality"}
    assert output.loss.isfinite()
    assert method.picture(batch, output).shape[-1] == 3
    assert method.picture(_batch(method, nothing), method(_batch(method, nothing))).dtype == np.uint8


def test_boxes_turn_and_mirror_with_the_grid() -> None:
    method = _detection(turn=0.5, mirror=0.5)
    samples = method.samples(MemoryGrids(_grid()))
    seen = set()
    for seed in range(12):
        drawn = samples.draw(0, np.random.default_rng(seed))
        for box, color in zip(drawn["boxes"], (0, 1)):
            x, y, z = (int(c) for c in box[:3])
            assert drawn["values"][color, x, y, z] == pytest.approx(0.9)
            w, l, h = box[3:6].tolist()  # noqa: E741
            for axis, side in enumerate((w, l, h)):
                beyond = [x, y, z]
                beyond[axis] += math.ceil(side / 2) + 1
                assert drawn["values"][(3, *beyond)] == 0
        seen.add(tuple(drawn["boxes"][0, :2].tolist()))
    assert len(seen) > 3


def test_a_detector_learns_a_scene() -> None:
    method = _detection()
    batch = _batch(method, _grid())
    before = method(batch).loss.item()
    losses = _train(method, batch, 30, 1e-3)
    assert losses[-1] < 0.5 * before
    found = method.eval().network.detect(_grid())[0]
    overlap = box_iou(found.boxes[:6], _BOXES[:2])
    assert (overlap.amax(0) > 0.5).all(), overlap  # 0.82 and 0.81 measured
    assert aligned_iou(found.boxes[:1], _BOXES[:2]).amax() > 0.5


def test_batches_of_labels() -> None:
    method = _segmentation()
    batch = _batch(method, _grid(), _grid(sides=(32, 28, 20)))
    assert batch["labels"].shape == (2, 32, 32, 32)
    assert (batch["labels"][0, :, :, 16:] == -1).all()
    assert method.network.classes == _CLASSES
    output = method(batch)
    assert 0 <= output.metrics["accuracy"] <= 1
    assert method.picture(batch, output).dtype == np.uint8


def test_a_segmenter_learns_a_scene() -> None:
    method = _segmentation()
    batch = _batch(method, _grid())
    losses = _train(method, batch, 8, 2e-3)
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        predicted = method.eval().predict(_grid().values)
    labels = _grid().labels
    assert predicted.shape == labels.shape
    assert (predicted == labels)[labels >= 0].float().mean() > 0.95


def test_the_published_loss_has_a_class_for_what_is_empty() -> None:
    method = _segmentation(published_loss=True)
    assert method.network.classes == ("empty", *_CLASSES)
    batch = _batch(method, _grid())
    output = method(batch)
    assert set(output.extras["predicted"].unique().tolist()) <= {0, 1}
    with torch.no_grad():
        logits = method.network.predict(_grid().values)[0]
    valid = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    valid[:, :32, :28, :16] = True
    filled = torch.zeros(1, 3, 32, 32, 32)
    filled[0, :, :32, :28, :16] = logits
    expected = published_cross_entropy(filled, batch["labels"] + 1, valid)
    assert output.losses["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_networks_of_other_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="must find objects, such as nerf_mae_detector_tiny; nerf_mae_tiny is of"):
        _detection(model="nerf_mae_tiny")
    with pytest.raises(InputError, match="must name classes of voxels"):
        _segmentation(model="nerf_mae_detector_tiny")
    for wrong in ({"radius": 0.0}, {"box_weight": -1.0}, {"least_volume": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            _detection(**wrong)


def test_small_objects_do_not_count() -> None:
    config = replace(GridDetectionConfig(), least_volume=100.0)
    assert len(config.counted(_BOXES)) == 2
    assert len(config.counted(_BOXES[:0])) == 0
