"""Training of DUSt3R (Wang et al., CVPR 2024, section 3.3) and MASt3R: the points of two posed views with depth."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_image_size, check_image_sizes
from geo3d.methods.finetuning import Finetuning, FinetuningConfig
from geo3d.methods.images import color_jitter, decoding, to_tensor
from geo3d.methods.method import MethodOutput, SourceSamples
from geo3d.methods.pointmap_loss import descriptor_loss, pointmap_loss
from geo3d.methods.posed_crops import centred_crop, matched_pixels
from geo3d.models import create_model, model_options
from geo3d.models.dust3r import DUSt3R, PairPointmaps
from geo3d.nn.colors import CENTRED, normalise
from geo3d.samples.depth_pairs import DepthPairs
from geo3d.viz.dense import coloured
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS = 6
_PICTURE_COLUMNS = (
    "first view",
    "depth",
    "found",
    "confidence",
    "second view",
    "depth from first",
    "found",
    "confidence",
)


@dataclass(frozen=True)
class PointmapsConfig(FinetuningConfig):
    """How DUSt3R is trained."""

    model: str = "dust3r_tiny"
    """Network, one of `geo3d.list_models("*st3r*")`."""
    image_size: tuple[int, int] = (48, 64)
    """Height and width of the crops, pixels; multiples of the network's patch. Best of the shape of the photos that it
    will see."""
    further_sizes: tuple[tuple[int, int], ...] = ()
    """Sizes of crops beside `image_size`: for every step one of all is drawn. What is measured is of `image_size`."""
    zoom: float = 1.3
    """Crops are centred on the principal point: the largest window, or one smaller by a random factor up to this."""
    color_jitter: float = 0.4
    """Brightness, contrast and saturation vary by factors of 1 +- this, for each view on its own."""
    both_orders: bool = True
    """Each pair is also learnt from with its views swapped, of which the encoder sees each once, as published."""
    metric: bool = False
    """In scenes that are in metres, ask for their scale too (MASt3R); else one scale of a pair is free."""
    confidence_weight: float = 0.2
    """What being unsure of a point costs (alpha)."""
    descriptor_weight: float = 0.075
    """Weight of the loss of descriptors, of networks that have them."""
    matches: int = 256
    """Matched pixels of a pair that descriptors learn from, at most (count)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.color_jitter < 1:
            raise InputError(f"color_jitter must lie in [0, 1), got {self.color_jitter}")
        check_at_least(self, 1, "zoom", "matches")
        check_at_least(self, 0, "confidence_weight", "descriptor_weight")
        check_image_size(self)
        check_image_sizes(self, "further_sizes")


