"""Pair mining: find the view pairs of any collection of scenes that are worth training on.

A pair is worth it when much of one view is seen by the other (overlap) from another viewpoint (angle). Nobody publishes
how CroCo's real pairs were chosen; what is done here, and why, is told in ``docs/pairs.md``.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

from geo3d.datasets.covisibility import (
    EVIDENCE,
    Covisibility,
    DepthTolerance,
    assume_surface,
    matched_pixels,
    read_surface,
    surface_covisibility,
    track_covisibility,
)
from geo3d.datasets.files import make_folder
from geo3d.datasets.image_files import to_rgb
from geo3d.datasets.pair_index import IndexedDataset, PairIndex, PairIndexBuilder, index_writer
from geo3d.datasets.quarantine import BrokenScene, Quarantine, Remark
from geo3d.datasets.scene import Scene, SceneDataset, open_dataset
from geo3d.errors import InputError
from geo3d.viz.pairs import PicturedPair, draw_pairs
from geo3d.writing import replacing

#: Called after each scene with the number of scenes done, of all scenes, and the scene's name.
Progress = Callable[[int, int, str], None]

_PICTURED = 12
_DUPLICATE_ANGLE = math.radians(1)
# Overlap from which two views under a degree apart show the same. Even neighbouring frames share few of their tracks.
_DUPLICATE_OVERLAP = {"depth": 0.9, "frustum": 0.9, "tracks": 0.7}


@dataclass
class PairOptions:
    """Which view pairs are wanted, and how they are looked for."""

    min_overlap: float = 0.5
    """Smallest share of one view's pixels that the other sees, the smaller of both directions (0 to 1)."""
    max_overlap: float = 1.0
    """Largest overlap (0 to 1); near duplicates are kept out by the angle already."""
    min_track_overlap: float = 0.25
    """Smallest overlap counted in shared COLMAP points, which are lost sooner than their surface (0 to 1)."""
    min_angle: float = 5.0
    """Smallest median angle between the viewing rays to the shared surface (degrees); less shows no parallax."""
    max_angle: float = 60.0
    """Largest such angle (degrees); beyond it, surfaces foreshorten until little can be matched."""
    max_pairs_per_view: int = 8
    """No view is in more pairs than this (count)."""
    max_views: int = 300
    """Views looked at per scene, evenly spaced; 0 for all (count). Time grows with the square of it."""
    depth_tolerance: float = 0.05
    """Two depths within this length are one surface (metres; unused where a scene has no metric scale)."""
    relative_depth_tolerance: float = 0.03
    """Two depths within this share of the depth are one surface (0 to 1); the larger tolerance counts."""
    min_known_depth: float = 0.25
    """Least share of a view's pixels, and of what two views have in common, with known depth (0 to 1)."""
    assumed_depth: float = 0.0
    """Depth that views look at, for scenes with poses alone (scene's units). 0 estimates it; see docs/pairs.md."""

    def check(self) -> None:
        """Raise InputError for values that cannot be meant."""
        for low, high, top in (
            ("min_overlap", "max_overlap", 1),
            ("min_track_overlap", "max_overlap", 1),
            ("min_angle", "max_angle", 180),
        ):
            if not 0 <= getattr(self, low) < getattr(self, high) <= top:
                values = f"{getattr(self, low)} and {getattr(self, high)}"
                raise InputError(f"{low} and {high} must rise within 0 to {top}, got {values}")
        for name, low in (
            ("max_pairs_per_view", 1),
            ("max_views", 0),
            ("depth_tolerance", 0),
            ("relative_depth_tolerance", 0),
            ("min_known_depth", 0),
            ("assumed_depth", 0),
        ):
            if not getattr(self, name) >= low:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")

    @property
    def tolerance(self) -> DepthTolerance:
        """How far two depths of one surface point may differ."""
        return DepthTolerance(self.depth_tolerance, self.relative_depth_tolerance)

    def described(self) -> dict[str, str]:
        """Name and value of every option, for the header of an index."""
        return {f.name: str(getattr(self, f.name)) for f in fields(PairOptions)}


@dataclass(kw_only=True)
class PairsConfig(PairOptions):
    """Find view pairs in folders of scenes and write them to an index file."""

    data: tuple[Path, ...]
    """Folders of datasets, of any layout that geo3d reads."""
    split: Path | None = None
    """Text file with a scene name a line, such as ScanNet's official lists: only those scenes are mined."""
    out: Path = Path("pairs.tsv")
    """Index to write; .tsv for plain text, .parquet for parquet (extra parquet)."""
    picture: Path | None = None
    """Picture (.png) of a dozen pairs to look at; beside the index when not given."""
    workers: int = 1
    """Scenes looked at side by side, in threads (count)."""
    strict: bool = False
    """Stop at the first broken scene instead of naming it in the report and going on."""


