"""A place from photos: pairs chosen, predicted in both orders, and all views brought into one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.geometry import Camera, PointCloud, View
from geo3d.models.dust3r_images import LoadedImage
from geo3d.progress import Log
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions, align_views
from geo3d.reconstruction.pointmaps.cleaning import without_floaters
from geo3d.reconstruction.pointmaps.graph import complete_pairs, largest_group, similar_pairs, window_pairs
from geo3d.reconstruction.pointmaps.lens import LensCentre, centre
from geo3d.reconstruction.pointmaps.photos import LeftOut, Photo
from geo3d.reconstruction.pointmaps.prediction import AlignedViews, PairPrediction
from geo3d.reconstruction.pointmaps.sparse import align_matches
from geo3d.reconstruction.pointmaps.upright import upright

#: Photos up to which every pair is predicted.
FEW = 12
#: Confidence from which points are usually shown, as published, and the share of points that it has to leave.
USUAL_CONFIDENCE, _LEAST_SHARE = 3.0, 0.1


@dataclass(frozen=True)
class PlaceOptions:
    """How a place is made of photos.

    Args:
        pairs: which are predicted: ``complete``: all; ``window``: each photo with the next ``reach`` of the sequence;
            ``similar``: each with the ``reach`` that look most alike, and what joins all; ``auto``: all of 12 photos or
            fewer, else the similar ones.
        reach: see ``pairs``.
        closed: the first photo follows upon the last.
        connect: confidence that a twentieth of the pixels of both views must have for a pair to connect them.
        focal: of all photos, in their own pixels, where it is known.
        same_lens: photos of one size have one focal length.
        clean: points that hide surer ones lose their confidence.
        alignment: of the optimisation.
        method: ``dense``: by pointmaps, ``sparse``: by matches of descriptors.
    """

    pairs: Literal["auto", "complete", "window", "similar"] = "auto"
    reach: int = 5
    closed: bool = False
    connect: float = 1.5
    focal: float | None = None
    same_lens: bool = False
    clean: bool = True
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    method: Literal["dense", "sparse"] = "dense"

    def chosen(self, count: int, descriptors: Callable[[], Tensor]) -> list[tuple[int, int]]:
        """The pairs of so many photos."""
        kind = ("complete" if count <= FEW else "similar") if self.pairs == "auto" else self.pairs
        if kind == "complete":
            return complete_pairs(count)
        if kind == "window":
            return window_pairs(count, self.reach, self.closed)
        return similar_pairs(descriptors(), self.reach)


#: Share of the pixels of both views whose confidence makes a connection.
_CONNECTED = 0.05


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A place: photos with cameras, poses and points.

    The world's z is up, as far as the cameras tell, its origin the first photo's camera; lengths are in the network's
    unit: metres for a metric MASt3R, an unknown one for DUSt3R.

    Args:
        photos: that are in it.
        aligned: their views, numbered alike.
        left_out: photos that are not, and why.
        pairs: that were predicted, of all photos, and that connect their views.
        floaters: points that lost their confidence.
    """

    photos: list[Photo]
    aligned: AlignedViews
    left_out: list[LeftOut]
    pairs: tuple[int, int] = (0, 0)
    floaters: int = 0

    def camera(self, view: int) -> Camera:
        """Intrinsics of the photo, in its own pixels."""
        return self.photos[view].image.source_camera(self.loaded_camera(view))

    def loaded_camera(self, view: int) -> Camera:
        """Intrinsics of the image that the network saw."""
        return self.aligned.camera(view)

    def usual_confidence(self) -> float:
        """3, as published, if a tenth of all points has it; else the median of all confidences."""
        every = torch.cat([confidence.flatten() for confidence in self.aligned.confidences])
        if float((every >= USUAL_CONFIDENCE).double().mean()) >= _LEAST_SHARE:
            return USUAL_CONFIDENCE
        return float(every[every > 0].median())

    def kept(self, view: int, confidence: float) -> Tensor:
        """(H, W) bool: pixels of a view whose point is known and sure enough."""
        return (self.aligned.confidences[view] >= confidence) & (self.aligned.depths[view] > 0)

    def cloud(self, confidence: float) -> PointCloud:
        """Points of all views that are sure enough, with the photos' colours.

        Raises:
            InputError: there is none.
        """
        xyz, colors = [], []
        for view, photo in enumerate(self.photos):
            kept = self.kept(view, confidence)
            xyz.append(self.aligned.points(view)[kept].float())
            colors.append(photo.image.pixels[kept].float() / 255)
        if not sum(map(len, xyz)):
            surest = max(float(c.max()) for c in self.aligned.confidences)
            raise InputError(
                f"no point has confidence {confidence:g} or more, the surest has {surest:.3g}; lower the threshold"
            )
        return PointCloud(torch.cat(xyz), torch.cat(colors))

    def view(self, number: int, confidence: float) -> View:
        """A photo's camera, pose and depth, which covers the whole photo at the network's resolution."""
        photo = self.photos[number]
        height, width = photo.image.resized_size
        depth = torch.zeros(height, width)
        top, left = photo.image.offset
        rows, columns = photo.image.size
        known = self.aligned.depths[number] * self.kept(number, confidence)
        depth[top : top + rows, left : left + columns] = known
        camera = self.camera(number)
        return View(
            photo.name,
            camera,
            self.aligned.world_from_camera[number],
            depth=depth,
            depth_camera=camera.resized(width, height),
        )


