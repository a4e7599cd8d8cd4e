"""Attention inside windows of voxels, with contextual relative signal encoding (Swin3D, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geo3d.nn.row_pieces import RowProduct, in_pieces, takes_pieces
from geo3d.nn.transformer import Mlp
from geo3d.ops.voxel_attention import voxel_attention

#: Signals by the names that published parameters carry, and where they stand in a signal row.
SIGNAL_COLUMNS = {"xyz": slice(0, 3), "rgb": slice(3, 6), "norm": slice(6, 9)}
_ROLES = ("query", "key", "value")
_TABLE_STD = 0.02


def signal_bins(name: str, window: int, quant_size: int) -> int:
    """Rows of the table of one axis of a signal.

    Positions in a window of ``window`` voxels differ by less than that, colours and normals by at most 2; a voxel has
    ``quant_size`` bins, a unit of colour or normal twice as many.
    """
    return 2 * window * quant_size if name == "xyz" else 2 * 2 * (2 * quant_size)


@dataclass(frozen=True)
class SignalWindows:
    """The windows of a level, and its voxels' signals in units of bins.

    Args:
        order: (N,) int64 rows, window after window.
        offsets: (W + 1,) where each window starts in ``order``.
        signals: (N, A) float32, A = 3 per signal, in the order of the voxels.
    """

    order: Tensor
    offsets: Tensor
    signals: Tensor


class WindowAttention(nn.Module):
    """Multi-head self-attention among the voxels of a window.

    Logits and values get learnt terms looked up by the difference of two voxels' signals (position, colour, normal),
    axis by axis.

    Args:
        dim: channels.
        heads: number of heads; divides ``dim``.
        bins: signal (a key of :data:`SIGNAL_COLUMNS`, in its order) -> rows of its tables per axis.
    """

    def __init__(self, dim: int, heads: int, bins: dict[str, int]) -> None:
        super().__init__()
        self.heads, self.bins = heads, dict(bins)
        for name, rows in bins.items():
            for role in _ROLES:
                table = nn.Parameter(torch.empty(3, rows, heads, dim // heads))
                self.register_parameter(f"{role}_{name}_table", table)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def reset_tables(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh tables: normal, cut at two units of a standard deviation of 0.02."""
        for name in self.bins:
            for role in _ROLES:
                nn.init.trunc_normal_(getattr(self, f"{role}_{name}_table"), std=_TABLE_STD, generator=generator)

    def _table(self, role: str, like: Tensor) -> Tensor:
        """All tables of a role, (R, heads, D), axis after axis and signal after signal."""
        tables = [getattr(self, f"{role}_{name}_table").flatten(0, 1) for name in self.bins]
        return torch.cat(tables).to(like.dtype)

    def forward(self, x: Tensor, windows: SignalWindows) -> Tensor:
        """(N, C) features -> (N, C)."""
        return self.proj(self.attend(self.qkv(x), windows))

    def attend(self, qkv: Tensor, windows: SignalWindows) -> Tensor:
        """(N, 3 C) queries, keys and values -> (N, C) what each voxel sees, before the last projection."""
        query, key, value = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)  # (N, heads, D) each
        out = voxel_attention(
            query,
            key,
            value,
            windows.order,
            windows.offsets,
            windows.signals,
            *(self._table(role, query) for role in _ROLES),
            tuple(rows for rows in self.bins.values() for _ in range(3)),
            query.shape[-1] ** -0.5,
        )
        return out.flatten(1)


class DropPath(nn.Module):
    """Drops the residual of each voxel on its own, and scales up those that stay; the identity in evaluation mode.

    Args:
        rate: probability to drop.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not self.training or self.rate == 0:
            return x
        kept = 1 - self.rate
        return x * (torch.rand(len(x), 1, device=x.device) < kept).to(x.dtype).div(kept)


class WindowBlock(nn.Module):
    """Pre-norm window attention and MLP.

    Args:
        dim: channels.
        heads: number of heads.
        bins: see :class:`WindowAttention`.
        mlp_ratio: hidden channels of the MLP over its channels.
        drop_path: probability that a voxel's residual is dropped.
    """

    def __init__(self, dim: int, heads: int, bins: dict[str, int], mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, bins)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, windows: SignalWindows) -> Tensor:
        """(N, C) features -> (N, C)."""
        if not self.training and takes_pieces(x):
            return self._without_gradient(x, windows)
        x = x + self.drop_path(self.attn(self.norm1(x), windows))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _without_gradient(self, x: Tensor, windows: SignalWindows) -> Tensor:
        """The same in evaluation mode: a third quicker, and without hidden features of all voxels at once."""
        layers = (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2)
        qkv, project, widen, narrow = (RowProduct(layer) for layer in layers)

        def rest(rows: Tensor, seen: Tensor) -> Tensor:
            rows = project(seen).add_(rows)
            # In place it is six times as quick: elsewhere PyTorch hands it to a library.
            return narrow(torch.ops.aten.gelu_(widen(self.norm2(rows)))).add_(rows)

        seen = self.attn.attend(in_pieces(lambda rows: qkv(self.norm1(rows)), x), windows)
        return in_pieces(rest, x, seen)
