"""Pair mining against scenes whose overlaps and angles are known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, AnalyticDataset, BoxScene, look_at, orbit
from PIL import Image

from geo3d.datasets import scene as scene_module
from geo3d.datasets.covisibility import Covisibility, DepthTolerance, assume_surface, matched_pixels, read_surface
from geo3d.datasets.pair_index import read_pair_index
from geo3d.datasets.pair_mining import (
    PairOptions,
    PairsConfig,
    measure_covisibility,
    mine_pairs,
    mine_scene,
    mine_scenes,
    select_pairs,
)
from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import open_dataset
from geo3d.errors import InputError
from geo3d.geometry import Camera
from geo3d.samples.pairs import ViewPairs

# 144 samples spread evenly measure an area to about 0.01; a hard outline adds about as much again.
SHARE = 0.025
HALL = ((-50.0, -50.0, -50.0), (2.0, 50.0, 50.0))  # the wall at x = 2 fills every view that looks along x


@pytest.fixture(autouse=True)
def analytic_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scene_module._REGISTRY, AnalyticDataset.kind, AnalyticDataset)


def covisibility(scene: BoxScene, **options) -> Covisibility:
    return measure_covisibility(scene, np.arange(len(scene.view_names)), PairOptions(**options))


def facing_wall(*eyes: tuple[float, float, float], **keywords) -> BoxScene:
    return BoxScene([look_at(eye, np.add(eye, (1, 0, 0))) for eye in eyes], room=HALL, **keywords)


def dense_truth(scene: BoxScene, first: int, second: int) -> tuple[float, float]:
    """Overlap, and angle at the first view's pixels, by following the ray of every pixel."""
    shares, angles = [], []
    for view, other in ((first, second), (second, first)):
        camera, pose = scene.camera(view), scene.pose(view)
        uv = camera.pixel_grid().reshape(-1, 2)
        depth = torch.from_numpy(scene.hit_depth(view, uv.numpy()))
        points = camera.unproject(uv, depth).numpy() @ pose[:3, :3].T + pose[:3, 3]
        seen, _ = scene.visible(points, other)
        rays = [points[seen] - scene.pose(v)[:3, 3] for v in (view, other)]
        cosine = (rays[0] * rays[1]).sum(1) / np.linalg.norm(rays[0], axis=1) / np.linalg.norm(rays[1], axis=1)
        shares.append(len(seen) / len(points))
        angles.append(np.median(np.arccos(np.clip(cosine, -1, 1))) if len(seen) else np.nan)
    return min(shares), float(angles[0])


# --- overlap by depth ---


