"""A plain-PyTorch twin of CroCo's network, written as one would from the paper: the peer of the benchmark.

Explicit softmax, each view through the encoder on its own, rotary embedding by slicing and concatenating, boolean
masks. It takes the weights of a :class:`geo3d.models.croco.CroCoNet` with rotary embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.models.croco import CroCoNet


def _rotate(tokens: Tensor, positions: Tensor, base: float) -> Tensor:
    """2D rotary embedding: tokens (B, H, N, D), positions (B, N, 2)."""
    half = tokens.shape[-1] // 2
    frequency = base ** (-torch.arange(0, half, 2, device=tokens.device, dtype=torch.float32) / half)
    turned = []
    for axis, part in enumerate(tokens.split(half, -1)):
        angle = positions[:, None, :, axis, None].float() * frequency
        angle = torch.cat([angle, angle], -1)
        cos, sin = angle.cos().to(part.dtype), angle.sin().to(part.dtype)
        u, v = part.chunk(2, -1)
        turned.append(part * cos + torch.cat([-v, u], -1) * sin)
    return torch.cat(turned, -1)


def _absolute(positions: Tensor, dim: int) -> Tensor:
    """Sine-cosine table (B, N, dim): sines and cosines of x, then of y."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 4, device=positions.device, dtype=torch.float32) / dim)
    x, y = (positions[..., axis, None].float() * frequency for axis in (1, 0))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], -1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with the matrix of probabilities; (B, H, N, D) -> (B, N, H * D)."""
    probability = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (probability @ v).transpose(1, 2).flatten(2)


class CroCoTwin(nn.Module):
    """The twin; ``forward(first, second, mask)`` gives the masked loss on normalised patches."""

    def __init__(self, network: CroCoNet) -> None:
        super().__init__()
        self.network = network

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def _self_attention(self, layer, x: Tensor, positions: Tensor) -> Tensor:
        qkv = layer.qkv(x).reshape(*x.shape[:2], 3, layer.heads, -1).transpose(1, 3)
        q, k, v = (qkv[:, :, i] for i in range(3))
        return layer.proj(_attend(_rotate(q, positions, layer.rope_base), _rotate(k, positions, layer.rope_base), v))

    def _cross_attention(self, layer, x: Tensor, memory: Tensor, positions: Tensor, memory_positions: Tensor) -> Tensor:
        q = _rotate(self._heads(layer.projq(x), layer.heads), positions, layer.rope_base)
        k = _rotate(self._heads(layer.projk(memory), layer.heads), memory_positions, layer.rope_base)
        return layer.proj(_attend(q, k, self._heads(layer.projv(memory), layer.heads)))

    def _encode(self, image: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.network.patch_embed.proj(image).flatten(2).transpose(1, 2)
        if mask is not None:
            batch, _, channels = x.shape
            x = x[~mask].view(batch, -1, channels)
            positions = positions[~mask].view(batch, -1, 2)
        for block in self.network.enc_blocks:
            x = x + self._self_attention(block.attn, block.norm1(x), positions)
            x = x + block.mlp(block.norm2(x))
        return self.network.enc_norm(x)

    def forward(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        network, patch = self.network, self.network.config.patch_size
        batch, _, height, width = first.shape
        y, x = torch.meshgrid(torch.arange(height // patch), torch.arange(width // patch), indexing="ij")
        positions = torch.stack([y, x], -1).reshape(1, -1, 2).expand(batch, -1, -1).to(first.device)
        seen = network.decoder_embed(self._encode(first, positions, mask))
        memory = network.decoder_embed(self._encode(second, positions))
        tokens = network.mask_token.to(seen.dtype).repeat(batch, mask.shape[1], 1)
        tokens[~mask] = seen.reshape(-1, seen.shape[-1])
        if network.config.decoder_sincos:
            table = _absolute(positions, tokens.shape[-1]).to(tokens.dtype)
            tokens, memory = tokens + table, memory + table
        for block in network.dec_blocks:
            tokens = tokens + self._self_attention(block.attn, block.norm1(tokens), positions)
            tokens = tokens + self._cross_attention(
                block.cross_attn, block.norm2(tokens), block.norm_y(memory), positions, positions
            )
            tokens = tokens + block.mlp(block.norm3(tokens))
        prediction = network.prediction_head(network.dec_norm(tokens))
        target = F.unfold(first, patch, stride=patch).transpose(1, 2)
        target = target.reshape(batch, -1, 3, patch * patch).transpose(2, 3).flatten(2)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        error = ((prediction - target) ** 2).mean(-1)
        return (error * mask).sum() / mask.sum()
