"""Topology: what follows from the coordinates of sparse voxels alone, computed once and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.sparse_voxels import SparseVoxels, set_topology
from geo3d.ops.kernel_map import KernelMap, build_kernel_map
from geo3d.ops.kernel_support import kernel_support
from geo3d.ops.voxelize import MAX_COORDINATE, MAX_SCENES
from geo3d.ops.window_partition import window_cells, window_partition


@dataclass(frozen=True)
class Windows:
    """Voxels gathered into windows.

    Args:
        order: (N,) int64 rows, window after window; windows ascend by (batch, x, y, z), rows ascend inside a window.
        offsets: (W + 1,) int64; window w holds ``order[offsets[w]:offsets[w + 1]]``, at least one row.
        cell: (N, 3) int32 place of every voxel inside its window, in voxels from 0; rows as the voxels have them.
    """

    order: Tensor
    offsets: Tensor
    cell: Tensor


class Topology:
    """The structure of a set of voxels: sorted order, windows, neighbours, coarser voxels.

    Everything is made when it is first asked for, and from then on the same object is returned. Layers that work on
    the same voxels share one topology, which ``SparseVoxels.topology`` holds.

    Args:
        coords: (N, 4) int32 rows [batch, x, y, z] in any order: batch from 0 to 65535, x, y, z multiples of ``stride``
            from -2**20 to 2**20, none twice. Must not change afterwards.
        stride: size of the voxels in units of the coordinates.
        batch_size: number of scenes B; when not given, one more than the highest batch there is.

    Raises:
        InputError: coordinates that break one of these rules, with the first row that does.
    """

    def __init__(self, coords: Tensor, stride: int = 1, batch_size: int | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32:
            raise InputError(f"Topology: coords must be (N, 4) int32, got {tuple(coords.shape)} {coords.dtype}")
        if stride < 1:
            raise InputError(f"Topology: stride must be 1 or more, got {stride}")
        batch_size = _check_coords(coords, stride, batch_size)
        order, starts = window_partition(coords, stride, 1)
        if len(starts) <= len(coords):
            row = int(order[int(starts[:-1][starts.diff() > 1][0]) + 1])
            surplus = len(coords) - len(starts) + 1
            raise _refused(coords, row, f"that voxel is there already ({surplus} of {len(coords)} rows repeat others)")
        self._hold(coords, stride, batch_size, order)

    @classmethod
    def sorted(cls, coords: Tensor, stride: int, batch_size: int) -> Topology:
        """That of coordinates which are known to be as they must, none twice, and sorted by (batch, x, y, z).

        Nothing is looked at, as what :func:`geo3d.ops.voxelize` and :meth:`coarsen` make need not be.
        """
        if torch.compiler.is_exporting():
            torch._check(coords.shape[0] > 0)  # what else follows from sizes is not known while tracing
        made = cls.__new__(cls)
        made._hold(coords, stride, batch_size, torch.arange(coords.shape[0], device=coords.device))
        return made

    def _hold(self, coords: Tensor, stride: int, batch_size: int, order: Tensor) -> None:
        self.coords = coords
        self.stride = stride
        self.batch_size = batch_size
        self._order = order
        self._windows: dict[tuple[int, bool], Windows] = {}
        self._kernel_maps: dict[int, KernelMap] = {}
        self._strided_kernel_maps: dict[tuple[int, int], KernelMap] = {}
        self._coarser: dict[int, tuple[Topology, Tensor]] = {}

    @property
    def size(self) -> int:
        """Number of voxels N, all scenes together."""
        return self.coords.shape[0]

    @property
    def order(self) -> Tensor:
        """(N,) int64 rows that sort the voxels by (batch, x, y, z)."""
        return self._order

    @cached_property
    def key(self) -> Tensor:
        """(N,) int64 place of every row in that order: compares as (batch, x, y, z) does, whatever the coordinates."""
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(self.size, device=self.coords.device))

    @cached_property
    def batch_offsets(self) -> Tensor:
        """(B + 1,) int64: scene b has rows ``order[batch_offsets[b]:batch_offsets[b + 1]]``.

        Where the rows of each scene lie together and scenes ascend, as :func:`geo3d.ops.voxelize` and :meth:`coarsen`
        leave them, those are the rows ``batch_offsets[b]`` to ``batch_offsets[b + 1]`` themselves.
        """
        scenes = torch.arange(self.batch_size + 1, device=self.coords.device)
        return torch.searchsorted(self.coords[self.order, 0].long(), scenes)

    def windows(self, size: int, shifted: bool) -> Windows:
        """The voxels in windows of ``size`` voxels a side, moved by ``size // 2`` of them where shifted.

        See :func:`geo3d.ops.window_partition`.
        """
        key = (size, shifted)
        if key not in self._windows:
            order, offsets = window_partition(self.coords, self.stride, size, shifted)
            self._windows[key] = Windows(order, offsets, window_cells(self.coords, self.stride, size, shifted))
        return self._windows[key]

    def kernel_map(self, kernel_size: int) -> KernelMap:
        """Neighbours under a submanifold convolution's kernel; see :func:`geo3d.ops.kernel_map`."""
        if kernel_size not in self._kernel_maps:
            self._kernel_maps[kernel_size] = build_kernel_map(self.coords, self.coords, self.stride, kernel_size)
        return self._kernel_maps[kernel_size]

    def strided_kernel_map(self, factor: int, kernel_size: int) -> KernelMap:
        """Voxels under the kernel of a convolution whose outputs are the voxels of ``coarsen(factor)``."""
        key = (factor, kernel_size)
        if key not in self._strided_kernel_maps:
            coarse, _ = self.coarsen(factor)
            self._strided_kernel_maps[key] = build_kernel_map(self.coords, coarse.coords, self.stride, kernel_size)
        return self._strided_kernel_maps[key]

    def coarsen(self, factor: int) -> tuple[Topology, Tensor]:
        """Merge voxels to ``factor`` times their size: coordinates become ``floor(c / s) * s``, s the new stride.

        Returns:
            The coarse topology, its rows sorted by (batch, x, y, z), and (N,) int64 the row in it of every voxel here.

        Raises:
            InputError: a factor below 1.
        """
        if factor < 1:
            raise InputError(f"Topology.coarsen: factor must be 1 or more, got {factor}")
        if factor not in self._coarser:
            self._coarser[factor] = self._merge(factor)
        return self._coarser[factor]

    def _merge(self, factor: int) -> tuple[Topology, Tensor]:
        stride = self.stride * factor
        order, offsets = window_partition(self.coords, self.stride, factor)
        coords = self.coords[order[offsets[:-1]]]
        coords[:, 1:] = coords[:, 1:].div(stride, rounding_mode="floor") * stride
        row = torch.repeat_interleave(offsets.diff(), output_size=self.size)
        return Topology.sorted(coords, stride, self.batch_size), torch.empty_like(order).scatter_(0, order, row)

    def refine(self, factor: int) -> Topology:
        """All ``factor ** 3`` voxels that lie inside each voxel here, rows sorted by (batch, x, y, z).

        Raises:
            InputError: a factor that does not divide the stride.
        """
        if factor < 1 or self.stride % factor:
            raise InputError(f"Topology.refine: factor must divide the stride {self.stride}, got {factor}")
        fine = self.stride // factor
        return Topology(kernel_support(self._middles(factor), fine, factor), fine, self.batch_size)

    def children_map(self, fine: Topology) -> KernelMap:
        """Voxels of ``fine`` inside each voxel here, x fastest over the places inside; there may be any number of them.

        ``neighbours`` (K, M) holds rows of ``fine`` and leads a convolution down to these voxels; ``transposed`` (K, N)
        holds rows of these voxels and leads a transposed convolution up to ``fine``.

        Raises:
            InputError: strides of which one does not divide the other.
        """
        if self.stride % fine.stride:
            raise InputError(f"Topology.children_map: stride {fine.stride} does not divide {self.stride}")
        factor = self.stride // fine.stride
        return build_kernel_map(fine.coords, self._middles(factor), fine.stride, factor)

    def _middles(self, factor: int) -> Tensor:
        """Where a kernel as wide as a voxel is placed to cover it: odd kernels are centred, even ones begin there."""
        shift = torch.tensor([0, *[self.stride // factor * (factor // 2 if factor % 2 else 0)] * 3])
        return self.coords + shift.to(self.coords)

    def voxels(self, feats: Tensor) -> SparseVoxels:
        """Features (N, C) on these voxels."""
        return SparseVoxels(self.coords, feats, self.stride, self.batch_size, {"topology": self})


def _refused(coords: Tensor, row: int, reason: str) -> InputError:
    return InputError(f"SparseVoxels: row {row} of coords is {coords[row].tolist()} [batch, x, y, z]: {reason}")


def _check_coords(coords: Tensor, stride: int, batch_size: int | None) -> int:
    """Raise InputError unless all values are in range; the number of scenes otherwise."""
    if batch_size is None:
        batch_size = max(0, int(coords[:, 0].max())) + 1 if len(coords) else 0
    if not 0 <= batch_size <= MAX_SCENES:
        raise InputError(f"SparseVoxels: a batch holds up to {MAX_SCENES} scenes, got {batch_size}")
    batch, xyz = coords[:, 0], coords[:, 1:]
    reach = MAX_COORDINATE + stride - 1  # a coarse voxel's corner lies up to that far below the finest one's
    for bad, reason in (
        ((batch < 0) | (batch >= batch_size), f"batch must be from 0 to {batch_size - 1}"),
        (
            ((xyz < -reach) | (xyz > MAX_COORDINATE)).any(1),
            f"coordinates must be from -{MAX_COORDINATE} to {MAX_COORDINATE}",
        ),
        ((xyz % stride != 0).any(1), f"coordinates must be multiples of the stride {stride}"),
    ):
        if bad.any():
            raise _refused(coords, int(bad.nonzero()[0]), reason)
    return batch_size


set_topology(Topology)
