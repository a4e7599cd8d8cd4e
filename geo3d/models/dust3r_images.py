"""Photographs as DUSt3R and MASt3R read them: resized, cropped to whole patches, and where their pixels come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.models.image_encoder import colours_of

if TYPE_CHECKING:
    from PIL import Image

#: At this size images become square, as the published networks of that name were trained.
SQUARE_SIZE = 224
#: Colours of more than 8 bits, whose range is not known.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class LoadedImage:
    """An image as the networks read it, and where its pixels come from.

    Args:
        pixels: (H, W, 3) uint8.
        source_size: height and width of the upright photograph, in pixels.
        resized_size: height and width after resizing, before the crop.
        offset: row and column, of the resized photograph, at which the crop begins.
    """

    pixels: Tensor
    source_size: tuple[int, int]
    resized_size: tuple[int, int]
    offset: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the loaded image."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Loaded pixels for a pixel of the photograph, along its height and its width."""
        return self.resized_size[0] / self.source_size[0], self.resized_size[1] / self.source_size[1]

    def camera(self, camera: Camera) -> Camera:
        """Intrinsics of the loaded image from those of the photograph.

        Raises:
            InputError: a camera of another size than the photograph.
        """
        if (camera.height, camera.width) != self.source_size:
            raise InputError(
                f"the camera is of {camera.height} x {camera.width} pixels and the photograph of "
                f"{self.source_size[0]} x {self.source_size[1]}; resize the camera first (Camera.resized)"
            )
        (height, width), (rows, columns) = self.size, self.resized_size
        return camera.resized(columns, rows).cropped(self.offset[1], self.offset[0], width, height)

    def source_camera(self, camera: Camera) -> Camera:
        """Inverse of :meth:`camera`: intrinsics of the photograph from those of the loaded image.

        Raises:
            InputError: a camera of another size than the loaded image.
        """
        if (camera.height, camera.width) != self.size:
            raise InputError(
                f"the camera is of {camera.height} x {camera.width} pixels and the loaded image of "
                f"{self.size[0]} x {self.size[1]}"
            )
        (rows, columns), (height, width) = self.resized_size, self.source_size
        return camera.cropped(-self.offset[1], -self.offset[0], columns, rows).resized(width, height)

    def to_source(self, pixels: Tensor) -> Tensor:
        """(..., 2) pixels (u, v) of the loaded image -> those of the photograph; floats, whole numbers are centres."""
        offset, scale = self._in_xy(pixels)
        return (pixels + offset + 0.5) / scale - 0.5

    def from_source(self, pixels: Tensor) -> Tensor:
        """Inverse of :meth:`to_source`."""
        offset, scale = self._in_xy(pixels)
        return (pixels + 0.5) * scale - 0.5 - offset

    def _in_xy(self, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = like.dtype if like.is_floating_point() else torch.float64
        offset = torch.tensor(self.offset[::-1], dtype=dtype, device=like.device)
        return offset, torch.tensor(self.scale[::-1], dtype=dtype, device=like.device)


def load_image(
    image: Any, size: int = 512, patch_size: int = 16, square_ok: bool = False, square: bool | None = None
) -> LoadedImage:
    """Load a photograph as DUSt3R and MASt3R do.

    ``size=224``, or ``square``: the short side becomes that long and the centre square is taken. Any other size: the
    long side becomes that long, and of both sides the central whole patches are taken; a square image loses a quarter
    of its height, since the published networks of 512 pixels never saw squares, unless ``square_ok``. (Where a quarter
    is no whole number of patches, a little more: the published code leaves a height there that its network refuses.)

    Args:
        image: path of a file, whose EXIF orientation is followed, or a Pillow image (likewise), or else what
            :meth:`geo3d.models.Encoder.prepare` takes for one image.
        size: pixels of the long side, or of the short one where the centre square is taken.
        patch_size: pixels along a side of a patch of the network.
        square_ok: leave square images square.
        square: take the centre square; None: of 224 pixels alone, as published.

    Raises:
        InputError: no image, one that is too long and narrow to hold a patch, or a size that is smaller than a patch.
    """
    if size < patch_size:
        raise InputError(f"load_image: size {size} is smaller than a patch of {patch_size} pixels")
    photo = _as_pillow(image)
    width, height = photo.size
    square = size == SQUARE_SIZE if square is None else square
    resized = _resized(photo, size, square)
    columns, rows = resized.size
    if square:
        side = 2 * (min(columns, rows) // 2)
        crop_height = crop_width = side // patch_size * patch_size
    else:
        crop_height, crop_width = (2 * (side // 2) // patch_size * patch_size for side in (rows, columns))
        if rows == columns and not square_ok:
            crop_height = crop_width * 3 // 4 // patch_size * patch_size
    if not crop_height or not crop_width:
        raise InputError(
            f"load_image: {_told(image)} of {height} x {width} pixels has no whole patch of {patch_size} left at size "
            f"{size}; crop it, or take a larger size"
        )
    top, left = rows // 2 - crop_height // 2, columns // 2 - crop_width // 2
    cropped = resized.crop((left, top, left + crop_width, top + crop_height))
    return LoadedImage(torch.from_numpy(np.array(cropped)), (height, width), (rows, columns), (top, left))


def _resized(photo: Image.Image, size: int, square: bool) -> Image.Image:
    from PIL import Image

    long, short = max(photo.size), min(photo.size)
    target = round(size * long / short) if square else size
    method = Image.Resampling.LANCZOS if long > target else Image.Resampling.BICUBIC
    sides = tuple(max(1, round(side * target / long)) for side in photo.size)
    return photo.resize(sides, method)


def _as_pillow(image: Any) -> Image.Image:
    """Upright RGB of 8 bits."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return _rgb(ImageOps.exif_transpose(opened), image)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "strerror", None) or f"no image that can be read ({' '.join(str(error).split())})"
            raise InputError(f"{image}: {reason}") from error
    if isinstance(image, Image.Image):
        return _rgb(ImageOps.exif_transpose(image), image)
    colors = colours_of(image)
    if len(colors) != 1:
        raise InputError(f"load_image: takes one image at a time, got {len(colors)}")
    pixels = colors[0] if colors[0].dtype == torch.uint8 else byte_color_tensor(colors[0])
    return Image.fromarray(pixels.cpu().numpy())


def _rgb(image: Image.Image, source: Any) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        raise InputError(f"{_told(source)}: its colours have more than 8 bits (mode {image.mode}); convert it")
    return image.convert("RGB")


def _told(image: Any) -> str:
    return str(image) if isinstance(image, str | Path) else f"the {type(image).__name__}"


__all__ = ["SQUARE_SIZE", "LoadedImage", "load_image"]
