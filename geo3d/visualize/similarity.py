"""Likeness: how much the features of everything else are like those of one point or pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo3d.errors import InputError
from geo3d.visualize.features import Featured, at_pixels, colored, encode_places
from geo3d.visualize.options import DrawingOptions, EncoderOptions, PlaceOptions, load
from geo3d.viz.feature_colors import likeness_ends, similarity, value_colors
from geo3d.viz.picture import ImagePanel, Marker, Picture3D, Scale, Space, ceiling_cut
from geo3d.viz.raster import ringed

#: Share of the width around the middle in which a query is looked for where none is named.
_NEAR = 0.12


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions(DrawingOptions, EncoderOptions, PlaceOptions):
    """Show likeness: cosine similarity of the features of all points and views to those of one."""

    at: tuple[float, float, float] | None = None
    """Point to compare with, x y z in metres, the nearest one of the first scene. None: one near its middle; in a
    window, click."""
    pixel: tuple[int, int] | None = None
    """Pixel to compare with, x y in the first view, for encoders of images. None: the middle."""
    views: int = 4
    """Views of each scene that an image encoder is shown (count)."""


def draw(config: SimilarityOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: the encoder cannot be loaded, the data lack what it reads, or the pixel is not in the image.
    """
    encoder, told = load(config)
    if encoder.kind == "image" and config.at is not None:
        raise InputError(f"{encoder.model.name} reads images: name what to compare with by --pixel X Y, not --at")
    if encoder.kind != "image" and config.pixel is not None:
        raise InputError(f"{encoder.model.name} reads {encoder.kind}: name a point by --at X Y Z, not --pixel")
    featured = encode_places(encoder, config, config.views)
    first = featured[0]
    if first.points is not None:
        row = _nearest_row(first, config)
        query, where = first.points.features[row], first.points.xyz[row]
    else:
        where = _pixel(first, config.pixel)
        query = at_pixels(first, where[None])[0]
    every = np.concatenate([similarity(one.rows, query) for one in featured])
    ends = likeness_ends(every)
    spaces, images = colored(featured, lambda rows: value_colors(similarity(rows, query), *ends), "likeness")
    if first.points is not None:
        marker = Marker(where, "query")
        marked = tuple(
            Space(s.caption, s.points, markers=(marker,), is_object=s.is_object) if n < 2 else s
            for n, s in enumerate(spaces)
        )
        place = " ".join(f"{value:.2f}" for value in where + first.origin)
        note = f"compared with the point at {place}"
    else:
        ring = where.round().astype(int)
        shown = (ImagePanel(f"{p.caption}", ringed(p.pixels, ring)) for p in images[:2])
        images, marked = (*shown, *images[2:]), spaces
        note = f"compared with pixel {ring[0]} {ring[1]} of {first.caption}"
    name = encoder.model.name or encoder.model.family
    scale = Scale(*ends, "cosine similarity")
    return Picture3D(f"likeness by {name}", marked, images, scale=scale, notes=(f"{told}; {note}",), columns=4)


def _nearest_row(first: Featured, config: SimilarityOptions) -> int:
    """The point with features that is meant."""
    xyz, features = first.points.xyz, first.points.features
    known = np.isfinite(features).all(1)
    if not known.any():
        raise InputError(f"{first.caption}: none of its points has features")
    if config.at is None:
        # Near the middle, on top of what stands there: a place that one sees.
        middle, size = np.median(xyz[:, :2], axis=0), np.ptp(xyz[:, :2], axis=0).max()
        height = ceiling_cut(xyz)
        near = known & (np.linalg.norm(xyz[:, :2] - middle, axis=1) <= _NEAR * size)
        near &= xyz[:, 2] <= (np.inf if height is None else height)
        near = near if near.any() else known
        return int(np.where(near, xyz[:, 2], -np.inf).argmax())
    middle = np.array(config.at, float) - first.origin
    low, high = xyz.min(0) - 1, xyz.max(0) + 1
    if not ((middle >= low) & (middle <= high)).all():
        box = " ".join(f"{a:.2f}..{b:.2f}" for a, b in zip(xyz.min(0) + first.origin, xyz.max(0) + first.origin))
        raise InputError(f"--at {config.at}: lies far outside {first.caption}, which spans {box} metres")
    apart = np.where(known, np.linalg.norm(xyz - middle, axis=1), np.inf)
    return int(apart.argmin())


def _pixel(first: Featured, pixel: tuple[int, int] | None) -> np.ndarray:
    height, width = first.image.shape[:2]
    if pixel is None:
        return np.array([width / 2, height / 2])
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise InputError(f"--pixel {pixel[0]} {pixel[1]}: {first.caption} is {width} x {height} pixels")
    return np.array(pixel, float)
