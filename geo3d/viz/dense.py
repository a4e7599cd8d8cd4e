"""Maps of numbers as pictures: depth, disparity and errors by a scale of colours, optical flow by a wheel of them."""

from __future__ import annotations

import numpy as np

_UNKNOWN = 153  # grey


def coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(h, w) numbers -> (h, w, 3) uint8 colours, from yellow at ``low`` to dark blue at ``high``; grey where NaN."""
    import matplotlib

    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    colours = matplotlib.colormaps["viridis_r"](np.nan_to_num(share))[..., :3]
    colours[np.isnan(values)] = _UNKNOWN / 255
    return (255 * colours).astype(np.uint8)


def flow_colours(flow: np.ndarray, longest: float) -> np.ndarray:
    """(h, w, 2) flow -> (h, w, 3) uint8: direction as hue, length as saturation up to ``longest``; grey where NaN."""
    from matplotlib.colors import hsv_to_rgb

    known = np.isfinite(flow).all(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1.0
    saturation = np.clip(np.hypot(x, y) / max(longest, 1e-9), 0, 1)
    colours = (255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))).astype(np.uint8)
    return np.where(known[..., None], colours, np.uint8(_UNKNOWN))


__all__ = ["coloured", "flow_colours"]
