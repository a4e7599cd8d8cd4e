"""Correspondences: counts that are known, views of boxes whose depth is exact, and whole runs of the match probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, AnalyticDataset, BoxScene, look_at
from PIL import Image
from torch import Tensor

import geo3d
from geo3d import InputError
from geo3d.datasets import scene as scenes
from geo3d.geometry import Camera, ViewPair
from geo3d.geometry.view import depth_normals
from geo3d.nn.mutual_nearest import most_alike
from geo3d.probe import run_probe
from geo3d.probe.match import MatchConfig
from geo3d.probe.matching import Correspondences, MatchCounts, comparable, match_counts
from geo3d.probe.view_pairs import CloudPairs, ImagePairs, PairInputs
from geo3d.probe.views import at_pixels, pixel_lattice, shown_view


@pytest.fixture
def boxes(monkeypatch, tmp_path: Path) -> Path:
    """Two scenes of boxes, six views each, ten degrees apart."""
    monkeypatch.setattr(scenes, "_REGISTRY", {"analytic": AnalyticDataset, **scenes._REGISTRY})
    return AnalyticDataset.write(tmp_path / "boxes", {"a": 6, "b": 6})


def _pair() -> ViewPair:
    """Two views of boxes, some 20 degrees apart."""
    poses = [look_at((2.0, -0.5, 1.5), (0, 0, 1)), look_at((1.9, 0.3, 1.6), (0, 0, 1))]
    scene = BoxScene(poses, BOXES)
    return ViewPair(scene.view(0), scene.view(1))


def test_counts_are_those_that_are_written_down() -> None:
    """Four points on a line; the second is not seen, the third goes astray, the fourth is not told."""
    truth = torch.tensor([[0.0], [torch.nan], [2.0], [torch.nan]])
    known = Correspondences(truth, torch.tensor([[0.5], [1.0], [9.0]]), torch.tensor([True, True, True, False]))
    counts = match_counts(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2]), known, (0.1, 1.0))
    assert (counts.visible, counts.right.tolist()) == (2, [0, 1])
    assert (counts.mutual, counts.mutual_right.tolist()) == (3, [0, 1])  # the second is one, and wrong
    figures = (counts + MatchCounts.none(2)).figures()
    assert figures == {
        "recall": [0, 0.5], "precision": [0, pytest.approx(1 / 3)], "mutual_recall": [0, 0.5]
    }  # fmt: skip


def test_what_all_points_share_and_the_size_of_a_block_do_not_count() -> None:
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(50, 6, generator=rng)
    order = torch.randperm(50, generator=rng)
    scaled = torch.cat([100 + 1000 * first[:, :3], first[:, 3:]], 1)
    forward, backward = most_alike(*comparable(scaled, scaled[order], (3, 3)))
    assert torch.equal(order[forward], torch.arange(50))
    assert torch.equal(backward, order)


def test_maps_are_looked_up_where_their_cells_lie() -> None:
    """A map that is a linear function of the place, at pixels between the middles of its cells."""
    camera = Camera.from_fov(32, 24, 1.0)
    middles = pixel_lattice(camera, 4)
    assert middles[0].tolist() == [1.5, 1.5]
    assert len(middles) == 48
    values = (3 * middles[:, 0] - middles[:, 1]).view(1, 1, 6, 8).float()
    pixels = torch.tensor([[1.5, 1.5], [10.0, 7.25], [29.0, 20.0]], dtype=torch.float64)
    expected = 3 * pixels[:, 0] - pixels[:, 1]
    # Float32 places of some tens of pixels: 1e-5 (measured: 4e-6).
    torch.testing.assert_close(at_pixels(values, pixels, 4)[:, 0].double(), expected, rtol=0, atol=1e-4)


def test_normals_of_depth_are_those_of_the_walls() -> None:
    view = _pair().first
    normals = depth_normals(view.depth.double(), view.camera)
    known = normals.norm(dim=2) > 0
    assert known.double().mean() > 0.9
    world = normals[known] @ view.world_from_camera[:3, :3].T
    along = world.abs().amax(1) > 0.999  # of walls and boxes along the axes, but where two of them meet
    assert along.double().mean() > 0.85
    rays = view.camera.unproject(view.camera.pixel_grid(), view.depth.double())[known]
    assert ((normals[known] * rays).sum(1) <= 0).all()


def _places(pair: PairInputs) -> tuple[Tensor, Tensor]:
    """Where each pixel is in the world: the features that tell all."""
    found = []
    for part in (pair.first, pair.second):
        depth = part.shown.depth_at(part.pixels)
        found.append(part.shown.lifted(part.pixels, depth).float())
    return found[0], found[1]


def test_places_in_the_world_match_images_perfectly() -> None:
    network = geo3d.create_model("croco_tiny")
    inputs = ImagePairs(network, 60, 2, (), False).inputs(_pair(), np.random.default_rng(0))
    first, second = _places(inputs)
    forward = torch.cdist(first, second).argmin(1)
    counts = match_counts(forward, torch.cdist(second, first).argmin(1), inputs.known, (3.0,))
    assert counts.visible > 500
    # The nearest of a lattice of 2 pixels; where surfaces are seen at a slant it may be the next one.
    assert counts.right[0] / counts.visible > 0.99
    shuffled = match_counts(forward.roll(300), forward, inputs.known, (3.0,))
    assert shuffled.right[0] / shuffled.visible < 0.1


def test_places_in_the_world_match_clouds_perfectly() -> None:
    network = geo3d.create_model("sparse_resnet_tiny")
    pairs = CloudPairs(network, 0.1, 10_000, ())
    inputs = pairs.inputs(_pair(), np.random.default_rng(0))
    known = inputs.known
    visible = known.truth.isfinite().all(1)
    assert 0.3 < visible.double().mean() < 1
    forward = torch.cdist(torch.nan_to_num(known.truth), known.places).argmin(1)
    counts = match_counts(forward, torch.zeros(len(known.places), dtype=torch.int64), known, (0.1 * 3**0.5,))
    assert counts.right[0] == counts.visible == visible.sum()
    # Both clouds are turned to their own heading and keep their heights apart from the camera's.
    for part, view in ((inputs.first, _pair().first), (inputs.second, _pair().second)):
        world = shown_view(view, 120).cloud()
        heights = 0.1 * part.points.xyz[:, 2]
        chosen = world.xyz[part.points.index, 2]
        offset = chosen - heights
        assert (offset - offset[0]).abs().max() < 1e-4


@pytest.fixture(scope="module", params=["croco_tiny", "multiview_tiny"])
def croco(request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "croco.safetensors"
    sizes = {"encoder_dim": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_dim": 32, "decoder_depth": 1}
    network = geo3d.create_model(request.param, generator=torch.Generator().manual_seed(3), decoder_heads=2, **sizes)
    geo3d.save_model(network, path)
    return path


def test_a_run_on_images_gives_figures_table_and_picture(boxes: Path, croco: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    common = {"checkpoint": croco, "test_data": (boxes,), "pairs": 2, "angles": (2, 15, 40), "seed": 3}
    out = tmp_path / "figures" / "match.json"
    scores = run_probe("match", MatchConfig(**common, out=out, by_layer=True), lines.append)
    assert list(scores) == [
        "checkpoint", "fresh weights, seed 3", "input features", "checkpoint, block0", "checkpoint, block1"
    ]  # fmt: skip
    assert scores["checkpoint"].by_angle.keys() == {"2 to 15 degrees", "15 to 40 degrees"}
    assert scores["checkpoint"].columns == 64
    assert all(np.diff(score.recall).min() >= 0 for score in scores.values())
    assert scores["checkpoint"].recall == scores["fresh weights, seed 3"].recall  # which is what the file holds
    assert json.loads(out.read_text())["checkpoint"]["recall"] == scores["checkpoint"].recall
    assert Image.open(out.with_suffix(".png")).size[0] > 1000
    assert any("recall within 8 pixels by change of viewpoint" in line for line in lines)
    both = run_probe("match", MatchConfig(**common, decoder=True, baseline="none"), lines.append)
    assert list(both) == ["checkpoint", "input features"]
    assert both["checkpoint"].columns == 32
    assert both["input features"] == scores["input features"]


def test_a_run_on_clouds_gives_figures(boxes: Path, tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    geo3d.save_model(geo3d.create_model("sparse_resnet_tiny", generator=torch.Generator().manual_seed(0)), path)
    config = MatchConfig(
        checkpoint=path, test_data=(boxes,), pairs=1, angles=(2, 40), voxel_size=0.2, points=200, seed=0
    )
    first, second = (run_probe("match", config, lambda line: None) for _ in range(2))
    assert first == second
    assert first["checkpoint"].unit == "metres"
    assert 0 < first["input features"].recall[-1] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angles": (30, 15)}, "angles must be positive and ascending, 2 or more, got"),
        ({"thresholds": (2.0, 1.0)}, "thresholds must be positive and ascending got"),
        ({"points": 0}, "points must be at least 1, got 0"),
        ({"min_overlap": 1.5}, "min_overlap must lie between 0 and 1"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MatchConfig(checkpoint=Path("weights"), **options)


def test_options_of_other_networks_are_named(boxes: Path, croco: Path) -> None:
    for options, message in (
        ({"voxel_size": 0.1}, "voxel_size is of networks over voxels"),
        ({"layers": ("block7",)}, "there is no 'block7'"),
    ):
        with pytest.raises(InputError, match=message):
            run_probe("match", MatchConfig(checkpoint=croco, test_data=(boxes,), **options), lambda line: None)
