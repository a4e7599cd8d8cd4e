"""What predictions at every pixel of images share: the network, the images, sizes, files and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geo3d.datasets.disparity_files import write_disparity_png, write_pfm
from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.models.croco_downstream import CroCoDownstream
from geo3d.nn.colors import normalise
from geo3d.predict.networks import load_network
from geo3d.viz.dense import coloured
from geo3d.writing import prepare_place, replacing

#: Ends of colours: quantiles of what is shown.
_ENDS = (0.02, 0.98)


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """What the commands share."""

    checkpoint: Path
    """Run folder of `geo3d finetune`, one of its checkpoints, the authors' file, or
    hf://owner/repository/file[@revision]."""
    model: str | None = None
    """The network's name, for a file that does not say what it holds, such as a bare state dict."""
    resized: int | None = None
    """Shorter side to which the images are resized for the network, pixels. Results have the images' own size and
    pixels. None: as it was trained, where its file says that; 0: images as they are."""
    tile: tuple[int, int] | None = None
    """Height and width of the tiles, pixels; None: the crop that the network was trained on."""
    overlap: float = 0.7
    """Share of a tile that its neighbour covers too, from 0 to less than 1; more takes longer."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap must be at least 0 and less than 1, got {self.overlap}")
        if self.resized is not None and self.resized < 0:
            raise InputError(f"resized must be at least 1 pixel, or 0 for images as they are, got {self.resized}")


def network_and_tiles(options: DenseOptions, task: str) -> CroCoDownstream:
    """The network of a checkpoint, as :func:`load_network` loads it, into whole patches of which tiles can be cut.

    Raises:
        InputError: it cannot be read, or is of another task; or tiles that the network's patch does not divide.
    """
    names = (options.model or "croco_downstream",)
    model = load_network(options.checkpoint, task, names, f"predicts {task}", options.device)
    patch = model.config.patch_size
    if options.tile is not None and any(side < patch or side % patch for side in options.tile):
        raise InputError(f"tile {options.tile} must be multiples of the network's patch of {patch} pixels")
    return model


def read_pair(first: Path, second: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two images (H, W, 3) uint8 of one size.

    Raises:
        InputError: they cannot be read, or differ in size.
    """
    images = read_photo(first), read_photo(second)
    if images[0].shape != images[1].shape:
        sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in images]
        raise InputError(f"{second}: is {sizes[1]} pixels, {first} is {sizes[0]}; both must be of one size")
    return images


def resized_side(options: DenseOptions, model: CroCoDownstream) -> int:
    """Shorter side to which images are resized for the network, pixels; 0: they are not."""
    return (model.config.resized or 0) if options.resized is None else options.resized


def told_size(options: DenseOptions, model: CroCoDownstream) -> list[str]:
    """A line where the network sees images as it was trained on them, though nobody asked for that."""
    if options.resized is not None or model.config.resized is None:
        return []
    return [
        f"the network sees images of {model.config.resized} pixels on the shorter side, as in training; --resized 0 "
        "shows them as they are"
    ]


def as_network_reads(image: np.ndarray, options: DenseOptions, model: CroCoDownstream) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, h, w) normalised on the network's device, resized where that is asked for."""
    height, width = image.shape[:2]
    if side := resized_side(options, model):
        factor = side / min(height, width)
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        way = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
        image = np.array(Image.fromarray(image).resize(size, way))
    return normalise(torch.from_numpy(image).unsqueeze(0).to(model.device), model.color_scale)


def at_size(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(B, C, h, w) resampled to height and width; as it is where it has these."""
    if tuple(maps.shape[2:]) == size:
        return maps
    kind = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(maps.float(), size, mode=mode, **kind)


def certainty(
    model: CroCoDownstream, confidence: Tensor | None, size: tuple[int, int], factor: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Raw confidence and expected error (H, W) of each pixel of an image, where the network has a confidence.

    Args:
        model: the network, whose criterion says what a confidence means: the Laplacian's scale.
        confidence: (1, h, w) raw.
        size: height and width of the image.
        factor: the results' unit over the network's, of images that were resized for it.
    """
    if confidence is None:
        return None, None
    raw = at_size(confidence.unsqueeze(1), size)[0, 0].float()
    return raw.cpu().numpy(), model.config.criterion.build().deviation(raw).cpu().numpy() * factor


def prepare_files(out: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Where results go: ``out``, ``arrays`` (the NPZ, which may be the same) and ``picture``.

    Raises:
        InputError: another ending, or nothing can be written there.
    """
    if out.suffix.lower() not in endings:
        raise InputError(f"{out}: results are written to a file that ends in {', '.join(endings)}")
    files = {"out": out, "arrays": out.with_suffix(".npz"), "picture": out.with_name(f"{out.stem}_picture.png")}
    for path in files.values():
        prepare_place(path)
    return files


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | None]) -> None:
    """Write what there is of named arrays as a packed ``.npz``.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **{name: values for name, values in arrays.items() if values is not None})


def shown(values: np.ndarray, unit: str) -> tuple[np.ndarray, tuple[str, str]]:
    """(H, W) numbers as colours (H, W, 3), and what both ends of these stand for."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, _ENDS) if len(known) else (0.0, 1.0)
    return coloured(values, low, high), (f"{low:.3g} {unit}", f"{high:.3g} {unit}")


def told(values: np.ndarray, what: str, unit: str) -> str:
    """A line on numbers, NaN where they are not known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return f"{what}: not known at any pixel"
    return (
        f"{what} from {known.min():.3g} to {known.max():.3g} {unit} (median {np.median(known):.3g}), known at "
        f"{100 * len(known) / values.size:.1f} % of the pixels"
    )


def write_named(path: Path, values: np.ndarray, unit: Literal["pixels", "metres"]) -> None:
    """Write numbers (H, W), NaN where they are not known, as the ending asks: PFM, or a PNG as KITTI has it.

    To be done last: a PNG does not hold all of them, which is an error.

    Raises:
        InputError: they do not fit, or cannot be written.
    """
    if path.suffix.lower() == ".pfm":
        write_pfm(path, values)
    elif path.suffix.lower() == ".png":
        write_disparity_png(path, values, unit)


def told_files(files: Mapping[str, Path], what: str) -> list[str]:
    """Lines that say where the results are."""
    arrays = [] if files["arrays"] == files["out"] else [f"arrays: {files['arrays']}"]
    return [f"{what}: {files['out']}", *arrays, f"picture: {files['picture']}"]
