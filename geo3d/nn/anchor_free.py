"""Anchor-free detection of objects in dense grids: head, what it is to say at each location, losses, and what it found.

FCOS (Tian et al., 2019) in three dimensions and for boxes with yaw: each location of each map of a feature pyramid says
whether an object is there, how far it reaches to every side, and how central the location lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geo3d.nn.oriented_boxes import (
    aligned_iou,
    bounding_boxes,
    canonical_boxes,
    decode_boxes,
    encode_boxes,
    non_maximum_suppression,
)

#: Numbers by which a box is coded: six distances and two places where it touches its bounds.
CODES = 8
_GROUPS = 32
_WEIGHT_STD = 0.01
_PRIOR = 0.01  # how sure of an object a new head is anywhere
#: What a new head says of every box, in strides: distances, since a relu that begins around 0 would be shut half of the
#: time and stay so; and corners as of a box along the axes.
_FIRST_CODES = (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, -2.0)
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2.0
#: Largest distance to a side that the finest level is for, in its strides; each level after it is for twice as much.
_REACH = 4.0
_LEAST_SIDE = 1e-3  # voxels
#: Yaw, radians, up to which boxes count as along the axes; a little more than what rounding does to it; and the error
#: of corners, in halves of a box's bounds, from which on its loss is linear.
_ALONG, _ROUNDING, _NEAR = 0.05, 1e-5, 0.2


@dataclass
class HeadOutput:
    """What a head says, at every location of all levels, the finest level first.

    Args:
        logits: (B, L) of an object being there.
        codes: (B, L, 8) its box, in voxels, as :func:`geo3d.nn.oriented_boxes.decode_boxes` reads it.
        centrality: (B, L) logits of how central the location lies in it.
        locations: (L, 3) where, voxels from the grid's corner.
        strides: (L,) voxels from one location of the level to the next.
        levels: (L,) int64 number of the level.
    """

    logits: Tensor
    codes: Tensor
    centrality: Tensor
    locations: Tensor
    strides: Tensor
    levels: Tensor

    def of(self, grid: int) -> HeadOutput:
        """What it says of one grid alone."""
        one = slice(grid, grid + 1)
        return replace(self, logits=self.logits[one], codes=self.codes[one], centrality=self.centrality[one])

    def within(self, sizes: Tensor) -> Tensor:
        """(B, L) whether locations lie in grids of these sides (B, 3), and not in what they were padded with."""
        return (self.locations < sizes.to(self.locations)[:, None]).all(-1)


@dataclass
class FoundBoxes:
    """Objects found in a grid, best first.

    Args:
        boxes: (K, 7) centre and sides in voxels, yaw in radians.
        scores: (K,) of 0 to 1.
    """

    boxes: Tensor
    scores: Tensor


class Scale(nn.Module):
    """A learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """x times the factor."""
        return x * self.scale


