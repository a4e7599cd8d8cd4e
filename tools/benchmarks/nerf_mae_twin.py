"""A plain-PyTorch twin of NeRF-MAE's network, written as one would from the paper: the benchmark's peer.

``nn.Conv3d``, ``nn.InstanceNorm3d``, rolled windows, softmax attention with additive masks, every layer by autograd.
Its parameters have the published names, so that it loads the weights of a :class:`geo3d.models.nerf_mae.NeRFMAE`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.models.nerf_mae import NeRFMAEConfig

_WINDOW = 4


def _positions(dim: int, sides: tuple[int, ...]) -> Tensor:
    frequency = 10000.0 ** (-torch.arange(dim // 6, dtype=torch.float64) / (dim // 6))
    places = torch.stack(torch.meshgrid(*(torch.arange(s) for s in sides), indexing="ij"), -1).double()
    angles = [places[..., axis, None] * frequency for axis in (1, 0, 2)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], -1).float()


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(343, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        places = torch.stack(torch.meshgrid(*3 * [torch.arange(_WINDOW)], indexing="ij"), -1).view(-1, 3)
        index = ((places[:, None] - places[None] + 3) * torch.tensor([49, 7, 1])).sum(-1)
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self, x: Tensor, shifted: bool) -> Tensor:
        b, *sides, c = x.shape
        x = F.pad(x, [0, 0, *(n for s in reversed(sides) for n in (0, -s % _WINDOW))])
        whole = x.shape[1:4]
        move = [2 if shifted and side > _WINDOW else 0 for side in whole]
        x = x.roll([-m for m in move], (1, 2, 3))
        counts = [side // _WINDOW for side in whole]
        x = x.view(b, counts[0], 4, counts[1], 4, counts[2], 4, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 64, c)
        q, k, v = self.qkv(x).view(len(x), 64, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        logits = logits + self.relative_position_bias_table[self.index].view(64, 64, -1).permute(2, 0, 1)
        if any(move):
            region = x.new_zeros(whole)
            for axis, m in enumerate(move):
                along = x.new_zeros(whole[axis])
                if m:
                    along[-4:-2], along[-2:] = 1, 2
                region = region + 3**axis * along.view([-1 if other == axis else 1 for other in range(3)])
            region = region.view(counts[0], 4, counts[1], 4, counts[2], 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 64)
            hidden = (region[:, None] != region[:, :, None]).to(logits) * -100
            logits = (logits.view(b, -1, self.heads, 64, 64) + hidden[:, None]).view(-1, self.heads, 64, 64)
        x = self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, 64, c))
        x = x.view(b, *counts, 4, 4, 4, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *whole, c)
        return x.roll(move, (1, 2, 3))[:, : sides[0], : sides[1], : sides[2]]


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: float, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads)
        hidden = int(ratio * dim)
        layers = {"0": nn.Linear(dim, hidden), "1": nn.GELU(), "3": nn.Linear(hidden, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.shifted)
        return x + self.mlp(self.norm2(x))


class _Merging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [0, 0, *(n for s in reversed(x.shape[1:4]) for n in (0, s % 2))])
        order = [(h, w, d) for d in (0, 1) for w in (0, 1) for h in (0, 1)]
        return self.reduction(self.norm(torch.cat([x[:, h::2, w::2, d::2] for h, w, d in order], -1)))


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1)
        self.norm = nn.InstanceNorm3d(out)
        self.act = nn.LeakyReLU(0.01)
        if channels != out:
            self.conv3 = nn.Conv3d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(self.act(self.norm(self.conv1(x)))))
        return self.act(y + (self.norm(self.conv3(x)) if hasattr(self, "conv3") else x))


class _Up(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.transp_conv = nn.ConvTranspose3d(channels, out, stride, stride)
        self.conv_block = _Residual(2 * out if skip else out, out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.transp_conv(x)
        return self.conv_block(x if skip is None else torch.cat([x, skip], 1))


class NeRFMAETwin(nn.Module):
    """The network; no path is dropped.

    Args:
        config: sizes of the network that it is compared with.
    """

    def __init__(self, config: NeRFMAEConfig) -> None:
        super().__init__()
        dims = config.channels
        self.patch_partition = nn.ModuleDict({"0": nn.Conv3d(4, dims[0], 4, 4), "2": nn.LayerNorm(dims[0])})
        self.mask_token = nn.Parameter(torch.zeros(dims[0]))
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, config.depths, config.heads, strict=True)):
            blocks = [_Block(dim, heads, config.mlp_ratio, n % 2 == 1) for n in range(depth)]
            self.stages.append(nn.Sequential(*([_Merging(dim // 2)] if stage else []), *blocks))
        for number in (4, 3, 2):
            setattr(self, f"decoder{number}", _Up(dims[number - 1], dims[number - 2], 2, True))
        self.decoder1 = _Up(dims[0], dims[0] // 2, 4, False)
        self.out = nn.ModuleDict({"conv": nn.Conv3d(dims[0] // 2, 4, 1)})

    def forward(self, values: Tensor, valid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4, X, Y, Z) grids, (B, X, Y, Z) valid voxels, (bx, by, bz) masked blocks -> both losses."""
        x = self.patch_partition["2"](self.patch_partition["0"](values).permute(0, 2, 3, 4, 1))
        x = x + _positions(x.shape[-1], tuple(x.shape[1:4])).to(x)
        hidden = mask.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
        x = torch.where(hidden.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 4, 1, 2, 3))
        y = maps[3]
        for number in (4, 3, 2):
            y = getattr(self, f"decoder{number}")(y, maps[number - 2])
        prediction = self.out["conv"](self.decoder1(y, None)).to(values.dtype)
        seen = values[:, 3] > 0.01
        rgb = ((prediction[:, :3] - values[:, :3]) ** 2 * seen.unsqueeze(1)).sum() / seen.sum()
        counted = hidden.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2) & valid
        opacity = ((prediction[:, 3].sigmoid() - values[:, 3]) ** 2 * counted).sum() / counted.sum()
        return rgb, opacity
