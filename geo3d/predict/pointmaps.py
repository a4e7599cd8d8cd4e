"""Photos of a place -> its points, and the cameras that took them, by a network of DUSt3R's or MASt3R's family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from geo3d.errors import InputError
from geo3d.models.dust3r import DUSt3R
from geo3d.predict.networks import load_network
from geo3d.predict.pointmaps_files import write_place
from geo3d.progress import progress_line
from geo3d.random import Stream, stream_generator
from geo3d.reconstruction.pointmaps.alignment import AlignmentOptions
from geo3d.reconstruction.pointmaps.photos import LeftOut, NetworkPairs, find_photos, read_photos
from geo3d.reconstruction.pointmaps.place import PlaceOptions, Reconstruction, reconstruct
from geo3d.writing import write_text, writing

#: Whose authors' files are tried where a file does not say what it holds.
_FAMILIES = ("dust3r", "mast3r")
#: Degrees, horizontal, that lenses of cameras and telephones have.
_USUAL_VIEWS = (15, 120)


@dataclass(frozen=True, kw_only=True)
class PointmapsOptions:
    """Points, cameras and poses of a place from two to some fifty photos."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PHOTO ...")]
    """Photos, or folders of them."""
    checkpoint: Path
    """Run folder of `geo3d finetune pointmaps`, one of its checkpoints, the authors' file, or
    hf://owner/repository/file[@revision]."""
    model: str | None = None
    """Name of the model, where the file does not say what it holds, as a bare state dict: such as
    dust3r_vitl_512_dpt."""
    out: Path = Path("place")
    """Folder to write."""
    size: int | None = None
    """Pixels of the longer side that the network sees, or 224: squares. None: the network's own, and the middle squares
    of photos where it was trained on squares."""
    pairs: Literal["auto", "complete", "window", "similar"] = "auto"
    """Which pairs are predicted: all; each photo with the next --reach of the sequence; each with the --reach that look
    most alike. auto: all of 12 photos or fewer, else those alike."""
    reach: int = 5
    """See --pairs (count)."""
    closed: bool = False
    """The first photo of the sequence follows upon the last."""
    connect: float = 1.5
    """Confidence that a twentieth of the pixels of both views must have for a pair to connect them."""
    confidence: float | None = None
    """Confidence from which points are kept. None: 3, as published, if a tenth of them has it, else the median."""
    focal: float | None = None
    """Focal length of all photos in their own pixels, where it is known; None: found for each."""
    same_lens: bool = False
    """Photos of one size were taken by one lens: they get one focal length."""
    alignment: Literal["dense", "sparse"] = "dense"
    """How views are brought into one frame. dense: by all pointmaps; sparse: by matches of descriptors, which MASt3R's
    networks have."""
    steps: int = 300
    """Of the common optimisation: of more than two views, and of both stages of the sparse alignment (count)."""
    every: int | None = None
    """Distance of the pixels whose points it looks at. None: by the number of pairs."""
    clean: bool = True
    """Drop points that float before what other views see more surely."""
    points: int = 2_000_000
    """Points that are written at most (count)."""
    batch: int = 4
    """Pairs that the network sees at a time (count)."""
    picture: bool = True
    """Draw a picture of the points and the cameras."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda."""
    seed: int = 0
    """Of what is drawn: triples of points that poses are proposed by."""

    def __post_init__(self) -> None:
        if not self.photos:
            raise InputError("photos: give two photos or more, or folders of them")
        least = {"reach": 1, "steps": 0, "points": 1, "batch": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be {bound} or more, got {getattr(self, name)}")
        for name in ("focal", "connect", "confidence"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be larger than 0, got {value}")


def predict(config: PointmapsOptions) -> str:
    """Find the place and write it: photos, ``transforms.json``, a COLMAP model, points, pointmaps, picture, summary.

    Returns:
        Lines for people.

    Raises:
        InputError: no network of this kind, fewer than two photos that can be read, photos that no pair connects, no
            point that is sure enough, or files that cannot be written.
    """
    names = _FAMILIES if config.model is None else (config.model,)
    network: DUSt3R = load_network(config.checkpoint, "pointmaps", names, "puts out pointmaps", config.device)
    if config.alignment == "sparse" and network.config.descriptors is None:
        raise InputError(
            f"--alignment sparse: {config.checkpoint} holds {network.name or network.family}, which has no descriptors "
            "to match; take dense, or a network of mast3r"
        )
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    paths, strange = find_photos(config.photos)
    photos, unread = read_photos(paths, network, config.size)
    if len(photos) < 2:
        named = "".join(f"; {left.name}: {left.reason}" for left in [*strange, *unread][:3])
        raise InputError(
            f"a place is made of two photos or more, {len(photos)} can be read of {len(paths) + len(strange)}{named}"
        )
    show, count = progress_line("order"), progress_line("step")
    pairs = NetworkPairs(
        network, photos, config.batch, lambda done, total: show(done, total, "pairs"), config.alignment == "sparse"
    )
    place = reconstruct(
        photos,
        pairs,
        pairs.descriptors,
        stream_generator(config.seed, Stream.POINTMAPS),
        PlaceOptions(
            config.pairs,
            config.reach,
            config.closed,
            config.connect,
            config.focal,
            config.same_lens,
            config.clean,
            AlignmentOptions(steps=config.steps, every=config.every),
            config.alignment,
        ),
        tick=lambda step, steps, value: count(step, steps, f"objective {value:.4g}"),
    )
    return finish(config.out, place, [*strange, *unread], config.confidence, config.points, config.picture)


def finish(
    out: Path,
    place: Reconstruction,
    left_out: list[LeftOut],
    confidence: float | None,
    points: int,
    picture: bool,
) -> str:
    """Write a place; returns lines for people.

    Args:
        out: folder.
        place: what was found.
        left_out: photos that were not even looked at.
        confidence: of the points that are kept; None: the usual one.
        points: that are written at most.
        picture: whether one is drawn.

    Raises:
        InputError: as :func:`geo3d.predict.pointmaps_files.write_place`.
    """
    every = [*left_out, *place.left_out]
    least = place.usual_confidence() if confidence is None else confidence
    cloud = write_place(out, place, least, points, picture)
    summary = _summary(place, every, least, len(cloud))
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    focals = [photo["focal"] for photo in summary["photos"]]
    views = [photo["field_of_view"] for photo in summary["photos"]]
    lines = [
        f"{len(place.photos)} photos in one frame; {place.pairs[1]} of {place.pairs[0]} pairs connect theirs",
        place.aligned.told,
        f"focal lengths {min(focals):.0f} to {max(focals):.0f} pixels of the photos, horizontal fields of view "
        f"{min(views):.0f} to {max(views):.0f} degrees",
        *_doubts(views),
        f"{len(cloud):,} points of confidence {least:.3g} or more"
        + (f"; {place.floaters:,} that float before surer ones are left out" if place.floaters else ""),
        *(f"left out: {left.name}: {left.reason}" for left in every),
        f"written: {out} (points.ply, transforms.json, sparse/0, depth, pointmaps.npz, summary.json)",
    ]
    return "\n".join([*lines, f"picture: {out / 'picture.png'}"] if picture else lines)


def _doubts(fields_of_view: list[float]) -> list[str]:
    """A line where photos would have been taken by lenses that hardly anyone has."""
    low, high = _USUAL_VIEWS
    strange = sum(not low <= value <= high for value in fields_of_view)
    if not strange:
        return []
    return [
        f"{strange} of {len(fields_of_view)} fields of view are below {low} or above {high} degrees: unless such "
        "lenses were used, the network does not know such photos, and nothing below can be trusted"
    ]


def _summary(place: Reconstruction, left_out: list[LeftOut], confidence: float, points: int) -> dict[str, Any]:
    photos = []
    for number, photo in enumerate(place.photos):
        camera = place.camera(number)
        photos.append(
            {
                "name": photo.name,
                "file": str(photo.path),
                "size": [camera.width, camera.height],
                "focal": camera.fx,
                "field_of_view": float(np.degrees(2 * np.arctan(camera.width / 2 / camera.fx))),
                "world_from_camera": place.aligned.world_from_camera[number].tolist(),
                "confidence": float(place.aligned.confidences[number].mean()),
            }
        )
    return {
        "photos": photos,
        "left_out": [{"file": left.name, "reason": left.reason} for left in left_out],
        "pairs": {"predicted": place.pairs[0], "connecting": place.pairs[1]},
        "alignment": {"told": place.aligned.told, "objective": list(place.aligned.objective)},
        "confidence": confidence,
        "points": points,
        "floaters": place.floaters,
    }


__all__ = ["PointmapsOptions", "finish", "predict"]
