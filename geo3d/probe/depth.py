"""The depth probe: how far away what a patch shows is, read off frozen features of images by a linear map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.rooms import make_rooms
from geo3d.errors import InputError
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.methods.checks import check_at_least
from geo3d.metrics import depth_figures
from geo3d.models import Encoder
from geo3d.probe.probe import Probe, Representation, Score, load_encoder
from geo3d.probe.ridge import RidgeReadout, fit_ridge
from geo3d.probe.scenes import SceneProbeConfig, find_scenes
from geo3d.probe.views import (
    PixelsOfView,
    chosen_stages,
    colour_and_place,
    pixel_features,
    pixel_lattice,
    shown_view,
    training_side,
)
from geo3d.progress import Log
from geo3d.random import Stream, stream_generator
from geo3d.samples.readable import Readable
from geo3d.samples.views import DepthViews
from geo3d.spread import evenly_spread
from geo3d.viz.dense import coloured
from geo3d.viz.sheet import captioned_sheet, write_picture

#: Penalties of the squared weights, of standardised features, of which the validation scenes choose one.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: Share of the training scenes that choose it; all of them are then learnt from.
_VALIDATION = 0.2
#: Places along a side of a patch where its depth is looked up.
_SAMPLES = 4
_DRAWN = 3  # views in the picture


@dataclass(frozen=True, kw_only=True)
class DepthConfig(SceneProbeConfig):
    """Read the depth of every patch off frozen features of images by a linear map, and compare."""

    layers: tuple[str, ...] = ()
    """Stages whose features are read, by name or number; none: all, or four evenly spaced ones of more."""
    side: int | None = None
    """Shorter side of images, pixels; None: as the network was trained, or 224 where its config does not say."""
    patch: int | None = None
    """Side of a patch, pixels; None: an eighth of the shorter side."""
    views: int = 20
    """Views of a scene that are looked at, evenly spaced, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "patch", "views")
        check_at_least(self, 16, "side")


@dataclass(frozen=True)
class DepthScore(Score):
    """How well the depth of held-out patches is read off a representation.

    Args:
        rmse: root of the mean squared error, metres.
        abs_rel: mean of the error over the true depth.
        delta1: share of the patches whose depth is within a factor of 1.25 of the truth.
        rmse_log: root of the mean squared error of the natural logarithm.
        patches: that were looked at.
        columns: features a patch.
        penalty: of the squared weights, as the validation scenes chose it.
        scenes: held-out ones.
        left_out: views that could not be read.
    """

    rmse: float
    abs_rel: float
    delta1: float
    rmse_log: float
    patches: int
    columns: int
    penalty: float
    scenes: int
    left_out: int

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        return {
            "RMSE": f"{self.rmse:.3f} m",
            "abs rel": f"{self.abs_rel:.3f}",
            "delta < 1.25": f"{100 * self.delta1:.1f} %",
            "RMSE of logs": f"{self.rmse_log:.3f}",
            "features": f"{self.columns}",
            "penalty": f"{self.penalty:.0e}",
        }


