"""Attention: what one voxel, patch or group of points looks at, in a layer of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.geometry import PointCloud
from geo3d.inference import LoadedEncoder
from geo3d.models.croco import CompletionNet
from geo3d.models.i2p_mae import HierarchicalEncoder
from geo3d.models.swin3d import Swin3DUNet
from geo3d.models.voxel_points import points_in_voxels
from geo3d.nn.attention_weights import (
    cross_attention_weights,
    self_attention_weights,
    window_attention_weights,
)
from geo3d.nn.position import token_positions
from geo3d.ops import knn
from geo3d.visualize.features import image_files
from geo3d.visualize.options import DrawingOptions, EncoderOptions, PlaceOptions, load
from geo3d.visualize.places import Place, cloud_colors, find_objects, find_places, image_of, shown_points
from geo3d.viz.feature_colors import value_colors
from geo3d.viz.picture import ImagePanel, Lines, Marker, Picture3D, Points, Scale, Space, Surface
from geo3d.viz.raster import ringed

_BOX_COLOR = (230, 30, 30)
_PALE = 0.35  # share of their colour that points keep which are not looked at


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(DrawingOptions, EncoderOptions, PlaceOptions):
    """Show attention: a query and the weights of all that it looks at (Swin3D, CroCo, multi-view, I2P-MAE)."""

    at: tuple[float, float, float] | None = None
    """Query, x y z in metres: the nearest voxel or group. None: near the middle."""
    pixel: tuple[int, int] | None = None
    """Query of CroCo or a multi-view network, x y in the first image. None: the middle."""
    pair: tuple[str, str] | None = None
    """Names or numbers of two views of a scene, for networks that look at two. None: two that follow each other."""
    stage: int = 1
    """Stage of a Swin3D, or level of an I2P-MAE, from 0, the finest with attention."""
    block: int = -1
    """Block of the stage, the encoder or the decoder; negative from the end."""
    head: int | None = None
    """Head whose weights are shown. None: the mean of all."""


def draw(config: AttentionOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: the encoder cannot be loaded or has no such attention, or the data lack what it reads.
    """
    encoder, told = load(config)
    model = encoder.model
    if isinstance(model, Swin3DUNet):
        return _of_voxels(config, encoder, told)
    if isinstance(model, CompletionNet):
        return _of_views(config, encoder, told)
    if isinstance(getattr(model, "h_encoder", None), HierarchicalEncoder):
        return _of_groups(config, encoder, told)
    raise InputError(
        "attention is shown of Swin3D, CroCo, multi-view networks and I2P-MAE; "
        f"{model.name or model.family} has no layer of it to show"
    )


def _of_voxels(config: AttentionOptions, encoder: LoadedEncoder, told: str) -> Picture3D:
    """A window of voxels of a Swin3D."""
    place, model = find_places(config.data, config.scene)[0], encoder.model
    cloud = place.cloud()
    block = _block(list(_pick(model.layers, config.stage, "stage").blocks), config.block)
    size = model.config.voxel_size
    voxels = points_in_voxels(PointCloud(cloud.xyz, *_read_fields(encoder, cloud)), size)
    inputs = model.voxel_inputs(voxels).to(encoder.device)
    seen: dict[str, Any] = {}
    with (
        _watched(block.attn, seen),
        torch.enable_grad(),
    ):  # without, blocks take rows in pieces, past the layer
        model.features(inputs)
    x, windows = seen["args"][0].detach(), seen["args"][1]
    level = len(model.strides) - len(model.layers) + config.stage
    levels, _ = model.pyramid(inputs)
    topology = levels[level].topology
    low = cloud.xyz.amin(0).numpy().astype(np.float64)
    centres = (topology.coords[:, 1:].cpu().numpy() + topology.stride / 2) * size + low
    row = _nearest(centres, config, place)
    rows, weights = window_attention_weights(block.attn, x, windows, row)
    weights, head = _of_head(weights, config.head)
    rows, edge = rows.cpu().numpy(), topology.stride * size
    nearest = _nearest_points(cloud, centres)
    own = cloud_colors(cloud)
    painted = _paled(np.full((len(centres), 3), 190, np.uint8) if own is None else own[nearest])
    normals = None if cloud.normals is None else cloud.normals.numpy()[nearest]
    high = weights.max()
    looked_at = value_colors(weights, 0, high)
    others = np.ones(len(centres), bool)
    others[rows] = False
    around = Points(centres[others], painted[others], None if normals is None else normals[others])
    cubes = _cubes(centres[rows], 0.9 * edge, looked_at)
    marker = Marker(centres[row], "query")
    box = _box(centres[rows].min(0) - edge / 2, centres[rows].max(0) + edge / 2)
    caption = f"{place.name}: voxels of {100 * edge:.0f} cm, a window of {len(rows)}"
    spaces = (
        Space(caption, (around,), (box,), (cubes,), markers=(marker,)),
        Space(f"the window: weights, {head}", lines=(box,), surfaces=(cubes,), markers=(marker,), is_object=True),
    )
    scale = Scale(0, float(high), f"weight; all {len(rows)} sum to 1, even ones were {1 / len(rows):.2g}")
    where = f"stage {config.stage}, block {config.block}, {head}"
    return Picture3D(f"attention of {_name(encoder)}", spaces, scale=scale, notes=(f"{told}; {where}",))


