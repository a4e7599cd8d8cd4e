"""Encoders of images: what they read is made of photographs in any form."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import View
from geo3d.models.encoder import Encoder, StageInfo, as_list, require_prepared, require_range
from geo3d.nn.colors import IMAGENET, ColorScale, normalise

_HINT = "hand in uint8 of 0 to 255, or floats of 0 to 1"


class ImageEncoder(Encoder):
    """An encoder of images. Features are maps (B, C, H / stride, W / stride).

    Attributes:
        color_scale: how colours are normalised; ImageNet's mean and deviation unless a network was trained otherwise.
    """

    kind: ClassVar = "image"
    color_scale: ClassVar[ColorScale] = IMAGENET

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Pixels of which a multiple must lie along both sides of an image."""

    def prepare(self, inputs: Any) -> Tensor:
        """Images as the network reads them: normalised, padded to whole patches, and as one batch.

        Args:
            inputs: an image or a list of images, each a Pillow image of 8 bits, a ``View``, or an array or tensor
                (H, W, 3), or several of one size (B, H, W, 3): uint8 of 0 to 255, or floats of 0 to 1. Sizes may vary.

        Returns:
            (B, 3, H, W) on the network's device and in its type, normalised by :attr:`color_scale`; H and W are the
            largest of the images', rounded up to whole patches. What is added at the right and below is the mean
            colour, 0.

        Raises:
            InputError: something else than an image; channels first; another type; values out of range.
        """
        images = [image for one in as_list(inputs) for image in colours_of(one)]
        step = self.side_multiple
        height, width = (-(-max(image.shape[axis] for image in images) // step) * step for axis in (0, 1))
        normalised = (normalise(image.to(self.device).unsqueeze(0), self.color_scale) for image in images)
        padded = [F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in normalised]
        return torch.cat(padded).to(next(self.parameters()).dtype)

    def require_images(self, images: Any) -> None:
        """Look whether the network is handed images as :meth:`prepare` makes them.

        Raises:
            InputError: it is not: no tensor (B, 3, H, W) of floats.
        """
        require_prepared(self, images, Tensor)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                f"{type(self).__name__}: images must be (B, 3, H, W) floats, as prepare makes them, got "
                f"{tuple(images.shape)} of {images.dtype}; call features(prepare(...))"
            )


@runtime_checkable
class SeesTwoViews(Protocol):
    """A network of images whose decoder looks at two views of a scene.

    Attributes:
        decoded_channels: of what it makes of a view.
    """

    decoded_channels: int

    def decoded(self, first: Tensor, second: Tensor) -> Tensor:
        """What the decoder makes of the first views beside the second, nothing hidden.

        Args:
            first, second: (B, 3, H, W) normalised, of one size.

        Returns:
            (B, D, H / stride, W / stride), the stride that of the encoder's last stage.
        """
        ...


class PyramidEncoder(ImageEncoder):
    """A convolutional encoder whose four stages have strides 4, 8, 16 and 32, with ``config.channels``."""

    side_multiple = 32

    @property
    def feature_info(self) -> list[StageInfo]:
        """The four stages."""
        return [StageInfo(f"stage{n}", channels, 4 * 2**n) for n, channels in enumerate(self.config.channels)]

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> the maps of all stages."""

    def features(self, images: Tensor, layers: Sequence[int | str] | None = None) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> the maps of strides 4, 8, 16 and 32, or of those ``layers`` alone."""
        self.require_images(images)
        maps = self.maps(images)
        return maps if layers is None else [maps[n] for n in self.stage_numbers(layers)]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> the last map (B, C, H / 32, W / 32)."""
        return self.maps(images)[-1]


def colours_of(image: Any) -> list[Tensor]:
    """Images (H, W, 3) in one of the forms that people have them in: uint8, or float in [0, 1].

    Raises:
        InputError: something else than an image; channels first; another type; values out of range.
    """
    pillow = sys.modules.get("PIL.Image")  # which whoever hands in an image of its has imported
    if pillow is not None and isinstance(image, pillow.Image):
        if image.mode.startswith("I") or image.mode == "F":
            raise InputError(f"prepare: images of mode {image.mode} have no range that is known; {_HINT}")
        return [torch.from_numpy(np.array(image.convert("RGB")))]
    if isinstance(image, View):
        if image.image is None:
            raise InputError(f"prepare: view {image.name} has no image")
        image = image.image
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "uif" or image.dtype.name == "uint16":
            raise InputError(f"prepare: images of type {image.dtype} are not read; {_HINT}")
        image = torch.from_numpy(np.array(image))
    if not isinstance(image, Tensor):
        raise InputError(
            f"prepare: an image is a Pillow image, a View, an array or a tensor, not a {type(image).__name__}"
        )
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        first = image.ndim in (3, 4) and image.shape[-3] == 3
        raise InputError(
            f"prepare: images are (H, W, 3) or (B, H, W, 3), got {tuple(image.shape)}"
            f"{'; move the channels last: image.movedim(-3, -1)' if first else ''}"
        )
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise InputError(f"prepare: images of type {image.dtype} are not read; {_HINT}")
        image = require_range(image.float(), 0, 1, "prepare: colours of an image", _HINT)
    return list(image) if image.ndim == 4 else [image]
