"""Moving pictures: frames in, PNG files and a GIF out; and depth as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.viz.sheet import write_picture
from geo3d.writing import replacing, writing

_UNKNOWN = (60, 60, 60)
# Colours from near to far, between which depth is laid out; even steps of brightness.
_NEAR_TO_FAR = np.array([[252, 253, 191], [252, 137, 97], [183, 55, 121], [81, 18, 124], [0, 0, 4]], dtype=np.float64)


def depth_picture(depth: np.ndarray, nearest: float | None = None, farthest: float | None = None) -> np.ndarray:
    """Depth as colours, from light (near) to dark (far), evenly in its logarithm; grey where it is unknown.

    Args:
        depth: (H, W) metres, 0 or less where unknown.
        nearest, farthest: metres at both ends of the colours; None: the 1 and 99 % quantiles of what is known.

    Returns:
        (H, W, 3) uint8.
    """
    known = np.isfinite(depth) & (depth > 0)
    picture = np.empty((*depth.shape, 3), dtype=np.uint8)
    picture[:] = _UNKNOWN
    if not known.any():
        return picture
    low, high = np.quantile(depth[known], (0.01, 0.99))
    low, high = low if nearest is None else nearest, high if farthest is None else farthest
    place = np.log(depth[known].clip(low, high) / low) / max(np.log(high / low), 1e-9) * (len(_NEAR_TO_FAR) - 1)
    first = np.minimum(place.astype(np.int64), len(_NEAR_TO_FAR) - 2)
    part = (place - first)[:, None]
    picture[known] = ((1 - part) * _NEAR_TO_FAR[first] + part * _NEAR_TO_FAR[first + 1]).round().astype(np.uint8)
    return picture


def write_frames(folder: Path, frames: Sequence[np.ndarray]) -> list[Path]:
    """Write frames, (H, W, 3) uint8 each, as ``frame_0000.png`` and so on; returns their paths.

    Raises:
        InputError: they cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"frame_{number:04d}.png" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        write_picture(path, frame)
    return paths


def write_gif(path: Path, frames: Sequence[np.ndarray], seconds: float = 0.1) -> None:
    """Write frames, (H, W, 3) uint8 each, as a GIF that runs for ever.

    Args:
        path: the file.
        frames: at least one.
        seconds: that each stands; GIF counts hundredths.

    Raises:
        ValueError: no frame.
        InputError: the file cannot be written.
    """
    if not frames:
        raise ValueError("write_gif: there is no frame to write")
    images = [Image.fromarray(frame).quantize(256, method=Image.Quantize.MEDIANCUT) for frame in frames]
    with replacing(path) as unfinished:
        images[0].save(
            unfinished, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0
        )


__all__ = ["depth_picture", "write_frames", "write_gif"]
