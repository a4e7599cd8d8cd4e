"""Layers built on the operators."""

from geo3d.nn.position import resize_position_embedding, sincos_2d, sincos_at, token_positions
from geo3d.nn.topology import Topology, Windows
from geo3d.nn.transformer import CrossAttention, DecoderBlock, EncoderBlock, Mlp, MultiViewBlock, SelfAttention

__all__ = [
    "CrossAttention",
    "DecoderBlock",
    "EncoderBlock",
    "Mlp",
    "MultiViewBlock",
    "SelfAttention",
    "Topology",
    "Windows",
    "resize_position_embedding",
    "sincos_2d",
    "sincos_at",
    "token_positions",
]
