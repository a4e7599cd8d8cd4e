"""The geometry of a hierarchy of sparse voxels, planned once before features flow through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from geo3d.nn.topology import Topology
from geo3d.nn.window_attention import SIGNAL_COLUMNS, SignalWindows
from geo3d.ops.interpolate import inverse_distance_weights
from geo3d.ops.knn import knn

#: Members of a cell whose distances to its mean differ by less than this share count as equally near.
_TIE_TOLERANCE = 1e-5
_UP_NEIGHBORS = 3


@dataclass
class Level:
    """The voxels of one stride.

    Args:
        topology: their coordinates, windows and kernel maps.
        signals: (N, A) float32: position in units of the finest voxels, then colour and normal where present. On coarse
            levels a row is that of a real voxel of the finest level.
    """

    topology: Topology
    signals: Tensor
    _windows: dict = field(default_factory=dict, repr=False)

    @property
    def offsets(self) -> Tensor:
        """(B + 1,) int64: scene b owns rows ``offsets[b]`` to ``offsets[b + 1]``."""
        return self.topology.batch_offsets

    def windows(self, size: int, shifted: bool, names: Sequence[str], quant_size: int) -> SignalWindows:
        """Windows of ``size`` voxels a side, with the signals ``names`` in bins; made once.

        Args:
            size: voxels of this level along a side.
            shifted: move the windows by half of their size.
            names: keys of :data:`SIGNAL_COLUMNS`.
            quant_size: bins of a voxel's side.
        """
        key = (size, shifted, tuple(names), quant_size)
        if key not in self._windows:
            windows = self.topology.windows(size, shifted)
            signals = [self._quantised(name, windows.cell, quant_size) for name in names]
            self._windows[key] = SignalWindows(windows.order, windows.offsets, torch.cat(signals, 1))
        return self._windows[key]

    def _quantised(self, name: str, cell: Tensor, quant_size: int) -> Tensor:
        """A signal in bins. The order of these float32 operations decides bins: it is the published one."""
        columns = self.signals[:, SIGNAL_COLUMNS[name]]
        if name != "xyz":
            return columns * (2 * quant_size)
        fraction = (columns - self.topology.coords[:, 1:]) / self.topology.stride
        return (cell + fraction) * quant_size


@dataclass
class Coarsening:
    """How one level gives the next coarser one, and how features come back.

    Args:
        parent: (N,) int64 row of the coarse level for every fine one.
        representative: (M,) int64 fine row that stands for every coarse one.
        neighbors: (M, k) int64 fine rows nearest to each representative; the nearest repeated where a scene has fewer.
        fine, coarse: the levels.
    """

    parent: Tensor
    representative: Tensor
    neighbors: Tensor
    fine: Level
    coarse: Level

    @cached_property
    @torch.no_grad()
    def up(self) -> tuple[Tensor, Tensor]:
        """(N, 3) int64 coarse rows nearest to every fine one, -1 where a scene has fewer, and (N, 3) float32 weights.

        The weights of a row, by the inverse of the distance, sum to one. Only decoders ask for them.
        """
        index, squared = _nearest(self.fine, self.coarse, _UP_NEIGHBORS)
        return index, inverse_distance_weights(squared)


@torch.no_grad()
def build_pyramid(
    topology: Topology, signals: Tensor, factors: Sequence[int], neighbors: int
) -> tuple[list[Level], list[Coarsening]]:
    """Levels from the finest to the coarsest, and the steps between them.

    Args:
        topology: of the finest voxels; rows of one scene lie together, scenes ascend.
        signals: (N, A) float32.
        factors: by how much each step makes voxels larger.
        neighbors: fine voxels that a coarse one looks at.

    Returns:
        ``len(factors) + 1`` levels and ``len(factors)`` steps.
    """
    levels, steps = [Level(topology, signals)], []
    for factor in factors:
        fine = levels[-1]
        topology, parent = fine.topology.coarsen(factor)
        chosen = representatives(fine.signals, fine.topology, parent, topology.size)
        coarse = Level(topology, fine.signals[chosen])
        steps.append(Coarsening(parent, chosen, _neighbors(fine, coarse, neighbors), fine, coarse))
        levels.append(coarse)
    return levels, steps


def representatives(signals: Tensor, topology: Topology, parent: Tensor, cells: int) -> Tensor:
    """The member of every cell that is nearest to the mean of its members' signals.

    Among members that are equally near (cells of two always are) the one with the smallest coordinate (batch, x, y, z)
    is taken, so that the result does not depend on the order of the rows.

    Args:
        signals: (N, A).
        topology: of the members.
        parent: (N,) int64 cell of every row.
        cells: number of cells M, each with a member.

    Returns:
        (M,) int64 rows.
    """
    rows = signals.double()
    count = rows.new_zeros(cells).index_add_(0, parent, rows.new_ones(rows.shape[0])).unsqueeze(1)
    mean = rows.new_zeros(cells, rows.shape[1]).index_add_(0, parent, rows) / count
    distance = (rows - mean[parent]).norm(dim=1)
    least = distance.new_full((cells,), torch.inf).scatter_reduce_(0, parent, distance, "amin")
    place = torch.where(distance <= least[parent] * (1 + _TIE_TOLERANCE), topology.key, rows.shape[0])
    return topology.order[place.new_full((cells,), rows.shape[0]).scatter_reduce_(0, parent, place, "amin")]


def _neighbors(fine: Level, coarse: Level, count: int) -> Tensor:
    """(M, count) fine rows nearest to each coarse voxel's representative."""
    index, _ = _nearest(coarse, fine, count)
    # A scene may hold fewer: the representative itself is always there, and to repeat it changes no maximum.
    return torch.where(index < 0, index[:, :1], index)


def _nearest(query: Level, points: Level, count: int) -> tuple[Tensor, Tensor]:
    """Rows and squared distances of the nearest points, scene by scene."""
    position = SIGNAL_COLUMNS["xyz"]
    return knn(query.signals[:, position], points.signals[:, position], query.offsets, points.offsets, count)
