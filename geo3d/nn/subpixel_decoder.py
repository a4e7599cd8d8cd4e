"""The last decoder over a dense grid, computed from its coarse cells, with few fine maps in memory.

What it computes is ``VolumeUp(stride=4, skip=False)`` and a 1 x 1 x 1 convolution. Its first 3 x 3 x 3 convolution
reads a map that a transposed convolution has just made of coarse cells; both are linear, so that their composition
reads the cells themselves. A fine voxel's neighbourhood touches 1.5 cells along each axis on average: 3.4 cells instead
of 27 voxels. Norms and activations work in place; what can be had again from their results is not kept.

All is computed over *boxes*: the whole grid, or some of its blocks with one cell around them. A box's cells carry one
more channel, 1 inside the grid and 0 outside, by which biases are exact at the grid's border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.volume_decoder import SLOPE, VolumeUp

#: Fine voxels along a side of a cell; cells along a side of a block.
CELL, BLOCK = 4, 4
_EPS = 1e-5
_CL = torch.channels_last_3d
#: Values of a map that are worked on at once, so that what comes between stays in the cache.
_AT_ONCE = 1 << 17
#: The same where boxes are multiplied by a matrix, which few rows would be too few for.
_BOXES_AT_ONCE = 1 << 20

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
_ALL_KINDS = tuple(product((0, 1), repeat=3))


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


def _pieces(fine: Tensor, kinds: tuple[int, ...]) -> Iterator[Tensor]:
    """The eight parts, views, of a fine map (N, 4 x + 2, 4 y + 2, 4 z + 2, O) that a kernel of some kinds writes."""
    for along in product((0, 1), repeat=3):
        x, y, z = (2 * kind + one for kind, one in zip(kinds, along))
        yield fine[:, x::CELL, y::CELL, z::CELL]


def _cut(kinds: tuple[int, ...]) -> tuple[slice, ...]:
    """What a kernel of some kinds reads of cells (N, C, x + 2, y + 2, z + 2): all of an axis, or all but its ends."""
    return (slice(None), slice(None), *(slice(1, -1) if kind else slice(None) for kind in kinds))


def _composed_forward(cells: Tensor, kernels: list[Tensor], channels: int) -> Tensor:
    """(N, C, x + 2, y + 2, z + 2) cells -> (N, 4 x + 2, 4 y + 2, 4 z + 2, O), a voxel around the fine ones of a box."""
    fine = cells.new_empty(len(cells), *(CELL * (side - 2) + 2 for side in cells.shape[2:]), channels)
    for kinds, kernel in zip(_ALL_KINDS, kernels):
        made = _convolve(cells[_cut(kinds)].contiguous(memory_format=_CL), kernel).unflatten(-1, (8, channels))
        for voxel, part in enumerate(_pieces(fine, kinds)):
            part.copy_(made[..., voxel, :])
    return fine


def _composed_backward(gradient: Tensor, cells: Tensor, kernels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Gradients of cells and kernels, of that of the fine map."""
    found, of_cells = [], torch.zeros_like(cells)
    for kinds, kernel in zip(_ALL_KINDS, kernels):
        share = torch.stack(list(_pieces(gradient, kinds)), -2).flatten(-2)
        read = cells[_cut(kinds)].contiguous(memory_format=_CL)
        of_read, of_kernel = _convolution_backward(_as_map(share), read, kernel)
        of_cells[_cut(kinds)] += of_read
        found.append(of_kernel)
    return of_cells, found


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """(N, C, x, y, z) -> (N, x', y', z', O) of a convolution without padding; products of rows for kernels of one."""
    if weight.shape[2:].numel() > 1:
        return F.conv3d(x, weight).permute(0, 2, 3, 4, 1)
    rows = x.permute(0, 2, 3, 4, 1)
    return F.linear(_flat(rows), weight.flatten(1)).view(*rows.shape[:4], -1)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, C, x, y, z) and of the weight, of that of the result."""
    if weight.shape[2:].numel() == 1:
        given, read = (_flat(value.permute(0, 2, 3, 4, 1)) for value in (gradient, x))
        made = (given @ weight.flatten(1)).view(len(x), *x.shape[2:], -1)
        return _as_map(made), (given.t() @ read).view(weight.shape)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, [0], [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1, [True, True, False]
    )
    return of_x, of_weight


def _as_map(x: Tensor) -> Tensor:
    """(N, x, y, z, O) -> (N, O, x, y, z), channels last in memory."""
    return x.permute(0, 4, 1, 2, 3)


def _flat(x: Tensor) -> Tensor:
    """(..., O) -> (rows, O)."""
    return x.reshape(-1, x.shape[-1])


def _chunks(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of maps (..., O) of one number of rows, some at once."""
    step = max(1, _AT_ONCE // maps[-1].shape[-1])
    yield from zip(*(one.view(-1, one.shape[-1]).split(step) for one in maps))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise_(x: Tensor, outside: Tensor) -> Tensor:
    """Instance norm of (..., O) in place, of all rows but those of numbers ``outside``, which are made 0.

    Returns:
        (O,) what values were multiplied by.
    """
    _flat(x).index_fill_(0, outside, 0)
    count = x[..., 0].numel() - len(outside)
    mean = sum(_wide(rows).sum(0) for (rows,) in _chunks(x)) / count
    squares = sum((_wide(rows) - mean).square_().sum(0) for (rows,) in _chunks(x)) - len(outside) * mean.square()
    scale = (squares / count + _EPS).rsqrt()
    for (rows,) in _chunks(x):
        if rows.dtype == scale.dtype:
            rows.sub_(mean).mul_(scale)
        else:
            rows.copy_((_wide(rows) - mean) * scale)
    _flat(x).index_fill_(0, outside, 0)
    return scale


def _unleaked(y: Tensor) -> Tensor:
    """What a leaky ReLU made ``y`` of."""
    return F.leaky_relu(_wide(y), 1 / SLOPE)


def _leak_backward(gradient: Tensor, y: Tensor) -> Tensor:
    """Gradient of what a leaky ReLU made ``y`` of."""
    return torch.ops.aten.leaky_relu_backward(gradient, y, SLOPE, True)


def _through_norm_(
    gradient: Tensor, normalised: Callable[[], Iterable[Tensor]], scale: Tensor, outside: Tensor
) -> None:
    """Turn a gradient (..., O) of an instance norm's result into that of its input, in place.

    Args:
        gradient: of the result.
        normalised: called twice; yields the norm's result, (rows, O), part after part.
        scale, outside: of :func:`_normalise_`.
    """
    rows = _flat(gradient)
    rows.index_fill_(0, outside, 0)
    count = len(rows) - len(outside)
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
    rows.index_fill_(0, outside, 0)


def _up_kernel(transposed: Tensor) -> Tensor:
    """The transposed convolution's kernel as a matrix (4 * 4 * 4 * M, C)."""
    return transposed.permute(2, 3, 4, 1, 0).reshape(-1, transposed.shape[0])


def _slabs(cells: Tensor, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts, (n, k, y, z, C) of the inner cells of boxes and (n, 4 k, 4 y, 4 z, M) of a fine map, some at once."""
    inner = cells[:, :, 1:-1, 1:-1, 1:-1].permute(0, 2, 3, 4, 1)
    if len(fine) == 1:
        count = max(1, _AT_ONCE // (CELL * fine[0, 0].numel()))
        yield from zip(inner.split(count, 1), fine.split(CELL * count, 1))
    else:
        count = max(1, _BOXES_AT_ONCE // fine[0].numel())
        yield from zip(inner.split(count), fine.split(count))


def _up_sampled(cells: Tensor, kernel: Tensor, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts (n, 4 k, 4 y, 4 z, M) of a fine map, and what the transposed convolution yields there."""
    for read, part in _slabs(cells, fine):
        made = F.linear(_flat(read), kernel).view(*read.shape[:4], CELL, CELL, CELL, -1)
        yield part, made.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(part.shape)


def _up_backward(cells: Tensor, kernel: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the inner cells (N, C, x, y, z) and of the kernel (C, M, 4, 4, 4) of the transposed convolution."""
    of_kernel, of_cells = 0, []
    along = 2 if len(gradient) == 1 else 0
    for read, part in _slabs(cells, gradient):
        n, x, y, z, m = part.shape
        split = part.view(n, x // CELL, CELL, y // CELL, CELL, z // CELL, CELL, m).permute(0, 1, 3, 5, 2, 4, 6, 7)
        given = split.reshape(-1, kernel.shape[0])
        of_cells.append(_as_map((given @ kernel).view(read.shape)))
        of_kernel = of_kernel + _wide(given.t() @ _flat(read))
    of_kernel = of_kernel.view(CELL, CELL, CELL, -1, cells.shape[1]).permute(4, 3, 0, 1, 2)
    return torch.cat(of_cells, along), of_kernel


def _outside(cells: Tensor) -> Tensor:
    """Numbers of the rows of a box's fine map, with the voxel around it, that lie outside the grid."""
    known = cells[:, -1]
    for axis in (1, 2, 3):
        known = known.repeat_interleave(CELL, axis).narrow(axis, CELL - 1, CELL * (known.shape[axis] - 2) + 2)
    return (known.flatten() == 0).nonzero().squeeze(1)


class _LastDecoder(torch.autograd.Function):
    """See :func:`last_decoder`: (N, C, x + 2, y + 2, z + 2) boxes, so many a sample -> (N, out, 4 x, 4 y, 4 z)."""

    @staticmethod
    def forward(
        ctx: Any, counts: list[int], boxes: Tensor, transposed: Tensor, conv2: Tensor, out: Tensor, out_bias: Tensor,
        *kernels: Tensor,
    ) -> Tensor:  # fmt: skip
        kept, made = [], []
        up_kernel, weight = _up_kernel(transposed), _wide(out).flatten(1).t()
        for cells in boxes.split(counts):
            outside = _outside(cells)
            y = _composed_forward(cells, list(kernels), conv2.shape[1])
            first = _normalise_(y, outside)
            F.leaky_relu_(y, SLOPE)
            z = F.conv3d(_as_map(y), conv2).permute(0, 2, 3, 4, 1).contiguous()
            second = _normalise_(z, outside[:0])
            for part, up in _up_sampled(cells, up_kernel, z):
                part += up
            F.leaky_relu_(z, SLOPE)
            rows = torch.cat([torch.addmm(_wide(out_bias), _wide(rows), weight) for (rows,) in _chunks(z)])
            made.append(_as_map(rows.view(*z.shape[:4], -1)))
            kept += [outside, y, first, z, second]
        ctx.save_for_backward(boxes, transposed, conv2, out, *kernels, *kept)
        ctx.counts = counts
        return torch.cat(made)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        boxes, transposed, conv2, out, *rest = ctx.saved_tensors
        kernels, kept = rest[: len(_ALL_KINDS)], rest[len(_ALL_KINDS) :]
        up_kernel, weight = _up_kernel(transposed), _wide(out).flatten(1)
        total: list[Any] = [0] * (4 + len(kernels))
        of_boxes = []
        samples = zip(boxes.split(ctx.counts), gradient.split(ctx.counts), strict=True)
        for number, (cells, given) in enumerate(samples):
            outside, y, first, z, second = kept[5 * number : 5 * number + 5]
            given = _flat(given.permute(0, 2, 3, 4, 1)).to(weight.dtype)
            inner = torch.empty_like(z)  # of what the last activation reads
            of_out = 0
            for rows, target, grown in _chunks(given, inner, z):
                wide = _wide(grown)
                of_out = of_out + rows.t() @ wide
                target.copy_(_leak_backward(rows @ weight, wide))
            of_cells, of_up = _up_backward(cells, up_kernel, inner)

            def normalised(cells: Tensor = cells, z: Tensor = z) -> Iterator[Tensor]:
                for part, up in _up_sampled(cells, up_kernel, z):
                    yield _flat(_unleaked(part) - up)

            _through_norm_(inner, normalised, second, outside[:0])
            of_y, of_conv2 = _convolution_backward(_as_map(inner), _as_map(y), conv2)
            del inner
            of_y = of_y.permute(0, 2, 3, 4, 1).contiguous()
            for rows, grown in _chunks(of_y, y):
                rows.copy_(_leak_backward(rows, grown))

            def unleaked(y: Tensor = y) -> Iterator[Tensor]:
                for (rows,) in _chunks(y):
                    yield _unleaked(rows)

            _through_norm_(of_y, unleaked, first, outside)
            of_box, of_kernels = _composed_backward(of_y, cells, kernels)
            of_box[:, :, 1:-1, 1:-1, 1:-1] += of_cells
            of_boxes.append(of_box)
            parts = (of_up, of_conv2, of_out.view(out.shape), given.sum(0), *of_kernels)
            total = [before + part for before, part in zip(total, parts, strict=True)]
        return None, torch.cat(of_boxes), *total


def _boxes(cells: Tensor, blocks: Tensor | None) -> tuple[Tensor, list[int]]:
    """Boxes of a grid's cells (B, C, x, y, z) and how many there are of each sample: all, or some blocks of 4."""
    padded = F.pad(torch.cat([cells, torch.ones_like(cells[:, :1])], 1), [1] * 6)
    if blocks is None:
        return padded.contiguous(memory_format=_CL), [1] * len(cells)
    sample, x, y, z = blocks.nonzero().unbind(1)
    around = torch.arange(BLOCK + 2, device=cells.device)
    x, y, z = (BLOCK * start.unsqueeze(1) + around for start in (x, y, z))
    rows = padded.permute(0, 2, 3, 4, 1)
    taken = rows[sample[:, None, None, None], x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]]
    return _as_map(taken), blocks.flatten(1).sum(1).tolist()


def last_decoder(cells: Tensor, decoder: VolumeUp, out: nn.Conv3d, blocks: Tensor | None = None) -> Tensor:
    """``out(decoder(cells))``, quicker and in less memory; under autocast in its half precision.

    Args:
        cells: (B, C, x, y, z).
        decoder: of stride 4, without a map that is joined.
        out: 1 x 1 x 1 convolution.
        blocks: (B, x / 4, y / 4, z / 4) bool: blocks of 4 cells a side that alone are computed, at least one a sample.
            Norms then see these alone, with one voxel around. None: the whole grid.

    Returns:
        (B, channels of ``out``, 4 x, 4 y, 4 z), float32 (float64 where ``cells`` are); of some blocks (N, channels, 16,
        16, 16), in the order of ``blocks.nonzero()``.
    """
    kind = cells.device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        up, block = decoder.transp_conv, decoder.conv_block
        dtype = half or up.weight.dtype
        # The further channel: what the bias of the transposed convolution puts where there is a cell.
        bias = up.bias.view(1, -1, 1, 1, 1).expand(1, -1, *up.kernel_size)
        transposed = torch.cat([up.weight, bias])
        boxes, counts = _boxes(cells.to(dtype), blocks)
        kernels = composed_kernels(transposed, block.conv1.weight)
        kernels = [kernel.to(dtype).contiguous(memory_format=_CL) for kernel in kernels]
        conv2 = block.conv2.weight.to(dtype).contiguous(memory_format=_CL)
        made = _LastDecoder.apply(counts, boxes, transposed.to(dtype), conv2, out.weight, out.bias, *kernels)
        # Norms take away what the two convolutions' biases add.
        return made + 0 * (block.conv1.bias.sum() + block.conv2.bias.sum())


__all__ = ["BLOCK", "CELL", "composed_kernels", "last_decoder"]
