"""DUSt3R's and MASt3R's recipe: pointmaps of view pairs, and how far they are off on rooms held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry.rotation import rotation_angle
from geo3d.geometry.similarity import fit_similarity
from geo3d.methods.pointmap_loss import mean_distance
from geo3d.methods.pointmaps import Pointmaps, PointmapsConfig
from geo3d.random import Stream
from geo3d.recipes.finetuning import FewLabels
from geo3d.recipes.pairs import PairsRecipe, PairsRun
from geo3d.samples.depth_pairs import DepthPairs
from geo3d.train.config import TrainConfig

#: Errors, relative to the mean distance of the scene, below which a point counts as right.
_NEAR, _FAR = 0.1, 0.25
_SIDES = ("first", "second")
#: Sizes of the crops of the stages of 512 pixels: the first is measured too, all are learnt from.
_WIDE = (384, 512), ((336, 512), (288, 512), (256, 512), (160, 512))


@dataclass(kw_only=True)
class PointmapsRun(PairsRun):
    """Train DUSt3R: the points of two views in one frame, from posed views with depth."""

    method: PointmapsConfig = field(default_factory=PointmapsConfig)
    """The task and the network."""


def _tiny() -> PointmapsRun:
    """Minutes on a CPU: a small network; what it is worth docs/dust3r.md tells. `--init` takes a run of croco."""
    train = TrainConfig(steps=800, batch_size=8, lr=1e-3, warmup_steps=20, clip_norm=1.0, workers=1)
    return PointmapsRun(rooms=32, method=PointmapsConfig(zoom=1.0, color_jitter=0.2), train=train)


def _paper_224() -> PointmapsRun:
    """First stage of DUSt3R, from CroCo v2 with the large encoder: 8 GPUs x 16 pairs."""
    return _stage(PointmapsConfig("dust3r_vitl_224_linear", (224, 224)), 16, 100, 10)


def _paper_512_linear() -> PointmapsRun:
    """Second stage, from the first: 8 GPUs x 4 pairs x 2, of five shapes."""
    return _stage(PointmapsConfig("dust3r_vitl_512_linear", *_WIDE), 4, 100, 20, accumulate=2)


def _paper_512_dpt() -> PointmapsRun:
    """Third stage, from the second."""
    return _stage(PointmapsConfig("dust3r_vitl_512_dpt", *_WIDE), 4, 90, 15, accumulate=2)


def _paper_mast3r() -> PointmapsRun:
    """MASt3R, from DUSt3R's third stage."""
    return _stage(PointmapsConfig("mast3r_vitl_512_catmlpdpt", *_WIDE, metric=True), 4, 50, 8, accumulate=2)


def _stage(
    method: PointmapsConfig, batch_size: int, epochs: int, warmup_epochs: int, accumulate: int = 1
) -> PointmapsRun:
    train = TrainConfig(
        epochs=epochs, warmup_epochs=warmup_epochs, batch_size=batch_size, accumulate=accumulate, lr=1e-4, min_lr=1e-6,
        workers=8,
    )  # fmt: skip
    return PointmapsRun(method=method, train=train)


