"""View pairs: of a mined file, or found in datasets; with what both views see."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geo3d.datasets import Scene, open_dataset
from geo3d.datasets.pair_index import PairIndex, read_pair_index
from geo3d.datasets.pair_mining import PairOptions, PairsConfig, mine_pairs, pictured_pairs
from geo3d.errors import InputError
from geo3d.visualize.options import DrawingOptions
from geo3d.visualize.places import lifted
from geo3d.viz.pairs import pairs_sheet
from geo3d.viz.picture import Frustum, ImagePanel, Picture3D, Points, Space

FIRST, SECOND = (31, 119, 220), (240, 130, 20)
_ENDINGS = (".tsv", ".parquet")
_TINT = 0.55
_LENGTH = 0.1  # of a drawn camera, over what the first view sees


@dataclass(frozen=True, kw_only=True)
class PairsOptions(DrawingOptions):
    """Show view pairs, with dots of one colour on one surface point, and what both views see in 3D."""

    data: tuple[Path, ...]
    """Index of mined pairs (.tsv, .parquet), or folders of scenes, whose pairs are then found."""
    count: int = 6
    """Pairs that are shown (count)."""


def draw(config: PairsOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: there are no pairs, or files cannot be read.
    """
    if config.count < 1:
        raise InputError(f"--count must be 1 or more, got {config.count}")
    index = _index(config.data)
    datasets = [open_dataset(dataset.root, kind=dataset.kind) for dataset in index.datasets]
    pictured = pictured_pairs(index, datasets, PairOptions().tolerance, config.count)
    number, name = index.scenes[index.scene[0]]
    scene = datasets[number].open(name)
    spaces = _both(scene, index)
    note = f"{len(index):,} pairs of {len(index.scenes):,} scenes; dots of one colour mark one surface point"
    legend = (("first view", FIRST), ("second view", SECOND)) if spaces else ()
    panel = ImagePanel("pairs, spread over all", pairs_sheet(pictured))
    return Picture3D("view pairs", spaces, (panel,), legend, notes=(note,), columns=1)


def _index(data: tuple[Path, ...]) -> PairIndex:
    if len(data) == 1 and data[0].suffix in _ENDINGS:
        return read_pair_index(data[0])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pairs.tsv"
        mine_pairs(PairsConfig(data=tuple(path.absolute() for path in data), out=output))
        return read_pair_index(output)


def _both(scene: Scene, index: PairIndex) -> tuple[Space, ...]:
    """What both views of the first pair see, in their colours and tinted by the view."""
    if not {"depth", "poses"} <= scene.parts:
        return ()
    names = list(scene.view_names)
    views = [scene.view(names.index(index.views[codes[0]])) for codes in (index.first, index.second)]
    plain: list[Points] = [lifted(view)[0] for view in views]
    length = _LENGTH * float(np.linalg.norm(np.ptp(plain[0].xyz, axis=0)))
    tinted, cameras = [], []
    for view, points, tint in zip(views, plain, (FIRST, SECOND)):
        mixed = ((1 - _TINT) * points.colors + _TINT * np.array(tint)).round().astype(np.uint8)
        tinted.append(replace(points, colors=mixed))
        cameras.append(Frustum(view.world_from_camera.numpy(), view.camera, length, tint, name=view.name))
    caption = f"{scene.name}: {views[0].name} and {views[1].name}"
    return (
        Space(caption, tuple(plain), cameras=tuple(cameras)),
        Space("which view sees what", tuple(tinted), cameras=tuple(cameras)),
    )
