"""Teacher: a frozen network that says of an image what is in it, and where it matters."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.config import to_plain
from geo3d.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class TeacherOutput(NamedTuple):
    """What a teacher says of images.

    Args:
        features: (B, C, h, w) float32.
        saliency: (B, h, w) float32, not negative; the sum over an image is 1, or a little less where a part of the
            attention goes elsewhere (CLIP).
    """

    features: Tensor
    saliency: Tensor


@dataclass(frozen=True)
class TeacherOptions:
    """Options of a teacher; subclasses add fields, which are checked by name and type."""


class Teacher(nn.Module, ABC):
    """A frozen image network as a guide. It is in evaluation mode, has no gradient and stays out of checkpoints.

    Subclasses set the class attributes, build themselves of ``(options, checkpoint)`` and implement :meth:`look`.

    Attributes:
        name: under which it is registered.
        Options: dataclass of its options.
        at_once: pixels of the images that are looked at together on a CPU, so that their maps stay in the caches:
            EfficientNet-Lite0 takes 7 ms each for 24 images of 224 two at a time, 20 all at once (one thread).
        needs_checkpoint: what file it needs, in words; empty where it needs none.
        channels: of its features.
        stride: pixels of an image along a side of one cell of its maps.
        multiple: pixels of which both sides of an image are a multiple.
    """

    name: ClassVar[str]
    Options: ClassVar[type[TeacherOptions]] = TeacherOptions
    at_once: ClassVar[int] = 2 * 224 * 224
    needs_checkpoint: ClassVar[str] = ""
    channels: int
    stride: int
    multiple: int = 1

    def __init__(self, options: TeacherOptions, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.options = options
        random = getattr(options, "weights", None) == "random"
        if random and checkpoint is not None:
            raise InputError(f"teacher {self.name}: weights='random' reads no file, leave out checkpoint={checkpoint}")
        if checkpoint is None and self.needs_checkpoint and not random:
            raise InputError(f"teacher {self.name}: needs {self.needs_checkpoint}; give it by checkpoint=FILE")

    @abstractmethod
    def look(self, images: Tensor) -> TeacherOutput:
        """What :meth:`forward` hands out, of images (B, 3, H, W) in [0, 1] whose sides are multiples."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """Features and saliency of images.

        Args:
            images: (B, 3, H, W) floats in [0, 1], before any normalisation, which is the teacher's own.

        Returns:
            Features (B, C, h, w) and saliency (B, h, w), without gradients.

        Raises:
            InputError: images of another shape or type, or whose sides are no multiple of what the teacher reads.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or len(images) == 0:
            raise InputError(
                f"teacher {self.name}: images must be (B, 3, H, W) floats in [0, 1], got {tuple(images.shape)} of "
                f"{images.dtype}"
            )
        if images.shape[2] % self.multiple or images.shape[3] % self.multiple or 0 in images.shape[2:]:
            raise InputError(
                f"teacher {self.name}: sides of images must be multiples of {self.multiple} pixels, got "
                f"{images.shape[2]} x {images.shape[3]}; choose another size of the views"
            )
        together = max(1, self.at_once // images[0, 0].numel()) if images.is_cpu else len(images)
        parts = [self.look(part) for part in images.split(together)]
        features, saliency = (torch.cat(part) for part in zip(*parts))
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32  # also under autocast
        return TeacherOutput(features.to(wide), saliency.to(wide))

    def freeze(self) -> Self:
        """Take all gradients away and put it into evaluation mode, where it stays."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a teacher stays in evaluation mode."""
        return super().train(False)

    def weights_hash(self) -> str:
        """A hash of the weights; empty where there are none."""
        state = self.state_dict()
        return hash_of(state) if state else ""

    @cached_property
    def identity(self) -> str:
        """All that its output depends on, as text: name, options and a hash of the weights. Caches are told by it."""
        options = ", ".join(f"{name}={value!r}" for name, value in to_plain(self.options).items())
        weights = self.weights_hash()
        return f"{self.name}({options})" + (f" weights {weights}" if weights else "")


def hash_of(state: Mapping[str, Tensor]) -> str:
    """A hash (16 hexadecimal digits) of tensors by name, of any order and on any device."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def as_shares(saliency: Tensor) -> Tensor:
    """(B, h, w) that is not negative -> the same with a sum of 1 over each image; equal shares where all of it is 0."""
    total = saliency.sum((1, 2), keepdim=True)
    return torch.where(total > 0, saliency / total.clamp_min(1e-20), 1 / saliency[0].numel())


def norm_saliency(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w) length of the features, as shares."""
    return as_shares(torch.linalg.vector_norm(features.float(), dim=1))


def resized(saliency: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w) -> (B, height, width), bilinear."""
    return F.interpolate(saliency.unsqueeze(1), (height, width), mode="bilinear", align_corners=False).squeeze(1)
