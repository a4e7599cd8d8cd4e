"""DUSt3R's training: crops and their points against geometry, pairs in both orders, and the losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from geo3d import Camera, InputError
from geo3d.geometry import View
from geo3d.methods.pointmap_loss import descriptor_loss, mean_distance, pointmap_loss
from geo3d.methods.pointmaps import Pointmaps, PointmapsConfig, _in_both_orders
from geo3d.methods.posed_crops import PosedCrop, centred_crop, matched_pixels
from geo3d.recipes.pointmaps import pair_figures, relative_errors, turn_error

SLOPE = 0.3
POSES = [torch.eye(4, dtype=torch.float64) for _ in range(2)]
POSES[1][:3, 3] = torch.tensor([0.3, -0.1, 0.2])
_ANGLE = 0.2
POSES[1][:3, :3] = torch.tensor(
    [[math.cos(_ANGLE), 0, math.sin(_ANGLE)], [0, 1, 0], [-math.sin(_ANGLE), 0, math.cos(_ANGLE)]]
)


def plane_depth(camera: Camera, pose: torch.Tensor) -> torch.Tensor:
    """Depth of the plane z = 3 + SLOPE x of the world, at a camera's pixels."""
    rays = camera.unproject(camera.pixel_grid(), torch.ones(camera.height, camera.width, dtype=torch.float64))
    turned, normal = rays @ pose[:3, :3].T, torch.tensor([-SLOPE, 0, 1], dtype=torch.float64)
    return (3 - pose[:3, 3] @ normal) / (turned @ normal)


def posed_view(number: int, camera: Camera, depth_camera: Camera | None = None) -> View:
    depth = plane_depth(depth_camera or camera, POSES[number]).float()
    image = torch.rand(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(number))
    return View(str(number), camera, POSES[number], image, depth, depth_camera=depth_camera)


CAMERA = Camera(90, 70, 80.0, 85.0, 47.0, 33.0)


@pytest.mark.parametrize("zoom", [1.0, 1.7])
@pytest.mark.parametrize("depth_camera", [None, Camera(45, 35, 40.0, 42.5, 23.25, 16.25)])
@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV"])
def test_points_of_a_crop_lie_on_the_surface(zoom: float, depth_camera: Camera | None, model: str) -> None:
    camera = CAMERA if model == "PINHOLE" else replace(CAMERA, model=model, distortion=(0.05, -0.02, 0.001, 0.002))
    for number in (0, 1):
        crop = centred_crop(posed_view(number, camera, depth_camera), (32, 48), zoom)
        assert crop.image.size == (48, 32)
        assert (crop.camera.cx, crop.camera.cy) == pytest.approx((23.5, 15.5))  # the middle
        world = crop.points() @ POSES[number][:3, :3].T + POSES[number][:3, 3]
        off = (world[..., 2] - 3 - SLOPE * world[..., 0])[crop.depth > 0]
        assert len(off) == 32 * 48
        # The nearest depth is up to half a pixel of the depth map away: 0.3 / 40 * 3 m of a slope of 0.3 and the turn.
        assert off.abs().max() < 0.05


def test_the_largest_window_touches_the_border_and_shows_what_the_camera_says() -> None:
    """A mark of the image lies in the crop where its camera projects the mark's point."""
    view = posed_view(0, CAMERA)
    view.image[:] = 0
    view.image[40:43, 60:63] = 1
    crop = centred_crop(view, (64, 64), 1.0)
    weight = torch.from_numpy(np.array(crop.image)[..., 0]).double()
    at = (
        torch.stack([(weight.sum(0) * torch.arange(64)).sum(), (weight.sum(1) * torch.arange(64)).sum()]) / weight.sum()
    )
    truth = crop.camera.project(CAMERA.unproject(torch.tensor([61.0, 41.0]).double(), torch.tensor(2.0).double()))
    assert (at - truth).abs().max() < 0.1
    assert 64 / crop.camera.fy * CAMERA.fy == pytest.approx(2 * 33.5)  # twice from the principal point to the border


def test_depth_that_is_not_known_stays_unknown_and_views_without_it_are_named() -> None:
    view = posed_view(0, CAMERA)
    view.depth[:, :45] = 0
    view.depth[0, 60] = torch.nan
    crop = centred_crop(view, (32, 32), 1.0)
    assert 0.3 < float((crop.depth == 0).float().mean()) < 0.7
    assert crop.points().isfinite().all()
    with pytest.raises(InputError, match="view 0: pointmaps are made of an image with camera, pose and depth"):
        centred_crop(replace(view, depth=None), (32, 32), 1.0)


