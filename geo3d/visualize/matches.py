"""Matches: mutual nearest neighbours of the features of two views, and whether they are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.geometry import View
from geo3d.inference import LoadedEncoder
from geo3d.nn.mutual_nearest import mutual_nearest
from geo3d.visualize.attention import two_views
from geo3d.visualize.features import encoded_image, image_files
from geo3d.visualize.options import DrawingOptions, EncoderOptions, PlaceOptions, layers_of, load
from geo3d.visualize.places import find_places, image_of, shown_rows
from geo3d.viz.picture import ImagePanel, Picture3D

RIGHT, WRONG, UNKNOWN = (30, 170, 60), (220, 40, 40), (120, 120, 120)
_NAMES = {"right": RIGHT, "wrong": WRONG, "not known": UNKNOWN}
#: Share of the depth by which what the second view sees may lie nearer than the point, which else is hidden from it.
_HIDDEN = 0.03
#: Places of a view whose features are compared at most, for encoders of points.
_MOST_PLACES = 2500
_GAP = 12  # between the images, pixels
_HEIGHT = 480


@dataclass(frozen=True, kw_only=True)
class MatchesOptions(DrawingOptions, EncoderOptions, PlaceOptions):
    """Show matches of two views: mutual nearest neighbours of features; green where depth and pose say that they are
    right."""

    pair: tuple[str, str] | None = None
    """Names or numbers of two views of a scene. None: two that follow each other."""
    tolerance: float | None = None
    """Pixels by which a right match may be off. None: the side of a cell of features, 10 for points."""
    count: int = 80
    """Matches that are drawn at most (count)."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Matched places of two images.

    Args:
        first, second: (M, 2) pixels, x and y.
        score: (M,) cosine similarity.
        verdict: (M,) 1 right, 0 wrong, -1 not known: no depth, or hidden from the second view.
        possible: how many places of the first were compared.
    """

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    verdict: np.ndarray
    possible: int


def draw(config: MatchesOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: the encoder cannot be loaded, or there are no two views.
    """
    encoder, told = load(config)
    if files := image_files(config.data):
        if len(files) != 2:
            raise InputError(f"two images are matched, got {len(files)}; name two files, or a scene and --pair")
        views = [View(path.name, image=torch.from_numpy(read_photo(path)).float() / 255) for path in files]
    else:
        place = find_places(config.data, config.scene)[0]
        views = [place.scene.view(number) for number in two_views(place, config.pair)]
    layers = layers_of(config)
    places = [_described(encoder, view, layers) for view in views]
    rows, score = mutual_nearest(*(torch.from_numpy(features) for _, features, _ in places))
    uv = tuple(uv[own] for (uv, *_), own in zip(places, rows.numpy().T))
    tolerance = config.tolerance if config.tolerance is not None else places[0][2]
    matches = Matches(*uv, score.numpy(), verdicts(views, *uv, tolerance), len(places[0][0]))
    known = matches.verdict >= 0
    summary = f"{len(rows)} mutual nearest neighbours of {matches.possible} places"
    if known.any():
        right = int((matches.verdict == 1).sum())
        summary += f"; {right} of {int(known.sum())} that can be judged are right, {100 * right / known.sum():.0f} %"
        summary += f" (within {tolerance:.0f} pixels)"
    else:
        summary += "; depth and pose are not known, so that none can be judged"
    caption = f"{views[0].name} and {views[1].name}"
    panel = ImagePanel(caption, _drawn([image_of(view) for view in views], matches, config.count))
    legend = tuple(_NAMES.items()) if known.any() else (("not known", UNKNOWN),)
    name = encoder.model.name or encoder.model.family
    return Picture3D(f"matches by {name}", images=(panel,), legend=legend, notes=(told, summary), columns=1)