@dataclass(frozen=True)
class ScenePairs:
    """The chosen pairs of one scene, best first.

    Args:
        first, second: (P,) int32 view indices.
        overlap: (P,) float32 in [0, 1]; NaN for listed pairs.
        angle: (P,) float32 radians; NaN for listed pairs.
        score: (P,) float32; NaN for listed pairs.
        evidence: one of ``covisibility.EVIDENCE``.
        note: why there are none, where there are none.
    """

    first: np.ndarray
    second: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    score: np.ndarray
    evidence: str = "listed"
    note: str = ""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def listed(cls, pairs: np.ndarray, note: str = "") -> ScenePairs:
        """Pairs (P, 2) without scores."""
        first, second = np.asarray(pairs, dtype=np.int32).reshape(-1, 2).T
        unknown = np.full(len(first), np.nan, dtype=np.float32)
        return cls(first, second, unknown, unknown, unknown, note=note)


@dataclass(frozen=True)
class MinedScene:
    """What mining one scene gave: its pairs, or why it could not be read.

    Args:
        dataset: number of its dataset among those that were handed in.
        name: its name.
        view_names: names of its views; empty when broken.
        pairs: its pairs; None when broken.
        broken: what is wrong with it.
        remarks: what its reader left out of it.
    """

    dataset: int
    name: str
    view_names: Sequence[str] = ()
    pairs: ScenePairs | None = None
    broken: BrokenScene | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def note(self) -> str:
        """Why a readable scene gave no pairs."""
        return f"scene {self.name}: {self.pairs.note}"


@dataclass
class PairsSummary:
    """What :func:`mine_pairs` did.

    Args:
        index, picture, report: the files it wrote.
        scenes: scenes looked at, broken ones included.
        pairs: pairs found.
        by_evidence: how many pairs rest on which evidence.
        without_pairs: scenes that can be read and gave none.
        broken: scenes that cannot be read.
        seconds: time taken to mine, without the picture.
    """

    index: Path
    picture: Path
    report: Path
    scenes: int = 0
    pairs: int = 0
    by_evidence: Counter = field(default_factory=Counter)
    without_pairs: int = 0
    broken: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        evidence = ", ".join(f"{self.by_evidence[name]} {name}" for name in EVIDENCE if self.by_evidence[name])
        lines = [
            f"{self.pairs} pairs ({evidence or 'none'}) in {self.scenes} scenes, {self.seconds:.1f} s: {self.index}",
            f"a dozen of them to look at: {self.picture}",
        ]
        if self.without_pairs or self.broken:
            lines.append(f"{self.without_pairs} scenes without pairs, {self.broken} broken; reasons in {self.report}")
        return "\n".join(lines)


def mine_pairs(config: PairsConfig, progress: Progress | None = None) -> PairsSummary:
    """Mine all scenes of ``config.data``, write the index, a picture and a report.

    Raises:
        InputError: a folder that is no dataset, options or an index name that cannot be meant, or no pair anywhere.
        BrokenScene: the first broken scene, where ``config.strict``.
    """
    config.check()
    index_writer(config.out)  # a wrong suffix is said before the work, not after
    if not config.data:
        raise InputError("no data: give one or more folders of datasets")
    datasets = [
        open_dataset(root, quarantine=Quarantine(strict=config.strict), split=config.split) for root in config.data
    ]
    picture = config.picture or config.out.with_suffix(".png")
    report = config.out.with_suffix(".report.txt")
    for path in (config.out, picture):
        make_folder(path.parent)
    summary = PairsSummary(config.out, picture, report, scenes=sum(len(dataset) for dataset in datasets))
    indexed = [IndexedDataset(dataset.kind, dataset.root) for dataset in datasets]
    builder = PairIndexBuilder(indexed, config.described())
    notes = []
    start = time.perf_counter()
    for done, mined in enumerate(mine_scenes(datasets, config, config.workers), 1):
        _account(mined, builder, summary, notes)
        if progress is not None:
            progress(done, summary.scenes, mined.name)
    summary.seconds = time.perf_counter() - start

    _write_report(summary, notes + [report for d in datasets if (report := d.quarantine.report())])
    if not summary.pairs:
        raise no_pairs(datasets, notes)
    index = builder.build()
    index.write(config.out)
    with replacing(picture) as temporary:
        draw_pairs(pictured_pairs(index, datasets, config.tolerance), temporary)
    return summary