def reconstruct(
    photos: Sequence[Photo],
    predict: Callable[[Sequence[tuple[int, int]]], list[PairPrediction]],
    descriptors: Callable[[], Tensor],
    rng: np.random.Generator,
    options: PlaceOptions | None = None,
    log: Log = lambda line: None,
    tick: Callable[[int, int, float], None] | None = None,
) -> Reconstruction:
    """A place from photos.

    Args:
        photos: two or more.
        predict: pointmaps of orders (first, second), such as :class:`NetworkPairs`.
        descriptors: (N, C) of the photos; asked for where pairs go by likeness.
        rng: draws what poses are proposed by.
        options: how.
        log: told what happens, in lines.
        tick: as of :func:`align_views`.

    Raises:
        InputError: fewer than two photos, no two that a pair connects, or no matches where the sparse alignment is
            asked for.
    """
    options = options or PlaceOptions()
    if len(photos) < 2:
        raise InputError(f"a place is made of two photos or more, got {len(photos)}")
    pairs = options.chosen(len(photos), descriptors)
    log(f"{len(photos)} photos, {len(pairs)} pairs, both orders of each")
    predictions = predict([order for i, j in pairs for order in ((i, j), (j, i))])
    connecting = [p for p in predictions if p.connects(options.connect, _CONNECTED)]
    joined = {(min(p.first, p.second), max(p.first, p.second)) for p in connecting}
    group = largest_group(len(photos), sorted(joined))
    if len(group) < 2:
        surest = max(float(min(c.quantile(1 - _CONNECTED) for _, _, c in p.sides())) for p in predictions)
        raise InputError(
            f"no pair connects two photos: of none do {100 * _CONNECTED:.0f} % of the pixels of both views have "
            f"confidence {options.connect:g} (the surest pair has {surest:.3g}); take photos that share more, or lower "
            "connect, the confidence that connects"
        )
    left_out = [
        LeftOut(str(photo.path), "no pair connects it to the others")
        for number, photo in enumerate(photos)
        if number not in group
    ]
    number_of = {view: number for number, view in enumerate(group)}
    kept = [
        replace(p, first=number_of[p.first], second=number_of[p.second])
        for p in connecting
        if p.first in number_of and p.second in number_of
    ]
    chosen = [photos[view] for view in group]
    align = align_matches if options.method == "sparse" else align_views
    aligned = align(
        kept,
        rng,
        options.alignment,
        [principal_point(photo.image) for photo in chosen],
        [None if options.focal is None else options.focal * photo.image.scale[1] for photo in chosen],
        _lenses(chosen, options.same_lens),
        tick,
    )
    log(aligned.told)
    aligned = aligned.moved(upright(aligned.world_from_camera))
    floaters = 0
    if options.clean:
        confidences, floaters = without_floaters(aligned, {(p.first, p.second) for p in kept})
        aligned = replace(aligned, confidences=confidences)
    return Reconstruction(chosen, aligned, left_out, (len(pairs), len(joined)), floaters)


def principal_point(image: LoadedImage) -> LensCentre:
    """Where the centre of a photo of square pixels lies in the image that was loaded of it."""
    middle = torch.tensor(centre(*image.source_size)[:2], dtype=torch.float64)
    rows, columns = image.scale
    return LensCentre(*image.from_source(middle).tolist(), columns / rows)


def _lenses(photos: Sequence[Photo], same: bool) -> list[int]:
    if not same:
        return list(range(len(photos)))
    sizes = [tuple(sorted(photo.image.source_size)) for photo in photos]
    known = list(dict.fromkeys(sizes))
    return [known.index(size) for size in sizes]


__all__ = ["FEW", "USUAL_CONFIDENCE", "PlaceOptions", "Reconstruction", "principal_point", "reconstruct"]
