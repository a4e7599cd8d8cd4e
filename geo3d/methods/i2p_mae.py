"""Masked modelling of points guided by an image network (I2P-MAE, section 3).

Depth maps of a cloud are shown to a frozen teacher. Its saliency says which groups of points tend to stay visible, and
its features are what the network predicts of these; of masked groups it predicts the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from geo3d.config import to_plain, typed_value
from geo3d.errors import InputError
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.geometry.unit_sphere import to_unit_sphere
from geo3d.methods.checks import check_at_least, check_between, check_positive
from geo3d.methods.method import Method, MethodOutput, SourceSamples
from geo3d.methods.objects import ObjectAugmentation
from geo3d.models import create_model, family_of
from geo3d.models.i2p_mae import I2PMAE, PRESETS, VIEWS, I2PMAEOutput, PointBatch
from geo3d.models.point_encoder import PointInput
from geo3d.models.teachers import Teacher, TeacherOutput, create_teacher, get_teacher
from geo3d.models.teachers.store import TargetStore, content_key
from geo3d.nn.depth_views import DepthGrid, depth_grid, depth_views
from geo3d.nn.local_shape import local_shape, shape_channels
from geo3d.nn.point_groups import PointGroups
from geo3d.samples.objects import ObjectClouds
from geo3d.viz.points import draw_points
from geo3d.viz.sheet import captioned_sheet

_PICTURE_ROWS, _PANEL = 4, (150, 150)  # width and height of a panel, pixels
_LEAST_DEVIATION = 1e-3  # of a figure of shape
_SEEN, _HIDDEN = (150, 150, 150), (40, 90, 200)
_MAP_CAPTIONS = (*(f"depth {n}" for n in (1, 2, 3)), *(f"saliency {n}" for n in (1, 2, 3)))


@dataclass(frozen=True)
class GuidedMaskingConfig:
    """How I2P-MAE is trained."""

    model: str = "i2p_mae_tiny"
    """Network, one of `geo3d.list_models("i2p_mae_*")` that fills in."""
    points: int | None = None
    """Points that are drawn of an object; None: as many as the network's."""
    mask_ratio: float = 0.8
    """Share of the last level's groups that is hidden."""
    guided_masking: bool = True
    """Groups that the teacher finds salient tend to stay visible. Off: all alike."""
    guided_targets: bool = True
    """The teacher's features of visible groups are predicted too. Off: the points of masked groups alone."""
    teacher: str = "hog"
    """Image network that guides, one of `geo3d.models.teachers.list_teachers()`; not used where both of the above are
    off."""
    teacher_options: tuple[str, ...] = ()
    """The teacher's options, such as `stride=16`."""
    teacher_checkpoint: Path | None = None
    """Its file of weights, where it reads one."""
    temperature: float = 1.0
    """Saliency is divided by this before probabilities to stay visible are made of it (published: 1, by which attention
    of about 1 / 197 has almost no effect)."""
    relative_saliency: bool = False
    """Bring each object's saliency to mean 0 and deviation 1 first."""
    stored_views: bool = False
    """Show the teacher objects as they are stored, not as they are turned, scaled and shifted for the network: each is
    then shown once, and what the teacher says is kept on disk."""
    view_points: int = 4096
    """Points of an object that its stored views show, always the same ones."""
    target_folder: Path = Path("data/teacher_targets")
    """Where that is kept, by teacher, views and object."""
    normalise_targets: bool = False
    """Bring each of the teacher's features of a view to mean 0 and deviation 1 over its channels."""
    points_weight: float = 1.0
    """Weight of the loss of masked points."""
    features_weight: float = 1.0
    """Weight of the loss of the teacher's features."""
    shape_weight: float = 0.0
    """Weight of the loss of the local shape at the centres of all groups, which needs no teacher and is the same in any
    pose; 0: it is not predicted, as published."""
    shape_radii: tuple[float, ...] = (0.1, 0.2, 0.35, 0.6)
    """Sizes of the neighbourhoods whose shape it is, in radii of an object."""
    view_size: int = 224
    """Side of the depth maps, pixels."""
    augmentation: ObjectAugmentation = field(default_factory=ObjectAugmentation)
    """How objects are turned, scaled and shifted."""
    recentre: bool = False
    """Bring augmented objects to the unit sphere again, in which encoders are used afterwards."""

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "mask_ratio")
        check_at_least(self, 2, "points")
        check_positive(self, "temperature", "points_weight", "features_weight")
        check_at_least(self, 0, "shape_weight")
        if not self.shape_radii or min(self.shape_radii) <= 0:
            raise InputError(f"shape_radii must be one positive number or more, got {self.shape_radii}")
        check_at_least(self, 16, "view_size")
        if self.view_size % 2:
            raise InputError(f"view_size must be an even number of pixels, got {self.view_size}")
        check_at_least(self, 1, "view_points")

    @property
    def guided(self) -> bool:
        """Whether a teacher is asked."""
        return self.guided_masking or self.guided_targets

    def named_options(self) -> dict[str, Any]:
        """The teacher's options by name.

        Raises:
            InputError: no teacher of the name, no option of the name, or a value of another type.
        """
        known = get_teacher(self.teacher).Options
        pairs = {}
        for text in self.teacher_options:
            name, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"teacher_options: {text!r} should be a name and a value, such as stride=16")
            pairs[name] = yaml.safe_load(value)
        return to_plain(typed_value(known, pairs, f"teacher_options of {self.teacher}"))


