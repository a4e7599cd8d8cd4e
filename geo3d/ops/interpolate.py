"""Weighted sums of neighbours' features: interpolation from points to queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = "interpolate(Tensor feats, Tensor index, Tensor weight) -> Tensor"
FEATS_SCHEMA = "interpolate_feats_gradient(Tensor gradient, Tensor index, Tensor weight, SymInt count) -> Tensor"
WEIGHT_SCHEMA = "interpolate_weight_gradient(Tensor feats, Tensor gradient, Tensor index) -> Tensor"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_EPSILON = 1e-8  # metres or voxels, as the coordinates are; keeps the weight of a point at the query finite


def inverse_distance_weights(squared_distance: Tensor) -> Tensor:
    """Weights 1 / (distance + 1e-8), with the Euclidean distance and not its square, normalised to a sum of one.

    Args:
        squared_distance: (Q, J) from :func:`geo3d.ops.knn`; infinite where there is no neighbour.

    Returns:
        (Q, J) weights in the same dtype; zero where there is no neighbour, so a row without any is all zero.
    """
    weight = 1 / (squared_distance.sqrt() + _EPSILON)
    total = weight.sum(1, keepdim=True)
    return weight / torch.where(total > 0, total, 1)


def interpolate(feats: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sum over j of ``weight[q, j] * feats[index[q, j]]``, where the index is not -1.

    Differentiable any number of times with respect to ``feats`` and ``weight``; all gradients are bitwise the same
    whatever the number of threads, on CUDA where ``torch.use_deterministic_algorithms`` asks for it. Sums are in
    float32 (float64 for float64) and rounded once.

    Args:
        feats: (P, C) features of the points: float32, bfloat16, float16 or float64.
        index: (Q, J) int64 rows of ``feats``, -1 for none; from :func:`geo3d.ops.knn`.
        weight: (Q, J) in float32, or in the dtype of ``feats``; from :func:`inverse_distance_weights`.

    Returns:
        (Q, C) in the dtype of ``feats``.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: shapes that do not fit each other, or tensors on different devices.
        InputError: an index that ``feats`` does not have; tensors on the CPU only.
    """
    return torch.ops.geo3d.interpolate.default(feats, index, weight)