def mine_scenes(datasets: Sequence[SceneDataset], options: PairOptions, workers: int = 1) -> Iterator[MinedScene]:
    """Mine the scenes of some datasets, in their order whatever the number of workers.

    Broken scenes and remarks go to the quarantine of their dataset, and are yielded too.

    Raises:
        InputError: options that cannot be meant.
        BrokenScene: the first broken scene of a dataset whose quarantine is strict.
    """
    options.check()
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    tasks = [(number, name) for number, dataset in enumerate(datasets) for name in dataset.scene_names]
    mine = partial(_mine_one, datasets, options)
    with _one_torch_thread(workers > 1), ThreadPoolExecutor(workers) as pool:
        for mined in pool.map(mine, tasks) if workers > 1 else map(mine, tasks):
            if mined.broken is not None:
                datasets[mined.dataset].quarantine.add(mined.broken)
            datasets[mined.dataset].quarantine.note(mined.remarks)
            yield mined


def no_pairs(datasets: Sequence[SceneDataset], notes: Sequence[str]) -> InputError:
    """The error for datasets that gave no pair; ``notes`` say why the readable scenes did not."""
    reasons = [*notes, *(str(entry) for dataset in datasets for entry in dataset.quarantine.entries)]
    more = f"; and {len(reasons) - 3} scenes more" if len(reasons) > 3 else ""
    roots = ", ".join(str(dataset.root) for dataset in datasets)
    return InputError(f"no view pair in {roots}: {'; '.join(reasons[:3])}{more}")


def mine_scene(scene: Scene, options: PairOptions) -> ScenePairs:
    """The pairs of one scene: those that it lists, else the best by what can be measured.

    Raises:
        BrokenScene: a file of the scene cannot be read, or its depth can neither be read nor assumed.
    """
    if "pairs" in scene.parts:
        return ScenePairs.listed(scene.pairs(), note="lists no pairs")
    if not {"views", "poses"} <= scene.parts:
        return ScenePairs.listed(np.zeros((0, 2)), note="has neither listed pairs nor posed views")
    views = _evenly_spaced(len(scene.view_names), options.max_views)
    if len(views) < 2:
        return ScenePairs.listed(np.zeros((0, 2)), note=f"has {len(views)} views")
    return select_pairs(measure_covisibility(scene, views, options), options)


def measure_covisibility(scene: Scene, views: np.ndarray, options: PairOptions) -> Covisibility:
    """Overlap and angle of all pairs of ``views``, by the best evidence that the scene holds.

    Args:
        scene: needs views and poses.
        views: (V,) int64 view indices.
        options: tolerances and the overlap under which a pair is of no interest.
    """
    if "depth" not in scene.parts and "tracks" in scene.parts:
        return Covisibility(views, *track_covisibility(scene, views.tolist()), "tracks")
    if "depth" in scene.parts:
        evidence, surface = "depth", read_surface(scene, views.tolist(), options.tolerance)
    else:
        evidence, surface = "frustum", assume_surface(scene, views.tolist(), options.assumed_depth)
    measured = surface_covisibility(surface, options.min_overlap, options.min_known_depth)
    return Covisibility(views, *measured, evidence)


def select_pairs(covisibility: Covisibility, options: PairOptions) -> ScenePairs:
    """Choose pairs greedily by score = overlap x viewpoint change, within the ranges of ``options``.

    The viewpoint change counts 0 at both ends of the range of angles and 1 in its middle, along half a sine wave.
    Views that are in no pair yet are served first; no view is in more than ``max_pairs_per_view`` pairs; and of pairs
    whose first views are near duplicates and whose second views are, one is taken.
    """
    overlap, angle, evidence = covisibility.overlap, covisibility.angle, covisibility.evidence
    floor = options.min_track_overlap if evidence == "tracks" else options.min_overlap
    low, high = math.radians(options.min_angle), math.radians(options.max_angle)
    overlaps = np.triu((overlap >= floor) & (overlap <= options.max_overlap), 1)
    first, second = np.nonzero(overlaps & (angle >= low) & (angle <= high))
    if len(first) == 0:
        return ScenePairs.listed(np.zeros((0, 2)), note=_shortfall(covisibility, overlaps, floor))
    score = overlap[first, second] * np.sin(np.pi * (angle[first, second] - low) / (high - low))
    ranked = np.lexsort((second, first, -score))
    duplicate = (overlap >= _DUPLICATE_OVERLAP[evidence]) & (angle <= _DUPLICATE_ANGLE)
    np.fill_diagonal(duplicate, True)
    chosen = ranked[_greedy(first[ranked], second[ranked], duplicate, options.max_pairs_per_view)]
    first, second = first[chosen], second[chosen]
    views = covisibility.views.astype(np.int32)
    scores = (column.astype(np.float32) for column in (overlap[first, second], angle[first, second], score[chosen]))
    return ScenePairs(views[first], views[second], *scores, evidence)


