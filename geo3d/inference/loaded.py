"""`load_encoder`, and the encoder that it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo3d.checkpoints.shipped import require_shipped, shipped_weights
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.inference.encoded import EncodedCloud, EncodedGrid, EncodedImage, EncodedPair, EncodedScene
from geo3d.inference.normals import NEIGHBOURS, estimate_normals
from geo3d.inference.rows import UsableRows, known_colors, known_normals, usable_rows
from geo3d.models import Encoder, create_model, family_of, list_models
from geo3d.models.encoder import Kind
from geo3d.models.image_encoder import SeesTwoViews, colours_of
from geo3d.models.voxel_points import points_in_voxels

_MID_GREY = 0.5

Encoded = EncodedScene | EncodedCloud | EncodedImage | EncodedPair | EncodedGrid


def load_encoder(
    source: str | Path,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    fresh: int | None = None,
    **options: Any,
) -> LoadedEncoder:
    """An encoder ready to be called.

    Args:
        source: a run folder or a file that geo3d wrote, or hf://owner/repository/file[@revision]; or the name of a
            model, one of :func:`geo3d.list_models`, whose weights come with geo3d or are given as ``checkpoint``.
        checkpoint: of a name, the file of weights, such as its authors'; as :func:`geo3d.create_model` takes it.
        device: where it runs; ``auto``: a CUDA device where there is one, else the CPU.
        fresh: the same network with fresh weights, drawn by this seed, to compare with.
        options: fields of the family's config, as :func:`geo3d.create_model` takes them.

    Raises:
        InputError: no such file, model or device; a name without weights; a file that does not fit.
    """
    named = str(source) in list_models() and (checkpoint is not None or not Path(source).exists())
    name = str(source) if named else None
    if checkpoint is None and name is None:
        checkpoint = source
    elif checkpoint is not None and name is None:
        raise InputError(
            f"load_encoder: {str(source)!r} is no model, and the weights are in {checkpoint}; see list_models()"
        )
    place, generator = (
        find_device(device, "load_encoder"),
        None if fresh is None else torch.Generator().manual_seed(fresh),
    )
    if checkpoint is None and (fresh is None or shipped_weights(name) is not None):
        checkpoint = require_shipped(name)
        if fresh is not None:  # of the network that they are of, any option may be chosen: no weights depend on it
            config = family_of(name).configure(create_model(name, checkpoint).config, options)
            model = family_of(name).network(config, generator)
            model.name = name
            return LoadedEncoder(model.to(place), False)
    if checkpoint is None:
        model = create_model(name, generator=generator, **options)
    else:
        model = create_model(name, checkpoint, **options)
        if fresh is not None:
            model = model.fresh(generator)
    return LoadedEncoder(model.to(place), fresh is None)


def find_device(device: str | torch.device, who: str) -> torch.device:
    """A device by its name; ``auto``: a CUDA device where there is one, else the CPU.

    Args:
        device: the name.
        who: asks for it, for messages.

    Raises:
        InputError: no such name, or no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{who}: {device!r} is no device; name auto, cpu, cuda or cuda:1") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{who}: there is no CUDA device here; take device='auto' or 'cpu'")
    return found


