"""I2P-MAE's golden cases of its point operators: what each part of a case is held against."""

from __future__ import annotations

from pathlib import Path

import torch
from depth_views_golden import check_projection
from golden_cases import GoldenCase, golden_recipe
from torch import Tensor

from geo3d.nn.point_layers import FeaturePropagation, nearest_weights
from geo3d.ops import chamfer_distance, chamfer_loss, farthest_point_sample, knn

#: Stored values are float64 results rounded to float32: ours in float64 differ by that much of the largest.
_ROUNDED = 2.0**-24
#: Of a distance in float32: half of the relative error of its square, which is a sum of three rounded squares.
_FLOAT32 = 2.0**-22
#: Where a fine point coincides with a coarse one, the published d^2, a sum of products, is not 0 but some 1e-16, beside
#: 1e-8 that is added to it.
_PROPAGATED = 2e-7
#: Of a scalar that is stored in float64: the order of some hundred additions.
_LOSS = 1e-12


def check_point_ops(case: GoldenCase, folder: Path) -> None:
    """All parts of a case."""
    for check in PARTS.values():
        check(case)


def _whole(*clouds: Tensor) -> list[Tensor]:
    """Offsets of one cloud each."""
    return [torch.tensor([0, len(cloud)]) for cloud in clouds]


def _names(case: GoldenCase, prefix: str, suffix: str = "") -> list[str]:
    """What stands between prefix and suffix in the names of tensors."""
    found = [n for n in case.tensors if n.startswith(prefix) and n.endswith(suffix)]
    return sorted(n.removeprefix(prefix).removesuffix(suffix) for n in found)


def _stored(case: GoldenCase, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """What is stored of a value, flat, and the value at those places."""
    value, exact = value.flatten(), case.tensors[f"out.{name}"].flatten()
    return value[case.tensors[f"idx.{name}"].long()] if f"idx.{name}" in case.tensors else value, exact


def check_sampling(case: GoldenCase) -> None:
    """The same rows, by both rules for ties."""
    names = _names(case, "in.fps.")
    assert names
    for name in names:
        points = case.tensors[f"in.fps.{name}"]
        for rule, ties in (("fps_kernel", "published"), ("fps_first", "lowest")):
            expected = case.tensors[f"out.{rule}.{name}"].long()
            start = torch.tensor([case.meta["fps"]["start"]])
            rows = farthest_point_sample(points, *_whole(points), len(expected), start, ties, skip_near_origin=True)
            assert torch.equal(rows, expected), f"{name}, {ties} ties"


def check_neighbours(case: GoldenCase) -> None:
    """The same rows in the same order, and Euclidean distances."""
    names = _names(case, "in.knn.", ".query")
    assert names
    for name in names:
        query, points = case.tensors[f"in.knn.{name}.query"], case.tensors[f"in.knn.{name}.reference"]
        expected = case.tensors[f"out.knn.{name}.index"].long()
        index, squared = knn(query, points, *_whole(query, points), expected.shape[1], float32_order=True)
        assert torch.equal(index, expected), name
        distance, exact = _stored(case, f"knn.{name}.distance", squared.sqrt())
        assert ((distance - exact).abs() <= _FLOAT32 * exact).all(), name


def check_chamfer(case: GoldenCase) -> None:
    """Neighbours, distances, the loss and its gradients, in float64."""
    a, b = (case.tensors[f"in.chamfer.{side}"].double() for side in "ab")
    packed = [cloud.flatten(0, 1).requires_grad_() for cloud in (a, b)]
    offsets = [torch.arange(len(cloud) + 1) * cloud.shape[1] for cloud in (a, b)]
    found = chamfer_distance(*packed, *offsets)
    loss = chamfer_loss(*packed, *offsets)
    loss.backward()
    assert abs(loss.item() - case.tensors["out.chamfer.loss"].item()) < _LOSS
    for side, cloud, first in (("a", packed[0], offsets[1]), ("b", packed[1], offsets[0])):
        index = getattr(found, f"index_{side}").view(len(a), -1) - first[:-1, None]
        assert torch.equal(index, case.tensors[f"out.chamfer.index_{side}"].long())
        values = {"dist": getattr(found, f"distance_{side}"), "grad": cloud.grad}
        for label, value in values.items():
            value, exact = _stored(case, f"chamfer.{label}_{side}", value.detach())
            error = (value - exact).abs().max()
            assert error <= _ROUNDED * exact.abs().max(), f"{label}_{side}: {error:.1e}"


def check_propagation(case: GoldenCase) -> None:
    """Interpolated features beside those of the fine points, and the layer's output, in float64."""
    fine_xyz, coarse_xyz, fine, coarse = (
        case.tensors[f"in.propagation.{name}"].double()
        for name in ("dense_xyz", "coarse_xyz", "dense_features", "coarse_features")
    )
    offsets = [torch.arange(len(xyz) + 1) * xyz.shape[1] for xyz in (fine_xyz, coarse_xyz)]
    index, weights = nearest_weights(fine_xyz.flatten(0, 1), coarse_xyz.flatten(0, 1), *offsets)
    layer = FeaturePropagation(fine.shape[-1], coarse.shape[-1], case.tensors["out.propagation.output"].shape[-1], 1)
    draw = golden_recipe(case.path).draw
    state = {
        name: draw(f"fp.{name}", tuple(value.shape), str(value.dtype).removeprefix("torch."), "a")
        for name, value in layer.state_dict().items()
    }
    shapes = {f"fp.{name}": list(value.shape) for name, value in state.items()}
    assert shapes == case.meta["propagation_layout"]
    layer.load_state_dict(state)
    joined: list[Tensor] = []
    layer.fuse.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0]))
    with torch.no_grad():
        output = layer.double().eval()(fine.flatten(0, 1), coarse.flatten(0, 1), index, weights)
    for name, value in (("concatenated", joined[0]), ("output", output)):
        value, exact = _stored(case, f"propagation.{name}", value)
        error = (value - exact).abs().max()
        assert error <= _PROPAGATED * exact.abs().max(), f"{name}: {error:.1e}"


#: Part of a case -> its check.
PARTS = {
    "sampling": check_sampling,
    "neighbours": check_neighbours,
    "chamfer": check_chamfer,
    "propagation": check_propagation,
    "projection": check_projection,
}
