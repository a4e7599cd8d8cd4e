"""Pre-norm transformer blocks with optional 2D rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.ops import rope_2d

LAYER_NORM_EPS = 1e-6


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, N, heads * D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: channels.
        heads: number of heads; divides ``dim``.
        rope_base: base of the 2D rotary embedding of queries and keys, or None for none.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(self, dim: int, heads: int, rope_base: float | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.rope_base = rope_base
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        masks: Sequence[Tensor] | Tensor | None = None,
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            x: (B, N, C) tokens.
            positions: (B, N, 2) int64 (y, x); needed with rotary embedding.
            lengths: sizes of the sequences that lie one after the other along N and do not see each
                other; one sequence of N when not given.
            masks: of each sequence, true where its tokens may look: (n, n) bool, one of ``lengths`` or of B; of B also
                as one tensor (B, n, n).

        Returns:
            (B, N, C).
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, D)
        if self.rope_base is None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            qk, v = qkv.split((2, 1), dim=2)
            qk = rope_2d(qk.flatten(2, 3).transpose(1, 2), positions, self.rope_base)  # (B, 2 * heads, N, D)
            q, k = qk.chunk(2, dim=1)
            v = v.squeeze(2).transpose(1, 2)
        if lengths is None:
            masks = masks if masks is None or isinstance(masks, Tensor) else torch.stack(tuple(masks))
            mask = None if masks is None else masks.unsqueeze(1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            parts = zip(
                *(t.split(tuple(lengths), dim=2) for t in (q, k, v)), masks or [None] * len(lengths), strict=True
            )
            out = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)
        return self.proj(_merge_heads(out))


class CrossAttention(nn.Module):
    """Multi-head attention from one token set to another.

    Args:
        dim: channels of both sets.
        heads: number of heads; divides ``dim``.
        rope_base: base of the 2D rotary embedding of queries and keys, or None for none.
    """

    def __init__(self, dim: int, heads: int, rope_base: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.rope_base = rope_base
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, memory: Tensor, positions: Tensor | None = None, memory_positions: Tensor | None = None
    ) -> Tensor:
        """Attend from ``x`` to ``memory``.

        Args:
            x: (B, N, C) tokens that ask.
            memory: (B, M, C) tokens that answer.
            positions, memory_positions: (B, N, 2) and (B, M, 2) int64 (y, x); needed with rotary embedding.

        Returns:
            (B, N, C).
        """
        q = _split_heads(self.projq(x), self.heads)
        k = _split_heads(self.projk(memory), self.heads)
        v = _split_heads(self.projv(memory), self.heads)
        if self.rope_base is not None:
            q = rope_2d(q, positions, self.rope_base)
            k = rope_2d(k, memory_positions, self.rope_base)
        return self.proj(_merge_heads(F.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    """Linear, exact GELU, linear; ``out`` channels, or as many as came in."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., out)."""
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, rope_base: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, heads, rope_base)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, positions: Tensor | None, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); see :meth:`SelfAttention.forward`."""
        x = x + self.attn(self.norm1(x), positions, lengths)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to a memory that stays as it is, and MLP.

    Args:
        norm_memory: normalise the memory in every block (CroCo's ``norm_im2_in_dec``).
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, rope_base: float | None, norm_memory: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(dim, heads, rope_base)
        self.cross_attn = CrossAttention(dim, heads, rope_base)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.norm3 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm_y = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if norm_memory else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor | None, memory_positions: Tensor | None) -> Tensor:
        """(B, N, C) tokens and (B, M, C) memory -> (B, N, C)."""
        x = x + self.attn(self.norm1(x), positions)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), positions, memory_positions)
        return x + self.mlp(self.norm3(x))


class MultiViewBlock(DecoderBlock):
    """Pre-norm self-attention within each view, attention over all views of a group, and MLP.

    Has the parameters of a :class:`DecoderBlock`; its memory is the tokens of all views of the group, the view's own
    among them, as they are after the block's first attention.
    """

    def forward(self, x: Tensor, positions: Tensor | None, runs: Sequence[tuple[int, int]]) -> Tensor:
        """Look within views, then over those of a group.

        Args:
            x: (V, N, C) tokens of views, those of a group one after the other.
            positions: (V, N, 2) int64 (y, x); needed with rotary embedding.
            runs: groups of equally many views that follow each other: how many groups, and views of each.

        Returns:
            (V, N, C).
        """
        x = x + self.attn(self.norm1(x), positions)
        asking, answering = self.norm2(x), self.norm_y(x)
        parts = zip(runs, *(_runs_apart(part, runs) for part in (asking, answering, positions)), strict=True)
        looked = [
            self.cross_attn(asks, answers, places, places).view(groups * views, *x.shape[1:])
            for (groups, views), asks, answers, places in parts
        ]
        x = x + torch.cat(looked)
        return x + self.mlp(self.norm3(x))


def _runs_apart(x: Tensor | None, runs: Sequence[tuple[int, int]]) -> list[Tensor | None]:
    """(V, N, C) -> of each run of groups, their views in a row: (groups, views * N, C)."""
    if x is None:
        return [None] * len(runs)
    parts = x.split([groups * views for groups, views in runs])
    return [part.reshape(groups, -1, x.shape[2]) for part, (groups, _) in zip(parts, runs)]