def verdicts(views: list[View], first: np.ndarray, second: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether pixels (M, 2) of two views show one surface point.

    Args:
        views: two, with depth, camera and pose where known.
        first, second: pixels of each.
        tolerance: pixels by which they may be off.

    Returns:
        (M,) int: 1 where they do, 0 where not, -1 where it is not known: no depth there, or what the first sees is out
        of the second's sight or hidden from it.
    """
    unknown = np.full(len(first), -1)
    if any(v.world_from_camera is None or v.camera is None for v in views) or views[0].depth is None:
        return unknown
    start, end = views
    depth_camera = start.depth_camera or start.camera
    rays = start.camera.unproject(torch.from_numpy(first).double(), torch.ones(len(first), dtype=torch.float64))
    at = depth_camera.project(rays).round().long()
    inside = ((at >= 0) & (at < at.new_tensor([depth_camera.width, depth_camera.height]))).all(1)
    at = at.clamp_min(0).minimum(at.new_tensor([depth_camera.width - 1, depth_camera.height - 1]))
    depth = start.depth.double()[at[:, 1], at[:, 0]]
    known = inside & (depth > 0)
    pose, other = start.world_from_camera.double(), end.world_from_camera.double()
    world = (rays * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]
    seen = (world - other[:3, 3]) @ other[:3, :3]
    known &= seen[:, 2] > 0
    uv = end.camera.project(seen)
    size = uv.new_tensor([end.camera.width, end.camera.height])
    known &= ((uv >= -0.5) & (uv < size - 0.5)).all(1)
    if end.depth is not None:
        camera = end.depth_camera or end.camera
        place = camera.project(seen).round().nan_to_num(0).long().clamp_min(0)
        place = place.minimum(place.new_tensor([camera.width - 1, camera.height - 1]))
        surface = end.depth.double()[place[:, 1], place[:, 0]]
        known &= ~((surface > 0) & (surface < (1 - _HIDDEN) * seen[:, 2]))
    off = np.linalg.norm(uv.numpy() - second, axis=1)
    return np.where(known.numpy(), (off <= tolerance).astype(int), unknown)


def _described(
    encoder: LoadedEncoder, view: View, layers: list[int | str] | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Places of a view, pixels (N, 2), their features (N, C), and pixels that matches may be off."""
    if encoder.kind == "image":
        found = encoded_image(encoder, view.name, image_of(view), layers)
        height, width = found.maps.shape[:2]
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        uv = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * found.cell - 0.5
        inside = (uv <= np.array(found.image.shape[1::-1]) - 1).all(1)
        return uv[inside], found.rows[inside], float(found.cell)
    if encoder.kind != "voxels":
        raise InputError(f"views are matched by encoders of images or voxels; this one reads {encoder.kind}")
    if view.depth is None or view.world_from_camera is None or view.camera is None:
        raise InputError(f"{view.name}: an encoder of voxels needs depth, camera and pose, which this view lacks")
    features = encoder(view, layers=layers).points.cpu().numpy()
    xyz, _ = view.world_points()
    pose = view.world_from_camera.double()
    uv = view.camera.project((xyz - pose[:3, 3]) @ pose[:3, :3]).numpy()
    if len(features) != len(uv):
        kept = (view.depth.reshape(-1) > 0).numpy()
        features = features[kept]
    rows = shown_rows(len(uv), _MOST_PLACES)
    rows = rows[np.isfinite(features[rows]).all(1)]
    return uv[rows], features[rows], 10.0


def _drawn(images: list[np.ndarray], matches: Matches, most: int) -> np.ndarray:
    """Two images beside each other with lines between matches, the wrong ones below the right ones."""
    shares = [_HEIGHT / image.shape[0] for image in images]
    shown = [
        Image.fromarray(image).resize((round(share * image.shape[1]), _HEIGHT), Image.Resampling.BILINEAR)
        for image, share in zip(images, shares)
    ]
    left = shown[0].width + _GAP
    sheet = Image.new("RGB", (left + shown[1].width, _HEIGHT), (255, 255, 255))
    sheet.paste(shown[0], (0, 0))
    sheet.paste(shown[1], (left, 0))
    chosen = shown_rows(len(matches.first), most)
    chosen = chosen[np.argsort(matches.verdict[chosen] == 1, kind="stable")]
    draw = ImageDraw.Draw(sheet)
    for row in chosen:
        color = {1: RIGHT, 0: WRONG}.get(int(matches.verdict[row]), UNKNOWN)
        ends = (matches.first[row] + 0.5) * shares[0], (matches.second[row] + 0.5) * shares[1] + (left, 0)
        draw.line([tuple(end) for end in ends], fill=color, width=1)
        for x, y in ends:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color, outline=(255, 255, 255))
    return np.asarray(sheet)


__all__ = ["Matches", "MatchesOptions", "draw", "verdicts"]
