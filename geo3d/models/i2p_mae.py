"""I2P-MAE: a hierarchical encoder of points that learns from an image network (Zhang et al., 2023).

Three levels of point groups, each embedded by a small PointNet and encoded by a transformer (as in Point-M2AE); a
decoder that fills in masked groups, and predicts the image network's features of visible ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from geo3d.checkpoints.i2p_mae import classifier_around, read_i2p_mae
from geo3d.errors import InputError
from geo3d.models.encoder import StageInfo
from geo3d.models.family import Family, ReleasedFile
from geo3d.models.point_encoder import PointEncoder, PointInput, PointTokens, pool
from geo3d.nn.batch_norm import VoxelNorm1d
from geo3d.nn.point_groups import PointGroups, group_points, propagate_visible
from geo3d.nn.point_layers import (
    FeaturePropagation,
    GroupEmbedding,
    PointBlocks,
    PointwiseConv,
    nearest_weights,
    position_embedding,
)

#: Views that a cloud is looked at from.
VIEWS = 3
_WEIGHT_STD = 0.02
_EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class PointEncoderConfig:
    """Sizes of the hierarchical encoder of points; the defaults are those of I2P-MAE."""

    points: int = 2048
    """Points of a cloud in training; clouds of more are thinned out to as many."""
    groups: tuple[int, ...] = (512, 256, 64)
    """Groups of each level, which become tokens, finest first."""
    neighbors: tuple[int, ...] = (16, 8, 8)
    """Members of a group: points at the first level, tokens of the level below at others."""
    dims: tuple[int, ...] = (96, 192, 384)
    """Channels of each level."""
    depths: tuple[int, ...] = (5, 5, 5)
    """Blocks of each level."""
    heads: int = 6
    """Attention heads of every level."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLPs over their channels."""
    embed_dim: int = 128
    """Channels of the first layer that sees points; those after it have twice and four times as many."""
    radii: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Tokens of a level see those that are closer than this, in radii of the cloud; 0: all."""
    drop_path_rate: float = 0.1
    """Probability to drop the residuals of the last block; earlier ones less, in proportion."""
    published_groups: bool = True
    """Choose groups by the rules of the published kernels: points near the origin are no centres, ties fall as their
    threads happen to. Off: by distance alone."""

    def __post_init__(self) -> None:
        levels = {name: len(getattr(self, name)) for name in ("groups", "neighbors", "dims", "depths", "radii")}
        if len(set(levels.values())) != 1 or not self.groups:
            raise InputError(f"I2P-MAE: {', '.join(levels)} must be of one length, got {levels}")
        if self.heads < 1 or any(dim % self.heads for dim in self.dims):
            raise InputError(f"I2P-MAE: dims {self.dims} over {self.heads} heads must give whole heads")
        sizes = (*self.groups, *self.neighbors, *self.depths, self.points, self.embed_dim)
        fits = min(sizes) >= 1 and max(self.neighbors) <= 64 and min(self.radii) >= 0
        if not (fits and 0 <= self.drop_path_rate < 1 and self.mlp_ratio > 0):
            raise InputError(
                "I2P-MAE: groups, neighbors (up to 64), depths, points and embed_dim must be at least 1, radii 0 or "
                f"more, mlp_ratio positive and drop_path_rate in [0, 1), got {self}"
            )


@dataclass(frozen=True)
class I2PMAEConfig(PointEncoderConfig):
    """Sizes of the pre-training network."""

    decoder_dims: tuple[int, ...] = (384, 192)
    """Channels of the decoder's two levels, from the top; the first is the encoder's last. Empty: an encoder alone."""
    decoder_depths: tuple[int, ...] = (1, 1)
    """Blocks of the decoder's levels."""
    decoder_residuals: int = 1
    """Residual blocks on the way down."""
    teacher_dim: int = 512
    """Channels of the image network's features, of each of three views; 0: none are predicted."""
    shape_dim: int = 0
    """Figures of the local shape that are predicted of every group; 0: none, as published."""
    published_mask: bool = True
    """As in the published code: the first group of the first cloud of a batch is always visible below the top while
    anything is masked; and where nothing is, groups that are no members of one above are left out all the same."""
    embed_masked: bool = True
    """Masked groups are embedded too, and count in the statistics of batch normalisation, as in the published code.
    Off: what is masked costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_dims and (len(self.decoder_dims) != 2 or len(self.decoder_depths) != 2 or len(self.groups) < 2):
            raise InputError(
                f"I2P-MAE: decoder_dims and decoder_depths must be of two levels, got {self.decoder_dims} and "
                f"{self.decoder_depths} for {len(self.groups)} levels of the encoder"
            )
        if self.decoder_dims and self.decoder_dims[0] != self.dims[-1]:
            raise InputError(f"I2P-MAE: decoder_dims must begin with {self.dims[-1]}, got {self.decoder_dims}")
        if min(self.teacher_dim, self.shape_dim) < 0:
            raise InputError(
                f"I2P-MAE: teacher_dim and shape_dim must be 0 or more, got {self.teacher_dim} and {self.shape_dim}"
            )


@dataclass(frozen=True)
class PointClassifierConfig(PointEncoderConfig):
    """Sizes of a network that names the class of a cloud; the defaults are those for ModelNet40."""

    points: int = 1024
    neighbors: tuple[int, ...] = (48, 24, 24)
    radii: tuple[float, ...] = (0.24, 0.48, 0.96)
    num_classes: int = 40
    """Classes that are told apart."""
    pooling: str = "sum"
    """How the tokens become one vector: the sum of their mean and maximum, or both side by side (ScanObjectNN)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in _HEADS:
            raise InputError(f"I2P-MAE: pooling must be one of {', '.join(_HEADS)}, got {self.pooling!r}")
        if self.num_classes < 1:
            raise InputError(f"I2P-MAE: num_classes must be at least 1, got {self.num_classes}")


