"""Golden depth maps and back-projection of I2P-MAE: the part of `point_ops` and `i2p_mae` cases without a network."""

from __future__ import annotations

import torch
from golden_cases import GoldenCase
from torch import Tensor

from geo3d.nn.colors import IMAGE_MEAN, IMAGE_STD
from geo3d.nn.depth_views import DepthViews, depth_views

#: Largest difference of float32 from the cases' float64, measured: images 5e-7, look-up 1e-6, saliency 2e-8 of 0.1.
IMAGE, LOOK_UP, SALIENCY = 2e-6, 4e-6, 5e-8


def _packed(points: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, 3) as packed rows and their offsets."""
    return points.flatten(0, 1), torch.arange(len(points) + 1) * points.shape[1]


def _check_view(case: GoldenCase, views: DepthViews, view: int, prefix: str) -> None:
    """Corner, cell, shift and image of one view against the case's tensors ``out.<prefix>*``."""
    out, count = case.tensors, views.cell.shape[1]
    assert torch.equal(views.minimum[view], out[f"out.{prefix}min"])
    assert torch.equal(views.cell[view], out[f"out.{prefix}cell"])
    assert torch.equal(views.shift[view].float(), out[f"out.{prefix}offset"])
    image = (views.images[view * count : (view + 1) * count] - IMAGE_MEAN[0]) / IMAGE_STD[0]
    samples = image.flatten()[out[f"idx.{prefix}image"].long()]
    torch.testing.assert_close(samples, out[f"out.{prefix}image"], rtol=0, atol=IMAGE)


def check_projection(case: GoldenCase) -> None:
    """The projection of a `point_ops` case: its first view, and a map looked up at the first points."""
    t = case.tensors
    points, offsets = _packed(t["in.projection.points"])
    views = depth_views(points, offsets)
    _check_view(case, views, 0, "projection.")
    wanted = t["out.projection.sampled"]
    first, first_offsets = _packed(t["in.projection.points"][:, : wanted.shape[1]])
    maps = t["in.projection.map"].repeat(3, 1, 1, 1)
    found = views.look_up(first, first_offsets, maps)[0].view(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=LOOK_UP)


def check_views(case: GoldenCase) -> None:
    """The views of an `i2p_mae` case: images, targets at level 1's neighbours, saliency at level 2's centres."""
    t = case.tensors
    points, offsets = _packed(t["in.points"])
    views = depth_views(points, offsets)
    features = t["in.teacher_features_i8"].float() / 20
    side = features.shape[-1]
    saliency = t["in.teacher_attention"].view(-1, 1, side, side)
    neighbours = t["out.center0"].flatten(0, 1)[t["out.knn1"].flatten().long()]
    groups = t["out.knn1"][0].numel()
    targets = views.look_up(neighbours, torch.arange(len(t["in.points"]) + 1) * groups, features)
    centres, centre_offsets = _packed(t["out.center2"])
    found = views.look_up(centres, centre_offsets, saliency).view(3, *t["out.saliency"].shape)
    for view in range(3):
        prefix = f"view{view}."
        _check_view(case, views, view, prefix)
        torch.testing.assert_close(
            targets[view].flatten()[t[f"idx.{prefix}target"].long()], t[f"out.{prefix}target"], rtol=0, atol=LOOK_UP
        )
        mean, rms = targets[view].mean(0), targets[view].square().mean(0).sqrt()
        torch.testing.assert_close(mean, t[f"chan_mean.{prefix}target"], rtol=0, atol=LOOK_UP)
        torch.testing.assert_close(rms, t[f"chan_rms.{prefix}target"], rtol=0, atol=LOOK_UP)
        torch.testing.assert_close(found[view], t[f"out.{prefix}saliency"], rtol=0, atol=SALIENCY)
    torch.testing.assert_close(found.mean(0), t["out.saliency"], rtol=0, atol=SALIENCY)
    torch.testing.assert_close(found.mean(0).softmax(-1), t["out.probability"], rtol=0, atol=SALIENCY)