@pytest.mark.parametrize("shift", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("direction", [(0, 1, 0), (0, 0, 1)])
def test_views_of_a_wall_overlap_by_what_the_shift_leaves(shift: float, direction: tuple[int, int, int]) -> None:
    scene = facing_wall((0, 0, 0), tuple(shift * np.array(direction)))
    width, height = 4.0, 3.0  # metres of wall in a view: 90 degrees wide, 2 m away, 4 : 3
    expected = 1 - shift / (width if direction[1] else height)
    found = covisibility(scene, min_overlap=0.1)
    assert found.evidence == "depth"
    assert found.overlap[0, 1] == found.overlap[1, 0] == pytest.approx(expected, abs=SHARE)
    assert found.overlap[0, 0] == 0
    assert found.angle[0, 1] == pytest.approx(dense_truth(scene, 0, 1)[1], abs=math.radians(0.5))


def test_the_smaller_direction_counts() -> None:
    scene = facing_wall((0, 0, 0), (1.5, 0, 0))  # from 0.5 m a view holds a quarter of the width and of the height
    found = covisibility(scene, min_overlap=0.01)
    assert found.overlap[0, 1] == pytest.approx(1 / 16, abs=SHARE)


def test_every_pair_of_a_furnished_room_agrees_with_following_every_ray() -> None:
    scene = BoxScene(orbit(8, 25.0), BOXES)
    found = covisibility(scene, min_overlap=0.05, min_known_depth=0.0)
    compared = 0
    for first in range(8):
        for second in range(first + 1, 8):
            overlap, angle = dense_truth(scene, first, second)
            if overlap < 0.1:
                continue
            compared += 1
            assert found.overlap[first, second] == pytest.approx(overlap, abs=SHARE), (first, second)
            if overlap > 0.3:  # fewer samples than that place a median badly
                assert found.angle[first, second] == pytest.approx(angle, abs=math.radians(3)), (first, second)
    assert compared >= 10


def test_depth_sees_the_partition_that_frusta_look_through() -> None:
    partition = [((0.9, -50, -50), (1.0, 50, 50))]
    eyes = ((0, 0, 0), (1.1, 0.2, 0))  # one on either side, looking the same way
    true = covisibility(facing_wall(*eyes, boxes=partition), min_overlap=0.01)
    guessed = covisibility(
        facing_wall(*eyes, boxes=partition, parts=("views", "poses")), min_overlap=0.01, assumed_depth=2.0
    )
    assert guessed.evidence == "frustum"
    assert guessed.overlap[0, 1] > 0.15
    assert true.overlap[0, 1] == 0


def test_a_pillar_hides_what_is_behind_it() -> None:
    pillar = [((1.0, -0.2, -50), (1.2, 0.2, 50))]
    scene = facing_wall((0, -0.5, 0), (0, 0.5, 0), boxes=pillar)
    overlap, _ = dense_truth(scene, 0, 1)
    assert overlap < 0.75 - 0.1  # the bare wall would give 0.75
    assert covisibility(scene, min_overlap=0.1).overlap[0, 1] == pytest.approx(overlap, abs=SHARE)


def test_unknown_depth_is_left_out_of_the_count() -> None:
    class Holes(BoxScene):
        def depth(self, index: int) -> np.ndarray:
            depth = super().depth(index)
            if index == 1:
                depth[::2] = 0
                depth[1::2, :40] = np.nan
            return depth

    poses = [look_at((0, y, 0), (1, y, 0)) for y in (0.0, 1.0)]
    found = covisibility(Holes(poses, room=HALL), min_overlap=0.1)
    assert found.overlap[0, 1] == pytest.approx(0.75, abs=2 * SHARE)  # fewer samples decide
    assert covisibility(Holes(poses, room=HALL), min_overlap=0.1, min_known_depth=0.6).overlap[0, 1] == 0


def test_a_view_without_any_depth_pairs_with_none(recwarn: pytest.WarningsRecorder) -> None:
    class Blind(BoxScene):
        def depth(self, index: int) -> np.ndarray:
            return super().depth(index) * (index != 1)

    poses = [look_at((0, y, 0), (1, y, 0)) for y in (0.0, 0.5, 1.0)]
    found = covisibility(Blind(poses, room=HALL), min_known_depth=0.0)
    assert found.overlap[1].max() == 0
    assert found.overlap[0, 2] == pytest.approx(0.75, abs=SHARE)
    assert not recwarn.list


@pytest.mark.parametrize(
    "second",
    [
        Camera(200, 90, 120.0, 110.0, 80.0, 50.0),
        Camera(160, 120, 90.0, 90.0, 79.5, 59.5, "OPENCV", (-0.12, 0.02, 1e-3, -1e-3)),
        Camera(160, 120, 70.0, 70.0, 79.5, 59.5, "OPENCV_FISHEYE", (0.02, -0.01, 0.0, 0.0)),
    ],
    ids=["pinhole", "distorted", "fisheye"],
)
def test_cameras_of_any_model_and_size_in_one_scene(second: Camera) -> None:
    poses = [look_at((0, 0, 0), (1, 0, 0)), look_at((0.3, 0.8, 0.2), (1.4, 0.6, 0.1))]
    scene = BoxScene(poses, room=HALL, camera=[Camera.from_fov(160, 120, 1.4), second])
    overlap, angle = dense_truth(scene, 0, 1)
    found = covisibility(scene, min_overlap=0.1)
    assert overlap > 0.2
    assert found.overlap[0, 1] == pytest.approx(overlap, abs=SHARE)
    assert found.angle[0, 1] == pytest.approx(angle, abs=math.radians(1))


def test_strong_distortion_does_not_fold_far_points_into_the_image() -> None:
    folding = Camera(160, 120, 150.0, 150.0, 79.5, 59.5, "OPENCV", (-0.3, 0.0, 0.0, 0.0))
    wide = Camera.from_fov(160, 120, math.radians(150))
    scene = BoxScene([look_at((0, 0, 0), (1, 0, 0))] * 2, room=HALL, camera=[wide, folding])
    surface = read_surface(scene, [0, 1], DepthTolerance(0.05, 0.03))
    rays = surface.xyz[:, 0] / surface.xyz[:, 0].norm(dim=0)
    folded = (folding.project(surface.xyz[:, 0].T @ surface.rotations[1]) - 79.5).abs().amax(1) < 40
    assert (rays[0][folded] < math.cos(0.8)).any()  # the camera's model does fold some back
    truly = [float(((rays[0] > math.cos(0.63)) & (rays[1].abs() < rays[0] * 0.6)).float().mean())]
    assert covisibility(scene, min_overlap=0.001).overlap[0, 1] <= truly[0] + SHARE


def test_far_from_the_origin_nothing_changes() -> None:
    far = np.array([5e5, 5e6, 100.0])  # metres, as in a national grid
    poses = orbit(5, 15.0)
    moved = [pose.copy() for pose in poses]
    for pose in moved:
        pose[:3, 3] += far
    room = np.array(((-3.0, -3.0, 0.0), (3.0, 3.0, 3.0)))
    here, there = (covisibility(BoxScene(p, room=r)) for p, r in ((poses, room), (moved, room + far)))
    np.testing.assert_allclose(here.overlap, there.overlap, atol=0.01)  # a sample at an edge may fall either way
    np.testing.assert_allclose(here.angle, there.angle, atol=1e-3)


def test_a_length_of_tolerance_needs_metres() -> None:
    assert DepthTolerance(0.05, 0.03).for_scene(BoxScene([], metric=False)) == DepthTolerance(0.0, 0.03)
    boxes = [((1.96, -50, -50), (2.0, 50, 50))]  # the second view sees the wall through a panel 4 cm thick

    class Panel(BoxScene):
        def hit_depth(self, index: int, uv: np.ndarray) -> np.ndarray:
            self._boxes = boxes if index == 0 else ()
            return super().hit_depth(index, uv)

    poses = [look_at((0, y, 0), (1, y, 0)) for y in (0.0, 0.5)]
    found = [
        covisibility(Panel(poses, room=HALL, metric=metric), relative_depth_tolerance=0.001).overlap[0, 1]
        for metric in (True, False)
    ]
    assert found[0] == pytest.approx(0.875, abs=SHARE)
    assert found[1] == 0


def test_depth_that_does_not_fit_its_camera_is_a_broken_scene() -> None:
    class Cut(BoxScene):
        def depth(self, index: int) -> np.ndarray:
            return super().depth(index)[:50]

    with pytest.raises(BrokenScene, match=r"view 0000: depth is 160 x 50, its camera 160 x 120"):
        covisibility(Cut(orbit(2, 10)))


def test_three_hundred_views_take_far_less_than_two_seconds() -> None:
    class Painted(BoxScene):
        map = np.full((480, 640), 2.0, dtype=np.float32)

        def depth(self, index: int) -> np.ndarray:
            return self.map

    eyes = [(0, shift, 0) for shift in np.linspace(0, 2, 300)]  # all pairs overlap: the dearest case
    camera = Camera.from_fov(640, 480, math.pi / 2)
    scene = Painted([look_at(eye, np.add(eye, (1, 0, 0))) for eye in eyes], camera=camera)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()  # not the clock on the wall: neighbours on the machine do not count
    pairs = mine_scene(scene, PairOptions())
    elapsed = time.process_time() - start
    torch.set_num_threads(threads)
    assert elapsed < 2.0  # 0.6 s on a server of 2023
    assert len(pairs) > 100


# --- overlap by tracks ---


def test_tracks_are_counted_and_their_angles_are_those_of_the_rays() -> None:
    points = np.random.default_rng(0).uniform((2.0, -2, -1), (2.0, 2, 1), (800, 3))
    scene = facing_wall(
        (0, 0, 0), (0, 0.9, 0), (0.2, -1.2, 0), (-20, 0, 0), parts=("views", "poses", "tracks"), points=points
    )
    found = covisibility(scene)
    assert found.evidence == "tracks"
    seen = [set(scene.visible(points, view)[0].tolist()) for view in range(4)]
    for first, second in ((0, 1), (0, 2), (1, 2), (1, 3)):
        shared = sorted(seen[first] & seen[second])
        assert len(shared) > 50
        rays = [points[shared] - scene.pose(view)[:3, 3] for view in (first, second)]
        cosine = (rays[0] * rays[1]).sum(1) / np.linalg.norm(rays[0], axis=1) / np.linalg.norm(rays[1], axis=1)
        expected = len(shared) / max(len(seen[first]), len(seen[second]))
        assert found.overlap[first, second] == found.overlap[second, first] == pytest.approx(expected, rel=1e-6)
        assert found.angle[first, second] == pytest.approx(np.median(np.arccos(cosine)), abs=1e-6)


def test_tracks_of_chosen_views_alone_and_doubled_observations() -> None:
    points = np.random.default_rng(0).uniform((2.0, -2, -1), (2.0, 2, 1), (400, 3))

    class Doubled(BoxScene):
        def tracks(self):
            tracks = super().tracks()
            for name in ("view", "point", "uv"):
                setattr(tracks, name, np.concatenate([getattr(tracks, name)] * 2))
            return tracks

    poses = [look_at((0, y, 0), (1, y, 0)) for y in (0.0, 0.3, 0.6)]
    keywords = {"room": HALL, "parts": ("views", "poses", "tracks"), "points": points}
    plain, doubled = BoxScene(poses, **keywords), Doubled(poses, **keywords)
    views = np.array([0, 2])
    found = [measure_covisibility(scene, views, PairOptions()) for scene in (plain, doubled)]
    np.testing.assert_array_equal(found[0].overlap, found[1].overlap)
    assert found[0].overlap[0, 1] == covisibility(plain).overlap[0, 2] > 0.5


def test_a_handful_of_shared_points_is_no_evidence() -> None:
    points = np.random.default_rng(0).uniform((2.0, -0.2, -0.2), (2.0, 0.2, 0.2), (19, 3))
    scene = facing_wall((0, 0, 0), (0, 0.1, 0), parts=("views", "poses", "tracks"), points=points)
    assert covisibility(scene).overlap.max() == 0


# --- overlap by frusta ---


def test_frusta_of_an_orbit_meet_at_its_middle() -> None:
    tele = Camera.from_fov(160, 120, math.radians(20))
    scene = BoxScene(orbit(6, 20.0, radius=2.0), parts=("views", "poses"), metric=False, camera=tele)
    surface = assume_surface(scene, range(6), assumed_depth=0)
    torch.testing.assert_close(surface.assumed_depth, torch.full((6,), math.hypot(2.0, 0.5)))
    found = covisibility(scene, min_overlap=0.1)
    assert found.evidence == "frustum"
    assert found.angle[0, 1] == pytest.approx(math.radians(20), abs=math.radians(2))
    assert found.overlap[0, 1] > found.overlap[0, 2] > found.overlap[0, 3]


def test_views_from_opposite_sides_share_no_surface() -> None:
    scene = BoxScene(orbit(3, 90.0), parts=("views", "poses"))
    assert covisibility(scene, min_overlap=0.01).overlap[0, 2] == 0


def test_in_rooms_the_crossing_of_the_axes_is_in_mid_air() -> None:
    surface = assume_surface(BoxScene(orbit(6, 20.0), parts=("views", "poses")), range(6), assumed_depth=0)
    assert surface.assumed_depth.tolist() == [2.0] * 6


def test_without_metres_axes_that_do_not_meet_need_a_depth() -> None:
    unscaled = facing_wall((0, 0, 0), (0, 0.5, 0), parts=("views", "poses"), metric=False)
    with pytest.raises(BrokenScene, match="assumed_depth"):
        covisibility(unscaled)
    found = covisibility(unscaled, assumed_depth=2.0)
    assert found.overlap[0, 1] == pytest.approx(0.875, abs=SHARE)


def test_axes_that_cross_behind_the_cameras_do_not_count() -> None:
    eye, outward = np.array((0.0, 0.0, 1.5)), [np.array((np.cos(a), np.sin(a), 0.0)) for a in np.linspace(0, 5, 7)]
    poses = [look_at(eye + 0.3 * direction, eye + direction) for direction in outward]
    with pytest.raises(BrokenScene, match="assumed_depth"):
        covisibility(BoxScene(poses, parts=("views", "poses"), metric=False))


# --- matched pixels ---


@pytest.mark.parametrize("evidence", ["depth", "tracks"])
def test_matched_pixels_show_the_same_point(evidence: str) -> None:
    points = np.random.default_rng(0).uniform((-3.0, -3, 0), (-3.0, 3, 3), (600, 3))
    scene = BoxScene(orbit(2, 15.0), BOXES, parts=("views", "poses", evidence), points=points)
    first, second = matched_pixels(scene, 0, 1, evidence, DepthTolerance(0.05, 0.03))
    assert len(first) == len(second) >= 40
    worlds = []
    for view, uv in ((0, first), (1, second)):
        uv = np.asarray(uv, dtype=np.float64)
        depth = torch.from_numpy(scene.hit_depth(view, uv))
        inside = scene.camera(view).unproject(torch.from_numpy(uv), depth).numpy()
        worlds.append(inside @ scene.pose(view)[:3, :3].T + scene.pose(view)[:3, 3])
    apart = np.linalg.norm(worlds[0] - worlds[1], axis=1)
    assert np.median(apart) < 1e-3
    assert np.quantile(apart, 0.95) < 0.1  # within the tolerance of depth, seen at a slant


# --- choosing ---


def table(overlaps: dict[tuple[int, int], float], degrees: dict[tuple[int, int], float], views: int) -> Covisibility:
    overlap, angle = np.zeros((views, views), np.float32), np.full((views, views), np.nan, np.float32)
    for (i, j), value in overlaps.items():
        overlap[i, j] = overlap[j, i] = value
        angle[i, j] = angle[j, i] = math.radians(degrees[i, j])
    return Covisibility(np.arange(views) * 10, overlap, angle, "depth")


def chosen(pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist()))