#: Pooling of a classifier -> columns over the channels.
_HEADS = {"sum": 1, "both": 2}


@dataclass
class PointBatch:
    """Clouds with their groups.

    Args:
        inputs: the points.
        groups: of each level, finest first.
    """

    inputs: PointInput
    groups: list[PointGroups]


class HierarchicalEncoder(nn.Module):
    """Levels of groups, embedded and encoded one after the other (Point-M2AE, section 3.1), with published names.

    Args:
        config: sizes.
        final_norms: whether the tokens of every level are normalised at the end.
    """

    def __init__(self, config: PointEncoderConfig, final_norms: bool = True) -> None:
        super().__init__()
        self.config = config
        width, dims = config.embed_dim, config.dims
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), dtype=torch.float64, device="cpu")
        rate_parts = rates.split(config.depths)
        first = GroupEmbedding(3, (width, 2 * width), (4 * width, dims[0]))
        others = (GroupEmbedding(low, (low, low), (high, high)) for low, high in pairwise(dims))
        self.token_embed = nn.ModuleList([first, *others])
        self.encoder_pos_embeds = nn.ModuleList(position_embedding(dim) for dim in dims)
        self.encoder_blocks = nn.ModuleList(
            PointBlocks(dim, config.heads, config.mlp_ratio, part.tolist()) for dim, part in zip(dims, rate_parts)
        )
        if final_norms:
            self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(
        self, batch: PointBatch, visible: Sequence[Tensor] | None = None, embed_masked: bool = True
    ) -> list[Tensor]:
        """Tokens of every level.

        Args:
            batch: of clouds.
            visible: (B, G) bool of each level; all groups when not given. Tokens see visible ones alone.
            embed_masked: whether masked groups are embedded too, which only statistics of a batch show.

        Returns:
            (T, C) of each level, before the final normalisation: tokens of visible groups, in the order of the groups.
        """
        encoded: list[Tensor] = []
        below = batch.inputs.xyz
        for level, groups in enumerate(batch.groups):
            rows = None if visible is None else visible[level].flatten().nonzero().squeeze(1)
            embedded = rows if not embed_masked else None
            index = groups.index if embedded is None else groups.index[embedded]
            members = below[index]
            if level == 0:
                centres = groups.rows if embedded is None else groups.rows[embedded]
                members = members - centres.unsqueeze(1)
            tokens = self.token_embed[level](members)
            seen = tokens if rows is None or embedded is not None else tokens[rows]
            encoded.append(self._encode(level, seen, groups, rows))
            if level + 1 == len(batch.groups):
                break
            if rows is None:
                below = encoded[-1]
            elif embedded is None:
                below = tokens.index_copy(0, rows, encoded[-1])
            else:
                below = tokens.new_zeros(len(groups.index), tokens.shape[1]).index_copy(0, rows, encoded[-1])
        return encoded

    def encode_dense(self, batch: PointBatch, visible: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What :meth:`forward` gives in evaluation mode, in shapes that no mask has an influence on, for programs.

        Args:
            batch: of clouds.
            visible: (B, G) bool of each level, in which members of visible groups are visible; all when not given.

        Returns:
            (B * G, C) of each level; rows of groups that are not visible mean nothing.
        """
        encoded, below = [], batch.inputs.xyz
        for level, groups in enumerate(batch.groups):
            members = below[groups.index]
            if level == 0:
                members = members - groups.rows.unsqueeze(1)
            mask = None
            if visible is not None:
                # A hidden group sees itself too: of no group at all there would be no attention, but NaN.
                itself = torch.eye(groups.xyz.shape[1], dtype=torch.bool, device=below.device)
                mask = visible[level].unsqueeze(1) | itself
            radius = self.config.radii[level]
            if radius > 0:
                near = torch.cdist(groups.xyz, groups.xyz, compute_mode=_EXACT) < radius
                mask = near if mask is None else near & mask
            tokens = self.token_embed[level](members).view(*groups.xyz.shape[:2], -1)
            positions = self.encoder_pos_embeds[level](groups.xyz)
            below = self.encoder_blocks[level](tokens, positions, masks=mask).flatten(0, 1)
            encoded.append(below)
        return encoded

    def _encode(self, level: int, tokens: Tensor, groups: PointGroups, rows: Tensor | None) -> Tensor:
        """(T, C) -> (T, C): tokens of each cloud see each other."""
        clouds, count = groups.xyz.shape[:2]
        xyz = groups.rows if rows is None else groups.rows[rows]
        lengths = [count] * clouds if rows is None else torch.bincount(rows // count, minlength=clouds).tolist()
        even = len(set(lengths)) == 1
        shape = (clouds, lengths[0], -1) if even else (1, len(tokens), -1)
        radius = self.config.radii[level]
        masks = None
        if radius > 0:
            parts = xyz.split(lengths)
            masks = [torch.cdist(part, part, compute_mode=_EXACT) < radius for part in parts]
        positions = self.encoder_pos_embeds[level](xyz).view(shape)
        blocks = self.encoder_blocks[level]
        return blocks(tokens.reshape(shape), positions, None if even else lengths, masks).flatten(0, 1)


class _PointNetwork(PointEncoder):
    """What the networks of I2P-MAE share: levels of groups."""

    h_encoder: HierarchicalEncoder

    @property
    def points_read(self) -> int:
        """Points of a cloud in training."""
        return self.config.points

    @property
    def feature_info(self) -> list[StageInfo]:
        """The levels, finest first; the stride is how many points there are for a token in training."""
        sizes = zip(self.config.dims, self.config.groups)
        return [
            StageInfo(f"level{n}", dim, max(1, self.config.points // count)) for n, (dim, count) in enumerate(sizes)
        ]

    def layer_prefixes(self) -> list[tuple[str, ...]]:
        """The first level's embedding, then the blocks of all levels; that of another level belongs to its first block,
        the norm of a level to its last.
        """
        layers = []
        for level, depth in enumerate(self.config.depths):
            embedding = f"h_encoder.token_embed.{level}.", f"h_encoder.encoder_pos_embeds.{level}."
            blocks = [(f"h_encoder.encoder_blocks.{level}.blocks.{block}.",) for block in range(depth)]
            blocks[-1] += (f"h_encoder.encoder_norms.{level}.",)
            layers += [embedding, *blocks] if level == 0 else [(*embedding, *blocks[0]), *blocks[1:]]
        return layers

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: truncated normal matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | PointwiseConv):
                nn.init.trunc_normal_(module.weight, std=_WEIGHT_STD, generator=generator)
                if isinstance(module, PointwiseConv):  # small networks without a residual: of unit gain
                    nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def batch(self, inputs: PointInput) -> PointBatch:
        """Clouds with their groups."""
        self.require_points(inputs)
        config = self.config
        groups = group_points(
            inputs.xyz, inputs.offsets, config.groups, config.neighbors, published=config.published_groups
        )
        return PointBatch(inputs, groups)

    def final(self, level: int, tokens: Tensor) -> Tensor:
        """(T, C) tokens of a level as they are handed out."""
        return self.h_encoder.encoder_norms[level](tokens)

    def features(self, inputs: PointInput, layers: Sequence[int | str] | None = None) -> list[PointTokens]:
        """Tokens of the levels, nothing masked."""
        batch = self.batch(self._typed(inputs))
        visible = self.unmasked(batch)
        traced = torch.compiler.is_exporting()
        encoded = self.h_encoder.encode_dense(batch, visible) if traced else self.h_encoder(batch, visible)
        found = []
        for n in self.stage_numbers(layers):
            xyz, offsets, tokens = batch.groups[n].rows, batch.groups[n].offsets, encoded[n]
            if visible is not None:
                rows = visible[n].flatten().nonzero().squeeze(1)
                xyz, tokens = xyz[rows], tokens[rows] if traced else tokens
                offsets = torch.cat([offsets[:1], visible[n].sum(1).cumsum(0)])
            found.append(PointTokens(xyz, self.final(n, tokens), offsets))
        return found

    def unmasked(self, batch: PointBatch) -> list[Tensor] | None:
        """(B, G) bool of each level: groups that are encoded where nothing is masked. None: all."""
        return None

    def _typed(self, inputs: PointInput) -> PointInput:
        """Positions in the network's type."""
        self.require_points(inputs)
        return PointInput(inputs.xyz.to(next(self.parameters()).dtype), inputs.offsets, inputs.centre, inputs.scale)


@dataclass
class I2PMAEOutput:
    """What the pre-training network makes of clouds.

    Args:
        levels: (T, C) encoded tokens of the visible groups of each level, normalised.
        propagated: (B * G, C) tokens of the last level but one, on the way down.
        decoded: (B * G, C) these, decoded.
        points: (M, k, 3) members of its masked groups about their centres.
        features: (V, k, views * teacher_dim) features of the members of its visible groups, or None.
        shape: (B * G, shape_dim) local shape at its centres, or None.
    """

    levels: list[Tensor]
    propagated: Tensor
    decoded: Tensor
    points: Tensor
    features: Tensor | None
    shape: Tensor | None


class I2PMAE(_PointNetwork):
    """The pre-training network of I2P-MAE (section 3), with published parameter names.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "i2p_mae"
    decoder_prefixes = ("mask_token", "h_decoder.", "decoder_", "token_prop.", "rec_head_")

    def __init__(self, config: I2PMAEConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or I2PMAEConfig()
        self.h_encoder = HierarchicalEncoder(config)
        if config.decoder_dims:
            top, low = config.decoder_dims
            members = config.neighbors[-2]
            self.mask_token = nn.Parameter(torch.zeros(1, top))
            self.h_decoder = nn.ModuleList(
                PointBlocks(dim, config.heads, config.mlp_ratio, [0.0] * depth)
                for dim, depth in zip(config.decoder_dims, config.decoder_depths)
            )
            self.decoder_pos_embeds = nn.ModuleList(position_embedding(dim) for dim in config.decoder_dims)
            skip = config.dims[-2]
            self.token_prop = nn.ModuleList([FeaturePropagation(skip, top, low, config.decoder_residuals)])
            self.decoder_norm = nn.LayerNorm(low)
            self.rec_head_3d = PointwiseConv(low, 3 * members)
            if config.shape_dim:
                self.rec_head_shape = PointwiseConv(low, config.shape_dim)
            if config.teacher_dim:
                self.rec_head_2d = PointwiseConv(low, members * VIEWS * config.teacher_dim)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""
        super().reset_parameters(generator)
        if self.config.decoder_dims:
            nn.init.trunc_normal_(self.mask_token, std=_WEIGHT_STD, generator=generator)
            for head in ("rec_head_3d", "rec_head_2d", "rec_head_shape"):
                if hasattr(self, head):
                    nn.init.trunc_normal_(getattr(self, head).weight, std=_WEIGHT_STD, generator=generator)

    def unmasked(self, batch: PointBatch) -> list[Tensor] | None:
        """(B, G) bool of each level: as published, the groups that reach the top; or else None, all."""
        if not self.config.published_mask:
            return None
        top = batch.groups[-1].xyz
        return self.visible(batch, top.new_ones(top.shape[:2], dtype=torch.bool))

    def visible(self, batch: PointBatch, top: Tensor) -> list[Tensor]:
        """(B, G) bool of each level: visible groups, given those of the last level."""
        return propagate_visible(batch.groups, top, self.config.published_mask)

    def forward(self, batch: PointBatch, visible: Sequence[Tensor]) -> I2PMAEOutput:
        """Encode what is visible, fill in what is masked.

        Args:
            batch: of :meth:`batch`.
            visible: of :meth:`visible`.

        Raises:
            InputError: the network is an encoder alone.
        """
        if not self.config.decoder_dims:
            raise InputError("I2P-MAE: an encoder alone fills in nothing; make it with fresh_decoder=True")
        encoded = self.h_encoder(batch, visible, self.config.embed_masked)
        levels = [self.final(level, tokens) for level, tokens in enumerate(encoded)]
        return self._decode(batch, visible, levels)

    def _decode(self, batch: PointBatch, visible: Sequence[Tensor], levels: list[Tensor]) -> I2PMAEOutput:
        *_, fine, coarse = batch.groups
        clouds, count = coarse.xyz.shape[:2]
        x = self._placed(self.mask_token.expand(clouds * count, -1), visible[-1], levels[-1])
        x = self.h_decoder[0](x.view(clouds, count, -1), self.decoder_pos_embeds[0](coarse.xyz)).flatten(0, 1)
        skip = self._placed(x.new_zeros(fine.rows.shape[0], self.config.dims[-2]), visible[-2], levels[-2])
        propagated = self.token_prop[0](skip, x, *self._way_down(fine, coarse))
        y = propagated.view(clouds, fine.xyz.shape[1], -1)
        decoded = self.decoder_norm(self.h_decoder[1](y, self.decoder_pos_embeds[1](fine.xyz))).flatten(0, 1)
        seen = visible[-2].flatten()
        members = self.config.neighbors[-2]
        points = self.rec_head_3d(decoded[~seen]).unflatten(-1, (members, 3))
        features = None
        if self.config.teacher_dim:
            features = self.rec_head_2d(decoded[seen]).unflatten(-1, (members, -1))
        shape = self.rec_head_shape(decoded) if self.config.shape_dim else None
        return I2PMAEOutput(levels, propagated, decoded, points, features, shape)

    @staticmethod
    def _placed(rest: Tensor, visible: Tensor, tokens: Tensor) -> Tensor:
        """(B * G, C): tokens where groups are visible, ``rest`` elsewhere."""
        return rest.index_copy(0, visible.flatten().nonzero().squeeze(1), tokens)

    @staticmethod
    def _way_down(fine: PointGroups, coarse: PointGroups) -> tuple[Tensor, Tensor]:
        """The three coarse centres nearest to each fine one, and their weights."""
        return nearest_weights(fine.rows, coarse.rows, fine.offsets, coarse.offsets)


class PointClassifier(_PointNetwork):
    """The encoder with a head that names the class of a cloud (section 4.2), with published parameter names.

    Args:
        config: sizes.
        generator: draws the initial weights; torch's global one when not given.
    """

    family = "i2p_mae_classifier"
    task = "classify"
    decoder_prefixes = ("norm.", "cls_head_finetune.")

    def __init__(self, config: PointClassifierConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or PointClassifierConfig()
        self.h_encoder = HierarchicalEncoder(config, final_norms=False)
        dim, hidden = config.dims[-1], 256
        self.norm = nn.LayerNorm(dim)
        widths = (_HEADS[config.pooling] * dim, hidden, hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), VoxelNorm1d(outputs), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        self.cls_head_finetune = nn.Sequential(*layers, nn.Linear(hidden, config.num_classes))
        self.reset_parameters(generator)

    def final(self, level: int, tokens: Tensor) -> Tensor:
        """(T, C): those of the last level normalised."""
        return self.norm(tokens) if level == len(self.config.dims) - 1 else tokens

    def forward(self, inputs: PointInput) -> Tensor:
        """Clouds -> (B, num_classes) logits."""
        tokens = self.features(inputs, [-1])[0]
        parts = [pool(tokens, "mean"), pool(tokens, "max")]
        return self.cls_head_finetune(sum(parts) if self.config.pooling == "sum" else torch.cat(parts, 1))


PRESETS = {
    "i2p_mae_base": I2PMAEConfig(),
    "i2p_mae_tiny": I2PMAEConfig(
        points=1024,
        groups=(128, 64, 32),
        neighbors=(16, 6, 6),
        dims=(96, 144, 192),
        depths=(1, 2, 3),
        embed_dim=32,
        drop_path_rate=0.0,
        decoder_dims=(192, 96),
        teacher_dim=36,
        published_groups=False,
        published_mask=False,
        embed_masked=False,
    ),
}
CLASSIFIERS = {
    "i2p_mae_modelnet40": PointClassifierConfig(),
    "i2p_mae_scanobjectnn": PointClassifierConfig(
        points=2048,
        neighbors=(32, 16, 16),
        radii=(0.32, 0.64, 1.28),
        num_classes=15,
        pooling="both",
    ),
    "i2p_mae_scanobjectnn_hardest": PointClassifierConfig(
        points=2048,
        neighbors=(32, 16, 16),
        radii=(0.48, 0.96, 1.92),
        num_classes=15,
        pooling="both",
    ),
}
_FREE = ("points", "drop_path_rate", "radii")
_UNSTATED = ("groups", "neighbors", "heads", "published_groups")
_QUIRKS = ("published_mask", "embed_masked")

FAMILY = Family(
    name="i2p_mae",
    title="I2P-MAE",
    network=I2PMAE,
    config=I2PMAEConfig,
    presets=PRESETS,
    read=read_i2p_mae,
    named=("dims", "depths", "embed_dim", "heads", "groups"),
    free=(*_FREE, *_QUIRKS),
    unstated=_UNSTATED,
    bare={"decoder_dims": ()},
    of_decoder=("decoder_dims", "decoder_depths", "decoder_residuals", "teacher_dim", "shape_dim"),
    files=(ReleasedFile("ckpt-best.pth", ("i2p_mae_base",)), ReleasedFile("ckpt-last.pth", ("i2p_mae_base",))),
    page="https://github.com/ZrrSkywalker/I2P-MAE",
)
CLASSIFIER_FAMILY = Family(
    name="i2p_mae_classifier",
    title="I2P-MAE's classifier",
    published="i2p_mae",
    network=PointClassifier,
    config=PointClassifierConfig,
    presets=CLASSIFIERS,
    read=read_i2p_mae,
    named=("dims", "depths", "embed_dim", "heads", "groups", "num_classes", "pooling"),
    free=_FREE,
    unstated=_UNSTATED,
    of_decoder=("num_classes", "pooling"),
    wholes={"i2p_mae": classifier_around},
)

__all__ = [
    "CLASSIFIERS",
    "CLASSIFIER_FAMILY",
    "FAMILY",
    "I2PMAE",
    "PRESETS",
    "I2PMAEConfig",
    "I2PMAEOutput",
    "PointBatch",
    "PointClassifier",
    "PointClassifierConfig",
    "PointEncoderConfig",
]