class LoadedEncoder:
    """An encoder as programs use it: one call from what a sensor delivers to features.

        >>> encoder = geo3d.load_encoder("runs/spark3d-001")
        >>> out = encoder(points_xyz, colors=rgb)
        >>> out.points.shape, out.pooled.shape, out.filled

    May be called from several threads at once.

    Args:
        model: in evaluation mode, on its device.
        trained: whether its weights are of a file.

    Attributes:
        model: the network.
        trained: as above.
    """

    def __init__(self, model: Encoder, trained: bool = True) -> None:
        self.model, self.trained = model.eval(), trained

    @property
    def kind(self) -> Kind:
        """What it reads: ``voxels`` and ``points`` take points, ``image`` images, ``grid`` radiance grids."""
        return self.model.kind

    @property
    def device(self) -> torch.device:
        """Where it runs, and where results lie."""
        return self.model.device

    def __repr__(self) -> str:
        weights = "trained" if self.trained else "fresh weights"
        return f"LoadedEncoder({self.model.name or self.model.family}, reads {self.kind}, {weights}, on {self.device})"

    @torch.no_grad()  # and no inference mode: what networks keep between calls must serve training too
    def __call__(
        self,
        inputs: Any,
        colors: Any = None,
        normals: Any = None,
        sensor: Any = None,
        layers: Sequence[int | str] | None = None,
    ) -> Any:
        """Encode one scene, object, image, pair of images or grid.

        Args:
            inputs: of kinds ``voxels`` and ``points``: an array or tensor (N, 3) of positions, metres, in any order; a
                ``PointCloud``; or a ``View`` with depth, camera and pose, whose pixels are the rows. Rows whose
                position is not finite are dropped. Of kind ``image``: an image, or a list of two. Of kind ``grid``: a
                ``VolumeGrid``, or an array (4, X, Y, Z).
            colors: (N, 3) of points, uint8 of 0 to 255 or floats of 0 to 1; NaN where they are not known.
            normals: (N, 3) of points; NaN or 0 where they are not known.
            sensor: (3,) where the points were seen from, in their own frame; estimated normals turn towards it.
            layers: stages whose features are asked for, by number or name; all when not given.

        Returns:
            :class:`EncodedScene`, :class:`EncodedCloud`, :class:`EncodedImage`, :class:`EncodedPair` or
            :class:`EncodedGrid`, on the encoder's device.

        Raises:
            InputError: something else than that; nothing that could be encoded; values out of range; or a stage that
                there is not.
        """
        if self.kind in ("voxels", "points"):
            rows = usable_rows(inputs, colors, normals, sensor, self.device)
            return self._scene(rows, layers) if self.kind == "voxels" else self._cloud(rows, layers)
        given = {"colors": colors, "normals": normals, "sensor": sensor}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise InputError(f"encode: {', '.join(wrong)} go with points; this encoder reads {self.kind}")
        return self._images(inputs, layers) if self.kind == "image" else self._grid(inputs, layers)

    def warm_up(self, points: int = 20_000, image: tuple[int, int] = (480, 640), grid: int = 64) -> LoadedEncoder:
        """Do once what first calls take time for: load libraries, start threads, take memory.

        Args:
            points: of a cloud like those to come, where points are read.
            image: height and width of an image like those to come, where images are read.
            grid: voxels along the sides of a grid like those to come, where grids are read.

        Returns:
            The encoder itself.
        """
        generator = torch.Generator().manual_seed(0)
        if self.kind == "image":
            self(torch.zeros(*image, 3, dtype=torch.uint8))
        elif self.kind == "grid":
            self(torch.zeros(4, grid, grid, grid, dtype=torch.uint8))
        else:
            u, v = torch.rand(2, points, generator=generator)
            self(torch.stack([8 * u, 8 * v, (6 * u).sin() + (5 * v).cos()], 1)).points  # noqa: B018
        return self

    def _scene(self, rows: UsableRows, layers: Sequence[int | str] | None) -> EncodedScene:
        model, size = self.model, self.model.config.voxel_size
        points = points_in_voxels(PointCloud(rows.xyz), size)
        filled: dict[str, str] = {}
        if "colors" in model.reads:
            points.colors = _fill_colors(rows, points.index, filled)
        if "normals" in model.reads:
            points.normals = _fill_normals(rows, points.index, filled)
        inputs = model.voxel_inputs(points)
        stages = model.features(inputs, layers)
        return EncodedScene(
            filled=filled,
            dropped=rows.dropped,
            usable=rows.rows,
            count=rows.count,
            stages=stages,
            inverse=points.inverse,
            corner=rows.xyz.amin(0).double() + rows.origin.to(self.device),
            voxel_size=size,
            topology=inputs.voxels.topology,
        )

    def _cloud(self, rows: UsableRows, layers: Sequence[int | str] | None) -> EncodedCloud:
        inputs = self.model.prepare(PointCloud(rows.xyz))
        levels = self.model.features(inputs, layers)
        xyz = ((rows.xyz.double() - inputs.centre) / inputs.scale.unsqueeze(1)).float()
        return EncodedCloud(
            filled={},
            dropped=rows.dropped,
            usable=rows.rows,
            count=rows.count,
            levels=levels,
            inputs=inputs,
            xyz=xyz,
            origin=rows.origin,
        )

    def _images(self, inputs: Any, layers: Sequence[int | str] | None) -> EncodedImage | EncodedPair:
        listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        images = [image for one in listed for image in colours_of(one)]
        paired = isinstance(inputs, list | tuple) and len(images) == 2
        if len(images) != 1 and not paired:
            raise InputError(f"encode: one image at a time, or a list of two, got {len(images)}")
        batch = self.model.prepare(images)
        stages = self.model.feature_info
        strides = [stages[n].stride for n in self.model.stage_numbers(layers)]
        maps = self.model.features(batch, layers)
        encoded = []
        for n, image in enumerate(images):
            size = tuple(image.shape[:2])
            own = [_own(values[n].float(), size, stride) for values, stride in zip(maps, strides)]
            encoded.append(EncodedImage(own, strides, size))
        if not paired:
            return encoded[0]
        decoded = None
        if isinstance(self.model, SeesTwoViews):
            beside = self.model.decoded(batch[:1], batch[1:])[0]
            decoded = _own(beside.float(), encoded[0].size, stages[-1].stride)
        return EncodedPair(*encoded, decoded)

    def _grid(self, inputs: Any, layers: Sequence[int | str] | None) -> EncodedGrid:
        batch = self.model.prepare(inputs)
        if len(batch.values) != 1:
            raise InputError(f"encode: one grid at a time, got {len(batch.values)}")
        stages = self.model.feature_info
        strides = [stages[n].stride for n in self.model.stage_numbers(layers)]
        sides = batch.sizes[0].tolist()
        maps = [_own(m[0].float(), sides, s) for m, s in zip(self.model.features(batch, layers), strides)]
        return EncodedGrid(maps, strides)