class PointmapSamples(SourceSamples[DepthPairs]):
    """View pairs, cropped and jittered, with the points of their pixels in the camera frame of the first.

    Args:
        source: the pairs.
        config: of the method.
        matches: matched pixels to look for; 0: none.
        plain: without jitter, zoom and swapping, for measuring.
    """

    def __init__(self, source: DepthPairs, config: PointmapsConfig, matches: int, plain: bool = False) -> None:
        super().__init__(source)
        self.config, self.matches, self.plain = config, matches, plain

    def of_step(self, rng: np.random.Generator) -> PointmapSamples:
        """The same with crops of one of the sizes."""
        sizes = (self.config.image_size, *self.config.further_sizes)
        drawn = copy.copy(self)
        drawn.config = replace(self.config, image_size=sizes[rng.integers(len(sizes))])
        return drawn

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair.

        ``first`` and ``second`` (H, W, 3) uint8, ``points1`` and ``points2`` (H, W, 3) float32 in the first camera's
        frame, ``valid1`` and ``valid2`` (H, W) bool, ``second_from_first`` (4, 4) float32, ``metric`` bool, ``scene``
        its group, and ``matches`` (M, 2) int64 row-major pixels, -1 where there are no more.

        Raises:
            InputError: an image cannot be read, or the depth of neither view is known.
        """
        config, strength = self.config, 0.0 if self.plain else self.config.color_jitter
        with decoding(self.describe, index):
            pair = self.source.pair(index)
        views = (pair.first, pair.second)
        if not self.plain and rng.random() < 0.5:
            views = views[::-1]
        zooms = (1.0, 1.0) if self.plain else rng.uniform(1, config.zoom, 2)
        crops = [centred_crop(view, config.image_size, zoom) for view, zoom in zip(views, zooms, strict=True)]
        second_from_first = torch.linalg.inv(crops[1].world_from_camera) @ crops[0].world_from_camera
        back = torch.linalg.inv(second_from_first)
        points = crops[0].points(), crops[1].points() @ back[:3, :3].T + back[:3, 3]
        valid = [crop.depth > 0 for crop in crops]
        if not any(v.any() for v in valid):
            raise InputError(f"{self.describe(index)}: depth is known in neither view")
        drawn = {
            "second_from_first": second_from_first.float(),
            "metric": torch.tensor(self.source.is_metric(index)),
            "scene": self.source.group(index),
        }
        for number, crop in enumerate(crops):
            name = ("first", "second")[number]
            drawn[name] = to_tensor(color_jitter(crop.image, strength, rng) if strength else crop.image)
            drawn[f"valid{number + 1}"] = valid[number]
            drawn[f"points{number + 1}"] = torch.where(valid[number].unsqueeze(-1), points[number], 0).float()
        if self.matches:
            drawn["matches"] = matched_pixels(*crops, self.matches, rng)
        return drawn


class Pointmaps(Finetuning):
    """DUSt3R's or MASt3R's training on its network.

    Args:
        config: task and network.
        generator: draws the initial weights.

    Raises:
        InputError: a network of another family, or image size and patch do not fit.
    """

    name = "pointmaps"
    source = DepthPairs

    def __init__(self, config: PointmapsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        # Of a model that has no such option it is said below that it is the wrong one.
        size = {"image_size": config.image_size} if "image_size" in model_options(config.model) else {}
        network = create_model(config.model, generator=generator, **size)
        if not isinstance(network, DUSt3R):
            raise InputError(f"model {config.model} has no pointmaps; dust3r_tiny and others of its family have")
        for size in config.further_sizes:
            replace(network.config, image_size=size)  # which tells a size that the patch does not divide
        self.network = network

    @property
    def has_descriptors(self) -> bool:
        """Whether the network has descriptors to be learnt."""
        return self.network.config.descriptors is not None

    def samples(self, source: DepthPairs) -> PointmapSamples:
        """The training items of a set of view pairs."""
        return PointmapSamples(source, self.config, self.config.matches if self.has_descriptors else 0)

    def plain_samples(self, source: DepthPairs) -> PointmapSamples:
        """The same as they are, for measuring: largest windows, colours as photographed, the listed order."""
        return PointmapSamples(source, self.config, self.config.matches if self.has_descriptors else 0, plain=True)

    def predict(self, batch: dict[str, Any]) -> PairPointmaps:
        """Pointmaps of a batch of drawn items, in their order."""
        return self.network(normalise(batch["first"], CENTRED), normalise(batch["second"], CENTRED))

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The losses of a batch of drawn items; nothing is drawn here.

        Extras: ``points1`` and ``points2`` (B, H, W, 3) found in the first camera's frame, ``confidence1`` and
        ``confidence2`` (B, H, W), and of pairs in both orders ``own_points2``, those of the second view in its own.
        """
        doubled = _in_both_orders(batch) if self.config.both_orders else batch
        images = (normalise(doubled[name], CENTRED) for name in ("first", "second"))
        maps = self.network(*images, symmetric=self.config.both_orders)
        loss = pointmap_loss(
            (maps.first.points, maps.second.points),
            (maps.first.confidence, maps.second.confidence),
            (doubled["points1"], doubled["points2"]),
            (doubled["valid1"], doubled["valid2"]),
            doubled["metric"] if self.config.metric else None,
            self.config.confidence_weight,
        )
        losses = {"points": loss.value}
        if self.has_descriptors:
            losses["descriptors"] = self.config.descriptor_weight * _descriptor_loss(maps, doubled["matches"])
        metrics = {"error": loss.errors.mean()}
        step = 2 if self.config.both_orders else 1
        extras = {
            "points1": maps.first.points[::step],
            "points2": maps.second.points[::step],
            "confidence1": maps.first.confidence[::step],
            "confidence2": maps.second.confidence[::step],
        }
        if self.config.both_orders:
            extras["own_points2"] = maps.first.points[1::2]
        return MethodOutput(losses, metrics, {name: value.detach() for name, value in extras.items()})

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """A row a pair: each view, its depth as the first sees it, what was found, and how sure of it."""
        rows = []
        for row in range(min(_PICTURE_ROWS, len(batch["first"]))):
            true = [batch[f"points{n}"][row, ..., 2].float().where(batch[f"valid{n}"][row], torch.nan) for n in (1, 2)]
            found = [output.extras[f"points{n}"][row, ..., 2].float() for n in (1, 2)]
            known = torch.cat([t[t.isfinite()] for t in true])
            ratio = torch.cat([(t / f)[t.isfinite() & (f > 0)] for t, f in zip(true, found, strict=True)])
            scale = ratio.median() if len(ratio) else 1.0
            low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
            sure = [output.extras[f"confidence{n}"][row].float().log() for n in (1, 2)]
            surest = float(max(s.max() for s in sure))
            for n, name in enumerate(("first", "second")):
                rows.append(batch[name][row].cpu().numpy())
                # Near is bright, and so is sure.
                rows += [coloured(value.cpu().numpy(), low, high) for value in (true[n], scale * found[n])]
                rows.append(coloured(-sure[n].cpu().numpy(), -surest, 0.0))
        height, width = rows[0].shape[:2]
        return captioned_sheet(np.array(rows).reshape(-1, len(_PICTURE_COLUMNS), height, width, 3), _PICTURE_COLUMNS)