def _of_groups(config: AttentionOptions, encoder: LoadedEncoder, told: str) -> Picture3D:
    """Groups of points of an object, of an I2P-MAE."""
    place, model = find_objects(config.data, config.object)[0], encoder.model
    cloud = place.cloud()
    inputs = model.prepare(PointCloud(cloud.xyz))
    level = config.stage
    block = _block(list(_pick(model.h_encoder.encoder_blocks, level, "stage").blocks), config.block)
    seen: dict[str, Any] = {}
    with _watched(block.attn, seen), torch.no_grad():
        tokens = model.features(inputs)[level]
    x = seen["args"][0][0]
    masks = seen["kwargs"].get("masks")
    unit = tokens.xyz.float().cpu().numpy()
    scale, centre = float(inputs.scale[0]), inputs.centre[0].cpu().numpy()
    centres = unit.astype(np.float64) * scale + centre
    row = _nearest(centres, config, place)
    weights = self_attention_weights(block.attn, x, row, mask=None if masks is None else masks[0])
    weights, head = _of_head(weights, config.head)
    high = weights.max()
    colors = value_colors(weights, 0, high)
    points = shown_points(cloud, config.points)
    marker = Marker(centres[row], "query")
    nearest = np.linalg.norm(points.xyz[:, None] - centres[None], axis=2).argmin(1)
    spaces = (
        Space(
            f"{place.name}: {len(centres)} groups", (points,), markers=(Marker(centres[row], "query"),), is_object=True
        ),
        Space(
            f"points by the weight of the nearest group, {head}",
            (Points(points.xyz, colors[nearest], points.normals),),
            markers=(marker,),
            is_object=True,
        ),
    )
    note = f"{told}; level {level}, block {config.block}, {head}"
    if masks is not None:
        note += "; beyond the level's radius weights are 0"
    shown = Scale(0, float(high), f"weight; all {len(centres)} sum to 1")
    return Picture3D(f"attention of {_name(encoder)}", spaces, scale=shown, notes=(note,))


