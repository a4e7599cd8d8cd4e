"""Encoders as functions of tensors: what `torch.export` traces, with the sizes that may vary.

An encoder's ``prepare`` takes things in many forms and looks at their values; a program takes tensors of fixed types
and returns a dict of tensors. All else, voxels, neighbours, windows and groups of points among it, is inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from geo3d.errors import InputError
from geo3d.geometry.unit_sphere import to_unit_sphere
from geo3d.models.encoder import Encoder
from geo3d.models.grid_encoder import CHANNELS, GridInput, fill_up
from geo3d.models.point_encoder import PointInput
from geo3d.models.spark import SparK
from geo3d.models.voxel_points import features_at_voxels, points_in_voxels
from geo3d.nn.colors import normalise
from geo3d.nn.topology import Topology

#: Inputs that only some encoders read.
_BY_NAME = ("colors", "normals")

#: What a program is handed: what ``prepare`` makes, or colours (or positions) as sensors have them.
Normalise = Literal["no", "float", "uint8"]


class EncoderProgram(nn.Module, ABC):
    """An encoder as a function of tensors.

    Args:
        model: the encoder, in evaluation mode.
        layers: stages, as :meth:`Encoder.features` takes them.
        normalise: what the program does itself; see the kinds.
        points: whether features of points are returned too; of voxels alone.
        voxel_size: edge of the voxels, metres; of voxels alone.

    Raises:
        InputError: a stage that there is not, or an option that does not concern this kind.
    """

    #: What ``normalise`` may be.
    normalises: tuple[str, ...] = ("no", "float", "uint8")
    of_voxels = False

    def __init__(
        self,
        model: Encoder,
        layers: Sequence[int | str] | None = None,
        normalise: Normalise = "no",
        points: bool = False,
        voxel_size: float | None = None,
    ) -> None:
        super().__init__()
        self.numbers = model.stage_numbers(layers)
        if not self.numbers:
            raise InputError("export: layers names no stage; leave it out to have all of them")
        if normalise not in self.normalises:
            raise InputError(
                f"export: normalise must be {' or '.join(self.normalises)} for an encoder of {model.kind}, "
                f"got {normalise!r}"
            )
        if (points or voxel_size is not None) and not self.of_voxels:
            option = "points" if points else "voxel_size"
            raise InputError(f"export: {option} concerns encoders of voxels alone, and this one reads {model.kind}")
        self.model, self.normalise, self.points, self.voxel_size = model, normalise, points, voxel_size
        self.stages = [model.feature_info[n] for n in self.numbers]

    @property
    def names(self) -> list[str]:
        """Names of the stages that are returned."""
        return [stage.name for stage in self.stages]

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Name of every input -> its shape, type and meaning."""

    @property
    @abstractmethod
    def outputs(self) -> dict[str, str]:
        """Name of every output -> its shape and meaning."""

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """Small inputs by name, on the encoder's device."""

    @abstractmethod
    def smallest(self) -> dict[str, Tensor]:
        """Inputs of the smallest sizes that there are."""

    @abstractmethod
    def sizes(self) -> dict[str, dict[int, Any]]:
        """Axis -> size that varies, of every input, as ``torch.export`` takes it."""

    @staticmethod
    def call(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Arguments of a program by place and by name: what only some encoders read goes by its name."""
        named = {name: tensor for name, tensor in inputs.items() if name in _BY_NAME}
        return tuple(tensor for name, tensor in inputs.items() if name not in named), named

    def settings(self) -> dict[str, Any]:
        """What a reader of the program must know beside that."""
        return {}

    def _example(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        values = torch.rand(*shape, generator=generator)
        values = (values * 255).to(torch.uint8) if self.normalise == "uint8" else values
        return values.to(self.model.device)


class ImageProgram(EncoderProgram):
    """Images -> maps. With ``normalise`` they are normalised and filled up to whole patches inside."""

    def __init__(self, model: Encoder, *args: Any, **options: Any) -> None:
        super().__init__(_unmasked(model), *args, **options)

    @property
    def inputs(self) -> dict[str, str]:
        step = self.model.side_multiple
        told = {
            "no": f"(B, 3, H, W) float32, less ImageNet's mean and over its deviation; sides multiples of {step}",
            "float": "(B, H, W, 3) float32, red, green and blue in [0, 1]; any sides",
            "uint8": "(B, H, W, 3) uint8, red, green and blue; any sides",
        }
        return {"images": told[self.normalise]}

    @property
    def outputs(self) -> dict[str, str]:
        return {s.name: f"(B, {s.channels}, H / {s.stride}, W / {s.stride}) float32" for s in self.stages}

    def example(self) -> dict[str, Tensor]:
        step = self.model.side_multiple
        shape = (2, 3, 3 * step, 2 * step) if self.normalise == "no" else (2, 3 * step - 1, 2 * step - 1, 3)
        return {"images": self._example(*shape)}

    def smallest(self) -> dict[str, Tensor]:
        step = self.model.side_multiple
        return {"images": self._example(*((1, 3, step, step) if self.normalise == "no" else (1, 1, 1, 3)))}

    def sizes(self) -> dict[str, dict[int, Any]]:
        batch, rows, columns = (Dim(name, min=1, max=most) for name, most in _IMAGE_AXES)
        if self.normalise == "no":
            step = self.model.side_multiple
            return {"images": {0: batch, 2: step * rows, 3: step * columns}}
        # Not named: torch would have it that what is filled up to whole patches is more than one.
        return {"images": dict.fromkeys((0, 1, 2), Dim.DYNAMIC)}

    def settings(self) -> dict[str, Any]:
        return {
            "mean": list(self.model.color_scale.mean),
            "std": list(self.model.color_scale.std),
            "side_multiple": self.model.side_multiple,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Name of the stage -> its maps."""
        if self.normalise != "no":
            step = self.model.side_multiple
            height, width = images.shape[1:3]
            # Of positive numbers alone: ONNX rounds quotients towards zero.
            right, below = ((side + step - 1) // step * step - side for side in (width, height))
            images = F.pad(normalise(images, self.model.color_scale), (0, right, 0, below))
        return dict(zip(self.names, self.model.features(images, self.numbers)))


@dataclass
class _Cloud:
    """Points that nobody looks at while they are traced; fields as those of a ``PointCloud``."""

    xyz: Tensor
    offsets: Tensor
    colors: Tensor | None = None
    normals: Tensor | None = None


class VoxelProgram(EncoderProgram):
    """Points in metres -> voxels with features. With ``normalise`` of ``uint8``, colours are bytes."""

    of_voxels = True

    def __init__(self, model: Encoder, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        size = model.config.voxel_size if self.voxel_size is None else self.voxel_size
        if not 0 < size < float("inf"):
            raise InputError(f"export: voxel_size must be positive, got {size}")
        self.voxel_size = size

    @property
    def inputs(self) -> dict[str, str]:
        colors = "uint8" if self.normalise == "uint8" else "float32 in [0, 1]"
        told = {"colors": f"(P, 3) {colors}, red, green and blue", "normals": "(P, 3) float32, of unit length"}
        first = {
            "xyz": "(P, 3) float32, metres, z up, scenes one after the other",
            "offsets": "(B + 1,) int64, scene b has the rows offsets[b] to offsets[b + 1] of xyz, at least one",
        }
        return first | {name: told[name] for name in self.model.reads}

    @property
    def outputs(self) -> dict[str, str]:
        told = {
            "index": "(N,) int64, the point that stands for each of the finest voxels",
            "inverse": "(P,) int64, the finest voxel of each point",
        }
        if self.points:
            total = sum(stage.channels for stage in self.stages)
            told["points"] = f"(P, {total}) float32, features of the stages that each point lies in, side by side"
        for s in self.stages:
            told[s.name] = f"(N, {s.channels}) float32, features of voxels of {s.stride} of the finest along a side"
            told[f"{s.name}_coords"] = "(N, 4) int32, scene and lowest corner in units of the finest voxels"
        return told

    def example(self) -> dict[str, Tensor]:
        return self._scenes(0, 150, 400)

    def smallest(self) -> dict[str, Tensor]:
        return self._scenes(0, 1)

    def _scenes(self, *offsets: int) -> dict[str, Tensor]:
        xyz = torch.rand(offsets[-1], 3, generator=torch.Generator().manual_seed(0))
        parts = {"colors": self._example(offsets[-1], 3), "normals": F.normalize(xyz - 0.5, dim=1)}
        read = {name: parts[name] for name in self.model.reads}
        tensors = {"xyz": 20 * self.voxel_size * xyz, "offsets": torch.tensor(offsets)} | read
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    def sizes(self) -> dict[str, dict[int, Any]]:
        rows = {0: Dim("points", min=1)}
        return {"xyz": rows, "offsets": {0: Dim("bounds", min=2, max=2**16)}} | dict.fromkeys(self.model.reads, rows)

    def settings(self) -> dict[str, Any]:
        return {"voxel_size": self.voxel_size}

    def forward(
        self, xyz: Tensor, offsets: Tensor, colors: Tensor | None = None, normals: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features and coordinates of the voxels of every stage, and which point lies in which of the finest."""
        if self.normalise == "uint8" and colors is not None:
            colors = colors.float() / 255
        points = points_in_voxels(_Cloud(xyz, offsets, colors, normals), self.voxel_size)
        inputs = self.model.voxel_inputs(points)
        voxels = inputs.voxels
        voxels.shared["topology"] = Topology.sorted(voxels.coords, voxels.stride, voxels.batch_size)
        every = self.model.features(inputs)
        found = {"index": points.index, "inverse": points.inverse}
        if self.points:
            rising = sorted(set(self.numbers))
            joined = features_at_voxels([every[n] for n in rising], voxels.topology, points.inverse)
            columns = dict(zip(rising, joined.split([every[n].feats.shape[1] for n in rising], 1)))
            found["points"] = torch.cat([columns[n] for n in self.numbers], 1)
        for name, number in zip(self.names, self.numbers):
            found[name], found[f"{name}_coords"] = every[number].feats, every[number].coords
        return found


class PointProgram(EncoderProgram):
    """Clouds -> tokens. With ``normalise`` of ``float`` they are moved and scaled to the unit sphere inside."""

    normalises = ("no", "float")

    @property
    def inputs(self) -> dict[str, str]:
        told = {
            "no": "mean 0, the farthest point at distance 1",
            "float": "any unit; moved to mean 0 and scaled to the unit sphere inside",
        }
        trained = f"clouds one after the other, in training of {self.model.points_read} points"
        return {
            "xyz": f"(P, 3) float32, {told[self.normalise]}; {trained}",
            "offsets": "(B + 1,) int64, cloud b has the rows offsets[b] to offsets[b + 1] of xyz, at least one",
        }

    @property
    def outputs(self) -> dict[str, str]:
        told = {}
        for s in self.stages:
            told[s.name] = f"(T, {s.channels}) float32, tokens, clouds one after the other"
            told[f"{s.name}_xyz"] = "(T, 3) float32, where they are, of the unit sphere"
            told[f"{s.name}_offsets"] = "(B + 1,) int64, cloud b has the tokens offsets[b] to offsets[b + 1]"
        return told

    def example(self) -> dict[str, Tensor]:
        return self._clouds(0, 90, 200)

    def smallest(self) -> dict[str, Tensor]:
        return self._clouds(0, 1)

    def _clouds(self, *offsets: int) -> dict[str, Tensor]:
        xyz = torch.rand(offsets[-1], 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return {"xyz": xyz.to(self.model.device), "offsets": torch.tensor(offsets, device=self.model.device)}

    def sizes(self) -> dict[str, dict[int, Any]]:
        return {"xyz": {0: Dim("points", min=1)}, "offsets": {0: Dim("bounds", min=2)}}

    def settings(self) -> dict[str, Any]:
        return {"points": self.model.points_read}

    def forward(self, xyz: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Tokens of the levels, where they are, and which are whose."""
        if self.normalise == "float":
            xyz = to_unit_sphere(xyz.double(), offsets)[0].float()
        found = {}
        for name, tokens in zip(self.names, self.model.features(PointInput(xyz, offsets), self.numbers)):
            found |= {name: tokens.feats, f"{name}_xyz": tokens.xyz, f"{name}_offsets": tokens.offsets}
        return found


class GridProgram(EncoderProgram):
    """Grids -> maps. With ``normalise`` they are filled up to whole patches inside, and bytes become floats."""

    @property
    def inputs(self) -> dict[str, str]:
        told = {
            "no": f"float32 in [0, 1]; sides multiples of {self.model.patch}",
            "float": "float32 in [0, 1]; any sides",
            "uint8": "uint8; any sides",
        }
        return {"values": f"(B, {CHANNELS}, X, Y, Z) red, green, blue and opacity, {told[self.normalise]}"}

    @property
    def outputs(self) -> dict[str, str]:
        axes = "X / {0}, Y / {0}, Z / {0}"
        return {s.name: f"(B, {s.channels}, {axes.format(s.stride)}) float32, rounded up" for s in self.stages}

    def example(self) -> dict[str, Tensor]:
        step = self.model.patch
        return {"values": self._example(2, CHANNELS, 7 * step, 9 * step, 5 * step)}

    def smallest(self) -> dict[str, Tensor]:
        side = self.model.patch if self.normalise == "no" else 1
        return {"values": self._example(1, CHANNELS, side, side, side)}

    def sizes(self) -> dict[str, dict[int, Any]]:
        batch, *sides = (Dim(name, min=1, max=most) for name, most in _GRID_AXES)
        step = self.model.patch if self.normalise == "no" else 1
        return {"values": {0: batch} | {n: step * side if step > 1 else side for n, side in enumerate(sides, 2)}}

    def settings(self) -> dict[str, Any]:
        return {"side_multiple": self.model.side_multiple}

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        """Name of the stage -> its maps."""
        if self.normalise != "no":
            values = values.float() / 255 if self.normalise == "uint8" else values
            step = self.model.side_multiple
            values = fill_up(values, [(side + step - 1) // step * step for side in values.shape[2:]])
        sizes = torch.zeros(values.shape[0], 3, dtype=torch.int64)  # which nothing but masks asks for
        return dict(zip(self.names, self.model.features(GridInput(values, sizes), self.numbers)))


_IMAGE_AXES = (("batch", 2**16), ("rows", 2**14), ("columns", 2**14))
_GRID_AXES = (("batch", 2**10), ("along_x", 2**10), ("along_y", 2**10), ("along_z", 2**10))
_PROGRAMS = {"image": ImageProgram, "voxels": VoxelProgram, "points": PointProgram, "grid": GridProgram}


def program_of(model: Encoder, **options: Any) -> EncoderProgram:
    """An encoder as a function of tensors; options as :class:`EncoderProgram` takes them.

    Raises:
        InputError: as :class:`EncoderProgram`.
    """
    return _PROGRAMS[model.kind](model, **options)


def _unmasked(model: Encoder) -> Encoder:
    """The encoder inside a SparK as it was before it learnt to leave cells out, with the same weights."""
    if not isinstance(model, SparK):
        return model
    masked = model.sparse_encoder.sp_cnn
    with torch.device("meta"):
        plain = masked.fresh()
    plain.load_state_dict(masked.state_dict(), assign=True)
    return plain.eval()


__all__ = ["EncoderProgram", "Normalise", "program_of"]