@dataclass
class Guidance:
    """What a teacher tells of clouds.

    Args:
        grid: where points lie in the views.
        features: (3 * B, C, h, w) the teacher's, all clouds of view 1 first.
        saliency: (3 * B, h, w).
    """

    grid: DepthGrid
    features: Tensor
    saliency: Tensor

    def saliency_of(self, groups: PointGroups) -> Tensor:
        """(B, G) saliency at the centres of groups, the mean over the views (section 3.2)."""
        clouds, count = groups.xyz.shape[:2]
        found = self.grid.look_up(groups.rows, groups.offsets, self.saliency.unsqueeze(1))
        return found.mean(0).view(clouds, count)

    def features_of(self, groups: PointGroups, below: PointGroups, seen: Tensor) -> Tensor:
        """Features of the members of groups.

        Args:
            groups: of a level.
            below: those of the level below, whose centres are members.
            seen: (V,) rows of the groups that are asked for.

        Returns:
            (V, k, views * C), the views' side by side.
        """
        members = groups.index[seen]
        used = torch.zeros(len(below.rows), dtype=torch.bool, device=members.device)
        used[members.flatten()] = True
        rows = used.nonzero().squeeze(1)
        lengths = torch.bincount(rows // below.xyz.shape[1], minlength=below.xyz.shape[0])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found = self.grid.look_up(below.rows[rows], offsets, self.features)  # (views, used, C)
        place = used.cumsum(0) - 1
        return found.transpose(0, 1).flatten(1)[place[members]]


def visible_groups(saliency: Tensor | None, draws: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """Groups that stay visible, drawn without replacement with the softmax of their saliency as probability.

    Args:
        saliency: (B, G), or None where all are alike.
        draws: (B, G) exponentially distributed of mean 1, in float32.
        count: visible groups of a cloud.
        temperature: that saliency is divided by; the published 1 leaves attention of about 1 / 197 almost without
            effect.

    Returns:
        (B, G) bool.
    """
    # The largest of probability / draw, whose logarithm does not run out of numbers at low temperatures; the softmax's
    # denominator is the same for all groups.
    order = -draws.double().log()
    if saliency is not None:
        order = order + saliency.double() / temperature
    chosen = order.topk(count, dim=1).indices
    return torch.zeros_like(draws, dtype=torch.bool).scatter_(1, chosen, True)


def points_loss(predicted: Tensor, batch: PointBatch, masked: Tensor) -> Tensor:
    """Chamfer distance of masked groups: mean squared distances to the nearest point, both ways (section 3.3).

    Args:
        predicted: (M, k, 3) about the centres.
        batch: of clouds.
        masked: (M,) rows of the groups of the last level but one.
    """
    *_, fine, _ = batch.groups
    below = batch.groups[-3].rows if len(batch.groups) > 2 else batch.inputs.xyz
    truth = below[fine.index[masked]] - fine.rows[masked].unsqueeze(1)
    squared = (predicted.unsqueeze(2) - truth.unsqueeze(1)).square().sum(-1)
    return squared.amin(2).mean() + squared.amin(1).mean()


def features_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of predicted features (V, k, views * C) (section 3.3)."""
    return F.mse_loss(predicted, targets.to(predicted.dtype))


def hidden_and_seen(visible: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of the masked and of the visible groups of the last level but one."""
    seen = visible[-2].flatten()
    return (~seen).nonzero().squeeze(1), seen.nonzero().squeeze(1)


def _two_colours(seen: np.ndarray, hidden: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Points of visible groups in grey and those of masked ones in blue."""
    colors = np.concatenate([np.tile(np.uint8(_SEEN), (len(seen), 1)), np.tile(np.uint8(_HIDDEN), (len(hidden), 1))])
    return draw_points(np.concatenate([seen, hidden]), colors, _PANEL, frame)


def even_input(points: Tensor) -> PointInput:
    """(B, N, 3) positions -> what a network reads."""
    clouds, count = points.shape[:2]
    offsets = torch.arange(0, (clouds + 1) * count, count, device=points.device)
    return PointInput(points.flatten(0, 1), offsets)


class ObjectSamples(SourceSamples[ObjectClouds]):
    """Objects, augmented, with the draws that their masks are made of, and what a teacher says of them as stored.

    Args:
        source: where clouds come from.
        config: of the task.
        points: of a cloud.
        groups: of the last level.
        teacher: is shown each object as it is stored, once; None: that is no concern of the samples.
    """

    def __init__(
        self, source: ObjectClouds, config: GuidedMaskingConfig, points: int, groups: int, teacher: Teacher | None
    ) -> None:
        super().__init__(source)
        self.config, self.points, self.groups, self.teacher = config, points, groups, teacher
        self._store = None
        if teacher is not None:
            views = {"views": "depth", "size": config.view_size}
            self._store = TargetStore(config.target_folder, teacher.identity, views)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One object.

        Returns:
            ``points`` (N, 3), in the unit sphere and augmented; ``draws`` (G,) for the mask. Where a teacher is shown
            stored objects also ``stored`` (N, 3), where these points are in its views, and of the three views
            ``minimum`` (3, 2), ``cell`` (3,), ``shift`` (3, 2), ``features`` (3, C, h, w) and ``saliency`` (3, h, w).
        """
        cloud = self.source.cloud(index, rng, self.points).xyz.double()
        points = self.config.augmentation.apply(to_unit_sphere(cloud)[0].numpy(), rng)
        if self.config.recentre:
            points = to_unit_sphere(torch.from_numpy(points).double())[0].numpy()
        sample = {"points": points, "draws": rng.exponential(size=self.groups)}
        drawn = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in sample.items()}
        return drawn | (self._shown(index, cloud) if self._store is not None else {})

    def _shown(self, index: int, cloud: Tensor) -> dict[str, Tensor]:
        """What the teacher says of an object as it is stored, and where some of its points are in what it saw."""
        whole = self.source.cloud(index).xyz.double()
        if len(whole) > self.config.view_points:
            generator = torch.Generator().manual_seed(len(whole))
            whole = whole[torch.randperm(len(whole), generator=generator)[: self.config.view_points]]
        seen, centre, scale = to_unit_sphere(whole)
        seen, offsets = seen.float(), torch.tensor([0, len(seen)])
        grid = depth_grid(seen, offsets, self.config.view_size)

        def make(_: list[int]) -> TeacherOutput:
            return self.teacher(depth_views(seen, offsets, self.config.view_size).colors())

        features, saliency = self._store.complete([content_key(seen)], make)
        return {
            "stored": ((cloud - centre) / scale).float(),
            "minimum": grid.minimum[:, 0],
            "cell": grid.cell[:, 0],
            "shift": grid.shift[:, 0],
            "features": features.half(),
            "saliency": saliency,
        }


class GuidedMasking(Method):
    """I2P-MAE's pretext task on its network.

    Args:
        config: task and network.
        generator: draws the initial weights.
    """

    name = "i2p_mae"
    source = ObjectClouds

    def __init__(self, config: GuidedMaskingConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.teacher: Teacher | None = None
        if config.guided:
            options, needed = config.named_options(), get_teacher(config.teacher).needs_checkpoint
            if needed and config.teacher_checkpoint is None and options.get("weights") != "random":
                raise InputError(
                    f"teacher: {config.teacher} needs {needed}; give it by --method.teacher-checkpoint FILE"
                )
            with torch.device("cpu"):  # also where the network is only planned: its weights are never trained
                self.teacher = create_teacher(config.teacher, config.teacher_checkpoint, **options)
            if config.view_size % self.teacher.multiple:
                raise InputError(
                    f"view_size must be a multiple of {self.teacher.multiple}, the patch of {config.teacher}, got "
                    f"{config.view_size}"
                )
        channels = self.teacher.channels if self.teacher is not None and config.guided_targets else 0
        figures = shape_channels(config.shape_radii) if config.shape_weight else 0
        if family_of(config.model).network is not I2PMAE:
            raise InputError(f"model: {config.model} fills in nothing; choose one of {', '.join(PRESETS)}")
        self.network: I2PMAE = create_model(config.model, teacher_dim=channels, shape_dim=figures, generator=generator)
        self.points = config.points or self.network.config.points
        for norm in self.network.h_encoder.encoder_norms[:-2]:
            norm.requires_grad_(False)  # which the decoder does not read: processes would wait for its gradients
        self.freeze()

    def frozen_modules(self) -> tuple[str, ...]:
        """The teacher, where there is one."""
        return ("teacher",) if self.teacher is not None else ()

    @property
    def _seen(self) -> str:
        """Entry of a batch: points as they lie in what the teacher sees."""
        return "stored" if self.config.stored_views and self.teacher is not None else "points"

    @property
    def visible_count(self) -> int:
        """Groups of the last level that stay visible, at least one: G - int(mask_ratio * G), as published."""
        groups = self.network.config.groups[-1]
        return max(1, groups - int(self.config.mask_ratio * groups))

    def samples(self, source: ObjectClouds) -> ObjectSamples:
        """The training items of a source of objects."""
        shown = self.teacher if self.config.stored_views else None
        return ObjectSamples(source, self.config, self.points, self.network.config.groups[-1], shown)

    def guidance(self, batch: dict[str, Any]) -> Guidance | None:
        """What the teacher tells of the objects of a batch; None without one."""
        if self.teacher is None:
            return None
        if self.config.stored_views:
            parts = {name: batch[name].transpose(0, 1) for name in ("minimum", "cell", "shift")}
            grid = DepthGrid(**parts, size=self.config.view_size)
            features, saliency = (
                batch[name].transpose(0, 1).flatten(0, 1).float() for name in ("features", "saliency")
            )
        else:
            seen = even_input(batch["points"].float())
            grid = depth_views(seen.xyz, seen.offsets, self.config.view_size)
            features, saliency = self.teacher(grid.colors())
        if self.config.normalise_targets:
            features = F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
        return Guidance(grid, features, saliency)

    def _levels_of(self, batch: dict[str, Any], clouds: PointBatch) -> list[PointGroups]:
        """Levels of groups, from the points themselves on, where the teacher sees them."""
        seen = batch[self._seen]
        levels = [PointGroups(seen, seen.new_zeros(0, dtype=torch.int64), seen.new_zeros(0, dtype=torch.int64))]
        for groups in clouds.groups:
            xyz = levels[-1].rows[groups.picked].view_as(groups.xyz)
            levels.append(replace(groups, xyz=xyz))
        return levels

    def mask(self, batch: dict[str, Any], levels: Sequence[PointGroups], guidance: Guidance | None) -> Tensor:
        """(B, G) bool: groups of the last level that stay visible; ``batch["visible"]`` where it is given."""
        if "visible" in batch:
            return batch["visible"]
        saliency = None
        if guidance is not None and self.config.guided_masking:
            saliency = guidance.saliency_of(levels[-1])
            if self.config.relative_saliency:
                deviation = saliency.std(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
                saliency = (saliency - saliency.mean(1, keepdim=True)) / deviation
        return visible_groups(saliency, batch["draws"], self.visible_count, self.config.temperature)

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """The losses of a batch of drawn objects; paths are dropped by torch's global generator.

        Raises:
            InputError: nothing is masked, or nothing visible.
        """
        clouds = self.network.batch(even_input(batch["points"]))
        guidance = self.guidance(batch)
        levels = self._levels_of(batch, clouds)
        visible = self.network.visible(clouds, self.mask(batch, levels, guidance))
        masked, seen = hidden_and_seen(visible)
        if not len(masked):
            raise InputError(
                f"mask_ratio {self.config.mask_ratio} hides no group of the last level but one, all of which some "
                "visible one has as a member; raise it"
            )
        output: I2PMAEOutput = self.network(clouds, visible)
        losses = {"points": self.config.points_weight * points_loss(output.points, clouds, masked)}
        if output.features is not None:
            targets = guidance.features_of(levels[-2], levels[-3], seen)
            losses["features"] = self.config.features_weight * features_loss(output.features, targets)
        if output.shape is not None:
            losses["shape"] = self.config.shape_weight * self._shape_loss(output.shape, batch["points"], clouds)
        extras = {"predicted": output.points, "masked": masked, "visible": visible[-1], "seen": seen}
        return MethodOutput(losses, extras=extras)

    @torch.no_grad()
    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """Rows of: an object, its depth maps and their saliency where a teacher guides, the centres that stay visible,
        the object filled in, and the groups as they are that were masked.

        Points of visible groups are grey, those of masked ones blue.
        """
        rows = min(_PICTURE_ROWS, len(batch["points"]))
        some = {name: value[:rows] for name, value in batch.items()}
        guidance, shown = self.guidance(some), even_input(some[self._seen].float())
        clouds = self.network.batch(even_input(some["points"].to(next(self.network.parameters()).dtype)))
        fine = clouds.groups[-2]
        masked, seen = (output.extras[name] for name in ("masked", "seen"))
        predicted = output.extras["predicted"].float()[masked < len(fine.rows)]
        masked, seen = (part[part < len(fine.rows)] for part in (masked, seen))
        below = clouds.groups[-3].rows if len(clouds.groups) > 2 else clouds.inputs.xyz
        count = fine.xyz.shape[1]

        def members(of: Tensor, row: int) -> np.ndarray:
            return below[fine.index[of[of // count == row]]].flatten(0, 1).float().cpu().numpy()

        sheet = []
        for row in range(rows):
            points = some["points"][row].float().cpu().numpy()
            own = masked // count == row
            filled = (predicted[own] + fine.rows[masked[own]].unsqueeze(1)).flatten(0, 1).float().cpu().numpy()
            top = clouds.groups[-1].xyz[row].float().cpu().numpy()
            kept = output.extras["visible"][row].cpu().numpy()
            sheet.append(
                [
                    draw_points(points, None, _PANEL, points),
                    *(self._maps(guidance, shown, row, rows) if guidance is not None else []),
                    _two_colours(top[kept], top[~kept], points),
                    _two_colours(members(seen, row), filled, points),
                    _two_colours(members(seen, row), members(masked, row), points),
                ]
            )
        captions = ["object", *(_MAP_CAPTIONS if guidance is not None else ()), "kept centres", "filled in", "as it is"]
        return captioned_sheet(np.array(sheet), captions)

    def _maps(self, guidance: Guidance, points: PointInput, row: int, rows: int) -> list[np.ndarray]:
        """Depth maps and saliency of an object, as panels."""
        panels: list[np.ndarray] = []
        images = depth_views(points.xyz, points.offsets, self.config.view_size).images
        for maps, mode in ((images, "area"), (guidance.saliency, "nearest")):
            own = maps.view(VIEWS, rows, *maps.shape[1:])[:, row].float()
            low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)
            shown = ((own - low) / (high - low).clamp_min(1e-12)).unsqueeze(1)
            pixels = byte_color_tensor(F.interpolate(shown, _PANEL, mode=mode)).movedim(1, -1)
            panels += list(pixels.expand(-1, -1, -1, 3).cpu().numpy())
        return panels

    def _shape_loss(self, predicted: Tensor, points: Tensor, clouds: PointBatch) -> Tensor:
        """How far the predicted local shape of all groups is off, each figure in deviations over the batch."""
        truth = local_shape(points, clouds.groups[-2].xyz.to(points.dtype), self.config.shape_radii).flatten(0, 1)
        deviation, mean = torch.std_mean(truth, 0)
        return F.smooth_l1_loss(predicted, ((truth - mean) / (deviation + _LEAST_DEVIATION)).to(predicted.dtype))

    def model_names(self) -> tuple[str, ...]:
        """The family's."""
        return ("i2p_mae",)

    def no_weight_decay(self) -> set[str]:
        """Tokens of masked groups, as published."""
        return {name for name, _ in self.named_parameters() if "token" in name.rpartition(".")[2]}


__all__ = [
    "Guidance",
    "GuidedMasking",
    "GuidedMaskingConfig",
    "ObjectSamples",
    "even_input",
    "features_loss",
    "hidden_and_seen",
    "points_loss",
    "visible_groups",
]
