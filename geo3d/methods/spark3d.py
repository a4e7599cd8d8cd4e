"""SparK over sparse voxels: masked cells of a scene are filled in from those that were kept (Tian et al., 2023).

A scene is cut into voxels and these into cells as large as the encoder's total stride. Some of the occupied cells are
kept, and the encoder computes on their voxels alone. The decoder predicts every voxel of the other occupied cells:
whether it is occupied, and its point's place, colour and normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.checks import check_at_least, check_between, check_positive
from geo3d.methods.method import Method, MethodOutput
from geo3d.methods.points import PointSamples, VoxelCropConfig, random_point_a_voxel, rotate_and_scale
from geo3d.metrics import intersection_over_union
from geo3d.models import create_encoder, family_of, model_options
from geo3d.models.voxel_decoder import MaskedVoxelDecoder
from geo3d.models.voxel_encoder import VoxelEncoder
from geo3d.models.voxel_points import VoxelPoints, scene_of_rows
from geo3d.nn.topology import Topology
from geo3d.ops.kernel_map import kernel_map
from geo3d.ops.knn import knn
from geo3d.samples.packing import pack
from geo3d.samples.points import PointScenes
from geo3d.viz.points import draw_clouds

#: What is predicted of a voxel that is occupied, and where it stands in the decoder's output; column 0 is occupancy.
ATTRIBUTES = {"offset": slice(1, 4), "color": slice(4, 7), "normal": slice(7, 10)}
_OUTPUTS = 10
_SURFACE = 0.125  # of a cell of 8 voxels a side
_COUNT_EPS = 1e-8  # so that a mean over nothing is 0
_COLOR_EPS = 1e-4  # added to the variance of a cell's colours: below 1/100 of the range they are one colour
# Points of structure from motion: a scene's extent is measured without this share of them at either end. Stray are
# those farther from the median than so many extents, and those in a cube of so many voxels a side with too few points.
_TAIL, _REACH, _CUBE, _FEWEST_IN_CUBE = 0.1, 1.5, 8, 4


@dataclass(frozen=True)
class SparK3DConfig(VoxelCropConfig):
    """How an encoder over voxels is pre-trained to fill in what is masked; crops are of whole cells."""

    model: str = "sparse_resnet_tiny"
    """Encoder, one of `geo3d.list_models("sparse_resnet*")` or `geo3d.list_models("swin3d*")`."""
    first_stride: int = 2
    """Voxels that the first step down of a swin3d joins along a side; sparse_resnet always joins 2."""
    mask_ratio: float = 0.6
    """Share of the occupied cells that is masked."""
    extent: float = 64.0
    """Scenes of unknown scale are scaled to this many voxels along their longest side; stray points are left out."""
    decoder_width: int = 128
    """Channels of the decoder's coarsest level; halved at each finer one."""
    decoder_context: int = 2
    """Residual blocks of the decoder's coarsest level."""
    cell_colors: bool = False
    """Colours are predicted less their cell's mean, over its standard deviation, as published for a patch's pixels."""
    occupancy_weight: float = 1.0
    """Weight of the occupancy of all voxels in the loss."""
    occupied_weight: float = 3.0
    """Weight of an occupied voxel among the voxels of a cell, of which few are occupied; an empty one weighs 1."""
    offset_weight: float = 1.0
    """Weight of the squared error of the place in the voxel, voxel edges, in the loss."""
    color_weight: float = 0.25
    """Weight of that of the colour."""
    normal_weight: float = 0.5
    """Weight of that of the normal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 1, "mask_ratio")
        check_positive(self, "extent", "occupied_weight")
        check_at_least(self, 1, "decoder_width", "first_stride")
        check_at_least(self, 0, "decoder_context", "occupancy_weight", "offset_weight", "color_weight", "normal_weight")


def draw_kept(cells: int, mask_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Which of a scene's occupied cells are kept: round((1 - ratio) n) of them, at least 1 where there is any.

    Args:
        cells: how many there are.
        mask_ratio: share to mask.
        rng: ranks the cells.

    Returns:
        (cells,) bool.
    """
    kept = np.zeros(cells, dtype=bool)
    kept[rng.permutation(cells)[: max(1, round((1 - mask_ratio) * cells))]] = True
    return kept