def _in_both_orders(batch: dict[str, Any]) -> dict[str, Any]:
    """Each pair followed by the same pair swapped, its points in the frame of what is then the first camera."""
    pose = batch["second_from_first"]
    rotation, shift = pose[:, None, None, :3, :3], pose[:, None, None, :3, 3]
    moved = [(rotation @ batch[name].unsqueeze(-1)).squeeze(-1) + shift for name in ("points1", "points2")]
    pairs = {
        "first": (batch["first"], batch["second"]),
        "second": (batch["second"], batch["first"]),
        "points1": (batch["points1"], moved[1]),
        "points2": (batch["points2"], moved[0]),
        "valid1": (batch["valid1"], batch["valid2"]),
        "valid2": (batch["valid2"], batch["valid1"]),
        "metric": (batch["metric"], batch["metric"]),
    }
    if "matches" in batch:
        pairs["matches"] = (batch["matches"], batch["matches"].flip(-1))
    return {name: torch.stack(both, 1).flatten(0, 1) for name, both in pairs.items()}


def _descriptor_loss(maps: PairPointmaps, matches: Tensor) -> Tensor:
    """Mean over the pairs of a batch."""
    flat = [
        (view.descriptors.flatten(1, 2), view.descriptor_confidence.flatten(1)) for view in (maps.first, maps.second)
    ]
    each = []
    for row, pixels in enumerate(matches):
        one, other = pixels[pixels[:, 0] >= 0].unbind(1)
        sure = (flat[0][1][row, one] + flat[1][1][row, other]) / 2
        each.append(descriptor_loss(flat[0][0][row, one], flat[1][0][row, other], sure))
    return torch.stack(each).mean()


__all__ = ["PointmapSamples", "Pointmaps", "PointmapsConfig"]