def _of_views(config: AttentionOptions, encoder: LoadedEncoder, told: str) -> Picture3D:
    """Two images of a network that fills in: self-attention of its encoder, cross-attention of its decoder."""
    model: CompletionNet = encoder.model
    captions, images = _two_images(config)
    batch = model.prepare(images)
    grid, patch = model.token_grid(batch), model.config.patch_size
    height, width = images[0].shape[:2]
    pixel = np.array(config.pixel if config.pixel is not None else (width // 2, height // 2), float)
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise InputError(f"--pixel {config.pixel}: {captions[0]} is {width} x {height} pixels")
    column, row = (pixel // patch).astype(int)
    query = int(row * grid[1] + column)
    own = _block(list(model.enc_blocks), config.block).attn
    across = _block(list(model.dec_blocks), config.block).cross_attn
    own_seen: dict[str, Any] = {}
    across_seen: dict[str, Any] = {}
    count = grid[0] * grid[1]
    with _watched(own, own_seen), _watched(across, across_seen), torch.no_grad():
        model.decoded(batch[:1], batch[1:])
    positions = token_positions(*grid, batch.device)
    own_weights = self_attention_weights(own, own_seen["args"][0][0, :count], query, positions)
    x, memory, *places = (part[0] for part in across_seen["args"])
    across_weights = cross_attention_weights(across, x, memory, query, *places)[:, -count:]  # the second view is last
    panels = [
        ImagePanel(captions[0], ringed(images[0], pixel)),
        ImagePanel(captions[1], images[1]),
    ]
    ends, head = [], ""
    for caption, weights, image in (
        ("the encoder's self-attention, in the first", own_weights, images[0]),
        ("the decoder's cross-attention, in the second", across_weights, images[1]),
    ):
        values, head = _of_head(weights, config.head)
        ends.append(values.max())
        panels.append(ImagePanel(caption, _blended(image, values.reshape(grid) / values.max(), patch)))
    note = f"{told}; block {config.block}, {head}; query: pixel {pixel[0]:.0f} {pixel[1]:.0f}, its patch's weights"
    told_ends = (
        f"each map from 0 to its largest weight ({ends[0]:.2g} and {ends[1]:.2g}); even ones were {1 / count:.2g}"
    )
    scale = Scale(0, 1, "weight over the largest of the map")
    return Picture3D(
        f"attention of {_name(encoder)}", images=tuple(panels), scale=scale, notes=(note, told_ends), columns=2
    )


def _two_images(config: AttentionOptions) -> tuple[list[str], list[np.ndarray]]:
    if files := image_files(config.data):
        if len(files) != 2:
            raise InputError(f"attention is shown of two images, got {len(files)}; name two files")
        return [path.name for path in files], [read_photo(path) for path in files]
    place = find_places(config.data, config.scene)[0]
    numbers = two_views(place, config.pair)
    views = [place.scene.view(n) for n in numbers]
    return [f"{place.name}: {view.name}" for view in views], [image_of(view) for view in views]


def two_views(place: Place, pair: Sequence[str] | None) -> list[int]:
    """Numbers of two views of a place, by names or numbers; the first two that follow each other where not given.

    Raises:
        InputError: there are not as many, or none of that name.
    """
    if place.scene is None or "views" not in place.parts or len(place.scene.view_names) < 2:
        raise InputError(f"{place.name}: has no two views; name two images, or a scene with views")
    names = list(place.scene.view_names)
    if pair is None:
        return [0, 1]
    numbers = []
    for name in pair:
        if name in names:
            numbers.append(names.index(name))
        elif name.isdigit() and int(name) < len(names):
            numbers.append(int(name))
        else:
            raise InputError(
                f"{place.name}: there is no view {name!r} among its {len(names)}: {', '.join(names[:5])} ..."
            )
    return numbers


@contextmanager
def _watched(layer: nn.Module, seen: dict[str, Any]) -> Iterator[None]:
    """Context in which what a layer is handed is kept in ``seen``."""

    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(args=args, kwargs=kwargs)

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _pick(items: Any, number: int, what: str) -> Any:
    if not -len(items) <= number < len(items):
        raise InputError(f"--{what} {number}: there are {len(items)}, from 0 to {len(items) - 1}")
    return items[number]


def _block(blocks: list[nn.Module], number: int) -> Any:
    return _pick(blocks, number, "block")


def _of_head(weights: Tensor, head: int | None) -> tuple[np.ndarray, str]:
    """Weights of a head, or the mean of all, and what they are called."""
    values = weights.float().cpu().numpy()
    if head is None:
        return values.mean(0), f"the mean of {len(values)} heads"
    return _pick(values, head, "head"), f"head {head} of {len(values)}"


def _nearest(centres: np.ndarray, config: AttentionOptions, place: Place) -> int:
    if config.at is None:
        wanted = np.median(centres, axis=0)
    else:
        wanted = np.array(config.at, float) - place.origin
    return int(np.linalg.norm(centres - wanted, axis=1).argmin())


def _read_fields(encoder: LoadedEncoder, cloud: PointCloud) -> tuple[Tensor | None, Tensor | None]:
    """Colours and normals of a cloud.

    Raises:
        InputError: the network reads what the cloud does not have.
    """
    missing = [name for name in encoder.model.reads if getattr(cloud, name) is None]
    if missing:
        raise InputError(f"{_name(encoder)} reads {', '.join(missing)}, which these points do not have")
    return cloud.colors, cloud.normals


def _nearest_points(cloud: PointCloud, centres: np.ndarray) -> np.ndarray:
    """(V,) rows of the points nearest to centres."""
    ends = [torch.tensor([0, n]) for n in (len(centres), len(cloud))]
    index, _ = knn(torch.from_numpy(centres).float(), cloud.xyz.float(), *ends, 1)
    return index[:, 0].numpy()


def _cubes(centres: np.ndarray, edge: float, colors: np.ndarray) -> Surface:
    """Cubes of an edge around centres (V, 3), in colours (V, 3) uint8."""
    corners = np.array([[i >> a & 1 for a in range(3)] for i in range(8)]) - 0.5
    sides = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    faces = np.array([face for a, b, c, d in sides for face in ((a, b, c), (a, c, d))])
    # Corners of their own for each side, so that shading does not blur the edges.
    vertices = (centres[:, None, None] + edge * corners[faces]).reshape(-1, 3)
    return Surface(vertices, np.arange(len(vertices)).reshape(-1, 3), colors.repeat(3 * len(faces), 0))


def _paled(colors: np.ndarray) -> np.ndarray:
    grey = colors.mean(1, keepdims=True)
    return (_PALE * grey + (1 - _PALE) * 225).round().astype(np.uint8).repeat(3, 1)


def _blended(image: np.ndarray, values: np.ndarray, patch: int) -> np.ndarray:
    """An image in grey under the colours of its patches' values in [0, 1]."""
    colors = value_colors(values.reshape(-1), 0, 1).reshape(*values.shape, 3)
    large = colors.repeat(patch, 0).repeat(patch, 1)[: image.shape[0], : image.shape[1]]
    grey = image.mean(2, keepdims=True)
    return (0.35 * grey + 0.65 * large).round().astype(np.uint8)


def _box(low: np.ndarray, high: np.ndarray) -> Lines:
    corners = np.array([[(low, high)[i >> a & 1][a] for a in range(3)] for i in range(8)])
    ends = [(corners[i], corners[i | 1 << a]) for i in range(8) for a in range(3) if not i >> a & 1]
    return Lines(np.array(ends), np.tile(np.array(_BOX_COLOR, np.uint8), (12, 1)))


def _name(encoder: LoadedEncoder) -> str:
    return encoder.model.name or encoder.model.family


__all__ = ["AttentionOptions", "draw", "two_views"]
