"""An image encoder of geo3d's own as a teacher: CroCo, SparK, or one that a package of yours registers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.models.image_encoder import ImageEncoder
from geo3d.models.registry import create_encoder, create_model
from geo3d.models.teachers.teacher import Teacher, TeacherOptions, TeacherOutput, norm_saliency
from geo3d.nn.colors import normalise


@dataclass(frozen=True)
class OwnOptions(TeacherOptions):
    """Options of :class:`OwnTeacher`.

    Args:
        stage: whose features are taken, by number (negative ones from the end) or by name.
        model: name of the model; needed for fresh weights and for files that do not say what they hold.
        weights: those of the checkpoint, or fresh ones, to learn what training is worth.
        seed: of fresh weights.
    """

    stage: int | str = -1
    model: str = ""
    weights: Literal["trained", "random"] = "trained"
    seed: int = 0


class OwnTeacher(Teacher):
    """Features of a stage of an image encoder; saliency is their length."""

    name = "geo3d"
    Options = OwnOptions
    needs_checkpoint = "a run folder or a file of an image encoder, such as runs/croco-001"
    options: OwnOptions

    def __init__(self, options: OwnOptions, checkpoint: Path | None = None) -> None:
        super().__init__(options, checkpoint)
        if checkpoint is not None:
            encoder, what = create_model(options.model or None, checkpoint=checkpoint), str(checkpoint)
        elif options.model:
            generator = torch.Generator().manual_seed(options.seed)
            encoder, what = create_encoder(options.model, generator=generator), options.model
        else:
            raise InputError("teacher geo3d: weights='random' needs the name of a model, such as model='resnet_tiny'")
        if not isinstance(encoder, ImageEncoder):
            raise InputError(
                f"teacher geo3d: {what} reads {encoder.kind}, not images; take an encoder of images, such as CroCo's "
                "or SparK's"
            )
        self.encoder = encoder
        (self._stage,) = encoder.stage_numbers([options.stage])
        stage = encoder.feature_info[self._stage]
        self.channels, self.stride = stage.channels, stage.stride
        self.multiple = encoder.side_multiple

    def look(self, images: Tensor) -> TeacherOutput:
        images = normalise(images.permute(0, 2, 3, 1)).contiguous()
        features = self.encoder.features(images, [self._stage])[0].float()
        return TeacherOutput(features, norm_saliency(features))