def interpolate_reference(feats: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """What ``geo3d::interpolate`` computes, in plain PyTorch."""
    compute_dtype = torch.promote_types(feats.dtype, torch.float32)
    result = (_gather(feats, index).to(compute_dtype) * weight.to(compute_dtype).unsqueeze(-1)).sum(1)
    return result.to(feats.dtype)


def _gather(feats: Tensor, index: Tensor) -> Tensor:
    """(Q, J, C) rows of ``feats``; zeros where the index is -1, which names the row that is appended here."""
    return torch.cat([feats, feats.new_zeros(1, feats.shape[1])])[index]


def interpolate_feats_gradient(gradient: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    """The transpose of :func:`interpolate`: row p sums ``weight[q, j] * gradient[q]`` over all ``index[q, j] == p``.

    Args:
        gradient: (Q, C) of its result.
        index, weight: as :func:`interpolate` takes them.
        count: number of points P.

    Returns:
        (P, C) in the dtype of ``gradient``.

    Raises:
        TypeError, ValueError, InputError: as :func:`interpolate`.
    """
    return torch.ops.geo3d.interpolate_feats_gradient.default(gradient, index, weight, count)


def interpolate_feats_gradient_reference(gradient: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    """What ``geo3d::interpolate_feats_gradient`` computes, in plain PyTorch."""
    compute_dtype = torch.promote_types(gradient.dtype, torch.float32)
    terms = gradient.to(compute_dtype).unsqueeze(1) * weight.to(compute_dtype).unsqueeze(-1)  # (Q, J, C)
    result = terms.new_zeros(count + 1, gradient.shape[1])  # the last row takes what has index -1
    rows = torch.where(index < 0, count, index).flatten()
    return result.index_add(0, rows, terms.flatten(0, 1))[:count].to(gradient.dtype)


def interpolate_weight_gradient(feats: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
    """Scalar products of ``feats[index[q, j]]`` with ``gradient[q]``; zero where the index is -1.

    Args:
        feats: (P, C), as :func:`interpolate` takes them.
        gradient: (Q, C) of its result, in the dtype of ``feats``.
        index: (Q, J) int64.

    Returns:
        (Q, J) in the dtype of ``feats``.

    Raises:
        TypeError, ValueError, InputError: as :func:`interpolate`.
    """
    return torch.ops.geo3d.interpolate_weight_gradient.default(feats, gradient, index)


def interpolate_weight_gradient_reference(feats: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
    """What ``geo3d::interpolate_weight_gradient`` computes, in plain PyTorch."""
    compute_dtype = torch.promote_types(feats.dtype, torch.float32)
    products = _gather(feats, index).to(compute_dtype) * gradient.to(compute_dtype).unsqueeze(1)
    return products.sum(2).to(feats.dtype)


def _check_index(name: str, label: str, tensor: Tensor, index: Tensor) -> None:
    if tensor.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"{name}: {label} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    if tensor.ndim != 2:
        raise ValueError(f"{name}: {label} must be (N, C), got {tuple(tensor.shape)}")
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: index must be int64, got {index.dtype}")
    if index.ndim != 2:
        raise ValueError(f"{name}: index must be (Q, J), got {tuple(index.shape)}")
    _check_device(name, label, tensor, "index", index)


def _check_device(name: str, label: str, tensor: Tensor, other_label: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: {label} are on {tensor.device} but {other_label} on {other.device}")


def _check_weight(name: str, tensor: Tensor, index: Tensor, weight: Tensor) -> None:
    if weight.dtype not in (torch.promote_types(tensor.dtype, torch.float32), tensor.dtype):
        raise TypeError(f"{name}: weight must be float32 or {tensor.dtype}, got {weight.dtype}")
    if weight.shape != index.shape:
        raise ValueError(f"{name}: weight must be (Q, J) = {tuple(index.shape)}, got {tuple(weight.shape)}")
    _check_device(name, "indices", index, "weight", weight)


def _check_gradient(name: str, gradient: Tensor, index: Tensor) -> None:
    if gradient.ndim != 2 or gradient.shape[0] != index.shape[0]:
        raise ValueError(f"{name}: gradient must be (Q, C) with Q = {index.shape[0]}, got {tuple(gradient.shape)}")


def _check_range(name: str, index: Tensor, count: int) -> None:
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in index.aminmax())
    if low < -1 or high >= count:
        raise InputError(f"{name}: index must be from -1 (none) to {count - 1}, got {low} to {high}")


def _check(feats: Tensor, index: Tensor, weight: Tensor) -> None:
    _check_index("interpolate", "feats", feats, index)
    _check_weight("interpolate", feats, index, weight)


def _check_values(feats: Tensor, index: Tensor, weight: Tensor) -> None:
    _check_range("interpolate", index, feats.shape[0])


def _check_feats_gradient(gradient: Tensor, index: Tensor, weight: Tensor, count: int) -> None:
    name = "interpolate_feats_gradient"
    _check_index(name, "gradient", gradient, index)
    _check_weight(name, gradient, index, weight)
    _check_gradient(name, gradient, index)
    if count < 0:
        raise ValueError(f"{name}: count must not be negative, got {count}")


def _check_feats_gradient_values(gradient: Tensor, index: Tensor, weight: Tensor, count: int) -> None:
    _check_range("interpolate_feats_gradient", index, count)


def _check_weight_gradient(feats: Tensor, gradient: Tensor, index: Tensor) -> None:
    name = "interpolate_weight_gradient"
    _check_index(name, "feats", feats, index)
    _check_gradient(name, gradient, index)
    if gradient.dtype != feats.dtype:
        raise TypeError(f"{name}: gradient is {gradient.dtype} but feats are {feats.dtype}")
    if gradient.shape[1] != feats.shape[1]:
        raise ValueError(f"{name}: gradient has {gradient.shape[1]} channels but feats {feats.shape[1]}")
    _check_device(name, "feats", feats, "gradient", gradient)


def _check_weight_gradient_values(feats: Tensor, gradient: Tensor, index: Tensor) -> None:
    _check_range("interpolate_weight_gradient", index, feats.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
    feats, index, weight = ctx.saved_tensors
    of_feats = of_weight = None
    if ctx.needs_input_grad[0]:
        of_feats = interpolate_feats_gradient(of_output, index, weight, feats.shape[0])
    if ctx.needs_input_grad[2]:
        of_weight = interpolate_weight_gradient(feats, of_output, index).to(weight.dtype)
    return of_feats, None, of_weight


def _backward_of_feats_gradient(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
    gradient, index, weight = ctx.saved_tensors
    of_gradient = of_weight = None
    if ctx.needs_input_grad[0]:
        of_gradient = interpolate(of_output, index, weight)
    if ctx.needs_input_grad[2]:
        of_weight = interpolate_weight_gradient(of_output, gradient, index).to(weight.dtype)
    return of_gradient, None, of_weight, None


def _backward_of_weight_gradient(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
    feats, gradient, index = ctx.saved_tensors
    of_feats = of_gradient = None
    if ctx.needs_input_grad[0]:
        of_feats = interpolate_feats_gradient(gradient, index, of_output, feats.shape[0])
    if ctx.needs_input_grad[1]:
        of_gradient = interpolate(feats, index, of_output)
    return of_feats, of_gradient, None


def _fake(feats: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return feats.new_empty((index.shape[0], feats.shape[1]))


def _fake_feats_gradient(gradient: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    return gradient.new_empty((count, gradient.shape[1]))


def _fake_weight_gradient(feats: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
    return feats.new_empty(index.shape)


define_operator(
    SCHEMA,
    reference=interpolate_reference,
    check=_check,
    fake=_fake,
    kernels=(Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES)),
    check_values=_check_values,
    setup_context=_setup_context,
    backward=_backward,
)
define_operator(
    FEATS_SCHEMA,
    reference=interpolate_feats_gradient_reference,
    check=_check_feats_gradient,
    fake=_fake_feats_gradient,
    kernels=(Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES, deterministic=False)),
    check_values=_check_feats_gradient_values,
    setup_context=_setup_context,
    backward=_backward_of_feats_gradient,
)
define_operator(
    WEIGHT_SCHEMA,
    reference=interpolate_weight_gradient_reference,
    check=_check_weight_gradient,
    fake=_fake_weight_gradient,
    kernels=(Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES)),
    check_values=_check_weight_gradient_values,
    setup_context=_setup_context,
    backward=_backward_of_weight_gradient,
)