def test_matched_pixels_show_one_point() -> None:
    crops = [centred_crop(posed_view(n, CAMERA), (48, 48), 1.0) for n in (0, 1)]
    matches = matched_pixels(*crops, 40, np.random.default_rng(0))
    assert matches.shape == (40, 2)
    assert (matches >= 0).all()
    worlds = [c.points().view(-1, 3) @ c.world_from_camera[:3, :3].T + c.world_from_camera[:3, 3] for c in crops]
    apart = (worlds[0][matches[:, 0]] - worlds[1][matches[:, 1]]).norm(dim=-1)
    assert apart.max() < 0.06  # half a diagonal of a pixel, 3 m away
    behind = PosedCrop(crops[1].image, crops[1].camera, crops[1].world_from_camera, crops[1].depth * 2)
    assert (matched_pixels(crops[0], behind, 5, np.random.default_rng(0)) == -1).all()  # another surface is seen there


def pair_batch() -> dict[str, torch.Tensor]:
    """Two pairs of the plane, as drawn."""
    crops = [centred_crop(posed_view(n, CAMERA), (16, 16), 1.0) for n in (0, 1)]
    pose = torch.linalg.inv(POSES[1]) @ POSES[0]
    back = torch.linalg.inv(pose)
    points = crops[0].points(), crops[1].points() @ back[:3, :3].T + back[:3, 3]
    one = {"second_from_first": pose.float(), "metric": torch.tensor(True), "matches": torch.tensor([[0, 5], [3, -1]])}
    for n, name in enumerate(("first", "second")):
        one |= {name: torch.from_numpy(np.array(crops[n].image)), f"points{n + 1}": points[n].float()}
        one[f"valid{n + 1}"] = crops[n].depth > 0
    return {name: torch.stack([value, value]) for name, value in one.items()}


def test_a_pair_in_both_orders_is_the_pair_and_its_swap() -> None:
    batch = pair_batch()
    both = _in_both_orders(batch)
    own = centred_crop(posed_view(1, CAMERA), (16, 16), 1.0).points().float()
    assert torch.equal(both["first"][::2], batch["first"])
    assert torch.equal(both["first"][1::2], batch["second"])
    assert torch.equal(both["points1"][::2], batch["points1"])
    torch.testing.assert_close(both["points1"][1], own, rtol=0, atol=1e-5)  # the second view's, in its own frame
    torch.testing.assert_close(
        both["points2"][1], ((batch["points1"][0].double() - POSES[1][:3, 3]) @ POSES[1][:3, :3]).float()
    )
    assert both["matches"][1].tolist() == [[5, 0], [-1, 3]]


@pytest.mark.parametrize("metric", [None, torch.tensor([True, False])])
def test_the_loss_and_its_gradients_against_a_plain_reckoning(metric: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    points, targets = [draw(2, 3, 4, 3) for _ in range(2)], [draw(2, 3, 4, 3) for _ in range(2)]
    confidences, valid = [draw(2, 3, 4).exp() for _ in range(2)], [draw(2, 3, 4) > -0.5 for _ in range(2)]
    targets[0][~valid[0]] = torch.nan  # whatever stands there
    value = 0.0
    for view in range(2):
        costs = []
        for row in range(2):
            scales = [
                torch.cat([m[v][row][valid[v][row]].norm(dim=-1) for v in range(2)]).mean() for m in (points, targets)
            ]
            scales[0] = scales[1] if metric is not None and metric[row] else scales[0]
            kept = valid[view][row]
            p, t = (m[view][row][kept] / s for m, s in zip((points, targets), scales, strict=True))
            c = confidences[view][row][kept]
            costs.append(c * (p - t).norm(dim=-1) - 0.2 * c.log())
        value += float(torch.cat(costs).mean())
    loss = pointmap_loss(tuple(points), tuple(confidences), tuple(targets), tuple(valid), metric)
    assert float(loss.value) == pytest.approx(value, rel=1e-12)
    leaves = [t.requires_grad_() for t in (*points, *confidences)]
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: pointmap_loss((a, b), (c, d), tuple(targets), tuple(valid), metric).value, leaves
    )


def test_a_view_of_which_nothing_is_known_costs_nothing() -> None:
    points = torch.ones(1, 2, 2, 3, requires_grad=True)
    nothing, some = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    sure = torch.ones(1, 2, 2)
    loss = pointmap_loss(
        (points, points), (sure, sure), (points.detach() * torch.nan, points.detach()), (nothing, some)
    )
    loss.value.backward()
    assert float(loss.value) == pytest.approx(0, abs=1e-6)
    assert points.grad.isfinite().all()
    assert mean_distance((points, points), (nothing, nothing)).item() == pytest.approx(1e-8)


def test_descriptors_that_tell_apart_cost_little() -> None:
    own = torch.eye(6, dtype=torch.float64)
    # Each of 6 against itself (1 / 0.05 = 20) and 5 others (0), in both directions.
    assert float(descriptor_loss(own, own)) == pytest.approx(2 * math.log1p(5 * math.exp(-20)), rel=1e-9)
    same = torch.ones(6, 6, dtype=torch.float64) / 6**0.5
    assert float(descriptor_loss(same, same)) == pytest.approx(2 * math.log(6))
    sure = torch.full((6,), 3.0, dtype=torch.float64)
    assert float(descriptor_loss(same, same, sure)) == pytest.approx(3 * 2 * math.log(6) - 10 * math.log(3))
    assert float(descriptor_loss(own[:0], own[:0])) == 0


