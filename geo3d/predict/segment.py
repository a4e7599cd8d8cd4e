"""A trained network run over scenes: what it names, as coloured PLY files and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from torch import Tensor

from geo3d.datasets import read_cloud
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.errors import InputError
from geo3d.geometry.byte_colors import byte_colors
from geo3d.methods.checks import check_positive
from geo3d.metrics import confusion_matrix, segmentation_scores
from geo3d.models import Encoder
from geo3d.predict.networks import load_network
from geo3d.viz.points import draw_labels, write_labelled_points
from geo3d.viz.sheet import write_picture
from geo3d.writing import prepare_place


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Name the class of every point of scenes."""

    scenes: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SCENE ...")]
    """Folders of one scene each, such as a ScanNet scan, or files of points or a mesh (PLY, PCD, OBJ, ...); metres, z
    up."""
    checkpoint: Path
    """Run folder of `geo3d finetune segment` or `geo3d pretrain swin3d`, one of its checkpoints, the authors' file of
    Swin3D, or hf://owner/repository/file[@revision]."""
    out: Path | None = None
    """PLY file to write, the picture goes beside it; of several scenes the folder for both. None: segmentation.ply, or
    the folder segmentation."""
    voxel_size: float | None = None
    """Edge of a voxel, metres; None: as in training."""
    first_stride: int | None = None
    """Voxels that the first step down joins along a side, where the authors' file does not say; None: 2 for networks of
    13 classes and colours alone (S3DIS), 3 for others."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        if not self.scenes:
            raise InputError("scenes: give one or more, as folders of scenes or files of points")
        if self.voxel_size is not None:
            check_positive(self, "voxel_size")

    @property
    def places(self) -> list[Path]:
        """The PLY file of each scene."""
        if len(self.scenes) == 1:
            return [self.out or Path("segmentation.ply")]
        folder, taken = self.out or Path("segmentation"), Counter[str]()
        places = []
        for scene in self.scenes:
            name = scene.resolve().stem if scene.is_file() else scene.resolve().name
            taken[name] += 1
            places.append(folder / (f"{name}.ply" if taken[name] == 1 else f"{name}_{taken[name]}.ply"))
        return places


def predict(config: SegmentOptions) -> str:
    """Run the network and write a PLY file and a picture of each scene.

    Returns:
        Lines that say what was found, scored where a scene is labelled with as many classes as the network tells
        apart, and over all scenes where there are several of these.

    Raises:
        InputError: checkpoint or scene cannot be read, a scene lacks what the network reads, or nothing can be written
            where it is to be.
    """
    for place in config.places:
        picture = prepare_place(place).with_suffix(".png")
        if picture == place:
            raise InputError(f"{place}: the picture will be there; give the points a name that ends in .ply")
        prepare_place(picture)
    told = {} if config.first_stride is None else {"first_stride": config.first_stride}
    model = load_network(config.checkpoint, "segment", ("swin3d",), "names the class of points", config.device, **told)
    if model.kind == "grid":
        raise InputError(f"{config.checkpoint}: names the class of voxels of radiance grids, and does not read points")
    lines, counted = [], []
    for scene, place in zip(config.scenes, config.places):
        said, confusion = _predict_scene(model, scene, place, config.voxel_size)
        lines += [f"{scene}: {said}" if len(config.scenes) > 1 else said]
        counted += [] if confusion is None else [confusion]
    if len(counted) > 1:
        lines.append(f"over {len(counted)} labelled scenes: {_scores(sum(counted[1:], counted[0]))}")
    return "\n".join(lines)


def _predict_scene(model: Encoder, scene: Path, place: Path, voxel_size: float | None) -> tuple[str, Tensor | None]:
    """Lines about a scene, of which PLY and picture are written; and what was taken for what, where that is known."""
    cloud, known = read_cloud(scene)
    try:
        predicted = model.predict(cloud, voxel_size).argmax(1)
    except InputError as error:
        raise InputError(f"{scene}: {error}") from error
    count = model.config.num_classes
    comparable = known is not None and len(known) == count
    classes = known if comparable else model.classes if len(model.classes) == count else _names(count)
    labels, picture = predicted.numpy(), place.with_suffix(".png")
    origin = None if cloud.origin is None else cloud.origin.numpy()
    write_labelled_points(place, cloud.xyz.numpy(), labels, count, origin)
    panels = {} if cloud.colors is None else {"colours": byte_colors(cloud.colors.numpy())}
    lines, confusion = [_shares(labels, classes)], None
    if cloud.semantic is not None and comparable:
        panels["labels"] = cloud.semantic.numpy()
        confusion = confusion_matrix(cloud.semantic, predicted, count)
        lines.append(_scores(confusion))
    normals = None if cloud.normals is None else cloud.normals.numpy()
    write_picture(picture, draw_labels(cloud.xyz.numpy(), normals, panels | {"predicted": labels}, classes))
    return "\n".join([*lines, f"points: {place}", f"picture: {picture}"]), confusion


def _scores(confusion: Tensor) -> str:
    scores = segmentation_scores(confusion)
    return (
        f"mean IoU {100 * scores['miou']:.1f} %, accuracy {100 * scores['accuracy']:.1f} % "
        f"(always the most frequent class: {100 * scores['majority']:.1f} %)"
    )


def _names(count: int) -> Sequence[str]:
    """What as many classes are called: ScanNet's names, which the authors' networks use, or numbers."""
    return SCANNET20_CLASSES if count == len(SCANNET20_CLASSES) else [f"class {number}" for number in range(count)]


def _shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    """How much of a scene each class is, the largest first."""
    counts = np.bincount(labels, minlength=len(classes))
    order = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    return ", ".join(f"{classes[c]} {100 * counts[c] / len(labels):.1f} %" for c in order)
