"""Registration: scans, truth, descriptors and scores, against what is known of a room made of boxes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from analytic_scenes import BOXES, ROOM, BoxScene, look_at

from geo3d.datasets.scene import Mesh
from geo3d.errors import InputError
from geo3d.geometry import Camera

pytest.importorskip("open3d", reason="open3d is not installed")

from geo3d.interop import open3d, registration


def box_room() -> Mesh:
    """The room of the analytic scenes and its boxes as triangles, with a colour a corner."""
    from dataset_builders import CUBE, CUBE_FACES

    vertices, faces = [], []
    for number, (low, high) in enumerate((ROOM, *BOXES)):
        vertices.append(np.asarray(low) + CUBE * (np.asarray(high) - np.asarray(low)))
        faces.append(CUBE_FACES + 8 * number)
    xyz = np.concatenate(vertices).astype(np.float32)
    colors = np.random.default_rng(0).random((len(xyz), 3)).astype(np.float32)
    return Mesh(xyz, np.concatenate(faces).astype(np.int64), colors)


@cache
def pair_of(upright: bool = True) -> registration.ScanPair:
    """Two views of the room, the same for all tests."""
    (pair,) = registration.scan_pairs(box_room(), 1, np.random.default_rng(3), upright)
    return pair


def test_a_view_of_a_mesh_is_what_geometry_says() -> None:
    camera = Camera(48, 36, 30.25, 29.5, 20.125, 15.75)
    pose = look_at((2.0, -1.5, 1.4), (0.0, 0.0, 0.8))
    view = registration.Surroundings(box_room()).view("a", camera, pose)
    truth = BoxScene([pose], BOXES, camera=camera).depth(0)
    known = view.depth.numpy() > 0  # surfaces seen at more than 80 degrees are not
    assert known.mean() > 0.9
    np.testing.assert_allclose(view.depth.numpy()[known], truth[known], atol=1e-5)


@pytest.mark.parametrize("upright", [True, False])
def test_the_true_motion_carries_one_scan_onto_the_other(upright: bool) -> None:
    pair = pair_of(upright)
    assert 0.3 <= pair.overlap <= 0.7
    motion = pair.target_from_source
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-12)
    assert (abs(motion[2, 2] - 1) < 1e-12) == upright
    # Walls lie on walls: a good share of the source's points is close to one of the target's, and their normals agree.
    source, target = (scan.cloud for scan in (pair.source, pair.target))
    moved = source.xyz.double().numpy() @ motion[:3, :3].T + motion[:3, 3]
    distance, row = torch.cdist(torch.from_numpy(moved[::50]).float(), target.xyz).min(1)
    near = distance < 0.03
    assert 0.2 < near.float().mean() < 0.9
    normals = source.normals[::50].double() @ torch.from_numpy(motion[:3, :3].T)
    cosine = (normals * target.normals[row]).sum(1)[near]
    assert cosine.median() > 0.99
    # Sensors are where scans begin, and normals look at them.
    np.testing.assert_allclose(pair.source.sensor, 0, atol=1e-9)
    assert ((source.normals * -source.xyz).sum(1) >= 0).all()


def test_perfect_descriptors_register_and_random_ones_do_not() -> None:
    pair = pair_of()
    rows = tuple(registration.drawn_keypoints(scan, 800) for scan in (pair.source, pair.target))
    motion = pair.target_from_source
    there = pair.source.cloud.xyz[rows[0]].double().numpy() @ motion[:3, :3].T + motion[:3, 3]
    here = pair.target.cloud.xyz[rows[1]].double().numpy()
    # Waves of the true place tell points apart as far as they are apart, within some half a metre.
    waves = 4 * np.random.default_rng(0).normal(size=(3, 32))
    told = [np.concatenate([np.sin(place @ waves), np.cos(place @ waves)], 1) for place in (there, here)]
    score = registration.score_pair(pair, rows, told)
    assert score.inlier_ratio[2] > 0.6
    assert score.error < 0.2  # measured: 0.02 to 0.06; Open3D's threads draw in an order of their own
    noise = [np.random.default_rng(seed).normal(size=(len(r), 32)) for seed, r in enumerate(rows)]
    lost = registration.score_pair(pair, rows, noise)
    assert lost.inlier_ratio[1] < 0.1


def test_matches_are_mutual_nearest_neighbours() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(50, 8)), rng.normal(size=(60, 8))
    unit = [torch.from_numpy(f / np.linalg.norm(f, axis=1, keepdims=True)) for f in (source, target)]
    near = torch.cdist(*unit)
    mutual = [(i, int(j)) for i, j in enumerate(near.argmin(1)) if near[:, j].argmin() == i]
    assert sorted(map(tuple, registration.matches(source, target).tolist())) == mutual


def test_stages_count_alike_and_main_directions_are_kept() -> None:
    rng = np.random.default_rng(0)
    features = [np.concatenate([100 + rng.normal(size=(30, 3)), 1e-3 * rng.normal(size=(30, 5))], 1) for _ in range(2)]
    whole = registration.balanced(features, [3, 5], None)
    for rows in whole:
        np.testing.assert_allclose(np.linalg.norm(rows[:, :3], axis=1), 1)
        np.testing.assert_allclose(np.linalg.norm(rows[:, 3:], axis=1), 1)
    fewer = registration.balanced(features, [3, 5], 6)
    assert fewer[0].shape == (30, 6)
    kept, all_of_it = (np.square(np.concatenate(parts)).sum() for parts in (fewer, whole))
    assert 6 / 8 < kept / all_of_it < 1
    with pytest.raises(InputError, match=r"add up to 8, got 7"):
        registration.balanced([features[0][:, :7]], [3, 5])


def test_turned_features_do_not_mind_a_turn() -> None:
    """A stand-in for an encoder, whose features are places: their mean over the circle has no x and y left."""
    pair = pair_of()

    seen = []

    class Places:
        def __call__(self, cloud, sensor, layers=None):
            seen.append(sensor.numpy())
            return type("Encoded", (), {"points": torch.cat([cloud.xyz, cloud.normals], 1)})

    rows = registration.drawn_keypoints(pair.source, 20)
    found = registration.turned_features(Places(), pair.source, rows, turns=4)
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]], 0, atol=1e-6)
    np.testing.assert_allclose(found[:, 2], pair.source.cloud.xyz[rows, 2])
    x, y, z = pair.source.sensor  # turned along
    np.testing.assert_allclose(np.stack(seen), [[x, y, z], [-y, x, z], [-x, -y, z], [y, -x, z]], atol=1e-5)


def test_fpfh_is_open3ds_for_the_rows_asked_for() -> None:
    import open3d as library

    pair = pair_of()
    every = pair.source.keypoints()
    scan = registration.Scan(pair.source.cloud, pair.source.sensor)
    cloud = open3d.to_point_cloud(type(scan.cloud)(scan.cloud.xyz[every], normals=scan.cloud.normals[every]))
    search = library.geometry.KDTreeSearchParamHybrid(radius=0.25, max_nn=100)
    wanted = library.pipelines.registration.compute_fpfh_feature(cloud, search).data.T
    chosen = [7, 3, 100]
    np.testing.assert_allclose(registration.fpfh(scan, every[chosen]), wanted[chosen])