def _greedy(first: np.ndarray, second: np.ndarray, duplicate: np.ndarray, limit: int) -> list[int]:
    """Which of the ranked candidates are taken, in rising order."""
    alike = [np.flatnonzero(row) for row in duplicate]
    taken = np.zeros_like(duplicate)  # pairs that equal a chosen one, up to near duplicates
    used = [0] * len(duplicate)
    chosen = []
    candidates = list(zip(first.tolist(), second.tolist()))
    for newcomers_only in (True, False):
        for rank, (i, j) in enumerate(candidates):
            newcomer = used[i] == 0 or used[j] == 0
            if (newcomers_only and not newcomer) or max(used[i], used[j]) >= limit or taken[i, j]:
                continue
            chosen.append(rank)
            used[i] += 1
            used[j] += 1
            taken[np.ix_(alike[i], alike[j])] = True
            taken[np.ix_(alike[j], alike[i])] = True
    return sorted(chosen)


def _shortfall(covisibility: Covisibility, overlaps: np.ndarray, floor: float) -> str:
    """Why no pair of a scene is within the ranges."""
    where = f"no pair of its {len(covisibility.views)} views is within the ranges (evidence: {covisibility.evidence})"
    if not overlaps.any():
        return f"{where}: the largest overlap is at most {covisibility.overlap.max():.2f}, wanted from {floor}"
    degrees = np.degrees(covisibility.angle[overlaps])
    return f"{where}: those that overlap enough are {np.nanmin(degrees):.1f} to {np.nanmax(degrees):.1f} degrees apart"


def _evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of ``count`` indices, evenly spaced; all where the limit is 0."""
    if limit == 0 or count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def _mine_one(datasets: Sequence[SceneDataset], options: PairOptions, task: tuple[int, str]) -> MinedScene:
    number, name = task
    try:
        scene = datasets[number].open(name)
        pairs = mine_scene(scene, options)
        view_names = scene.view_names if "views" in scene.parts else ()
        return MinedScene(number, name, view_names, pairs, remarks=scene.remarks)
    except BrokenScene as broken:
        return MinedScene(number, name, broken=broken)


@contextmanager
def _one_torch_thread(active: bool) -> Iterator[None]:
    """Keep torch from starting its own threads in each of ours."""
    threads = torch.get_num_threads()
    if active:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _account(mined: MinedScene, builder: PairIndexBuilder, summary: PairsSummary, notes: list[str]) -> None:
    """Add one scene to the index, the summary and the notes of the report."""
    if mined.broken is not None:
        summary.broken += 1
    elif not len(mined.pairs):
        summary.without_pairs += 1
        notes.append(mined.note)
    else:
        pairs = mined.pairs
        summary.pairs += len(pairs)
        summary.by_evidence[pairs.evidence] += len(pairs)
        columns = {name: getattr(pairs, name) for name in ("first", "second", "overlap", "angle", "score")}
        builder.add(mined.dataset, mined.name, mined.view_names, columns, pairs.evidence)


def _write_report(summary: PairsSummary, notes: list[str]) -> None:
    with replacing(summary.report) as temporary:
        temporary.write_text("\n".join([str(summary), *notes]) + "\n", encoding="utf-8")


def pictured_pairs(
    index: PairIndex, datasets: Sequence[SceneDataset], tolerance: DepthTolerance, count: int = _PICTURED
) -> list[PicturedPair]:
    """So many pairs spread over the whole index, as :func:`geo3d.viz.pairs.draw_pairs` takes them."""
    pictured = []
    for row in _evenly_spaced(len(index), count):
        number, name = index.scenes[index.scene[row]]
        scene, evidence = datasets[number].open(name), EVIDENCE[index.evidence[row]]
        views = [index.views[index.first[row]], index.views[index.second[row]]]
        first, second = (list(scene.view_names).index(view) for view in views)
        scores = f"overlap {index.overlap[row]:.2f}   angle {math.degrees(index.angle[row]):.0f}°   "
        captions = (
            f"{scores if evidence != 'listed' else ''}evidence {evidence}",
            f"{scene.name}: {views[0]} | {views[1]}",
        )
        try:
            matched = matched_pixels(scene, first, second, evidence, tolerance)
            first_image, second_image = (to_rgb(scene.image(v), str(scene.root), scene.name) for v in (first, second))
        except BrokenScene as error:
            pictured.append(PicturedPair(captions, problem=str(error)))
        else:
            pictured.append(PicturedPair(captions, (first_image, second_image), matched))
    return pictured