def test_ranges_are_held_and_scores_fall() -> None:
    degrees = {(0, 1): 4.9, (0, 2): 5.1, (0, 3): 30.0, (1, 2): 59.9, (1, 3): 60.1, (2, 3): 30.0}
    overlaps = dict.fromkeys(degrees, 0.8) | {(2, 3): 0.49}
    pairs = select_pairs(table(overlaps, degrees, 4), PairOptions())
    assert set(chosen(pairs)) == {(0, 20), (0, 30), (10, 20)}  # numbers of the scene's views, not of the table
    assert chosen(pairs)[0] == (0, 30)
    assert np.all(np.diff(pairs.score) <= 0)
    middle = 0.8 * math.sin(math.pi * (30 - 5) / (60 - 5))
    assert pairs.score[0] == pytest.approx(middle, rel=1e-5)
    narrowed = select_pairs(table(overlaps, degrees, 4), PairOptions(max_overlap=0.7, min_overlap=0.4))
    assert chosen(narrowed) == [(20, 30)]


def test_no_view_crowds_out_the_rest() -> None:
    views = 7
    edges = {(0, j): 0.9 for j in range(1, views)} | {(i, i + 1): 0.6 for i in range(1, views - 1)}
    degrees = dict.fromkeys(edges, 30.0)
    pairs = select_pairs(table(edges, degrees, views), PairOptions(max_pairs_per_view=2))
    count = np.bincount(np.concatenate([pairs.first, pairs.second]) // 10, minlength=views)
    assert count.max() <= 2
    assert count.min() >= 1  # each view is used, though all would rather have view 0


def test_of_near_duplicates_one_pair_is_taken() -> None:
    edges = {(0, 1): 0.95, (2, 3): 0.95, (0, 2): 0.8, (0, 3): 0.79, (1, 2): 0.79, (1, 3): 0.79}
    degrees = dict.fromkeys(edges, 30.0) | {(0, 1): 0.5, (2, 3): 0.5}
    assert chosen(select_pairs(table(edges, degrees, 4), PairOptions())) == [(0, 20)]
    degrees |= {(0, 1): 4.0}  # 0 and 1 are now two viewpoints
    assert chosen(select_pairs(table(edges, degrees, 4), PairOptions())) == [(0, 20), (10, 20)]


def test_nothing_in_range_says_what_there_is() -> None:
    edges = {(0, 1): 0.3}
    pairs = select_pairs(table(edges, {(0, 1): 20.0}, 2), PairOptions())
    assert len(pairs) == 0
    assert "largest overlap is at most 0.30, wanted from 0.5" in pairs.note
    pairs = select_pairs(table({(0, 1): 0.9}, {(0, 1): 2.0}, 2), PairOptions())
    assert "2.0 to 2.0 degrees apart" in pairs.note


def test_mined_pairs_are_truly_within_the_ranges() -> None:
    scene = BoxScene(orbit(18, 20.0), BOXES)
    pairs = mine_scene(scene, PairOptions(min_overlap=0.4, min_angle=10, max_angle=50))
    assert pairs.evidence == "depth"
    assert len(pairs) >= 9
    assert len(np.unique(np.concatenate([pairs.first, pairs.second]))) == 18
    for first, second in chosen(pairs):
        overlap, angle = dense_truth(scene, first, second)
        assert overlap > 0.4 - SHARE
        assert math.radians(10 - 3) < angle < math.radians(50 + 3)


def test_views_are_thinned_evenly() -> None:
    scene = BoxScene(orbit(30, 6.0), BOXES)
    pairs = mine_scene(scene, PairOptions(max_views=7, min_overlap=0.3))
    assert len(pairs)
    assert set(np.concatenate([pairs.first, pairs.second])) <= {0, 5, 10, 14, 15, 19, 24, 29}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_overlap": 0.9, "max_overlap": 0.8}, "min_overlap"),
        ({"max_overlap": 1.1}, "max_overlap"),
        ({"min_angle": -1}, "min_angle"),
        ({"min_track_overlap": 1.0}, "min_track_overlap"),
        ({"max_pairs_per_view": 0}, "max_pairs_per_view"),
        ({"max_views": -1}, "max_views"),
        ({"depth_tolerance": float("nan")}, "depth_tolerance"),
    ],
)
def test_options_that_cannot_be_meant(options: dict, named: str, tmp_path) -> None:
    with pytest.raises(InputError, match=named):
        list(mine_scenes([], PairOptions(**options)))