def test_mast3r_learns_descriptors_and_dust3r_none() -> None:
    for model, names in (("dust3r_tiny", {"points"}), ("mast3r_tiny", {"points", "descriptors"})):
        method = Pointmaps(PointmapsConfig(model, (16, 16)), torch.Generator().manual_seed(0))
        output = method(pair_batch())
        assert output.losses.keys() == names
        assert method.picture(pair_batch(), output).shape[2] == 3


@pytest.mark.parametrize("model", ["dust3r_tiny", "mast3r_tiny"])
def test_what_is_kept_and_how_fast_the_rest_learns(model: str) -> None:
    method = Pointmaps(PointmapsConfig(model, (16, 16), frozen=True, layer_decay=0.5))
    learnt = {name for name, value in method.network.named_parameters() if value.requires_grad}
    method.freeze()
    kept = {name for name, value in method.network.named_parameters() if name in learnt and not value.requires_grad}
    assert kept == {name for name in learnt if method.network.is_of_encoder(name)} != set()
    factors, layers = method.rate_factors(), method.network.layer_count
    assert factors["network.dec_blocks2.0.mlp.fc1.weight"] == factors["network.dec_norm.bias"] == 1.0
    assert factors["network.enc_norm.weight"] == 0.5
    assert factors["network.patch_embed.proj.weight"] == 0.5**layers


@pytest.mark.parametrize("both_orders", [True, False])
def test_what_is_found_of_a_batch_comes_with_its_loss(both_orders: bool) -> None:
    batch = pair_batch()
    config = PointmapsConfig(image_size=tuple(batch["valid1"].shape[1:]), both_orders=both_orders)
    method = Pointmaps(config, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        extras, maps = method(batch).extras, method.predict(batch)
        swapped = method.predict(batch | {"first": batch["second"], "second": batch["first"]})
    wanted = {"points1": maps.first.points, "points2": maps.second.points}
    wanted |= {"own_points2": swapped.first.points} if both_orders else {}
    assert {name for name in extras if "points" in name} == wanted.keys()
    for name, value in wanted.items():  # another batch size; equal where measured
        torch.testing.assert_close(extras[name], value, rtol=1e-4, atol=1e-5)


def test_errors_at_the_best_scale_and_of_the_turn() -> None:
    batch = pair_batch()
    targets, valid = (batch["points1"], batch["points2"]), (batch["valid1"], batch["valid2"])
    for errors in relative_errors(tuple(0.37 * t for t in targets), targets, valid):
        assert all(e.max() < 1e-5 for e in errors)
    moved = tuple(t + torch.tensor([0.0, 0.5, 0.0]) for t in targets)
    size = float(mean_distance(targets, valid)[0])
    assert float(relative_errors(moved, targets, valid)[0][0].mean()) == pytest.approx(0.5 / size, rel=0.1)
    own = centred_crop(posed_view(1, CAMERA), (16, 16), 1.0).points().float()
    pose = batch["second_from_first"][0]
    assert turn_error(own * 2, batch["points2"][0], pose) < 0.1
    assert turn_error(own, own, pose) == pytest.approx(math.degrees(_ANGLE), abs=0.1)
    assert turn_error(own * 0, own * 0, pose) is None


def test_a_view_of_which_nothing_is_known_has_no_figure() -> None:
    batch = pair_batch()
    batch["valid1"] = batch["valid1"].clone()
    batch["valid1"][0] = False
    for row, found in enumerate(pair_figures((batch["points1"], batch["points2"]), batch)):
        assert ("error_first" in found) == (row != 0)
        assert max(found[name] for name in found if "error" in name) < 1e-6
        assert (found["within_10"], found["within_25"]) == (100, 100)
    batch["valid2"] = batch["valid2"] & False
    assert pair_figures((batch["points1"], batch["points2"]), batch)[0] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zoom": 0.5}, "zoom must be at least 1"),
        ({"color_jitter": 1.0}, "color_jitter"),
        ({"layer_decay": 0.0}, "layer_decay must lie above 0"),
        ({"labels": 2.5}, "labels above 1 count items"),
        ({"matches": 0}, "matches must be at least 1"),
        ({"confidence_weight": -1.0}, "confidence_weight must be at least 0"),
        ({"model": "croco_tiny"}, "model croco_tiny has no pointmaps"),
        ({"model": "resnet_tiny"}, "model resnet_tiny has no pointmaps"),
        ({"image_size": (60, 64)}, "multiple of the patch size 8"),
        ({"further_sizes": ((48, 64), (60, 64))}, "image size 60 x 64 is not a multiple of the patch size 8"),
        ({"further_sizes": ((0, 64),)}, "further_sizes must be pairs of sides of 1 to"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pointmaps(PointmapsConfig(**changes))
