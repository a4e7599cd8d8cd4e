"""Any image network of timm's as a teacher: DINOv2 and v3, ConvNeXt, EVA and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geo3d.checkpoints.loading import as_state_dict, load_exactly, read_weight_file
from geo3d.errors import InputError, MissingExtra, did_you_mean, require_extra
from geo3d.models.teachers.teacher import Teacher, TeacherOptions, TeacherOutput, norm_saliency


@dataclass(frozen=True)
class TimmOptions(TeacherOptions):
    """Options of :class:`TimmTeacher`.

    Args:
        model: timm's name of the network, such as ``vit_small_patch14_dinov2.lvd142m``.
        layer: number of the block or stage whose features are taken; negative ones count from the end.
        size: pixels along a side of the images, which networks with position embeddings are made for.
        weights: those that timm fetches or a checkpoint holds, or fresh ones, to learn what training is worth.
        seed: of fresh weights.
    """

    model: str = ""
    layer: int = -1
    size: int = 224
    weights: Literal["trained", "random"] = "trained"
    seed: int = 0


class TimmTeacher(Teacher):
    """Features of a block or stage of a network of timm's; saliency is their length.

    Weights: those of timm's hub, fetched or from its cache, or a state dict of the network as ``checkpoint``.
    """

    name = "timm"
    Options = TimmOptions
    options: TimmOptions

    def __init__(self, options: TimmOptions, checkpoint: Path | None = None) -> None:
        super().__init__(options, checkpoint)
        timm = _timm()
        if not options.model or not timm.is_model(options.model):
            known = timm.list_models()
            raise InputError(
                f"teacher timm: model={options.model!r} is no network of timm's; name one, such as "
                f"model='vit_small_patch14_dinov2'{did_you_mean(options.model, known)}"
            )
        self.network = self._made(timm, pretrained=checkpoint is None and options.weights == "trained")
        if not hasattr(self.network, "forward_intermediates"):
            raise InputError(f"teacher timm: {options.model} does not hand out features of its layers; take another")
        if checkpoint is not None:
            load_exactly(self.network, as_state_dict(read_weight_file(checkpoint).content, checkpoint), checkpoint)
        self.network.eval()
        colors = self.network.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(colors[name]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            shape = self._features(torch.zeros(1, 3, options.size, options.size)).shape
        self.channels, self.stride = shape[1], round(options.size / shape[2])
        self.multiple = options.size if self._is_of_one_size(timm) else self.stride

    def look(self, images: Tensor) -> TeacherOutput:
        features = self._features((images.float() - self.mean) / self.std).float()
        return TeacherOutput(features, norm_saliency(features))

    def _features(self, images: Tensor) -> Tensor:
        try:
            maps = self.network.forward_intermediates(
                images, indices=[self.options.layer], intermediates_only=True, output_fmt="NCHW"
            )
        except (AssertionError, IndexError, ValueError) as error:
            raise InputError(
                f"teacher timm: {self.options.model} with layer={self.options.layer} and images of "
                f"{images.shape[2]} x {images.shape[3]}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error
        return maps[0].contiguous()

    def _made(self, timm: ModuleType, pretrained: bool) -> nn.Module:
        """The network, with timm's weights or those that the seed draws."""
        name = self.options.model
        sized: dict[str, Any] = {"img_size": self.options.size} if self._is_of_one_size(timm) else {}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed)
                return timm.create_model(name, pretrained=pretrained, **sized)
        except Exception as error:  # of the network, of the hub, of what the name asks for
            hint = "; without a network hand in checkpoint=FILE or weights='random'" if pretrained else ""
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"teacher timm: {name} cannot be made ({reason}){hint}") from error

    def _is_of_one_size(self, timm: ModuleType) -> bool:
        """Whether the network is made for one size of images."""
        config = timm.get_pretrained_cfg(self.options.model)
        return bool(config is not None and config.fixed_input_size)


def _timm() -> ModuleType:
    try:
        return require_extra("timm", "timm", "the teacher timm")
    except MissingExtra:
        raise
    except Exception as error:  # torchvision, which timm imports, fails in many ways beside another build of torch
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"teacher timm: timm is installed but cannot be imported ({reason}); it needs the torchvision that was "
            "built for this torch"
        ) from error
