"""CLIP's image tower, ViT-B/16 (Radford et al., ICML 2021), as I2P-MAE asks it: patch features and attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.checkpoints.loading import as_state_dict, load_exactly, read_weight_file
from geo3d.errors import InputError
from geo3d.models.teachers.teacher import Teacher, TeacherOptions, TeacherOutput
from geo3d.nn.colors import normalise

_WIDTH, _HEADS, _DEPTH, _PATCH, _GRID, _OUT = 768, 12, 12, 16, 14, 512
_LAYER_NORM_EPS = 1e-5
#: Mean and standard deviation of the colours that CLIP was trained on.
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: What stands before the tower's names: in I2P-MAE's files, in whole CLIP models, and nothing.
_PREFIXES = ("clip_model.visual.", "visual.", "")
#: timm's names of what is not in a block -> CLIP's.
_TIMM = {
    "patch_embed.proj.weight": "conv1.weight",
    "norm_pre.weight": "ln_pre.weight",
    "norm_pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
}
#: The same within a block.
_TIMM_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


@dataclass(frozen=True)
class ClipOptions(TeacherOptions):
    """Options of :class:`ClipTeacher`.

    Args:
        colors: by whose mean and deviation images are normalised. I2P-MAE takes ImageNet's, though CLIP was trained
            with its own.
        activation: of the MLPs: ``quick_gelu`` in OpenAI's weights, ``gelu`` in most that open_clip's authors trained.
        weights: those of the checkpoint, or fresh ones, to learn what training is worth.
        seed: of fresh weights.
    """

    colors: Literal["imagenet", "clip"] = "imagenet"
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    weights: Literal["trained", "random"] = "trained"
    seed: int = 0


class ClipTeacher(Teacher):
    """Patch tokens of CLIP's ViT-B/16 in the space that it shares with text; saliency is the last block's attention.

    Weights: a file of I2P-MAE's that holds ``clip_model``, a state dict of OpenAI's or open_clip's (``visual.*``), or
    timm's ``vit_base_patch16_clip_224`` with its projection; in half precision or not. Images of another size than
    224 x 224 get the position embedding resized (bicubic).
    """

    name = "clip_vit_b16"
    Options = ClipOptions
    at_once = 8 * 224 * 224
    needs_checkpoint = "a file that holds CLIP's ViT-B/16 (of I2P-MAE's, OpenAI's, open_clip's or timm's)"
    channels, stride, multiple = _OUT, _PATCH, _PATCH
    options: ClipOptions

    def __init__(self, options: ClipOptions, checkpoint: Path | None = None) -> None:
        super().__init__(options, checkpoint)
        if checkpoint is None:
            self.visual = VisionTower(options.activation)
            self.visual.draw(torch.Generator().manual_seed(options.seed))
        else:
            with torch.device("meta"):
                self.visual = VisionTower(options.activation)
            state = _tower_in(as_state_dict(read_weight_file(checkpoint).content, checkpoint), checkpoint)
            load_exactly(self.visual, state, checkpoint)

    def look(self, images: Tensor) -> TeacherOutput:
        images = images.to(self.visual.proj.dtype)
        if self.options.colors == "imagenet":
            images = normalise(images.permute(0, 2, 3, 1))
        else:
            mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (_CLIP_MEAN, _CLIP_STD))
            images = (images - mean) / std
        return TeacherOutput(*self.visual(images))


class VisionTower(nn.Module):
    """The network, with the names of its published weights."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(_WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty(1 + _GRID**2, _WIDTH))
        self.proj = nn.Parameter(torch.empty(_WIDTH, _OUT))
        self.conv1 = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH, bias=False)
        self.ln_pre = nn.LayerNorm(_WIDTH, _LAYER_NORM_EPS)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(_Block(activation) for _ in range(_DEPTH))
        self.ln_post = nn.LayerNorm(_WIDTH, _LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) -> features (B, 512, H / 16, W / 16), attention of the class token on them."""
        x = self.conv1(images)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self._positions(height, width)
        x = self.ln_pre(x)
        blocks = self.transformer.resblocks
        for block in blocks[:-1]:
            x = block(x)
        attention = blocks[-1].attn.of_first(blocks[-1].ln_1(x))  # (B, 1 + patches)
        x = blocks[-1](x)[:, 1:]
        features = self.ln_post(x) @ self.proj
        return features.transpose(1, 2).unflatten(2, (height, width)), attention[:, 1:].unflatten(1, (height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (_GRID, _GRID):
            return self.positional_embedding
        grid = self.positional_embedding[1:].t().unflatten(1, (_GRID, _GRID)).unsqueeze(0)
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)[0].flatten(1).t()
        return torch.cat([self.positional_embedding[:1], grid])

    def draw(self, generator: torch.Generator) -> None:
        """Fresh weights: matrices N(0, 1 / inputs), embeddings N(0, 1 / width), norms that change nothing."""
        for name, parameter in self.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                inputs = _WIDTH if name in ("proj", "positional_embedding", "class_embedding") else parameter[0].numel()
                nn.init.normal_(parameter, 0, inputs**-0.5, generator=generator)


class _Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(_WIDTH, _LAYER_NORM_EPS)
        self.attn = _Attention()
        self.ln_2 = nn.LayerNorm(_WIDTH, _LAYER_NORM_EPS)
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.mlp.c_proj = nn.Linear(4 * _WIDTH, _WIDTH)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.ln_1(x))
        y = self.mlp.c_fc(self.ln_2(x))
        y = y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y)
        return x + self.mlp.c_proj(y)


class _Attention(nn.Module):
    """Multi-head self-attention with the names of ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * _WIDTH, _WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * _WIDTH))
        self.out_proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, _HEADS, -1))
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def of_first(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N): how much the first token attends to each, the mean of all heads."""
        query_weight, key_weight = self.in_proj_weight[: 2 * _WIDTH].chunk(2)
        query_bias, key_bias = self.in_proj_bias[: 2 * _WIDTH].chunk(2)
        query = F.linear(x[:, 0], query_weight, query_bias).unflatten(-1, (_HEADS, -1))  # (B, heads, D)
        key = F.linear(x, key_weight, key_bias).unflatten(-1, (_HEADS, -1))  # (B, N, heads, D)
        scores = torch.einsum("bhd,bnhd->bhn", query, key) * query.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1)


def _tower_in(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tower's own names -> tensors, in one of the layouts that hold it.

    Raises:
        InputError: none does.
    """
    for prefix in _PREFIXES:
        if f"{prefix}class_embedding" in state:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if "patch_embed.proj.weight" in state and "norm_pre.weight" in state:
        return _from_timm(state, path)
    raise InputError(
        f"{path}: holds no image tower of CLIP's; expected names such as clip_model.visual.conv1.weight (I2P-MAE), "
        f"visual.conv1.weight (OpenAI, open_clip) or patch_embed.proj.weight with norm_pre.weight (timm), found "
        f"{', '.join(list(state)[:3])}"
    )


def _from_timm(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """timm's names -> CLIP's; its head is the transposed projection, whose bias must be zero."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "cls_token":
            found["class_embedding"] = value.flatten()
        elif name == "pos_embed":
            found["positional_embedding"] = value.flatten(0, -2)
        elif name == "head.weight":
            found["proj"] = value.t()
        elif name == "head.bias":
            if value.any():
                raise InputError(f"{path}: head.bias is not zero: its head is a classifier, not CLIP's projection")
        elif name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            for theirs, ours in _TIMM_BLOCK.items():
                inner = inner.replace(theirs, ours)
            found[f"transformer.resblocks.{number}.{inner}"] = value
        else:
            found[_TIMM.get(name, name)] = value
    return found
