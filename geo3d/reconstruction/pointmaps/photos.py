"""Photos of a place: files and folders of them, and the networks' predictions of their pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from geo3d.datasets.image_files import IMAGE_ENDINGS, image_names
from geo3d.errors import InputError
from geo3d.models.dust3r import DUSt3R, EncodedView
from geo3d.models.dust3r_heads import PairPointmaps
from geo3d.models.dust3r_images import LoadedImage, load_image
from geo3d.reconstruction.pointmaps.matching import Matches, matches_of
from geo3d.reconstruction.pointmaps.prediction import PairPrediction

#: Photos that cameras of telephones write and Pillow does not read: they are named, not passed over.
_NOT_READ = (".heic", ".heif", ".dng", ".cr2", ".nef", ".arw")
#: Size of the published networks that were trained on images of several shapes, none square.
_MANY_SHAPES = 512


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as a network reads it.

    Args:
        name: of a file below a folder of photos; its stem is unique among them.
        path: of the photo.
        image: its pixels, upright, and where they come from.
    """

    name: str
    path: Path
    image: LoadedImage


@dataclass(frozen=True)
class LeftOut:
    """A photo that is not used, and why."""

    name: str
    reason: str


def find_photos(inputs: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Files of photos: those that are named, and those in folders that are, in the order of their numbers.

    Returns:
        Paths; and files of folders that are photos of a kind that is not read.

    Raises:
        InputError: something that is neither.
    """
    found: list[Path] = []
    left_out = []
    for path in inputs:
        if path.is_dir():
            found += [path / name for name in image_names(path)]
            strange = sorted(p for p in path.iterdir() if p.suffix.lower() in _NOT_READ)
            left_out += [LeftOut(str(p), f"{p.suffix} photos are not read; convert them to JPEG") for p in strange]
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder; give photos ({' '.join(IMAGE_ENDINGS[:3])} ...)")
    return list(dict.fromkeys(found)), left_out


def read_photos(paths: Sequence[Path], network: DUSt3R, size: int | None = None) -> tuple[list[Photo], list[LeftOut]]:
    """Photos in the size that a network reads; those that cannot be read are left out.

    Args:
        paths: of files.
        network: tells size and patch. One that was trained on squares gets the centre squares of photos; those of 512
            pixels, which the published ones call so, were trained on several shapes and never on squares.
        size: pixels of the longer side, or 224; None: the network's own.
    """
    height, width = network.config.image_size
    square = True if size is None and height == width != _MANY_SHAPES else None
    size = max(height, width) if size is None else size
    photos: list[Photo] = []
    left_out = []
    stems: set[str] = set()
    for path in paths:
        try:
            image = load_image(path, size, network.config.patch_size, square=square)
        except InputError as error:
            left_out.append(LeftOut(str(path), str(error).removeprefix(f"{path}: ")))
            continue
        name = _own_name(path.name, stems)
        stems.add(PurePosixPath(name).stem)
        photos.append(Photo(name, path, image))
    return photos, left_out


def _own_name(name: str, taken: set[str]) -> str:
    """A file's name whose stem no earlier one has."""
    path, number = PurePosixPath(name), 2
    stem = path.stem
    while stem in taken:
        stem = f"{path.stem}-{number}"
        number += 1
    return f"{stem}{path.suffix}"


class NetworkPairs:
    """What a network says of pairs of photos. Every photo is encoded once; pairs of one size go together.

    Args:
        network: of DUSt3R's or MASt3R's family; it is used as it is, on its device.
        photos: which the pairs number.
        batch: orders that are decoded at a time.
        tick: told how many orders are done, of how many.
        matches: match the descriptors of each order, where the network has some.
    """

    def __init__(
        self,
        network: DUSt3R,
        photos: Sequence[Photo],
        batch: int = 4,
        tick: Callable[[int, int], None] | None = None,
        matches: bool = False,
    ) -> None:
        self.matches = matches
        self.network, self.photos, self.batch, self.tick = network.eval(), photos, batch, tick
        self._encoded: list[EncodedView] = []

    def descriptors(self) -> Tensor:
        """(N, C) mean of the encoder's tokens of every photo, which tells which ones look alike."""
        return torch.stack([view.tokens[0].mean(0) for view in self.encoded()]).float().cpu()

    @torch.no_grad()
    def encoded(self) -> list[EncodedView]:
        """Encoder output of every photo."""
        if not self._encoded:
            images = (photo.image.pixels for photo in self.photos)
            self._encoded = [self.network.encode_view(self.network.prepare(image)) for image in images]
        return self._encoded

    @torch.no_grad()
    def __call__(self, orders: Sequence[tuple[int, int]]) -> list[PairPrediction]:
        """Pointmaps of pairs (first, second), in the order asked."""
        views = self.encoded()
        by_size: dict[tuple, list[int]] = {}
        for number, order in enumerate(orders):
            by_size.setdefault(tuple(views[view].grid for view in order), []).append(number)
        found: dict[int, PairPrediction] = {}
        for numbers in by_size.values():
            for start in range(0, len(numbers), self.batch):
                part = numbers[start : start + self.batch]
                sides = (_joined([views[orders[n][side]] for n in part]) for side in (0, 1))
                pair = self.network.pair(*sides)
                for row, number in enumerate(part):
                    maps = (m[row].float().cpu() for side in pair for m in (side.points, side.confidence))
                    found[number] = PairPrediction(*orders[number], *maps, self._matched(pair, row))
                if self.tick is not None:
                    self.tick(len(found), len(orders))
        return [found[number] for number in range(len(orders))]

    def _matched(self, pair: PairPointmaps, row: int) -> Matches | None:
        """Matches of an order of a batch, on the CPU."""
        if not self.matches or pair.first.descriptors is None:
            return None
        maps = (m[row].float() for name in ("descriptors", "descriptor_confidence") for m in _both(pair, name))
        found = matches_of(*maps)
        return Matches(*(part.cpu() for part in (found.first, found.second, found.confidence)))


def _both(pair: PairPointmaps, name: str) -> tuple[Tensor, Tensor]:
    return getattr(pair.first, name), getattr(pair.second, name)


def _joined(views: Sequence[EncodedView]) -> EncodedView:
    tokens, positions = (torch.cat([getattr(view, name) for view in views]) for name in ("tokens", "positions"))
    return EncodedView(tokens, positions, views[0].grid)


__all__ = ["LeftOut", "NetworkPairs", "Photo", "find_photos", "read_photos"]