class PointmapsRecipe(FewLabels, PairsRecipe):
    """The method with training pairs, and held-out pairs to measure it on."""

    summary = "DUSt3R: the points of two views in one frame, from posed views with depth"
    purpose = "finetune"
    run = PointmapsRun
    presets: ClassVar = {
        "tiny": _tiny,
        "paper": _paper_224,
        "paper-512-linear": _paper_512_linear,
        "paper-512-dpt": _paper_512_dpt,
        "paper-mast3r": _paper_mast3r,
    }
    method_class = Pointmaps
    loss_name = "loss"
    best = "error"
    stream = Stream.MEASURE_POINTMAPS

    method: Pointmaps

    def prepare_measuring(self, source: DepthPairs, measured: DepthPairs) -> None:
        """Measure pairs as they are: largest windows, colours as photographed."""
        self.measured = self.method.plain_samples(measured)

    def figures(self) -> dict[str, float]:
        """Loss; errors of points at the best common scale, relative to their mean distance; and of the camera's turn.

        ``error`` is the mean over pixels of both views, ``error_first`` and ``error_second`` of one, ``median`` the
        median; ``within_10`` and ``within_25`` the share of points (percent) less than that share of the mean distance
        off; ``rotation`` the median over pairs of the angle (degrees) by which the second camera's rotation is off,
        and ``turn`` of the angle that it is turned by, which is what not to see any turn would be off.
        """
        self._turns: list[float] = []
        self._true_turns: list[float] = []
        found = self.means(self._measured_batch)
        angles = {"rotation": torch.tensor(self._turns), "turn": torch.tensor(self._true_turns)}
        return found | {name: float(values.median()) for name, values in angles.items() if len(values)}

    def _measured_batch(self, batch: dict[str, Any]) -> list[dict[str, float]]:
        output = self.method(batch)
        maps = output.extras
        own = maps.get("own_points2")
        if own is None:
            own = self.method.predict(batch | {"first": batch["second"], "second": batch["first"]}).first.points
        for row, pose in enumerate(batch["second_from_first"]):
            turn = turn_error(own[row], maps["points2"][row], pose)
            self._turns += [turn] if turn is not None else []
            self._true_turns.append(rotation_angle(pose[:3, :3]))
        found, loss = (maps["points1"].float(), maps["points2"].float()), output.loss.item()
        return [{"loss": loss} | figures for figures in pair_figures(found, batch)]

    def comparison(self, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        """By how much the error has changed."""
        return {"change_percent": 100 * (after["error"] / before["error"] - 1)}

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """Errors before and after."""
        sides = ", ".join(f"{name} view {after[f'error_{name}']:.3f}" for name in _SIDES if f"error_{name}" in after)
        turn = (
            f"; the second camera's rotation is {after['rotation']:.1f} degrees off, where cameras are turned by "
            f"{after['turn']:.1f}"
            if "rotation" in after
            else ""
        )
        return (
            f"{super().text(before, after)}\n"
            f"error of points at the best scale, relative to their mean distance: {before['error']:.3f} "
            f"{self.beginning}, {after['error']:.3f} trained ({sides})\n"
            f"points less than a tenth of the mean distance off: {before['within_10']:.1f} % {self.beginning}, "
            f"{after['within_10']:.1f} % trained{turn}"
        )


def pair_figures(points: tuple[Tensor, Tensor], batch: dict[str, Any]) -> list[dict[str, float]]:
    """Figures of each pair of a batch, of which :meth:`PointmapsRecipe.figures` tells.

    Args:
        points: of both views (B, H, W, 3), in the first camera's frame.
        batch: of the method's samples.

    Returns:
        One mapping a pair, without the error of a view of which nothing is known.
    """
    targets, valid = (batch["points1"], batch["points2"]), (batch["valid1"], batch["valid2"])
    pairs = []
    for first, second in zip(*relative_errors(points, targets, valid), strict=True):
        both = torch.cat([first, second])
        sides = zip(_SIDES, (first, second), strict=True)
        found = {"error": both.mean(), **{f"error_{name}": side.mean() for name, side in sides if len(side)}}
        found |= {"median": both.median()}
        found |= {f"within_{100 * d:.0f}": 100 * (both < d).float().mean() for d in (_NEAR, _FAR)}
        pairs.append({name: float(value) for name, value in found.items()} if len(both) else {})
    return pairs


def relative_errors(
    points: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Errors of predicted points of pairs at the scale that suits most of them, over the mean distance of the truth.

    Args:
        points, targets: of both views (B, H, W, 3), in the first camera's frame.
        valid: (B, H, W) each.

    Returns:
        For both views, for each pair, the errors (M,) of its valid pixels.
    """
    distances = mean_distance(targets, valid)
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, distance in enumerate(distances):
        found = [p[row][v[row]] for p, v in zip(points, valid, strict=True)]
        truth = [t[row][v[row]] for t, v in zip(targets, valid, strict=True)]
        ratio = torch.cat(truth).norm(dim=-1) / torch.cat(found).norm(dim=-1).clamp(min=1e-8)
        scale = ratio.median() if len(ratio) else ratio.new_ones(())
        for side, (f, t) in enumerate(zip(found, truth, strict=True)):
            errors[side].append((scale * f - t).norm(dim=-1) / distance)
    return errors


def turn_error(own: Tensor, in_first: Tensor, second_from_first: Tensor) -> float | None:
    """By how many degrees the rotation between two cameras is off that two pointmaps of the second view tell.

    Args:
        own: (H, W, 3) points of the second view in its own frame.
        in_first: the same pixels in the frame of the first.
        second_from_first: (4, 4) the true pose.

    Returns:
        Degrees; None where the points tell no rotation.
    """
    try:
        fitted = fit_similarity(in_first.reshape(-1, 3).cpu(), own.reshape(-1, 3).cpu())
    except InputError:
        return None
    return rotation_angle(fitted.rotation @ second_from_first[:3, :3].double().cpu().T)


__all__ = ["PointmapsRecipe", "PointmapsRun", "pair_figures", "relative_errors", "turn_error"]