class DepthProbe(Probe):
    """Views with depth to learn from and to measure on."""

    summary = "depth of the patches of images, read off frozen features by a linear map"
    settings = DepthConfig

    config: DepthConfig

    def __init__(self, config: DepthConfig, log: Log) -> None:
        super().__init__(config, log)
        wanted = "an encoder of images, such as a croco"
        self.network = load_encoder(config.checkpoint, config.model, "image", wanted)
        self.side = config.side or training_side(self.network)
        self.patch = config.patch or max(1, self.side // 8)
        self.stages = chosen_stages(self.network, config.layers)
        self.train, self.held = find_scenes(config, DepthViews, make_rooms, log)
        if self.train.group_count < 2:
            raise InputError("the linear read-out needs at least 2 training scenes: one chooses the penalty")
        log(
            f"{self.train.group_count} scenes to learn from, {self.held.group_count} held out; images of {self.side} "
            f"pixels along the shorter side, patches of {self.patch}"
        )
        self._readable = Readable(config.strict, log, "left out")
        #: Of the views in the picture: the image, the true depth and that of each representation, (h, w) or (h, w, 3).
        self._drawn: list[dict[str, Tensor]] = []

    def representations(self) -> dict[str, Representation]:
        """What every probe compares, and nothing at all, of which a constant is read."""
        return super().representations() | {"constant": lambda looked_at: torch.zeros(len(looked_at.pixels), 0)}

    def network_features(self, network: Encoder) -> Representation:
        """Maps of the stages at the middles of patches."""
        return pixel_features(network, self.stages, self.config.device)

    def input_features(self) -> Representation:
        """Colours of a patch, and its place in the image."""
        return colour_and_place

    def measure(self, representations: dict[str, Representation]) -> dict[str, DepthScore]:
        """How well the depth of held-out patches is read off each representation.

        Raises:
            InputError: no depth is known, or features are not finite.
        """
        readouts = self._fit(representations)
        errors: dict[str, list[Tensor]] = {name: [] for name in representations}
        truth, scenes = [], set()
        for scene, looked_at, logs in self._views(self.held):
            known = logs.isfinite()
            truth.append(logs[known])
            maps = {}
            for name, features in representations.items():
                found = readouts[name][0].predict(features(looked_at)).double()
                errors[name].append(found[known])
                maps[name] = found
            self._keep(scene not in scenes, looked_at, {"depth": logs} | maps)
            scenes.add(scene)
        logs = torch.cat(truth) if truth else torch.zeros(0)
        if not len(logs):
            raise InputError("no depth is known of the held-out views")
        scores = {}
        for name, (readout, penalty) in readouts.items():
            figures = depth_figures(torch.cat(errors[name]), logs)
            counts = {"patches": len(logs), "columns": len(readout.mean), "scenes": len(scenes)}
            scores[name] = DepthScore(**figures, **counts, penalty=penalty, left_out=len(self._readable.left_out))
        return scores

    def _fit(self, representations: dict[str, Representation]) -> dict[str, tuple[RidgeReadout, float]]:
        """Representation -> its read-out, and the penalty that the validation scenes chose."""
        columns: dict[str, list[Tensor]] = {name: [] for name in representations}
        targets, scene = [], []
        for number, looked_at, logs in self._views(self.train):
            known = logs.isfinite()
            targets.append(logs[known])
            scene.append(torch.full((int(known.sum()),), number))
            for name, features in representations.items():
                columns[name].append(features(looked_at)[known])
        logs, scene = (torch.cat(parts) if parts else torch.zeros(0) for parts in (targets, scene))
        scenes = scene.unique().numpy()
        if len(scenes) < 2:
            raise InputError("depth is known of fewer than 2 training scenes; nothing can be read out")
        order = stream_generator(self.config.seed, Stream.PROBE_VALIDATION).permutation(scenes)
        validation = torch.isin(scene, torch.from_numpy(order[: max(1, round(_VALIDATION * len(order)))]))
        chosen = {}
        for name in representations:
            features = torch.cat(columns.pop(name))
            try:
                path = fit_ridge(features[~validation], logs[~validation], PENALTIES)
                columns_of, wanted = features[validation], logs[validation]
                left = {p: (readout.predict(columns_of) - wanted).square().mean() for p, readout in path.items()}
                penalty = min(reversed(PENALTIES), key=left.get)  # the largest of equals
                chosen[name] = fit_ridge(features, logs, [penalty])[penalty], penalty
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        return chosen

    def _views(self, source: DepthViews) -> Iterator[tuple[int, PixelsOfView, Tensor]]:
        """Scene, patches, and the log of each one's depth (M,), NaN where unknown, of views that can be read."""
        for group in np.unique(source.items.group).tolist():
            of_scene = np.flatnonzero(source.items.group == group)
            for item in of_scene[evenly_spread(len(of_scene), self.config.views)].tolist():
                found = self._readable.read(item, partial(self._patches, source, item), partial(source.describe, item))
                if found is not None:
                    yield group, *found

    def _patches(self, source: DepthViews, item: int) -> tuple[PixelsOfView, Tensor]:
        shown = shown_view(source.view(item), self.side)
        pixels = pixel_lattice(shown.camera, self.patch)
        return PixelsOfView(shown, pixels, self.patch), patch_log_depth(shown.depth_at, pixels, self.patch)

    def _keep(self, first: bool, looked_at: PixelsOfView, maps: dict[str, Tensor]) -> None:
        """Keep the maps of the first view of some scenes for the picture."""
        if self.picture is None or not first or len(self._drawn) >= _DRAWN:
            return
        camera = looked_at.shown.camera
        shape = camera.height // self.patch, camera.width // self.patch
        image = looked_at.shown.image[: shape[0] * self.patch, : shape[1] * self.patch]
        self._drawn.append({"image": image} | {name: values.view(shape) for name, values in maps.items()})

    def note(self, scores: dict[str, DepthScore]) -> str:
        """What was measured on."""
        first = next(iter(scores.values()))
        lost = f"\n{first.left_out} views cannot be read and are left out, as named above" if first.left_out else ""
        return f"over {first.patches} patches of {first.scenes} held-out scenes; learnt: the logarithm of depth{lost}"

    def draw(self, scores: dict[str, DepthScore], picture: Path) -> None:
        """Some held-out views: the image, its depth, and what is read off each representation, near to far."""
        rows = []
        height, width = (min(view["image"].shape[axis] for view in self._drawn) for axis in (0, 1))
        for view in self._drawn:
            known = view["depth"][view["depth"].isfinite()]
            low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
            tiles = [byte_color_tensor(view["image"][:height, :width]).numpy()]
            for name, values in view.items():
                if name != "image":
                    large = values.repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)[:height, :width]
                    tiles.append(coloured(large.numpy(), low, high))
            rows.append(tiles)
        captions = [name.replace("fresh weights", "fresh") for name in self._drawn[0]]
        write_picture(picture, captioned_sheet(np.array(rows), captions))


def patch_log_depth(depth_at: Callable[[Tensor], Tensor], pixels: Tensor, patch: int) -> Tensor:
    """Mean logarithm of the depths in patches, (M,) float64; NaN where none is known.

    Args:
        depth_at: depth (K,) at pixels (K, 2), 0 where unknown.
        pixels: (M, 2) middles of the patches.
        patch: side, pixels.
    """
    offsets = patch * ((torch.arange(_SAMPLES, dtype=torch.float64) + 0.5) / _SAMPLES - 0.5)
    around = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), -1).view(-1, 2)
    depth = depth_at((pixels.unsqueeze(1) + around).view(-1, 2)).view(len(pixels), -1)
    known = depth > 0
    total = torch.where(known, depth, 1.0).log().sum(1)
    return torch.where(known.any(1), total / known.sum(1).clamp_min(1), torch.nan)


__all__ = ["PENALTIES", "DepthConfig", "DepthProbe", "DepthScore", "patch_log_depth"]
