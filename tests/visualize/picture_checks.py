"""What every picture must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def covered(pixels: np.ndarray) -> float:
    """Share of a picture that is not white."""
    return float((pixels < 250).any(-1).mean())


def check_picture(path: Path, least: float = 0.1) -> np.ndarray:
    """A picture that shows something: not black, not of one colour, and so much of it covered."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.mean() > 40
    assert len(np.unique(pixels.reshape(-1, 3)[::7], axis=0)) > 50
    assert covered(pixels) > least
    return pixels
