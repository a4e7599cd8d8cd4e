"""Sparse convolution over a kernel map: submanifold, strided, and the transpose of either."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geo3d.ops import _spconv
from geo3d.ops.kernel_map import check_map, check_map_values, transpose_kernel_map
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = "sparse_conv(Tensor feats, Tensor weight, Tensor neighbours, Tensor? transposed=None) -> Tensor"
WEIGHT_SCHEMA = (
    "sparse_conv_weight_gradient(Tensor feats, Tensor gradient, Tensor neighbours, Tensor? transposed=None) -> Tensor"
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sparse_conv(feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> Tensor:
    """Sum over the offsets k of ``feats[neighbours[k]] @ weight[k]``, where there is a neighbour.

    Differentiable any number of times with respect to ``feats`` and ``weight``; all gradients are bitwise the same
    whatever the number of threads. Products are summed in float32 (float64 for float64) and rounded once.

    On CUDA, spconv can take the place of the package's own kernel (:func:`geo3d.ops.prefer_backend`), except for the
    gradient of the weight.

    The transposed convolution, from outputs back to inputs, is ``sparse_conv(feats, weight, transposed, neighbours)``.

    Args:
        feats: (N, Cin) features of the input voxels: float32, bfloat16, float16 or float64.
        weight: (K, Cin, Cout) in the dtype of ``feats``, in the order of :func:`geo3d.ops.kernel_offsets`.
        neighbours: (K, M) int32 rows of ``feats``, -1 where there is none; from :func:`geo3d.ops.kernel_map`.
        transposed: (K, N) int32 of :func:`geo3d.ops.transpose_kernel_map`. Only the gradient of ``feats`` reads it, and
            makes it anew where it is not given.

    Returns:
        (M, Cout) features of the output voxels, in the dtype of ``feats``.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: shapes that do not fit each other, or tensors on different devices.
        InputError: a row of ``neighbours`` that ``feats`` does not have; tensors on the CPU only.
    """
    return torch.ops.geo3d.sparse_conv.default(feats, weight, neighbours, transposed)


def sparse_conv_reference(
    feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None
) -> Tensor:
    """What ``geo3d::sparse_conv`` computes, in plain PyTorch: gather, multiply and add, one offset after the other."""
    compute_dtype = torch.promote_types(feats.dtype, torch.float32)
    feats_in, weight = feats.to(compute_dtype), weight.to(compute_dtype)
    result = feats_in.new_zeros(neighbours.shape[1], weight.shape[2])
    for rows, matrix in zip(neighbours, weight):
        (output,) = (rows >= 0).nonzero(as_tuple=True)
        result = result.index_add_(0, output, feats_in.index_select(0, rows[output]) @ matrix)
    return result.to(feats.dtype)


def sparse_conv_weight_gradient(
    feats: Tensor, gradient: Tensor, neighbours: Tensor, transposed: Tensor | None = None
) -> Tensor:
    """For each offset k, ``feats[neighbours[k]].T @ gradient`` over the outputs that have a neighbour there.

    Args:
        feats: (N, Cin), as :func:`sparse_conv` takes them.
        gradient: (M, Cout) of its result, in the dtype of ``feats``.
        neighbours, transposed: as :func:`sparse_conv` takes them.

    Returns:
        (K, Cin, Cout) gradient of the weight, in the dtype of ``feats``.

    Raises:
        TypeError, ValueError, InputError: as :func:`sparse_conv`.
    """
    return torch.ops.geo3d.sparse_conv_weight_gradient.default(feats, gradient, neighbours, transposed)


def sparse_conv_weight_gradient_reference(
    feats: Tensor, gradient: Tensor, neighbours: Tensor, transposed: Tensor | None = None
) -> Tensor:
    """What ``geo3d::sparse_conv_weight_gradient`` computes, in plain PyTorch."""
    compute_dtype = torch.promote_types(feats.dtype, torch.float32)
    feats_in, gradient = feats.to(compute_dtype), gradient.to(compute_dtype)
    result = feats_in.new_zeros(neighbours.shape[0], feats.shape[1], gradient.shape[1])
    for k, rows in enumerate(neighbours):
        (output,) = (rows >= 0).nonzero(as_tuple=True)
        result[k] = feats_in.index_select(0, rows[output]).mT @ gradient.index_select(0, output)
    return result.to(feats.dtype)


def _check_common(name: str, feats: Tensor, second: Tensor, label: str, neighbours: Tensor, transposed: Any) -> None:
    if feats.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"{name}: feats must be float32, bfloat16, float16 or float64, got {feats.dtype}")
    if second.dtype != feats.dtype:
        raise TypeError(f"{name}: {label} is {second.dtype} but feats are {feats.dtype}")
    if feats.ndim != 2:
        raise ValueError(f"{name}: feats must be (N, Cin), got {tuple(feats.shape)}")
    check_map(name, "neighbours", neighbours)
    tensors = {label: second, "neighbours": neighbours}
    if transposed is not None:
        check_map(name, "transposed", transposed)
        expected = (neighbours.shape[0], feats.shape[0])
        if tuple(transposed.shape) != expected:
            raise ValueError(f"{name}: transposed must be (K, N) = {expected}, got {tuple(transposed.shape)}")
        tensors["transposed"] = transposed
    for other, tensor in tensors.items():
        if tensor.device != feats.device:
            raise ValueError(f"{name}: feats are on {feats.device} but {other} on {tensor.device}")


def _check(feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> None:
    _check_common("sparse_conv", feats, weight, "weight", neighbours, transposed)
    expected = (neighbours.shape[0], feats.shape[1])
    if weight.ndim != 3 or tuple(weight.shape[:2]) != expected:
        raise ValueError(
            f"sparse_conv: weight must be (K, Cin, Cout) with K, Cin = {expected}, got {tuple(weight.shape)}"
        )


def _check_values(feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> None:
    check_map_values("sparse_conv", "neighbours", neighbours, len(feats))


def _fake(feats: Tensor, weight: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> Tensor:
    return feats.new_empty((neighbours.shape[1], weight.shape[2]))


def _check_weight(feats: Tensor, gradient: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> None:
    name = "sparse_conv_weight_gradient"
    _check_common(name, feats, gradient, "gradient", neighbours, transposed)
    if gradient.ndim != 2 or gradient.shape[0] != neighbours.shape[1]:
        raise ValueError(
            f"{name}: gradient must be (M, Cout) with M = {neighbours.shape[1]}, got {tuple(gradient.shape)}"
        )


def _check_weight_values(feats: Tensor, gradient: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> None:
    check_map_values("sparse_conv_weight_gradient", "neighbours", neighbours, len(feats))


def _fake_weight(feats: Tensor, gradient: Tensor, neighbours: Tensor, transposed: Tensor | None = None) -> Tensor:
    return feats.new_empty((neighbours.shape[0], feats.shape[1], gradient.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _transposed_of(neighbours: Tensor, transposed: Tensor | None, count: int) -> Tensor:
    return transpose_kernel_map(neighbours, count) if transposed is None else transposed


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Towards the features the convolution runs over the transposed map, with transposed weights."""
    feats, weight, neighbours, transposed = ctx.saved_tensors
    of_feats = of_weight = None
    if ctx.needs_input_grad[0]:
        transposed = _transposed_of(neighbours, transposed, feats.shape[0])
        of_feats = sparse_conv(gradient, weight.mT, transposed, neighbours)
    if ctx.needs_input_grad[1]:
        of_weight = sparse_conv_weight_gradient(feats, gradient, neighbours, transposed)
    return of_feats, of_weight, None, None