# --- the whole ---


def test_a_collection_with_a_broken_and_an_empty_scene(tmp_path) -> None:
    root = AnalyticDataset.write(tmp_path / "set a", {"one room": 12, "two": "broken", "three": "empty", "four": 9})
    steps = []
    config = PairsConfig(data=(root,), out=tmp_path / "out" / "pairs.tsv", min_overlap=0.4)
    summary = mine_pairs(config, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4, "four"), (2, 4, "one room"), (3, 4, "three"), (4, 4, "two")]
    assert (summary.scenes, summary.broken, summary.without_pairs) == (4, 1, 1)
    assert summary.by_evidence == {"depth": summary.pairs}
    report = summary.report.read_text()
    assert "two.analytic at byte 7: the word is 'broken'" in report
    assert "scene three: has neither listed pairs nor posed views" in report
    assert "1 scenes without pairs, 1 broken" in str(summary)
    index = read_pair_index(summary.index)
    assert len(index) == summary.pairs >= 12
    assert [name for _, name in index.scenes] == ["four", "one room"]
    assert index.options["min_overlap"] == "0.4"
    with Image.open(summary.picture) as picture:
        assert picture.size[0] > 1000
        assert len(picture.getcolors(1 << 24)) > 1000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pairs.png", "pairs.report.txt", "pairs.tsv"]


