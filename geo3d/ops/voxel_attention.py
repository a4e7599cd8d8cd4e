"""Attention inside windows of voxels, with encodings looked up by differences of signals (Swin3D, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.ops.registry import Kernel, define_operator

SCHEMA = (
    "voxel_attention(Tensor query, Tensor key, Tensor value, Tensor order, Tensor offsets, Tensor? signals, "
    "Tensor? query_table, Tensor? key_table, Tensor? value_table, Tensor? bias_table, int[] bins, float scale) "
    "-> (Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "voxel_attention_backward(Tensor grad_out, Tensor grad_lse, Tensor lse, Tensor query, Tensor key, Tensor value, "
    " Tensor order, Tensor offsets, Tensor? signals, Tensor? query_table, Tensor? key_table, "
    "Tensor? value_table, Tensor? bias_table, int[] bins, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Padded pairs of the windows that the reference takes at once: its memory is bounded by some 100 floats for each and
# head, and more at once is slower.
_PAIRS_AT_ONCE = 32_768


def voxel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    offsets: Tensor,
    signals: Tensor | None = None,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
    value_table: Tensor | None = None,
    bins: Sequence[int] = (),
    scale: float | None = None,
    *,
    bias_table: Tensor | None = None,
) -> Tensor:
    """Multi-head attention among the voxels of each window, with learnt terms for how two voxels differ.

    The difference of the signals of query i and key j, in bins, chooses one row of a table for each axis a of the
    signals, ``row_a = sum(bins[:a]) + int(clamp(s_i[a] - s_j[a] + bins[a] / 2, 0, bins[a] - 1))``, in float32 and in
    this order of operations. With ``T`` the sum of a table's rows over the axes and ``q = scale * query``::

        e_ij = q_i . k_j + q_i . T_query + k_j . T_key        out_i = sum_j softmax_j(e_ij) (v_j + T_value)

    Three modes: contextual (signals and the three tables, as in Swin3D), a scalar bias (signals and ``bias_table``,
    whose rows are added to the logits), and plain (neither).

    Sums are accumulated in float32 (float64 for float64 input), and no array has an element for every pair of voxels.
    Differentiable with respect to query, key, value and tables; equal input gives equal bits whatever the number of
    threads, gradients included. Second derivatives keep all pairs in memory.

    Args:
        query: (N, H, D) float32, bfloat16, float16 or float64, any strides, as key and value.
        key: (N, H, D).
        value: (N, H, D).
        order: (N,) int64, the rows of all windows, window after window; each row once.
        offsets: (W + 1,) int64 or int32, where each window starts in ``order``; the last is N.
        signals: (N, A) float32, in units of bins; no gradient.
        query_table: (R, H, D) in query's dtype, R = sum(bins).
        key_table: (R, H, D); its term is not scaled.
        value_table: (R, H, D).
        bins: rows of the tables for each of the A axes.
        scale: of the queries; 1 / sqrt(D) where None.
        bias_table: (R, H) in query's dtype.

    Returns:
        (N, H, D) in query's dtype, contiguous; rows as in ``query``.

    Raises:
        TypeError: a dtype other than those above.
        InputError: shapes that do not fit each other, tensors on different devices, tables without signals or an
            incomplete set of them; and for tensors on the CPU an ``order`` that does not hold every row once,
            ``offsets`` that do not ascend from 0 to N, or signals that are not finite.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    out, _ = torch.ops.geo3d.voxel_attention.default(
        query,
        key,
        value,
        order,
        offsets,
        signals,
        query_table,
        key_table,
        value_table,
        bias_table,
        list(bins),
        scale,
    )
    return out


