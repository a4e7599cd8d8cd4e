"""Points that float before what others see more surely lose their confidence."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from geo3d.reconstruction.pointmaps.prediction import AlignedViews

#: Share of the depth by which a point has to lie before another to be in its way.
_BEFORE = 0.03


def without_floaters(
    aligned: AlignedViews, pairs: Iterable[tuple[int, int]], before: float = _BEFORE
) -> tuple[list[Tensor], int]:
    """Confidences of all views, 0 where a point hides a surer one from another view.

    Args:
        aligned: the views.
        pairs: views that are compared, both ways.
        before: share of the other's depth by which a point has to lie before it.

    Returns:
        N maps (H, W), and how many points lost theirs.
    """
    found = [confidence.clone() for confidence in aligned.confidences]
    orders = {order for i, j in pairs for order in ((i, j), (j, i))}
    for view, other in sorted(orders):
        pose = aligned.world_from_camera[other]
        seen = (aligned.points(view) - pose[:3, 3]) @ pose[:3, :3]
        depth = seen[..., 2]
        height, width = aligned.depths[other].shape
        u, v = aligned.camera(other).project(seen).round().unbind(-1)
        inside = (depth > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height) & (aligned.depths[view] > 0)
        place = torch.where(inside, v * width + u, 0).long()
        there = aligned.depths[other].flatten()[place]
        surer = aligned.confidences[other].flatten()[place] > aligned.confidences[view]
        found[view][inside & (depth < (1 - before) * there) & surer] = 0
    lost = sum(int(((a > 0) & (b == 0)).sum()) for a, b in zip(aligned.confidences, found))
    return found, lost


__all__ = ["without_floaters"]