class AnchorFreeHead(nn.Module):
    """Two towers of convolutions, shared by all levels, and what is read off them (FCOS, section 3).

    Args:
        channels: of the maps.
        depth: convolutions of a tower.
        levels: maps; a factor on the codes is learnt for each.
        from_bounds: whether the two corners that tell the yaw are told from where they lie in a box along the axes,
            so that such a box is zeros, and not from the location.
    """

    def __init__(self, channels: int = 256, depth: int = 4, levels: int = 4, from_bounds: bool = False) -> None:
        super().__init__()
        self.from_bounds = from_bounds
        self.cls_tower, self.bbox_tower = (self._tower(channels, depth) for _ in range(2))
        self.cls_logits = nn.Conv3d(channels, 1, 3, padding=1)
        self.bbox_pred = nn.Conv3d(channels, CODES, 3, padding=1)
        self.centerness = nn.Conv3d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))

    @staticmethod
    def _tower(channels: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        groups = math.gcd(_GROUPS, max(1, channels // 2))  # of two channels or more, as maps may be a single cell
        for _ in range(depth):
            convolution = nn.Conv3d(channels, channels, 3, padding=1)
            layers += [convolution, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights: small ones, an object hardly expected anywhere, boxes of four strides a side."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=_WEIGHT_STD, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, Scale):
                nn.init.ones_(module.scale)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - _PRIOR) / _PRIOR))
        with torch.no_grad():
            self.bbox_pred.bias.copy_(self.bbox_pred.bias.new_tensor(_FIRST_CODES))
            if self.from_bounds:
                self.bbox_pred.bias[6:] = 0

    def forward(self, maps: Sequence[Tensor], strides: Sequence[int]) -> HeadOutput:
        """Read maps (B, C, x, y, z), whose locations lie ``strides`` voxels apart, the finest first."""
        parts: dict[str, list[Tensor]] = {name: [] for name in HeadOutput.__dataclass_fields__}
        for level, (features, stride, scale) in enumerate(zip(maps, strides, self.scales)):
            seen = self.bbox_tower(features)
            places = map_locations(features.shape[2:], stride, features)
            codes = _flat(scale(self.bbox_pred(seen))).to(places.dtype)  # half precision does not tell places
            parts["logits"].append(_flat(self.cls_logits(self.cls_tower(features))).squeeze(-1))
            distances, corners = codes[..., :6].relu(), codes[..., 6:]
            if self.from_bounds:  # upper x, lower y
                corners = corners + torch.stack([distances[..., 3], -distances[..., 1]], -1)
            parts["codes"].append(torch.cat([distances, corners], -1) * stride)
            parts["centrality"].append(_flat(self.centerness(seen)).squeeze(-1))
            parts["locations"].append(places)
            parts["strides"].append(places.new_full((len(places),), stride))
            parts["levels"].append(torch.full((len(places),), level, device=places.device))
        shared = ("locations", "strides", "levels")
        return HeadOutput(**{name: torch.cat(values, 0 if name in shared else 1) for name, values in parts.items()})


def _flat(x: Tensor) -> Tensor:
    """(B, C, x, y, z) -> (B, x * y * z, C)."""
    return x.flatten(2).transpose(1, 2)


def map_locations(sides: Sequence[int], stride: int, like: Tensor) -> Tensor:
    """(x * y * z, 3) centres of the cells of a map, in voxels, on the device of ``like``; in float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    along = [(torch.arange(side, device=like.device, dtype=dtype) + 0.5) * stride for side in sides]
    return torch.stack(torch.meshgrid(*along, indexing="ij"), -1).flatten(0, 2)


def assign_boxes(boxes: Tensor, output: HeadOutput, within: Tensor, radius: float = 1.5, each: bool = True) -> Tensor:
    """Which object each location is to tell.

    A location tells an object if it lies inside its axis-aligned bounds, no farther from its centre than ``radius``
    strides along each axis, and if the largest distance to a side is one that its level is for: up to 4 strides at the
    finest level, 4 to 8 of these at the next, and so on without end at the coarsest. Of several objects it tells the
    smallest.

    Args:
        boxes: (N, 7) in voxels.
        output: whose locations.
        within: (L,) bool locations that may tell any.
        radius: of centre sampling, strides.
        each: an object that no location would tell by these rules, such as a board thinner than a stride, is told by
            the one that is nearest to its centre, of the level that its largest side is for (published: off).

    Returns:
        (L,) int64 row of ``boxes``, -1 where there is none.
    """
    locations, strides, levels = output.locations, output.strides, output.levels
    nobody = torch.full((len(locations),), -1, device=locations.device)
    if not len(boxes):
        return nobody
    bounds, volume = bounding_boxes(boxes), boxes[:, 3:6].prod(1)
    low, high = locations[:, None] - bounds[:, :3], bounds[:, 3:] - locations[:, None]
    farthest = torch.maximum(low, high).amax(-1)
    for_level = _level_for(farthest, strides, levels) == levels[:, None]
    offset = (locations[:, None] - boxes[:, :3]).abs()
    tells = (torch.minimum(low, high).amin(-1) > 0) & (offset <= radius * strides[:, None, None]).all(-1) & for_level
    tells &= within[:, None]
    if each and bool(within.any()):
        forgotten = (~tells.any(0)).nonzero().squeeze(1)
        level = _level_for((bounds[forgotten, 3:] - bounds[forgotten, :3]).amax(1) / 2, strides, levels)
        distance = offset[:, forgotten].square().sum(-1)
        # the next level where none of a level's locations lies in the grid
        strange = (levels[:, None] - level).abs().to(distance) + (~within).to(distance)[:, None] * len(locations)
        first = strange.amin(0)
        tells[distance.masked_fill(strange > first, math.inf).argmin(0), forgotten] = True
    sizes = torch.where(tells, volume, torch.full_like(volume, math.inf))
    smallest, row = sizes.min(1)
    return torch.where(smallest.isfinite(), row, nobody)


def _level_for(distance: Tensor, strides: Tensor, levels: Tensor) -> Tensor:
    """Number of the level that objects are for whose sides are at most this far away."""
    least, count = float(strides.min()), int(levels.max()) + 1
    return (distance / (_REACH * least)).clamp_min(1e-6).log2().ceil().clamp(0, count - 1).long()


def central(codes: Tensor) -> Tensor:
    """How central locations lie in bounds (..., 6 or more distances): 1 in the middle, 0 at a side.

    Geometric mean over the axes of the smaller distance over the larger.
    """
    low, high = codes[..., :3].clamp_min(0), codes[..., 3:6].clamp_min(0)
    ratio = torch.minimum(low, high) / torch.maximum(low, high).clamp_min(torch.finfo(codes.dtype).tiny)
    return ratio.prod(-1).pow(1 / 3)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of yes or no in which what is told well counts little (Lin et al., 2017); (...) not reduced."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = (logits.sigmoid() - wanted).abs()
    weight = _FOCAL_ALPHA * wanted + (1 - _FOCAL_ALPHA) * (1 - wanted)
    return weight * missed**_FOCAL_GAMMA * entropy


def box_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """(N,) one less the overlap, and the centres' distance squared over the diagonal of what holds both, squared.

    The second part (Zheng et al., 2020) pulls boxes together that do not overlap.
    """
    one, other = bounding_boxes(found), bounding_boxes(wanted)
    whole = torch.maximum(one[:, 3:], other[:, 3:]) - torch.minimum(one[:, :3], other[:, :3])
    apart = (found[:, :3] - wanted[:, :3]).square().sum(1) / whole.square().sum(1).clamp_min(1e-6)
    return 1 - aligned_iou(found, wanted) + apart


def corner_loss(found: Tensor, wanted: Tensor, locations: Tensor) -> Tensor:
    """(N,) how far the two corners that tell the yaw lie from where they should in their bounds, in halves of these.

    The bounds themselves, which may be wrong, are the overlap's affair.

    Boxes within a few degrees of the axes count as along them: a little less yaw would mean other corners.

    Args:
        found: (N, 8) codes.
        wanted: (N, 7) boxes.
        locations: (N, 3).
    """
    quarter = math.pi / 2
    turn = wanted[:, 6] - (wanted[:, 6] / quarter).round() * quarter
    yaw = torch.where(turn.abs() < _ALONG, wanted[:, 6] - turn, wanted[:, 6])
    straight = canonical_boxes(torch.cat([wanted[:, :6], yaw[:, None] + _ROUNDING], 1))
    places = [_within_bounds(codes) for codes in (found, encode_boxes(straight, locations))]
    return F.smooth_l1_loss(*places, beta=_NEAR, reduction="none").mean(1)


def bounds_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """(N,) how far the six sides of the axis-aligned bounds lie from where they should, voxels; linear from one voxel.

    Args:
        found, wanted: (N, 6 or more) codes as seen from the same locations.
    """
    return F.smooth_l1_loss(found[:, :6], wanted[:, :6], reduction="none").mean(1)


def _within_bounds(codes: Tensor) -> Tensor:
    """(N, 2) where the two corners of codes (N, 8) lie along their sides: -1 to 1 from the lower to the upper end."""
    middle, half = (codes[:, 3:5] - codes[:, :2]) / 2, (codes[:, 3:5] + codes[:, :2]) / 2
    return (codes[:, 6:] - middle) / half.clamp_min(1)


def detection_losses(
    output: HeadOutput, sizes: Tensor, boxes: Sequence[Tensor], radius: float = 1.5, each: bool = True
) -> dict[str, Tensor]:
    """What a head is trained by: ``objectness`` (focal), ``box`` (overlap), ``bounds``, ``corners``, ``centrality``.

    Objectness counts all locations inside the grids, over the number of those that tell an object; the others count
    these alone, all but ``centrality`` weighted by how central they are told from. ``bounds`` and ``corners`` are our
    own: overlap alone is slow to teach where a box ends, and hardly teaches its yaw.

    Args:
        output: of the head.
        sizes: (B, 3) sides of the grids, voxels.
        boxes: of each grid (N, 7), voxels.
        radius, each: as :func:`assign_boxes` takes them.
    """
    within = output.within(sizes)
    matched = torch.stack(
        [
            assign_boxes(own.to(output.locations), output, inside, radius, each)
            for own, inside in zip(boxes, within, strict=True)
        ]
    )
    tells = matched >= 0
    count = tells.sum().clamp_min(1)
    wrong = focal_loss(output.logits.float(), tells.float())
    losses = {"objectness": (wrong * within).sum() / count}
    grid, place = tells.nonzero(as_tuple=True)
    first = torch.tensor([0, *(len(own) for own in boxes)], device=grid.device).cumsum(0)
    every = torch.cat([own.to(output.locations) for own in boxes])
    wanted, places = every[first[grid] + matched[grid, place]].float(), output.locations[place].float()
    told = encode_boxes(wanted, places)
    centrality = central(told)
    codes = output.codes[grid, place].float()
    found = decode_boxes(codes, places)
    # those told from beside themselves have no centrality, but still their part
    weight = centrality.clamp_min(0.1)
    total = weight.sum().clamp_min(1e-6)
    losses["box"] = (box_loss(found, wanted) * weight).sum() / total
    losses["bounds"] = (bounds_loss(codes, told) * weight).sum() / total
    losses["corners"] = (corner_loss(codes, wanted, places) * weight).sum() / total
    entropy = F.binary_cross_entropy_with_logits(output.centrality[grid, place].float(), centrality, reduction="sum")
    return losses | {"centrality": entropy / count}


def found_boxes(
    output: HeadOutput, sizes: Tensor, before: int = 2500, after: int = 2500, threshold: float = 0.3
) -> list[FoundBoxes]:
    """The objects that a head found in each grid.

    Args:
        output: of the head.
        sizes: (B, 3) sides of the grids, voxels; what is told from outside them does not count.
        before: locations of a level that are looked at, best first.
        after: objects that are kept, best first.
        threshold: overlap beyond which only the better of two objects is kept.

    Returns:
        One for each grid; scores are the geometric mean of objectness and centrality.
    """
    scores = (output.logits.float().sigmoid() * output.centrality.float().sigmoid()).sqrt()
    within = output.within(sizes)
    found = []
    for number in range(len(scores)):
        rows = []
        for level in range(int(output.levels.max()) + 1):
            own = (within[number] & (output.levels == level)).nonzero().squeeze(1)
            rows.append(own[scores[number, own].argsort(descending=True, stable=True)[:before]])
        row = torch.cat(rows)
        boxes = decode_boxes(output.codes[number, row].float(), output.locations[row].float())
        real = (boxes[:, 3:6] > _LEAST_SIDE).all(1)
        boxes, score = boxes[real], scores[number, row][real]
        kept = non_maximum_suppression(boxes, score, threshold)[:after]
        found.append(FoundBoxes(boxes[kept].detach(), score[kept].detach()))
    return found


__all__ = [
    "CODES",
    "AnchorFreeHead",
    "FoundBoxes",
    "HeadOutput",
    "assign_boxes",
    "bounds_loss",
    "box_loss",
    "central",
    "corner_loss",
    "detection_losses",
    "focal_loss",
    "found_boxes",
    "map_locations",
]
