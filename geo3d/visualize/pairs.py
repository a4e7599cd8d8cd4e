"""View pairs: of a mined file, or found in datasets; with what both views see."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo3d.datasets import Scene, open_dataset
from geo3d.datasets.pair_index import PairIndex, read_pair_index
from geo3d.datasets.pair_mining import PairOptions, PairsConfig, mine_pairs, pictured_pairs
from geo3d.errors import InputError
from geo3d.visualize.options import DrawingOptions
from geo3d.visualize.places import Place, lifted
from geo3d.viz.pairs import pairs_sheet
from geo3d.viz.picture import Frustum, ImagePanel, Picture3D, Points, Space

FIRST, SECOND = (31, 119, 220), (240, 130, 20)
_ENDINGS = (".tsv", ".parquet")
_TINT = 0.55


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
        mine_pairs(PairsConfig(data=tuple(path.absolute() for path in data), output=output))
        return read_pair_index(output)


def _both(scene: Scene, index: PairIndex) -> tuple[Space, ...]:
    """What both views of the first pair see, in their colours and tinted by the view."""
    if not {"depth", "poses"} <= scene.parts:
        return ()
    names = list(scene.view_names)
    views = [scene.view(names.index(index.views[codes[0]])) for codes in (index.first, index.second)]
    length = 0.05 * float(np.linalg.norm(np.ptp(lifted(views[0])[0], axis=0)))
    plain, tinted, cameras = [], [], []
    for view, tint in zip(views, (FIRST, SECOND)):
        xyz, _, colors = lifted(view)
        mixed = ((1 - _TINT) * colors + _TINT * np.array(tint)).round().astype(np.uint8)
        plain.append(Points(xyz, colors))
        tinted.append(Points(xyz, mixed))
        cameras.append(Frustum(view.world_from_camera.numpy(), view.camera, 2 * length, tint, name=view.name))
    caption = f"{Place(scene.name, scene).name}: {views[0].name} and {views[1].name}"
    return (
        Space(caption, tuple(plain), cameras=tuple(cameras)),
        Space("which view sees what", tuple(tinted), cameras=tuple(cameras)),
    )
