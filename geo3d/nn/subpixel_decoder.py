"""The last decoder over a dense grid, computed from its coarse cells, with few fine maps in memory.

What it computes is ``VolumeUp(stride=4, skip=False)`` and a 1 x 1 x 1 convolution. Its first 3 x 3 x 3 convolution
reads a map that a transposed convolution has just made of coarse cells; both are linear, so that their composition
reads the cells themselves. A fine voxel's neighbourhood touches 1.5 cells along each axis on average: 3.4 cells instead
of 27 voxels. Norms and activations work in place; what can be had again from their results is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.volume_decoder import SLOPE, VolumeUp

#: Fine voxels along a side of a cell.
CELL = 4
_EPS = 1e-5
_CL = torch.channels_last_3d
#: Values of a map that are worked on at once, so that what comes between stays in the cache.
_AT_ONCE = 1 << 19

# Along an axis, an *edge* kernel reads the two cells j - 1 and j and writes the fine voxels 4 j - 1 and 4 j; a *middle*
# kernel reads cell j and writes 4 j + 1 and 4 j + 2. Its slots, (cell, voxel) of edges and then voxels of middles, sum
# products of the transposed convolution's kernel at s and the convolution's at t: [(s, t), ...].
_SLOTS = (
    ((2, 0), (3, 1)),
    ((3, 0),),
    ((0, 2),),
    ((0, 1), (1, 2)),
    ((0, 0), (1, 1), (2, 2)),
    ((1, 0), (2, 1), (3, 2)),
)
#: Kind of kernel -> its slots, its cells.
_KINDS = ((slice(0, 4), 2), (slice(4, 6), 1))
#: (kind, voxel of its two) -> the first of the fine voxels along an axis that it writes, and the place of the first.
_WRITES = {(0, 0): (3, 1), (0, 1): (0, 0), (1, 0): (1, 0), (1, 1): (2, 0)}
#: Voxels at the low end of an axis, between, at the high end -> the taps of a convolution that lie inside.
_INSIDE = (slice(1, 3), slice(0, 3), slice(0, 2))
_ENDS = (slice(0, 1), slice(1, -1), slice(-1, None))


def _selection(like: Tensor) -> Tensor:
    """(6, 4 * 3): which products each slot sums."""
    chosen = like.new_zeros(6, CELL, 3)
    for slot, pairs in enumerate(_SLOTS):
        for s, t in pairs:
            chosen[slot, s, t] = 1
    return chosen.flatten(1)


def composed_kernels(transposed: Tensor, conv: Tensor) -> list[Tensor]:
    """Kernels over cells that do what a transposed convolution and a convolution do one after the other.

    Args:
        transposed: (C, M, 4, 4, 4) of ``nn.ConvTranspose3d(C, M, 4, 4)``.
        conv: (O, M, 3, 3, 3) of ``nn.Conv3d(M, O, 3, padding=1)``.

    Returns:
        Eight, of the kinds edge and middle along x, y and z: (8 * O, C, kx, ky, kz), of 2 and 1 cells.
    """
    c, m = transposed.shape[:2]
    o = conv.shape[0]
    products = transposed.permute(2, 3, 4, 0, 1).reshape(-1, m) @ conv.permute(1, 2, 3, 4, 0).reshape(m, -1)
    # (sx, sy, sz, c, tx, ty, tz, o) -> one axis' s and t after the other become slots.
    slots = products.view(CELL, CELL, CELL, c, 3, 3, 3, o).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(12, 12, 12, c * o)
    select = _selection(conv)
    slots = (select @ slots.flatten(1)).view(6, 12, -1)
    slots = (select @ slots).view(36, 12, -1)
    slots = (select @ slots).view(6, 6, 6, c, o)
    kernels = []
    for (xs, kx), (ys, ky), (zs, kz) in product(_KINDS, repeat=3):
        part = slots[xs, ys, zs].reshape(kx, 2, ky, 2, kz, 2, c, o)
        kernels.append(part.permute(1, 3, 5, 7, 6, 0, 2, 4).reshape(8 * o, c, kx, ky, kz))
    return kernels


def border_biases(conv: Tensor, bias: Tensor, transposed_bias: Tensor) -> Tensor:
    """(3, 3, 3, O) what biases add to a voxel that lies at the low end, between or at the high end of each axis.

    Beyond the grid the convolution sees zeros, not the transposed convolution's bias.
    """
    taps = torch.einsum("omxyz,m->xyzo", conv, transposed_bias)
    sums = [taps[x, y, z].sum((0, 1, 2)) for x, y, z in product(_INSIDE, repeat=3)]
    return torch.stack(sums).view(3, 3, 3, -1) + bias


def _pieces(fine: Tensor, kinds: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[slice, ...], int]]:
    """The eight parts of a fine map (x, y, z, O) that a kernel of some kinds writes.

    Yields:
        Views (x / 4, y / 4, z / 4, O), where they lie in the kernel's result, and which of its eight voxels they are.
    """
    for voxel, along in enumerate(product((0, 1), repeat=3)):
        places = [_WRITES[kind, one] for kind, one in zip(kinds, along)]
        cells = tuple(slice(start, start + fine.shape[axis] // CELL) for axis, (_, start) in enumerate(places))
        yield fine[places[0][0] :: CELL, places[1][0] :: CELL, places[2][0] :: CELL], cells, voxel


def _cells_of(padded: Tensor, kinds: tuple[int, ...]) -> Tensor:
    """What a kernel of some kinds reads of cells (C, x + 2, y + 2, z + 2): all of an axis, or all but its ends."""
    cut = [slice(1, -1) if kind else slice(None) for kind in kinds]
    return padded[:, cut[0], cut[1], cut[2]].unsqueeze(0).contiguous(memory_format=_CL)


_ALL_KINDS = tuple(product((0, 1), repeat=3))


def _composed_forward(cells: Tensor, kernels: list[Tensor], borders: Tensor) -> Tensor:
    """(C, x, y, z) cells -> (4 x, 4 y, 4 z, O) of the composed convolution."""
    padded, o = F.pad(cells, [1] * 6), borders.shape[-1]
    fine = cells.new_empty(*(CELL * side for side in cells.shape[1:]), o)
    inner = borders[1, 1, 1]
    for kinds, kernel in zip(_ALL_KINDS, kernels):
        made = F.conv3d(_cells_of(padded, kinds), kernel, inner.repeat(8))[0].permute(1, 2, 3, 0).unflatten(-1, (8, o))
        for part, where, voxel in _pieces(fine, kinds):
            part.copy_(made[..., voxel, :][where])
    for ends in product(range(3), repeat=3):
        if ends != (1, 1, 1):
            fine[tuple(_ENDS[end] for end in ends)] += borders[ends] - inner
    return fine


def _composed_backward(gradient: Tensor, cells: Tensor, kernels: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Gradients of cells, kernels and borders, of that of the fine map (4 x, 4 y, 4 z, O)."""
    padded, o = F.pad(cells, [1] * 6), gradient.shape[-1]
    found, of_padded = [], torch.zeros_like(padded)
    for kinds, kernel in zip(_ALL_KINDS, kernels):
        sides = [side // CELL + (kind == 0) for side, kind in zip(gradient.shape, kinds)]
        share = gradient.new_zeros(*sides, 8, o)
        for part, where, voxel in _pieces(gradient, kinds):
            share[..., voxel, :][where] = part
        given = share.flatten(-2).permute(3, 0, 1, 2).unsqueeze(0)
        read = _cells_of(padded, kinds)
        of_read, of_kernel = _convolution_backward(given, read, kernel, 0)
        cut = [slice(1, -1) if kind else slice(None) for kind in kinds]
        of_padded[:, cut[0], cut[1], cut[2]] += of_read[0]
        found.append(of_kernel)
    sums = [
        gradient[tuple(_ENDS[end] for end in ends)].sum(
            (0, 1, 2), dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        for ends in product(range(3), repeat=3)
    ]
    return of_padded[:, 1:-1, 1:-1, 1:-1], found, torch.stack(sums).view(3, 3, 3, o)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    three = [1, 1, 1]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, [0], three, 3 * [padding], three, False, [0, 0, 0], 1, [True, True, False]
    )
    return of_x, of_weight


def _chunks(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of maps (..., O) of one size, some at once."""
    rows = [one.view(-1, one.shape[-1]) for one in maps]
    yield from zip(*(one.split(max(1, _AT_ONCE // one.shape[-1])) for one in rows))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise_(x: Tensor) -> Tensor:
    """Instance norm of (..., O) in place; returns (O,) what values were multiplied by."""
    count = x[..., 0].numel()
    mean = sum(_wide(rows).sum(0) for (rows,) in _chunks(x)) / count
    variance = sum((_wide(rows) - mean).square().sum(0) for (rows,) in _chunks(x)) / count
    scale = (variance + _EPS).rsqrt()
    for (rows,) in _chunks(x):
        if rows.dtype == scale.dtype:
            rows.sub_(mean).mul_(scale)
        else:
            rows.copy_((_wide(rows) - mean) * scale)
    return scale


def _unleaked(y: Tensor) -> Tensor:
    """What a leaky ReLU made ``y`` of."""
    return F.leaky_relu(_wide(y), 1 / SLOPE)


def _leak_backward(gradient: Tensor, y: Tensor) -> Tensor:
    """Gradient of what a leaky ReLU made ``y`` of."""
    return torch.ops.aten.leaky_relu_backward(gradient, y, SLOPE, True)


def _through_norm_(gradient: Tensor, normalised: Callable[[], Iterable[Tensor]], scale: Tensor) -> None:
    """Turn a gradient (..., O) of an instance norm's result into that of its input, in place.

    Args:
        gradient: of the result.
        normalised: called twice; yields the norm's result, (rows, O), part after part.
        scale: of :func:`_normalise_`.
    """
    rows, count = _flat(gradient), gradient[..., 0].numel()
    mean, along, start = 0, 0, 0
    for part in normalised():
        given = _wide(rows[start : start + len(part)])
        mean, along = mean + given.sum(0), along + (given * part).sum(0)
        start += len(part)
    mean, along, start = mean / count, along / count, 0
    for part in normalised():
        given = rows[start : start + len(part)]
        given.copy_(torch.addcmul(_wide(given) - mean, part, along, value=-1).mul_(scale))
        start += len(part)


class _LastDecoder(torch.autograd.Function):
    """See :func:`last_decoder`."""

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, transposed: Tensor, transposed_bias: Tensor, borders: Tensor, conv2: Tensor,
        out: Tensor, out_bias: Tensor, *kernels: Tensor,
    ) -> Tensor:  # fmt: skip
        up_kernel, kept, scales, made = _up_kernel(transposed), [], [], []
        for one in cells:
            y = _composed_forward(one, list(kernels), borders)
            first = _normalise_(y)
            F.leaky_relu_(y, SLOPE)
            z = F.conv3d(_as_map(y), conv2, None, 1, 1)[0].permute(1, 2, 3, 0)
            second = _normalise_(z)
            for part, up in _up_sampled(one, up_kernel, transposed_bias, z):
                part += up
            F.leaky_relu_(z, SLOPE)
            weight = _wide(out).flatten(1).t()
            rows = torch.cat([_wide(rows) @ weight for (rows,) in _chunks(z)])
            made.append((rows + _wide(out_bias)).view(*z.shape[:3], -1).permute(3, 0, 1, 2))
            kept += [y, z]
            scales += [first, second]
        ctx.save_for_backward(cells, transposed, transposed_bias, conv2, out, *kernels, *scales, *kept)
        ctx.count = len(kernels)
        return torch.stack(made)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, transposed, transposed_bias, conv2, out, *rest = ctx.saved_tensors
        kernels, rest = rest[: ctx.count], rest[ctx.count :]
        scales, kept = rest[: 2 * len(cells)], rest[2 * len(cells) :]
        up_kernel, weight = _up_kernel(transposed), _wide(out).flatten(1)
        total: list[Any] = [0] * (6 + len(kernels))
        of_cells = []
        for number, one in enumerate(cells):
            y, z = kept[2 * number : 2 * number + 2]
            given = gradient[number].permute(1, 2, 3, 0).reshape(-1, weight.shape[0])
            inner = torch.empty_like(z)  # of what the last activation reads
            of_out = 0
            for rows, target, grown in zip(*(part.split(_rows(z)) for part in (given, _flat(inner), _flat(z)))):
                wide = _wide(grown)
                rows = rows.to(wide.dtype)
                of_out = of_out + rows.t() @ wide
                target.copy_(_leak_backward(rows @ weight, wide))
            of_cell, of_up, of_bias = _up_backward(one, up_kernel, inner)

            def normalised(one: Tensor = one, z: Tensor = z) -> Iterator[Tensor]:
                for part, up in _up_sampled(one, up_kernel, transposed_bias, z):
                    yield _flat(_unleaked(part) - up)

            _through_norm_(inner, normalised, scales[2 * number + 1])
            of_y, of_conv2 = _convolution_backward(_as_map(inner), _as_map(y), conv2, 1)
            del inner
            of_y = of_y[0].permute(1, 2, 3, 0)
            for rows, grown in _chunks(of_y, y):
                rows.copy_(_leak_backward(rows, grown))

            def unleaked(y: Tensor = y) -> Iterator[Tensor]:
                for (rows,) in _chunks(y):
                    yield _unleaked(rows)

            _through_norm_(of_y, unleaked, scales[2 * number])
            of_cell2, of_kernels, of_borders = _composed_backward(of_y, one, kernels)
            of_cells.append(of_cell + of_cell2)
            parts = (of_up, of_bias, of_borders, of_conv2, of_out.view(out.shape), given.sum(0), *of_kernels)
            total = [before + part for before, part in zip(total, parts, strict=True)]
        return torch.stack(of_cells), *total


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _rows(x: Tensor) -> int:
    return max(1, _AT_ONCE // x.shape[-1])


def _as_map(x: Tensor) -> Tensor:
    """(x, y, z, O) -> (1, O, x, y, z), channels last in memory."""
    return x.permute(3, 0, 1, 2).unsqueeze(0)


def _up_kernel(transposed: Tensor) -> Tensor:
    """The transposed convolution's kernel as a 1 x 1 x 1 one (4 * 4 * 4 * M, C, 1, 1, 1)."""
    c = transposed.shape[0]
    return transposed.permute(2, 3, 4, 1, 0).reshape(-1, c, 1, 1, 1).contiguous(memory_format=_CL)


def _slabs(cells: Tensor, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts along x, (1, C, k, y, z) of cells and (4 k, 4 y, 4 z, M) of a fine map, whose values can be had at once."""
    count = max(1, _AT_ONCE // (CELL * fine[0].numel()))
    for read, part in zip(cells.split(count, 1), fine.split(CELL * count)):
        yield read.unsqueeze(0).contiguous(memory_format=_CL), part


def _up_sampled(cells: Tensor, kernel: Tensor, bias: Tensor, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts (4 k, 4 y, 4 z, M) of a fine map, and what the transposed convolution yields there."""
    for read, part in _slabs(cells, fine):
        made = F.conv3d(read, kernel, bias.repeat(CELL**3))[0].permute(1, 2, 3, 0)
        yield part, made.unflatten(-1, (CELL, CELL, CELL, -1)).permute(0, 3, 1, 4, 2, 5, 6).reshape(part.shape)


def _up_backward(cells: Tensor, kernel: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of cells, the kernel (C, M, 4, 4, 4) and the bias of the transposed convolution."""
    of_kernel, of_bias, of_cells = 0, 0, []
    for read, part in _slabs(cells, gradient):
        x, y, z, m = part.shape
        split = part.view(x // CELL, CELL, y // CELL, CELL, z // CELL, CELL, m).permute(0, 2, 4, 1, 3, 5, 6)
        given = split.reshape(*split.shape[:3], -1).permute(3, 0, 1, 2).unsqueeze(0)
        of_read, of_part = _convolution_backward(given, read, kernel, 0)
        of_cells.append(of_read[0])
        of_kernel = of_kernel + _wide(of_part)
        of_bias = of_bias + _wide(_flat(part)).sum(0)
    of_kernel = of_kernel.view(CELL, CELL, CELL, -1, cells.shape[0]).permute(4, 3, 0, 1, 2)
    return torch.cat(of_cells, 1), of_kernel, of_bias


def last_decoder(cells: Tensor, decoder: VolumeUp, out: nn.Conv3d) -> Tensor:
    """``out(decoder(cells))``, quicker and in less memory; under autocast in its half precision.

    Args:
        cells: (B, C, x, y, z).
        decoder: of stride 4, without a map that is joined.
        out: 1 x 1 x 1 convolution.

    Returns:
        (B, channels of ``out``, 4 x, 4 y, 4 z), float32 (float64 where ``cells`` are).
    """
    kind = cells.device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        block = decoder.conv_block
        dtype = half or decoder.transp_conv.weight.dtype
        kernels = composed_kernels(decoder.transp_conv.weight, block.conv1.weight)
        borders = border_biases(block.conv1.weight, block.conv1.bias, decoder.transp_conv.bias)
        weights = (decoder.transp_conv.weight, decoder.transp_conv.bias, borders, block.conv2.weight)
        cells, *weights = (value.to(dtype) for value in (cells, *weights))
        kernels = [kernel.to(dtype).contiguous(memory_format=_CL) for kernel in kernels]
        cells = cells.contiguous(memory_format=_CL)
        weights[-1] = weights[-1].contiguous(memory_format=_CL)
        made = _LastDecoder.apply(cells, *weights, out.weight, out.bias, *kernels)
        return made + 0 * block.conv2.bias.sum()  # which the norm behind it takes away


__all__ = ["CELL", "border_biases", "composed_kernels", "last_decoder"]