def _padded_windows(order: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of similar size together, padded to the largest: rows (B, n) and which of them are real (B, n)."""
    sizes = offsets.diff()
    count = sizes.tolist()
    windows = sorted((window for window, size in enumerate(count) if size), key=count.__getitem__)
    start = 0
    while start < len(windows):
        stop = start + 1
        while stop < len(windows) and (stop + 1 - start) * count[windows[stop]] ** 2 <= _PAIRS_AT_ONCE:
            stop += 1
        chosen = torch.tensor(windows[start:stop], device=order.device)
        place = torch.arange(count[windows[stop - 1]], device=order.device)
        inside = place < sizes[chosen].unsqueeze(1)
        yield order[offsets[chosen].unsqueeze(1) + place * inside], inside
        start = stop


def table_rows(signals: Tensor, bins: Sequence[int]) -> Tensor:
    """Rows of the tables for all pairs of a window: (..., n, A) float32 signals -> (..., A, n, n) int64.

    These are the published operations in the published order: which bin a difference on the edge of two falls into
    depends on how it was rounded.
    """
    length = torch.tensor(bins, dtype=torch.float32, device=signals.device).reshape(-1, 1, 1)
    first = torch.tensor([0, *accumulate(bins)][:-1], device=signals.device).reshape(-1, 1, 1)
    axes = signals.mT
    difference = axes.unsqueeze(-1) - axes.unsqueeze(-2)
    return torch.minimum((difference + length / 2).clamp(min=0), length - 1).long() + first


class _Windows:
    """Padded windows, B of n voxels, in the layout (B, H, n, ...), and what their pairs look up in tables.

    Args:
        rows, inside: see :func:`_padded_windows`.
        signals, bins: see :func:`voxel_attention`.
        heads: their number.
    """

    def __init__(self, rows: Tensor, inside: Tensor, signals: Tensor | None, bins: Sequence[int], heads: int) -> None:
        self.rows, self.inside = rows, inside
        self._indices: list[Tensor] = []
        self._length = sum(bins)
        if signals is not None:
            expanded = table_rows(signals[rows], bins).unsqueeze(1).expand(-1, heads, -1, -1, -1)
            self._indices = list(expanded.unbind(2))

    def take(self, tensor: Tensor) -> Tensor:
        """(N, H, ...) -> (B, H, n, ...)."""
        return tensor[self.rows].transpose(1, 2)

    def give(self, tensor: Tensor) -> Tensor:
        """(B, H, n, ...) -> (rows that are real, H, ...)."""
        return tensor.transpose(1, 2)[self.inside]

    def look_up_by_query(self, products: Tensor) -> Tensor:
        """(B, H, n, R) a query's products with all rows of a table -> (B, H, n, n) sums over the axes."""
        return sum(products.gather(-1, index) for index in self._indices)

    def look_up_by_key(self, products: Tensor) -> Tensor:
        """The same for products with keys."""
        return sum(products.gather(-1, index.mT).mT for index in self._indices)

    def histogram_by_query(self, weights: Tensor) -> Tensor:
        """(B, H, n, n) -> (B, H, n, R): the weights of a query's pairs, added up in the rows that the pairs look up."""
        empty = weights.new_zeros(*weights.shape[:-1], self._length)
        return sum(empty.scatter_add(-1, index, weights) for index in self._indices)

    def histogram_by_key(self, weights: Tensor) -> Tensor:
        """The same for a key's pairs."""
        empty = weights.new_zeros(*weights.shape[:-1], self._length)
        return sum(empty.scatter_add(-1, index.mT, weights.mT) for index in self._indices)

    def logits(
        self,
        query: Tensor,
        key: Tensor,
        query_table: Tensor | None,
        key_table: Tensor | None,
        bias_table: Tensor | None,
    ) -> Tensor:
        """(B, H, n, n), minus infinity for keys that are padding; ``query`` is scaled."""
        logits = query @ key.mT
        if query_table is not None and key_table is not None:
            logits = logits + self.look_up_by_query(_products(query, query_table))
            logits = logits + self.look_up_by_key(_products(key, key_table))
        if bias_table is not None:
            bias = bias_table.mT.unsqueeze(1).expand(*query.shape[:-1], -1)
            logits = logits + self.look_up_by_query(bias)
        return logits.masked_fill(~self.inside[:, None, None], -torch.inf)


def _products(tensor: Tensor, table: Tensor) -> Tensor:
    """(B, H, n, D) with (R, H, D) -> (B, H, n, R)."""
    return tensor @ table.permute(1, 2, 0)


def voxel_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    offsets: Tensor,
    signals: Tensor | None,
    query_table: Tensor | None,
    key_table: Tensor | None,
    value_table: Tensor | None,
    bias_table: Tensor | None,
    bins: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What ``geo3d::voxel_attention`` computes, in plain PyTorch: the result, and (N, H) log-sum-exp of the logits."""
    dtype, compute_dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(compute_dtype) * scale
    key, value = key.to(compute_dtype), value.to(compute_dtype)
    tables = (query_table, key_table, value_table, bias_table)
    query_table, key_table, value_table, bias_table = (None if t is None else t.to(compute_dtype) for t in tables)
    all_rows, outs, lses = [order[:0]], [value[:0]], [value[:0, :, 0]]
    for rows, inside in _padded_windows(order, offsets):
        windows = _Windows(rows, inside, signals, bins, query.shape[1])
        logits = windows.logits(windows.take(scaled), windows.take(key), query_table, key_table, bias_table)
        lse = logits.logsumexp(-1)
        probabilities = (logits - lse.unsqueeze(-1)).exp()
        out = probabilities @ windows.take(value)
        if value_table is not None:
            out = out + windows.histogram_by_query(probabilities) @ value_table.transpose(0, 1)
        all_rows.append(rows[inside])
        outs.append(windows.give(out))
        lses.append(windows.give(lse))
    back = torch.cat(all_rows).argsort()
    return torch.cat(outs)[back].to(dtype), torch.cat(lses)[back]


def voxel_attention_backward_reference(
    grad_out: Tensor,
    grad_lse: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    offsets: Tensor,
    signals: Tensor | None,
    query_table: Tensor | None,
    key_table: Tensor | None,
    value_table: Tensor | None,
    bias_table: Tensor | None,
    bins: Sequence[int],
    scale: float,
) -> tuple[Tensor, ...]:
    """What ``geo3d::voxel_attention_backward`` computes, in plain PyTorch.

    Returns:
        Gradients of query, key, value, query_table, key_table, value_table and bias_table; an empty tensor for a table
        that is not there.
    """
    dtype, compute_dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    floats = (grad_out, grad_lse, lse, query, key, value, query_table, key_table, value_table, bias_table)
    grad_out, grad_lse, lse, query, key, value, query_table, key_table, value_table, bias_table = (
        None if t is None else t.to(compute_dtype) for t in floats
    )
    scaled = query * scale
    tables = (query_table, key_table, value_table, bias_table)
    of_rows = [torch.zeros_like(t) for t in (query, key, value)]
    of_query_table, of_key_table, of_value_table, of_bias_table = of_tables = [
        query.new_zeros(0) if t is None else torch.zeros_like(t) for t in tables
    ]
    for rows, inside in _padded_windows(order, offsets):
        windows = _Windows(rows, inside, signals, bins, query.shape[1])
        q, k, v, g_out = (windows.take(t) for t in (scaled, key, value, grad_out))
        logits = windows.logits(q, k, query_table, key_table, bias_table)
        probabilities = (logits - windows.take(lse).unsqueeze(-1)).exp() * inside[:, None, :, None]
        of_probabilities = g_out @ v.mT
        if value_table is not None:
            of_probabilities = of_probabilities + windows.look_up_by_query(_products(g_out, value_table))
        common = (probabilities * of_probabilities).sum(-1) - windows.take(grad_lse)
        of_logits = probabilities * (of_probabilities - common.unsqueeze(-1))
        of_q, of_k, of_v = of_logits @ k, of_logits.mT @ q, probabilities.mT @ g_out
        if query_table is not None and key_table is not None:
            by_query, by_key = windows.histogram_by_query(of_logits), windows.histogram_by_key(of_logits)
            of_q = of_q + by_query @ query_table.transpose(0, 1)
            of_k = of_k + by_key @ key_table.transpose(0, 1)
            of_query_table += torch.einsum("bhnr,bhnd->rhd", by_query, q)
            of_key_table += torch.einsum("bhnr,bhnd->rhd", by_key, k)
            values = windows.histogram_by_query(probabilities)
            of_value_table += torch.einsum("bhnr,bhnd->rhd", values, g_out)
        if bias_table is not None:
            of_bias_table += windows.histogram_by_query(of_logits).sum((0, 2)).mT
        real = rows[inside]
        for gradient, part in zip(of_rows, (of_q * scale, of_k, of_v)):
            gradient[real] = windows.give(part)
    return tuple(t.to(dtype) for t in (*of_rows, *of_tables))


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    offsets: Tensor,
    signals: Tensor | None,
    query_table: Tensor | None,
    key_table: Tensor | None,
    value_table: Tensor | None,
    bias_table: Tensor | None,
    bins: Sequence[int],
    scale: float,
    name: str = "voxel_attention",
) -> None:
    floats = {"query": query, "key": key, "value": value}
    tables = {"query_table": query_table, "key_table": key_table, "value_table": value_table}
    given = {label: table for label, table in tables.items() if table is not None}
    _check_modes(name, signals, given, bias_table, bins)
    if query.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"{name}: query must be float32, bfloat16, float16 or float64, got {query.dtype}")
    if query.ndim != 3 or query.shape[2] == 0:
        raise InputError(f"{name}: query must be (N, H, D) with D at least 1, got {tuple(query.shape)}")
    count, heads, channels = query.shape
    rows = sum(bins)
    shapes = dict.fromkeys(floats, (count, heads, channels)) | dict.fromkeys(given, (rows, heads, channels))
    floats |= given
    if bias_table is not None:
        floats["bias_table"], shapes["bias_table"] = bias_table, (rows, heads)
    for label, tensor in floats.items():
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name}: {label} must be {query.dtype} as query, got {tensor.dtype}")
        _check_shape(name, label, tensor, shapes[label])
    if order.dtype != torch.int64:
        raise TypeError(f"{name}: order must be int64, got {order.dtype}")
    if offsets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: offsets must be int64 or int32, got {offsets.dtype}")
    _check_shape(name, "order", order, (count,))
    if offsets.ndim != 1 or offsets.shape[0] == 0:
        raise InputError(f"{name}: offsets must be (W + 1,), got {tuple(offsets.shape)}")
    others = floats | {"order": order, "offsets": offsets}
    if signals is not None:
        if signals.dtype != torch.float32:
            raise TypeError(f"{name}: signals must be float32, got {signals.dtype}")
        _check_shape(name, "signals", signals, (count, len(bins)))
        others["signals"] = signals
    for label, tensor in others.items():
        if tensor.device != query.device:
            raise InputError(f"{name}: query is on {query.device} but {label} on {tensor.device}")


def _check_shape(name: str, label: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if any(isinstance(size, torch.SymInt) for size in (*tensor.shape, *expected)) and tensor.ndim == len(expected):
        for size, other in zip(tensor.shape, expected):
            torch._check(size == other)  # of symbols that cannot be compared yet, when the program runs
    elif tuple(tensor.shape) != expected:
        raise InputError(f"{name}: {label} must be {expected} to fit the rest, got {tuple(tensor.shape)}")


def _check_modes(
    name: str, signals: Tensor | None, given: dict[str, Tensor], bias_table: Tensor | None, bins: Sequence[int]
) -> None:
    """A set of tables is whole, and comes with signals and bins."""
    if given and (len(given) < 3 or bias_table is not None):
        raise InputError(f"{name}: give query_table, key_table and value_table, or bias_table alone, or none of them")
    has_tables = bool(given) or bias_table is not None
    if has_tables != (signals is not None) or has_tables != bool(bins):
        raise InputError(f"{name}: tables, signals and bins come together or not at all")
    if any(length < 1 for length in bins):
        raise InputError(f"{name}: every axis needs at least one bin, got {list(bins)}")


def _check_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    offsets: Tensor,
    signals: Tensor | None,
    *rest: Any,
    name: str = "voxel_attention",
) -> None:
    count = len(query)
    if offsets[0] != 0 or offsets[-1] != count or (offsets.diff() < 0).any():
        raise InputError(f"{name}: offsets must ascend from 0 to the number of voxels, {count}")
    seen = torch.zeros(count, dtype=torch.bool)
    if count and (order.min() < 0 or order.max() >= count or not seen.index_fill_(0, order, True).all()):
        raise InputError(f"{name}: order must hold each row from 0 to {count - 1} once")
    if signals is not None and not signals.isfinite().all():
        raise InputError(f"{name}: signals must be finite; the first row that is not is {_first_bad_row(signals)}")


def _first_bad_row(signals: Tensor) -> int:
    return int((~signals.isfinite()).any(1).nonzero()[0])


def _fake(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=lse_dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.bins, ctx.scale = inputs
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    lse, *tensors = ctx.saved_tensors
    of_query, of_key, of_value, *of_tables = torch.ops.geo3d.voxel_attention_backward.default(
        grad_out, grad_lse, lse, *tensors, ctx.bins, ctx.scale
    )
    of_tables = (gradient if table is not None else None for gradient, table in zip(of_tables, tensors[6:]))
    return of_query, of_key, of_value, None, None, None, *of_tables, None, None


def _backward_check(grad_out: Tensor, grad_lse: Tensor, lse: Tensor, query: Tensor, *args: Any) -> None:
    name = "voxel_attention_backward"
    _check(query, *args, name=name)
    for label, tensor, like in (("grad_out", grad_out, query), ("lse", lse, query[..., 0])):
        _check_shape(name, label, tensor, tuple(like.shape))
        if tensor.device != query.device:
            raise InputError(f"{name}: query is on {query.device} but {label} on {tensor.device}")
    _check_shape(name, "grad_lse", grad_lse, tuple(lse.shape))
    if grad_out.dtype != query.dtype:
        raise TypeError(f"{name}: grad_out must be {query.dtype} as query, got {grad_out.dtype}")
    if lse.dtype not in (torch.float32, torch.float64) or grad_lse.dtype != lse.dtype:
        raise TypeError(f"{name}: lse and grad_lse must both be float32 or both float64")


def _backward_check_values(grad_out: Tensor, grad_lse: Tensor, lse: Tensor, query: Tensor, *args: Any) -> None:
    _check_values(query, *args, name="voxel_attention_backward")


def _backward_fake(grad_out: Tensor, grad_lse: Tensor, lse: Tensor, query: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _, _, _, _, _, *tables, _, _ = args
    of_tables = (query.new_empty(0 if table is None else table.shape) for table in tables)
    return *(query.new_empty(query.shape) for _ in range(3)), *of_tables


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, grad_lse, _, *tensors, ctx.bins, ctx.scale = inputs
    ctx.save_for_backward(grad_out, grad_lse, *tensors)


def _backward_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by automatic differentiation of the reference.

    ``lse`` is a function of the other arguments here, so what depends on it is part of their derivatives.
    """
    with torch.enable_grad():
        saved = [
            tensor.detach().requires_grad_() if tensor is not None and tensor.is_floating_point() else tensor
            for tensor in ctx.saved_tensors
        ]
        grad_out, grad_lse, *tensors = saved
        results = voxel_attention_reference(*tensors, ctx.bins, ctx.scale)
        query, key, value, _, _, _, *tables = tensors
        leaves = [(t, c) for t, c in zip((query, key, value, *tables), cotangents) if t is not None]
        first = torch.autograd.grad(results, [t for t, _ in leaves], (grad_out, grad_lse), create_graph=True)
        wanted = [grad_out, grad_lse, *(t for t, _ in leaves)]
        second = torch.autograd.grad(first, wanted, [c for _, c in leaves], allow_unused=True)
    of = {id(tensor): gradient for tensor, gradient in zip(wanted, second)}
    of_tensors = (of.get(id(t)) for t in (query, key, value, None, None, None, *tables))
    return of[id(grad_out)], of[id(grad_lse)], None, *of_tensors, None, None


# What the CUDA kernels' registers and arguments hold; see cuda_ext/voxel_attention.cu.
_MAX_CHANNELS_ON_CUDA = 64
_MAX_AXES_ON_CUDA = 64
_MAX_BINS_ON_CUDA = 2**20
_MAX_HEADS_ON_CUDA = 65_535


def _refuse_on_cuda(rows: Tensor, *args: Any) -> str | None:
    """``rows`` (N, H, D), the first argument of either operator; bins are the last but one."""
    _, heads, channels = rows.shape
    if channels > _MAX_CHANNELS_ON_CUDA:
        return f"{channels} channels a head are over {_MAX_CHANNELS_ON_CUDA}"
    if heads > _MAX_HEADS_ON_CUDA:
        return f"{heads} heads are over {_MAX_HEADS_ON_CUDA}"
    bins = args[-2] if args else ()
    if len(bins) > _MAX_AXES_ON_CUDA:
        return f"{len(bins)} axes are over {_MAX_AXES_ON_CUDA}"
    if any(length > _MAX_BINS_ON_CUDA for length in bins):
        return f"{max(bins)} bins of an axis are over {_MAX_BINS_ON_CUDA}"
    return None


_KERNELS = (Kernel("cpu", _DTYPES), Kernel("cuda", _DTYPES, _refuse_on_cuda))

define_operator(
    SCHEMA,
    reference=voxel_attention_reference,
    check=_check,
    check_values=_check_values,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    kernels=_KERNELS,
)
define_operator(
    BACKWARD_SCHEMA,
    reference=voxel_attention_backward_reference,
    check=_backward_check,
    check_values=_backward_check_values,
    fake=_backward_fake,
    setup_context=_backward_setup_context,
    backward=_backward_backward,
    kernels=_KERNELS,
)