def test_workers_do_not_change_the_index(tmp_path) -> None:
    root = AnalyticDataset.write(tmp_path / "set", {f"scene {i}": 6 + i for i in range(4)} | {"x": "broken"})
    written = []
    for workers in (1, 3):
        config = PairsConfig(data=(root,), out=tmp_path / f"{workers}.tsv", workers=workers, min_overlap=0.4)
        written.append(mine_pairs(config).index.read_bytes())
    assert written[0] == written[1]
    assert written[0].count(b"\n") > 20


def test_strict_stops_at_a_broken_scene(tmp_path) -> None:
    root = AnalyticDataset.write(tmp_path / "set", {"a": "broken", "b": 5})
    with pytest.raises(BrokenScene, match=r"a\.analytic at byte 7"):
        mine_pairs(PairsConfig(data=(root,), out=tmp_path / "pairs.tsv", strict=True))
    assert not (tmp_path / "pairs.tsv").exists()


def test_no_pair_anywhere_says_why_and_writes_no_index(tmp_path) -> None:
    root = AnalyticDataset.write(tmp_path / "set", {"a": 3, "b": "broken"})
    with pytest.raises(InputError, match=r"scene a: no pair of its 3 views .*scene b: .*'broken'"):
        mine_pairs(PairsConfig(data=(root,), out=tmp_path / "pairs.tsv", min_angle=80, max_angle=90))
    assert not (tmp_path / "pairs.tsv").exists()