def _backward_of_weight_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """``gradient`` is shaped as the weight; the operator is linear in the features and in the output's gradient."""
    feats, of_output, neighbours, transposed = ctx.saved_tensors
    of_feats = of_gradient = None
    if ctx.needs_input_grad[0]:
        transposed = _transposed_of(neighbours, transposed, feats.shape[0])
        of_feats = sparse_conv(of_output, gradient.mT, transposed, neighbours)
    if ctx.needs_input_grad[1]:
        of_gradient = sparse_conv(feats, gradient, neighbours, transposed)
    return of_feats, of_gradient, None, None


define_operator(
    SCHEMA,
    reference=sparse_conv_reference,
    check=_check,
    fake=_fake,
    kernels=(
        Kernel("cpu", _DTYPES),
        Kernel("cuda", _DTYPES),
        # spconv rounds 16-bit sums after each offset, and which of its algorithms runs is timed anew in each process.
        Kernel(
            "cuda",
            (torch.float32,),
            refuse=_spconv.refuse,
            deterministic=False,
            name="spconv",
            function=_spconv.sparse_conv,
            why_unavailable=_spconv.why_unavailable,
        ),
    ),
    check_values=_check_values,
    setup_context=_setup_context,
    backward=_backward,
)
define_operator(
    WEIGHT_SCHEMA,
    reference=sparse_conv_weight_gradient_reference,
    check=_check_weight,
    fake=_fake_weight,
    kernels=(Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES)),
    check_values=_check_weight_values,
    setup_context=_setup_context,
    backward=_backward_of_weight_gradient,
)