def crop_cells(cells: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Rows, ascending, of the voxels in the whole cells nearest to a random voxel's; at least those of one cell.

    Args:
        cells: (N, 3) int64 cell of every voxel.
        count: voxels at most, beyond the first cell.
        rng: picks the voxel.
    """
    seed = int(rng.integers(len(cells)))
    if len(cells) <= count:
        return torch.arange(len(cells))
    unique, inverse, sizes = cells.unique(dim=0, return_inverse=True, return_counts=True)
    order = (unique - cells[seed]).square().sum(1).argsort(stable=True)
    fits = sizes[order].cumsum(0) <= count
    fits[0] = True
    chosen = torch.zeros(len(unique), dtype=torch.bool)
    chosen[order[fits]] = True
    return chosen[inverse].nonzero()[:, 0]


class MaskedCellSamples(PointSamples):
    """Scenes rotated and scaled, cut into voxels with a random point each, cropped to whole cells, with a mask.

    Args:
        source: where points come from.
        config: of the method.
        cell: edge of a cell, voxels.
        reads: fields of points that the encoder cannot do without.
    """

    def __init__(self, source: PointScenes, config: SparK3DConfig, cell: int, reads: tuple[str, ...]) -> None:
        super().__init__(source, reads)
        self.config, self.cell = config, cell

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One crop: ``xyz`` (N, 3) in voxel units, from 0 up; ``colors`` and ``normals`` (N, 3), NaN where unknown.

        ``kept`` (M,) bool says which of the occupied cells, ascending by (x, y, z), are not masked.
        """
        cloud, config = self.cloud(index), self.config
        xyz, normals = rotate_and_scale(cloud, rng.uniform(0, 2 * math.pi), rng.uniform(*config.scale))
        if self.source.metric(index):
            sound, scaled = torch.arange(len(xyz)), xyz / config.voxel_size
        else:
            scaled = xyz * (config.extent / _extent(xyz))
            sound = without_strays(scaled, config.extent)
            scaled = scaled[sound]
        scaled = (scaled - scaled.amin(0) + torch.from_numpy(rng.uniform(0, self.cell, 3))).float()
        found = random_point_a_voxel(scaled, rng)
        cells = scaled[found].floor().long() // self.cell
        chosen = crop_cells(cells, config.max_voxels, rng)
        found, cells = found[chosen], cells[chosen]
        rows = sound[found]
        unknown = torch.full((len(rows), 3), torch.nan)
        return {
            "xyz": scaled[found],
            "colors": unknown if cloud.colors is None else cloud.colors[rows],
            "normals": unknown if normals is None else normals[rows],
            "kept": torch.from_numpy(draw_kept(len(cells.unique(dim=0)), config.mask_ratio, rng)),
        }


def without_strays(xyz: Tensor, extent: float) -> Tensor:
    """Rows, ascending, of the points that belong to a scene; structure from motion puts a few far from it.

    Args:
        xyz: (N, 3) in voxel units.
        extent: longest side of the scene, voxels.

    Returns:
        Points near the median that have neighbours; where none has any, all points near the median.
    """
    near = ((xyz - xyz.median(0).values).abs().amax(1) <= _REACH * extent).nonzero()[:, 0]
    cubes = (xyz[near] / _CUBE).floor().long()
    _, cube, count = cubes.unique(dim=0, return_inverse=True, return_counts=True)
    settled = near[count[cube] >= _FEWEST_IN_CUBE]
    return settled if len(settled) else near


def _extent(xyz: Tensor) -> float:
    """Longest side of a scene, estimated from the spread of its points without the tails; 1 for a single point."""
    ascending, cut = xyz.sort(0).values, int(_TAIL * len(xyz))
    return float((ascending[-1 - cut] - ascending[cut]).max()) / (1 - 2 * _TAIL) or 1.0


@dataclass
class Masked:
    """What is masked of a batch, and what is truly there.

    Args:
        sites: every voxel of stride 1 inside the masked cells.
        cell: (Q,) int64 masked cell of each.
        row: (Q,) int64 voxel of the batch that is there, -1 where it is empty.
        cells: number of masked cells.
    """

    sites: Topology
    cell: Tensor
    row: Tensor
    cells: int

    @property
    def occupied(self) -> Tensor:
        """(Q,) bool."""
        return self.row >= 0

    def mean(self, values: Tensor, valid: Tensor) -> Tensor:
        """Mean over the cells that have a valid site of the mean over these; 0 where there is none.

        Args:
            values: (Q,); looked at where valid.
            valid: (Q,) bool.
        """
        count = torch.bincount(self.cell[valid], minlength=self.cells).clamp_min(1)
        share = valid.to(values.dtype) / count.to(values.dtype)[self.cell]
        cells = torch.zeros_like(count).scatter_(0, self.cell[valid], 1).sum()
        return (torch.where(valid, values, 0) * share).sum() / (cells + _COUNT_EPS)


class SparK3D(Method):
    """Filling in masked cells of voxelised scenes.

    Args:
        config: task and network.
        generator: draws the initial weights.
    """

    name = "spark3d"
    source = PointScenes
    handed_out = "encoder"

    def __init__(self, config: SparK3DConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = {"signals": config.signals, "voxel_size": config.voxel_size, "generator": generator}
        if "first_stride" in model_options(config.model):
            options["first_stride"] = config.first_stride
        if (kind := family_of(config.model).kind) != "voxels":
            raise InputError(f"model must read voxels, such as sparse_resnet_tiny; {config.model} reads {kind}")
        self.encoder: VoxelEncoder = create_encoder(config.model, **options)
        strides, channels = self.encoder.strides, self.encoder.channels
        self.decoder = MaskedVoxelDecoder(
            strides, channels, config.decoder_width, config.decoder_context, _OUTPUTS, generator
        )
        with torch.no_grad():  # begin with the share of voxels that are occupied in a cell that a surface crosses
            self.decoder.head.bias[0] = math.log(config.occupied_weight * _SURFACE / (1 - _SURFACE))

    @property
    def cell(self) -> int:
        """Edge of a cell, voxels: the encoder's total stride, so that no coarse voxel is of two cells."""
        return self.encoder.strides[-1]

    def samples(self, source: PointScenes) -> MaskedCellSamples:
        """The training items of a set of scenes."""
        return MaskedCellSamples(source, self.config, self.cell, self.encoder.reads)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pack crops one after the other, with ``offsets`` (B + 1,)."""
        return pack(samples)

    def predict(self, visible: VoxelPoints, masked: Topology) -> tuple[Topology, Tensor]:
        """What is in masked cells, from the points of the others alone.

        Args:
            visible: points of the kept cells.
            masked: the masked cells, of stride :attr:`cell`.

        Returns:
            Every voxel inside the masked cells, and (Q, 10): logit of its occupancy, then :data:`ATTRIBUTES`.
        """
        return self.decoder(self.encoder.features(self.encoder.voxel_inputs(visible)), masked)

    def split(self, batch: dict[str, Any]) -> tuple[VoxelPoints, Topology, Topology]:
        """Points of the kept cells; the masked cells; and all voxels that there are.

        Raises:
            InputError: ``kept`` does not have one entry for each occupied cell.
        """
        read = {part: batch[part] if part in self.encoder.reads else None for part in ("colors", "normals")}
        points = VoxelPoints(batch["xyz"], **read, offsets=batch["offsets"])
        voxels = Topology(points.coords, 1, points.batch_size)
        cells, cell = voxels.coarsen(self.cell)
        kept = batch["kept"]
        if kept.shape != (cells.size,):
            raise InputError(f"spark3d: kept must be ({cells.size},), one for each occupied cell, got {kept.shape}")
        visible = points.subset(kept[cell].nonzero()[:, 0])
        return visible, Topology(cells.coords[~kept], self.cell, points.batch_size), voxels

    def truth(self, sites: Topology, voxels: Topology) -> Masked:
        """What the sites of masked cells truly hold."""
        row = kernel_map(voxels.coords, sites.coords, 1, 1)[0].long()
        cells, cell = sites.coarsen(self.cell)
        return Masked(sites, cell, row, cells.size)

    def targets(self, batch: dict[str, Any], masked: Masked) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Attribute -> (Q, 3) targets, and mean and standard deviation (cells, 3) by which they were normalised.

        Targets are NaN where the voxel is empty or the attribute unknown.
        """
        inside = batch["xyz"] - batch["xyz"].floor() - 0.5
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, values in {"offset": inside, "color": batch["colors"], "normal": batch["normals"]}.items():
            rows = values.new_full((len(masked.row), 3), torch.nan)
            rows[masked.occupied] = values[masked.row[masked.occupied]]
            mean, deviation = values.new_zeros(masked.cells, 3), values.new_ones(masked.cells, 3)
            if name == "color" and self.config.cell_colors:
                mean, deviation = _cell_statistics(rows, masked)
            found[name] = ((rows - mean[masked.cell]) / deviation[masked.cell], mean, deviation)
        return found

    def forward(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> MethodOutput:
        """Cross-entropy of occupancy and squared errors of attributes, mean over voxels of a masked cell, then cells.

        Dropped paths, where the encoder has any, are drawn by torch's global generator.
        """
        visible, cells, voxels = self.split(batch)
        sites, predicted = self.predict(visible, cells)
        predicted = predicted.float()
        masked = self.truth(sites, voxels)
        every = torch.ones_like(masked.occupied)
        logit, truth = predicted[:, 0], masked.occupied.float()
        weight = logit.new_tensor(self.config.occupied_weight)
        entropy = F.binary_cross_entropy_with_logits(logit, truth, reduction="none", pos_weight=weight)
        losses = {"occupancy": self.config.occupancy_weight * masked.mean(entropy, every)}
        targets = self.targets(batch, masked)
        for name, columns in ATTRIBUTES.items():
            target = targets[name][0]
            known = target.isfinite().all(1)
            error = (predicted[:, columns] - torch.where(known.unsqueeze(1), target, 0)).square().sum(1)
            losses[name] = getattr(self.config, f"{name}_weight") * masked.mean(error, known)
        iou = intersection_over_union(logit > 0, masked.occupied)
        extras = {"sites": sites.coords, "predicted": predicted, "occupied": masked.occupied}
        return MethodOutput(losses, {"occupancy_iou": iou}, extras)

    def no_weight_decay(self) -> set[str]:
        """The tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith("token")}

    def clouds(self, batch: dict[str, Any], output: MethodOutput, scene: int = 0) -> dict[str, PointCloud]:
        """A scene ``masked``, ``filled`` in and in the ``original``, in voxel units, coloured.

        Filled are the voxels whose logit is above 0, with what was predicted of them; colours that were
        predicted relative to their cell take its true mean and deviation, as published.
        """
        visible, _, voxels = self.split(batch)
        predicted = output.extras["predicted"]
        masked = self.truth(Topology(output.extras["sites"], 1, voxels.batch_size), voxels)
        _, mean, deviation = self.targets(batch, masked)["color"]
        color = predicted[:, ATTRIBUTES["color"]] * deviation[masked.cell] + mean[masked.cell]
        filled = (predicted[:, 0] > 0) & (masked.sites.coords[:, 0] == scene)
        middle = masked.sites.coords[:, 1:] + 0.5
        added = PointCloud(
            (middle + predicted[:, ATTRIBUTES["offset"]].clamp(-0.5, 0.5))[filled],
            color[filled].clamp(0, 1),
            F.normalize(predicted[:, ATTRIBUTES["normal"]], dim=1)[filled],
        )
        whole = PointCloud(batch["xyz"], batch["colors"], batch["normals"], offsets=batch["offsets"]).scene(scene)
        rest = _rows_of(whole, visible.subset((scene_of_rows(visible.offsets) == scene).nonzero()[:, 0]).coords)
        return {"masked": rest, "filled": PointCloud.pack([rest, added]), "original": whole}

    def picture(self, batch: dict[str, Any], output: MethodOutput) -> np.ndarray:
        """The first crop masked, filled in and in the original."""
        return draw_clouds(self.clouds(batch, output))


def _cell_statistics(rows: Tensor, masked: Masked) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (cells, 3) of the known rows (Q, 3) of each masked cell; 0 and 1 where there is none.

    The variance is that of the rows themselves, not an estimate: a cell may hold a single one.
    """
    known = rows.isfinite().all(1)
    values, cell = rows[known], masked.cell[known]
    count = torch.bincount(cell, minlength=masked.cells).unsqueeze(1)
    mean = values.new_zeros(masked.cells, 3).index_add_(0, cell, values) / count.clamp_min(1)
    squares = values.new_zeros(masked.cells, 3).index_add_(0, cell, (values - mean[cell]).square())
    deviation = torch.where(count > 0, (squares / count.clamp_min(1) + _COLOR_EPS).sqrt(), 1)
    return mean, deviation


def _rows_of(cloud: PointCloud, coords: Tensor) -> PointCloud:
    """Points of a single scene's cloud that lie in some voxels."""
    place = torch.cat([torch.zeros_like(cloud.xyz[:, :1]), cloud.xyz.floor()], 1).int()
    there = coords.clone()
    there[:, 0] = 0
    rows = (kernel_map(there, place, 1, 1)[0] >= 0).nonzero()[:, 0]
    return PointCloud(*(t[rows] for t in (cloud.xyz, cloud.colors, cloud.normals)))


def copied_occupancy(method: SparK3D, batch: dict[str, Any], sites: Topology) -> Tensor:
    """Baseline without learning: a masked cell is predicted to look like the nearest kept cell of its scene.

    Args:
        method: says what is masked.
        batch: of the method.
        sites: every voxel of the masked cells.

    Returns:
        (Q,) bool.
    """
    visible, cells, _ = method.split(batch)
    kept = Topology(visible.coords, 1, visible.batch_size).coarsen(method.cell)[0]
    middle = (cells.coords[:, 1:].float(), kept.coords[:, 1:].float(), cells.batch_offsets, kept.batch_offsets)
    nearest, _ = knn(*middle, 1)
    shift = kept.coords[nearest[:, 0]] - cells.coords
    shift[:, 0] = 0
    _, cell = sites.coarsen(method.cell)
    return kernel_map(visible.coords, sites.coords + shift[cell], 1, 1)[0] >= 0


__all__ = [
    "ATTRIBUTES",
    "Masked",
    "MaskedCellSamples",
    "SparK3D",
    "SparK3DConfig",
    "copied_occupancy",
    "crop_cells",
    "draw_kept",
    "without_strays",
]
