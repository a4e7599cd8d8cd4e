"""A plain-PyTorch twin of I2P-MAE's pre-training network, written as one would from the paper: the benchmark's peer.

Channels before points with ``nn.Conv1d``, farthest points by a loop over a batch, neighbours by all distances, visible
tokens padded to the longest sample and hidden by an additive -100000, every group embedded, coarse features spread by
dense distances, and the teacher's maps resized to the full image before they are read at points. Its parameters have
the published names, so that it loads the weights of a :class:`geo3d.models.i2p_mae.I2PMAE`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.models.i2p_mae import I2PMAEConfig

_HIDDEN = -100000.0
_SIZE = 224
_AXES = ((0, 1, 2), (2, 0, 1), (1, 2, 0))  # row, column and depth of each view
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def farthest_points(xyz: Tensor, count: int, skip_near_origin: bool) -> Tensor:
    """(B, N, 3) -> (B, count) numbers of points that lie far from each other, from the first on."""
    batch = torch.arange(len(xyz), device=xyz.device)
    distance = xyz.new_full(xyz.shape[:2], 1e10)
    if skip_near_origin:
        distance[xyz.double().square().sum(-1) <= 1e-3] = -1
    last, found = torch.zeros_like(batch), []
    for _ in range(count):
        found.append(last)
        squared = (xyz - xyz[batch, last].unsqueeze(1)).square().sum(-1)
        distance = torch.minimum(distance, squared)
        last = distance.argmax(1)
    return torch.stack(found, 1)


def nearest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """(B, Q, 3) and (B, N, 3) -> (B, Q, k) numbers of the nearest points, nearest first."""
    x, y, z = ((queries[..., axis].unsqueeze(2) - points[..., axis].unsqueeze(1)).square() for axis in range(3))
    return (x + y + z).sort(dim=2, stable=True).indices[..., :k]


def take(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, ...) numbers -> (B, ..., C)."""
    batch = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[batch, index]


class _View:
    """One orthogonal view of clouds (B, N, 3)."""

    def __init__(self, points: Tensor, axes: tuple[int, int, int]) -> None:
        *self.plane, self.depth = axes
        flat = points[..., self.plane].float()
        self.minimum = flat.amin(1, keepdim=True)
        self.cell = (flat.amax(1, keepdim=True) - self.minimum).amax(2, keepdim=True) / (_SIZE - 3)
        cells = ((flat - self.minimum) / self.cell).floor().long()
        highest, lowest = cells.amax(1, keepdim=True) + 3, cells.amin(1, keepdim=True) - 1  # of what is covered
        self.shift = _SIZE // 2 - (highest + lowest).div(2, rounding_mode="floor") - 1

    def pixels(self, points: Tensor) -> Tensor:
        """(B, N, 2) rows and columns of points."""
        return ((points[..., self.plane].float() - self.minimum) / self.cell).floor().long() + 1 + self.shift

    def image(self, points: Tensor) -> Tensor:
        """(B, 3, 224, 224) depth map as a teacher reads it."""
        pixels, value = self.pixels(points), points[..., self.depth].float()
        canvas = value.new_zeros(len(points), _SIZE * _SIZE)
        for down in range(-2, 3):
            for right in range(-2, 3):
                at = pixels + torch.tensor([down, right], device=pixels.device)
                at = at + (at < 0).long() - (at >= _SIZE).long()
                canvas.scatter_add_(1, at[..., 0] * _SIZE + at[..., 1], value)
        image = canvas.view(-1, 1, _SIZE, _SIZE).expand(-1, 3, -1, -1).sigmoid()
        return (image - image.new_tensor(_MEAN).view(3, 1, 1)) / image.new_tensor(_STD).view(3, 1, 1)

    def look_up(self, points: Tensor, maps: Tensor) -> Tensor:
        """(B, N, 3) points and (B, C, h, w) maps -> (B, N, C)."""
        full = F.interpolate(maps, (_SIZE, _SIZE), mode="bicubic", align_corners=False).flatten(2)
        pixels = self.pixels(points)
        place = (pixels[..., 0] * _SIZE + pixels[..., 1]).unsqueeze(1).expand(-1, maps.shape[1], -1)
        return full.gather(2, place).transpose(1, 2)


class _Embedding(nn.Module):
    def __init__(self, inputs: int, first: tuple[int, int], second: tuple[int, int]) -> None:
        super().__init__()
        self.first_conv, self.second_conv = (
            nn.Sequential(nn.Conv1d(i, hidden, 1), nn.BatchNorm1d(hidden), nn.ReLU(True), nn.Conv1d(hidden, o, 1))
            for i, (hidden, o) in ((inputs, first), (2 * first[1], second))
        )

    def forward(self, members: Tensor) -> Tensor:
        """(B, G, k, C) -> (B, G, outputs)."""
        batch, groups, k, channels = members.shape
        local = self.first_conv(members.reshape(batch * groups, k, channels).transpose(1, 2))
        highest = local.max(2, keepdim=True).values.expand(-1, -1, k)
        return self.second_conv(torch.cat([highest, local], 1)).max(2).values.view(batch, groups, -1)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        score = q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5
        if hidden is not None:
            score = score + _HIDDEN * hidden.to(score.dtype).unsqueeze(1)
        return self.proj((score.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, dim))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: float, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp, self.drop = _Attention(dim, heads), _Mlp(dim, int(ratio * dim)), drop

    def _dropped(self, residual: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return residual
        kept = torch.rand(len(residual), device=residual.device) < 1 - self.drop
        return residual * (kept.to(residual.dtype) / (1 - self.drop)).view(-1, 1, 1)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x), hidden))
        return x + self._dropped(self.mlp(self.norm2(x)))


