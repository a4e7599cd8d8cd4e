"""A trained network run over a scene: what it names, as a coloured PLY and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo3d.datasets import read_cloud
from geo3d.datasets.scannet import SCANNET20_CLASSES
from geo3d.errors import InputError
from geo3d.methods.checks import check_positive
from geo3d.metrics import confusion_matrix, segmentation_scores
from geo3d.models import create_model
from geo3d.models.swin3d import NO_DECODER
from geo3d.viz.points import draw_labels, write_labelled_points
from geo3d.viz.sheet import write_picture
from geo3d.writing import prepare_place


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Name the class of every point of a scene."""

    checkpoint: Path
    """Run folder of `geo3d pretrain swin3d`, one of its checkpoints, the authors' file, or
    hf://owner/repository/file[@revision]."""
    scene: Path
    """Folder of one scene, such as a ScanNet scan, or a file of points or a mesh (PLY, PCD, OBJ, ...); metres, z up."""
    out: Path = Path("segmentation.ply")
    """PLY file to write; the picture goes beside it."""
    voxel_size: float | None = None
    """Edge of a voxel, metres; None: as in training."""
    first_stride: int | None = None
    """Voxels that the first step down joins along a side, where the authors' file does not say; None: 2 for networks of
    13 classes and colours alone (S3DIS), 3 for others."""

    def __post_init__(self) -> None:
        if self.voxel_size is not None:
            check_positive(self, "voxel_size")


def predict(config: SegmentOptions) -> str:
    """Run the network and write PLY and picture.

    Returns:
        Lines that say what was found, scored where the scene is labelled with as many classes as the network tells
        apart.

    Raises:
        InputError: checkpoint or scene cannot be read, the scene lacks what the network reads, or nothing can be
            written where it is to be.
    """
    picture = prepare_place(config.out).with_suffix(".png")
    if picture == config.out:
        raise InputError(f"{config.out}: the picture will be there; give the points a name that ends in .ply")
    prepare_place(picture)
    told = {} if config.first_stride is None else {"first_stride": config.first_stride}
    model = create_model("swin3d", checkpoint=config.checkpoint, **told)
    cloud, known = read_cloud(config.scene)
    if model.config.decoder == NO_DECODER:
        raise InputError(f"{config.checkpoint}: holds an encoder alone, which names no class; give a run of swin3d")
    try:
        predicted = model.predict(cloud, config.voxel_size).argmax(1)
    except InputError as error:
        raise InputError(f"{config.scene}: {error}") from error
    count = model.config.num_classes
    comparable = known is not None and len(known) == count
    classes = known if comparable else model.classes if len(model.classes) == count else _names(count)

    labels = predicted.numpy()
    origin = None if cloud.origin is None else cloud.origin.numpy()
    write_labelled_points(config.out, cloud.xyz.numpy(), labels, count, origin)
    panels = {} if cloud.colors is None else {"colours": (cloud.colors.numpy() * 255).round().astype(np.uint8)}
    lines = [_shares(labels, classes)]
    if cloud.semantic is not None and comparable:
        panels["labels"] = cloud.semantic.numpy()
        scores = segmentation_scores(confusion_matrix(cloud.semantic, predicted, count))
        lines.append(
            f"mean IoU {100 * scores['miou']:.1f} %, accuracy {100 * scores['accuracy']:.1f} % "
            f"(always the most frequent class: {100 * scores['majority']:.1f} %)"
        )
    normals = None if cloud.normals is None else cloud.normals.numpy()
    write_picture(picture, draw_labels(cloud.xyz.numpy(), normals, panels | {"predicted": labels}, classes))
    return "\n".join([*lines, f"points: {config.out}", f"picture: {picture}"])


def _names(count: int) -> Sequence[str]:
    """What as many classes are called: ScanNet's names, which the authors' networks use, or numbers."""
    return SCANNET20_CLASSES if count == len(SCANNET20_CLASSES) else [f"class {number}" for number in range(count)]


def _shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    """How much of a scene each class is, the largest first."""
    counts = np.bincount(labels, minlength=len(classes))
    order = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    return ", ".join(f"{classes[c]} {100 * counts[c] / len(labels):.1f} %" for c in order)