def test_a_wrong_name_of_the_index_is_said_before_the_work(tmp_path) -> None:
    root = AnalyticDataset.write(tmp_path / "set", {"a": "broken"})  # strict: reading it would raise something else
    with pytest.raises(InputError, match=r"ends in \.tsv or \.parquet"):
        mine_pairs(PairsConfig(data=(root,), out=tmp_path / "pairs.csv", strict=True))


def test_missing_folder_and_no_folder(tmp_path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        mine_pairs(PairsConfig(data=(tmp_path / "nowhere",)))
    with pytest.raises(InputError, match="give one or more folders"):
        mine_pairs(PairsConfig(data=()))


# --- real captures ---


def test_an_object_capture_is_paired_by_its_tracks(data_folder) -> None:
    scene = open_dataset(data_folder / "mvimgnet")[0]
    pairs = mine_scene(scene, PairOptions())
    assert pairs.evidence == "tracks"
    assert len(pairs) > 100
    assert len(np.unique(np.concatenate([pairs.first, pairs.second]))) >= 54  # of 56; some share too few points
    tracks = scene.tracks()
    observed = [set(tracks.point[tracks.view == view].tolist()) for view in range(len(scene.view_names))]
    for k in range(0, len(pairs), 10):
        first, second = int(pairs.first[k]), int(pairs.second[k])
        shared = sorted(observed[first] & observed[second])
        assert pairs.overlap[k] == pytest.approx(len(shared) / max(len(observed[first]), len(observed[second])))
        rays = [tracks.xyz[shared] - scene.pose(view)[:3, 3] for view in (first, second)]
        cosine = (rays[0] * rays[1]).sum(1) / np.linalg.norm(rays[0], axis=1) / np.linalg.norm(rays[1], axis=1)
        assert pairs.angle[k] == pytest.approx(np.median(np.arccos(cosine)), abs=1e-5)


def test_captures_with_poses_alone_are_paired_by_their_frusta(data_folder) -> None:
    fox = open_dataset(data_folder / "fox")[0]
    pairs = mine_scene(fox, PairOptions())
    assert pairs.evidence == "frustum"
    assert set(np.concatenate([pairs.first, pairs.second])) == set(range(35))
    frames = open_dataset(data_folder / "scannet_frames")[0]
    found = mine_scene(frames, PairOptions())
    assert chosen(found) == [(0, 3)]  # four frames of a short walk: the first and the last
    assert found.evidence == "frustum"


def test_all_real_captures_together(data_folder, tmp_path) -> None:
    roots = tuple(data_folder / name for name in ("fox", "mvimgnet", "pairs"))
    summary = mine_pairs(PairsConfig(data=roots, out=tmp_path / "pairs.tsv"))
    assert summary.scenes == 4
    assert (summary.broken, summary.without_pairs) == (0, 0)
    assert set(summary.by_evidence) == {"frustum", "tracks", "listed"}
    report = summary.report.read_text()
    assert "32 frames skipped" in report  # of fox
    assert "3 images skipped" in report  # of mouse
    pairs = ViewPairs.from_index(summary.index)
    assert len(pairs) == summary.pairs
    for k in range(0, len(pairs), 60):
        assert all(min(image.size) > 200 for image in pairs.images(k))
    with Image.open(summary.picture) as picture:
        assert len(picture.getcolors(1 << 24)) > 10_000


# --- rooms that geo3d makes ---


def test_synthetic_rooms_and_objects(tmp_path) -> None:
    pytest.importorskip("embreex")
    from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic

    config = SyntheticConfig(out=tmp_path / "made", scenes=1, objects=1, views=12, width=160, height=120, workers=1)
    write_synthetic(config)
    roots = (tmp_path / "made" / "scannet", tmp_path / "made" / "mvimgnet")
    summary = mine_pairs(PairsConfig(data=roots, out=tmp_path / "pairs.tsv", min_overlap=0.4))
    assert set(summary.by_evidence) == {"depth", "tracks"}
    assert min(summary.by_evidence.values()) >= 5
    room = open_dataset(roots[0])[0]
    pairs = mine_scene(room, PairOptions(min_overlap=0.4))
    colors = []
    for first, second in chosen(pairs)[:5]:
        pixels = matched_pixels(room, first, second, "depth", PairOptions().tolerance)
        images = [np.array(room.image(view).convert("RGB"), dtype=np.float64) for view in (first, second)]
        at = [np.rint(uv).astype(int) for uv in pixels]
        seen = [image[p[:, 1], p[:, 0]] for image, p in zip(images, at)]
        shuffled = seen[1][np.random.default_rng(0).permutation(len(seen[1]))]
        colors.append((np.abs(seen[0] - seen[1]).mean(), np.abs(seen[0] - shuffled).mean()))
    matched, unmatched = np.mean(colors, axis=0)
    assert matched < 0.5 * unmatched  # the same surface has much the same colour from both sides