class _Blocks(nn.Module):
    def __init__(self, dim: int, config: I2PMAEConfig, drops: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(dim, config.heads, config.mlp_ratio, drop) for drop in drops)

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x + positions, hidden)
        return x


def _position(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim))


def _conv(inputs: int, outputs: int, activation: bool = True) -> nn.Sequential:
    layers = [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.GELU()]
    return nn.Sequential(*layers[: 3 if activation else 2])


class _Fuse(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = _conv(inputs, outputs)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net1, self.net2 = _conv(channels, channels), _conv(channels, channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.net2(self.net1(x)) + x)


class _Extraction(nn.Module):
    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.operation = nn.Sequential(*(_Residual(channels) for _ in range(count)))


class _Propagation(nn.Module):
    def __init__(self, inputs: int, outputs: int, residuals: int) -> None:
        super().__init__()
        self.fuse, self.extraction = _Fuse(inputs, outputs), _Extraction(outputs, residuals)

    def forward(self, fine: Tensor, coarse: Tensor, fine_feats: Tensor, coarse_feats: Tensor) -> Tensor:
        """(B, F, 3), (B, G, 3), (B, F, C), (B, G, D) -> (B, F, outputs)."""
        squared = -2 * fine @ coarse.transpose(1, 2)
        squared = squared + fine.square().sum(-1, keepdim=True) + coarse.square().sum(-1).unsqueeze(1)
        squared, index = squared.sort(-1)
        weight = 1 / (squared[..., :3] + 1e-8)
        weight = weight / weight.sum(-1, keepdim=True)
        spread = (take(coarse_feats, index[..., :3]) * weight.unsqueeze(-1)).sum(2)
        x = torch.cat([fine_feats, spread], -1).transpose(1, 2)
        return self.extraction.operation(self.fuse.net(x)).transpose(1, 2)


class _Encoder(nn.Module):
    def __init__(self, config: I2PMAEConfig) -> None:
        super().__init__()
        width, dims = config.embed_dim, config.dims
        self.token_embed = nn.ModuleList([_Embedding(3, (width, 2 * width), (4 * width, dims[0]))])
        self.token_embed.extend(_Embedding(low, (low, low), (high, high)) for low, high in pairwise(dims))
        self.encoder_pos_embeds = nn.ModuleList(_position(dim) for dim in dims)
        drops = torch.linspace(0, config.drop_path_rate, sum(config.depths), dtype=torch.float64).split(config.depths)
        self.encoder_blocks = nn.ModuleList(_Blocks(dim, config, d.tolist()) for dim, d in zip(dims, drops))
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(
        self, points: Tensor, centres: list[Tensor], members: list[Tensor], visible: list[Tensor]
    ) -> list[Tensor]:
        """(B, N, 3), then of each level (B, G, 3), (B, G, k), (B, G) -> (B, longest, C) of each level, normalised."""
        encoded, below = [], points
        for level, (xyz, index, seen) in enumerate(zip(centres, members, visible)):
            gathered = take(below, index)
            tokens = self.token_embed[level](gathered - xyz.unsqueeze(2) if level == 0 else gathered)
            lengths = seen.sum(1)
            packed = tokens.new_zeros(len(tokens), int(lengths.max()), tokens.shape[2])
            packed_xyz = xyz.new_zeros(len(tokens), packed.shape[1], 3)
            for row, length in enumerate(lengths.tolist()):
                packed[row, :length], packed_xyz[row, :length] = tokens[row, seen[row]], xyz[row, seen[row]]
            full = torch.arange(packed.shape[1], device=xyz.device) < lengths.unsqueeze(1)
            hidden = ~(full.unsqueeze(1) & full.unsqueeze(2))
            packed = self.encoder_blocks[level](packed, self.encoder_pos_embeds[level](packed_xyz), hidden)
            encoded.append(packed)
            below = tokens.clone()
            below[seen] = packed[full]
        return [norm(x) for norm, x in zip(self.encoder_norms, encoded)]


class I2PMAETwin(nn.Module):
    """The twin.

    Args:
        config: sizes. Masked groups are embedded whatever it says.
    """

    def __init__(self, config: I2PMAEConfig) -> None:
        super().__init__()
        self.config, (top, low) = config, config.decoder_dims
        self.h_encoder = _Encoder(config)
        self.mask_token = nn.Parameter(torch.zeros(1, top))
        self.h_decoder = nn.ModuleList(
            _Blocks(dim, config, [0.0] * depth) for dim, depth in zip(config.decoder_dims, config.decoder_depths)
        )
        self.decoder_pos_embeds = nn.ModuleList(_position(dim) for dim in config.decoder_dims)
        self.token_prop = nn.ModuleList([_Propagation(config.dims[-2] + top, low, config.decoder_residuals)])
        self.decoder_norm = nn.LayerNorm(low)
        self.rec_head_3d = nn.Conv1d(low, 3 * config.neighbors[-2], 1)
        self.rec_head_2d = nn.Conv1d(low, 3 * config.teacher_dim * config.neighbors[-2], 1)

    def groups(self, points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, N, 3) -> of each level, finest first, centres (B, G, 3) and numbers of members (B, G, k)."""
        centres, members, below = [], [], points
        for count, k in zip(self.config.groups, self.config.neighbors):
            flat = below.float()
            picked = farthest_points(flat, count, self.config.published_groups)
            centres.append(take(below, picked))
            members.append(nearest(take(flat, picked), flat, k))
            below = centres[-1]
        return centres, members

    def visible(self, top: Tensor, members: list[Tensor]) -> list[Tensor]:
        """(B, G) of the last level, bool -> of every level: members of what is visible."""
        found = [top]
        for level in range(len(members) - 1, 0, -1):
            batch, count = len(top), self.config.groups[level - 1]
            index = members[level] + count * torch.arange(batch, device=top.device).view(-1, 1, 1)
            if self.config.published_mask:
                index = index * found[0].unsqueeze(-1)
            else:
                index = index[found[0]]
            below = torch.zeros(batch * count, dtype=torch.bool, device=top.device)
            below[index.flatten()] = True
            found.insert(0, below.view(batch, count))
        return found

    def forward(self, points: Tensor, features: Tensor, saliency: Tensor, draws: Tensor, kept: int) -> list[Tensor]:
        """The losses of points and of features.

        Args:
            points: (B, N, 3).
            features, saliency: (3 * B, C, h, w) and (3 * B, h, w) of a teacher, all clouds of the first view first.
            draws: (B, G) exponential, of the last level, which decide what is kept.
            kept: visible groups of the last level of each cloud.
        """
        centres, members = self.groups(points)
        views = [_View(points, axes) for axes in _AXES]
        torch.cat([view.image(points) for view in views])  # what the teacher reads; what it says is given
        salient = [view.look_up(centres[-1], part) for view, part in zip(views, saliency.unsqueeze(1).chunk(3))]
        probability = torch.stack(salient).mean(0).squeeze(-1).float().softmax(1)
        top = torch.zeros_like(draws, dtype=torch.bool)
        top.scatter_(1, (probability / draws).argsort(1, descending=True)[:, :kept], True)
        visible = self.visible(top, members)
        encoded = self.h_encoder(points, centres, members, visible)
        decoded = self._decode(centres, visible, encoded)

        seen, below = visible[-2], centres[-3] if len(centres) > 2 else points
        around = take(below, members[-2])  # (B, G, k, 3)
        filled = self.rec_head_3d(decoded[~seen].t().unsqueeze(0)).squeeze(0).t().reshape(-1, around.shape[2], 3)
        truth = (around - centres[-2].unsqueeze(2))[~seen]
        squared = (filled.unsqueeze(2) - truth.unsqueeze(1)).square().sum(-1)
        loss_points = squared.min(2).values.mean() + squared.min(1).values.mean()

        parts = features.chunk(3)
        target = torch.cat([view.look_up(around.flatten(1, 2), part) for view, part in zip(views, parts)], -1)
        target = target.view(*around.shape[:3], -1)[seen]
        predicted = self.rec_head_2d(decoded[seen].t().unsqueeze(0)).squeeze(0).t().reshape(target.shape)
        return [loss_points, F.mse_loss(predicted, target)]

    def _decode(self, centres: list[Tensor], visible: list[Tensor], encoded: list[Tensor]) -> Tensor:
        """(B, G, C) tokens of the last level but one."""
        top, batch = visible[-1], len(visible[-1])
        rest = self.mask_token.expand(batch, int((~top[0]).sum()), -1)
        x = torch.cat([encoded[-1], rest], 1)
        xyz = torch.cat([centres[-1][top].view(batch, -1, 3), centres[-1][~top].view(batch, -1, 3)], 1)
        x = self.h_decoder[0](x, self.decoder_pos_embeds[0](xyz))
        fine, seen = centres[-2], visible[-2]
        skip = encoded[-2].new_zeros(*fine.shape[:2], encoded[-2].shape[2])
        for row in range(batch):
            skip[row, seen[row]] = encoded[-2][row, : int(seen[row].sum())]
        x = self.token_prop[0](fine, xyz, skip, x)
        return self.decoder_norm(self.h_decoder[1](x, self.decoder_pos_embeds[1](fine)))