def _own(values: Tensor, sides: Sequence[int], stride: int) -> Tensor:
    """(C, ...) of what was filled up -> that of the image or grid alone."""
    for axis, side in enumerate(sides, 1):
        values = values.narrow(axis, 0, min(values.shape[axis], -(-side // stride)))
    return values


def _fill_colors(rows: UsableRows, index: Tensor, filled: dict[str, str]) -> Tensor:
    """(V, 3) colours of the points of voxels."""
    if rows.colors is None:
        filled["colors"] = "mid grey"
        return rows.xyz.new_full((len(index), 3), _MID_GREY)
    colors, known = known_colors(rows.colors[rows.of_all(index)])
    if not known.all():
        filled["colors"] = f"mid grey in {int((~known).sum())} of {len(known)} voxels"
        colors = torch.where(known.unsqueeze(1), colors, _MID_GREY)
    return colors


def _fill_normals(rows: UsableRows, index: Tensor, filled: dict[str, str]) -> Tensor:
    """(V, 3) normals of the points of voxels."""
    towards = "the sensor" if rows.sensor is not None else "the mean of the points or up"
    how = f"estimated from {NEIGHBOURS} neighbours, towards {towards}"
    if rows.normals is None:
        filled["normals"] = how
        return estimate_normals(rows.xyz, rows.xyz[index], rows.sensor)
    normals, known = known_normals(rows.normals[rows.of_all(index)])
    if not known.all():
        missing = (~known).nonzero().squeeze(1)
        filled["normals"] = f"{how}, in {len(missing)} of {len(known)} voxels"
        normals = normals.index_copy(0, missing, estimate_normals(rows.xyz, rows.xyz[index[missing]], rows.sensor))
    return normals


__all__ = ["Encoded", "LoadedEncoder", "load_encoder"]
