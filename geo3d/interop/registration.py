"""Learnt features in Open3D's registration: descriptors of points for it, pairs of partial views, and what is right.

Two partial scans of a place are aligned by points that look alike (``registration_ransac_based_on_feature_matching``).
Open3D's own descriptor is FPFH, a histogram of normals around a point; here are an encoder's features in its place, and
what is needed to say which of them finds more true matches.

Follows the measures that are usual since 3DMatch (Zeng et al., 2017): inlier ratio, the share of matches that lie close
under the true motion, and registration recall, the share of pairs whose estimated motion carries the points that both
scans see to within a distance of where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.scene import Mesh
from geo3d.errors import InputError, require_extra
from geo3d.geometry import Camera, PointCloud, View
from geo3d.geometry.rotation import random_rotation
from geo3d.interop import open3d
from geo3d.models.voxel_points import points_in_voxels

if TYPE_CHECKING:
    from geo3d.inference import LoadedEncoder

#: Metres between keypoints.
EDGE = 0.05
#: Distances, metres, within which a match is called right, and a pair registered.
WITHIN, REGISTERED = (0.05, 0.1, 0.2), (0.1, 0.2, 0.3)
_SENSOR = Camera.from_fov(240, 180, np.radians(75))
_NOISE = 0.0015  # metres, standard deviation at a depth of one metre; it grows with the square of the depth
_STEEPEST = np.cos(np.radians(80))  # surfaces seen more aslant than this give no depth
_NEIGHBOURS = 30  # of the normals
_HEIGHT, _CLEAR, _FAR = (1.1, 1.7), 0.4, 8.0  # metres of the sensor above the floor, from anything, of its depth
_FILLED, _FEWEST = 0.6, 1500  # share of pixels with depth and keypoints that a scan has at least
_TRIES = 300  # places that are tried for each pair
_RANSAC = (100_000, 0.999)


@dataclass(frozen=True)
class Scan:
    """What one depth image shows.

    Args:
        cloud: points in the scan's own frame, z up unless it was turned any way, with colours and normals.
        sensor: (3,) float64 where it was taken from, in that frame.
    """

    cloud: PointCloud
    sensor: np.ndarray

    def keypoints(self, edge: float = EDGE) -> Tensor:
        """(K,) int64 rows of the points that stand for the scan: one in every voxel."""
        return points_in_voxels(self.cloud, edge).index


@dataclass(frozen=True)
class ScanPair:
    """Two scans of one place, and how they lie to each other.

    Args:
        source, target: the scans, each in a frame of its own.
        target_from_source: (4, 4) float64, the true motion.
        overlap: share of the keypoints of one that the other sees too, the smaller of both directions.
    """

    source: Scan
    target: Scan
    target_from_source: np.ndarray
    overlap: float


@dataclass(frozen=True)
class PairScore:
    """What came of registering a pair.

    Args:
        inlier_ratio: share of the mutual matches within each of :data:`WITHIN` under the true motion.
        matches: how many there were.
        error: metres, root mean square, by which the estimated motion misplaces what both scans see.
        motion: (4, 4) float64, the estimated motion.
    """

    inlier_ratio: tuple[float, ...]
    matches: int
    error: float
    motion: np.ndarray


# --- descriptors ---


def turned_features(
    encoder: LoadedEncoder, scan: Scan, rows: Tensor, turns: int = 4, layers: Sequence[int | str] | None = None
) -> np.ndarray:
    """Features that care less which way a scan is turned: the mean over several turns about z.

    Sparse convolutions and windows lie along the axes of the scan, so that a wall's features change as it turns. With
    each turn the lattice falls differently, too.

    Args:
        encoder: of kind ``voxels``.
        scan: what is encoded.
        rows: (K,) points whose features are asked for.
        turns: how many, spread evenly over the circle.
        layers: stages, as the encoder takes them.

    Returns:
        (K, C) float32, all stages side by side.
    """
    total, cloud = 0.0, scan.cloud
    for turn in range(turns):
        rotation = torch.tensor(_about_z(2 * np.pi * turn / turns), dtype=cloud.xyz.dtype)
        normals = None if cloud.normals is None else cloud.normals @ rotation.T
        turned = replace(cloud, xyz=cloud.xyz @ rotation.T, normals=normals)
        sensor = rotation @ torch.as_tensor(scan.sensor, dtype=rotation.dtype)
        total = total + encoder(turned, sensor=sensor, layers=layers).points[rows]
    return (total / turns).cpu().numpy()


def balanced(features: Sequence[Any], channels: Sequence[int], columns: int | None = 64) -> list[np.ndarray]:
    """Features of scans that are to be matched, of which every stage counts alike.

    What all points share is taken off each stage, its rows are made of unit length, and stages stand side by side
    again. Then the main directions are kept, as Open3D's search slows down with the number of columns.

    Args:
        features: (K, C) of each scan.
        channels: of each stage; they add up to C.
        columns: at most so many are left; None: all.

    Raises:
        InputError: features of another number of columns than the stages have.
    """
    rows = [np.asarray(f, np.float64) for f in features]
    ends = np.cumsum(channels)
    if any(f.shape[1] != ends[-1] for f in rows):
        raise InputError(f"balanced: stages of {list(channels)} channels add up to {ends[-1]}, got {rows[0].shape[1]}")
    middle = np.concatenate(rows).mean(0)
    parts = [np.concatenate([_unit(p) for p in np.split(f - middle, ends[:-1], 1)], 1) for f in rows]
    if columns is None or columns >= ends[-1]:
        return parts
    _, axes = np.linalg.eigh(sum(p.T @ p for p in parts))
    return [p @ axes[:, ::-1][:, :columns] for p in parts]


def rooted(histograms: Sequence[Any]) -> list[np.ndarray]:
    """Histograms, such as FPFH, of scans that are to be matched, by their root, less what all points share.

    The root keeps a few full bins from drowning the others, as it does for SIFT (Arandjelovic and Zisserman, 2012).
    """
    rows = [np.sqrt(np.asarray(h, np.float64).clip(0)) for h in histograms]
    rows = [_unit(r) for r in rows]
    middle = np.concatenate(rows).mean(0)
    return [r - middle for r in rows]


def joined(*descriptors: Sequence[Any]) -> list[np.ndarray]:
    """Several descriptors of the same scans side by side, each of unit length."""
    return [np.concatenate([_unit(d) for d in of_scan], 1) for of_scan in zip(*descriptors)]


def fpfh(scan: Scan, rows: Tensor, among: Tensor | None = None, radius: float = 5 * EDGE) -> np.ndarray:
    """Open3D's fast point feature histograms (K, 33) of some points among others; normals are the scan's.

    Args:
        scan: what is described.
        rows: (K,) points whose histograms are asked for.
        among: rows of the points that are looked at, all keypoints when not given; ``rows`` are some of them.
        radius: metres that are looked around.

    Raises:
        InputError: a scan without normals.
        MissingExtra: Open3D is not installed.
    """
    if scan.cloud.normals is None:
        raise InputError("FPFH are made of normals, and the scan has none; estimate them, towards its sensor")
    o3d = require_extra("open3d", "open3d", "computing FPFH")
    among = scan.keypoints() if among is None else among
    cloud = open3d.to_point_cloud(_keypoint_cloud(scan, among))
    search = o3d.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=100)
    found = open3d.from_feature(o3d.pipelines.registration.compute_fpfh_feature(cloud, search))
    place = torch.full((len(scan.cloud),), -1)
    place[among] = torch.arange(len(among))
    return found[place[rows].numpy()]


def describe(
    pair: ScanPair,
    rows: tuple[Tensor, Tensor],
    encoders: Mapping[str, LoadedEncoder],
    turns: int = 4,
    columns: int | None = 64,
) -> dict[str, list[np.ndarray]]:
    """Descriptors of the points of a pair: FPFH, of encoders, and of both together.

    Args:
        pair: the scans.
        rows: points of source and target; keypoints.
        encoders: name -> one of kind ``voxels``.
        turns: of :func:`turned_features`.
        columns: of :func:`balanced`.

    Returns:
        Name -> descriptors (K, C) of source and target: ``FPFH``, ``FPFH, rooted``, and of each encoder its name and
        ``NAME and FPFH``.
    """
    scans = list(zip((pair.source, pair.target), rows))
    histograms = [fpfh(scan, chosen) for scan, chosen in scans]
    found = {"FPFH": histograms, "FPFH, rooted": rooted(histograms)}
    for name, encoder in encoders.items():
        features = [turned_features(encoder, scan, chosen, turns) for scan, chosen in scans]
        found[name] = balanced(features, [stage.channels for stage in encoder.model.feature_info], columns)
        found[f"{name} and FPFH"] = joined(found[name], found["FPFH, rooted"])
    return found


def drawn_keypoints(scan: Scan, most: int, seed: int = 0) -> Tensor:
    """(K,) int64 rows of some of a scan's keypoints, drawn evenly; matching takes time by the square of them."""
    rows = scan.keypoints()
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most]]


# --- registration ---


def register(
    source: PointCloud, target: PointCloud, source_features: Any, target_features: Any, within: float = 1.5 * EDGE
) -> Any:
    """Open3D's registration by feature matching, with its usual checks.

    Args:
        source, target: keypoints.
        source_features, target_features: (K, C) of them; made of unit length.
        within: metres, at most, between matched points.

    Returns:
        Open3D's ``RegistrationResult``; its ``transformation`` takes the source to the target.

    Raises:
        MissingExtra: Open3D is not installed.
    """
    o3d = require_extra("open3d", "open3d", "registering scans")
    registration = o3d.pipelines.registration
    return registration.registration_ransac_based_on_feature_matching(
        open3d.to_point_cloud(source),
        open3d.to_point_cloud(target),
        open3d.to_feature(source_features),
        open3d.to_feature(target_features),
        mutual_filter=True,
        max_correspondence_distance=within,
        estimation_method=registration.TransformationEstimationPointToPoint(False),
        ransac_n=3,
        checkers=[
            registration.CorrespondenceCheckerBasedOnEdgeLength(0.9),
            registration.CorrespondenceCheckerBasedOnDistance(within),
        ],
        criteria=registration.RANSACConvergenceCriteria(*_RANSAC),
    )


def matches(source_features: Any, target_features: Any) -> np.ndarray:
    """(M, 2) rows of source and target that are nearest to each other, as Open3D matches them.

    Raises:
        MissingExtra: Open3D is not installed.
    """
    o3d = require_extra("open3d", "open3d", "matching features")
    features = open3d.to_feature(source_features), open3d.to_feature(target_features)
    # A ratio of 0: mutual matches however few they are.
    return np.asarray(o3d.pipelines.registration.correspondences_from_features(*features, True, 0.0))


def score_pair(pair: ScanPair, rows: tuple[Tensor, Tensor], features: tuple[Any, Any]) -> PairScore:
    """Match and register a pair, and compare with the truth.

    Args:
        pair: the scans.
        rows: keypoints of source and target.
        features: (K, C) of them.
    """
    source, target = _keypoint_cloud(pair.source, rows[0]), _keypoint_cloud(pair.target, rows[1])
    there = _moved(source.xyz.numpy(), pair.target_from_source)
    here = target.xyz.numpy()
    found = matches(*features)
    apart = np.linalg.norm(there[found[:, 0]] - here[found[:, 1]], axis=1)
    ratio = tuple(float((apart < limit).mean()) if len(found) else 0.0 for limit in WITHIN)
    motion = np.array(register(source, target, *features).transformation)
    shared = _distance_to(here, there) < 1.5 * EDGE
    astray = _moved(source.xyz.numpy()[shared], motion) - there[shared]
    return PairScore(ratio, len(found), float(np.sqrt(np.square(astray).sum(1).mean())), motion)


# --- pairs of partial views ---


class Surroundings:
    """A mesh that can be looked at from anywhere, as a depth camera does.

    Args:
        mesh: of a room, metres, z up, with colours.

    Raises:
        MissingExtra: Open3D is not installed.
    """

    def __init__(self, mesh: Mesh) -> None:
        o3d = require_extra("open3d", "open3d", "casting rays at a mesh")
        self.mesh = mesh
        self._tensor = o3d.core.Tensor
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        self._scene.add_triangles(
            self._tensor(np.ascontiguousarray(mesh.vertices, np.float32)), self._tensor(mesh.faces.astype(np.uint32))
        )

    def view(self, name: str, camera: Camera, pose: np.ndarray, rng: np.random.Generator | None = None) -> View:
        """What a depth camera sees, with noise where ``rng`` is given; depth is 0 where there is nothing, or aslant."""
        uv = camera.pixel_grid()
        local = camera.unproject(uv, torch.ones(uv.shape[:2], dtype=torch.float64)).numpy()
        world = local @ pose[:3, :3].T
        rays = np.concatenate([np.broadcast_to(pose[:3, 3], world.shape), world], -1).astype(np.float32)
        hit = self._scene.cast_rays(self._tensor(rays))
        depth, facing = hit["t_hit"].numpy(), hit["primitive_normals"].numpy()
        cosine = np.abs((facing * world).sum(-1)) / np.linalg.norm(world, axis=-1)
        seen = np.isfinite(depth) & (depth < _FAR) & (cosine > _STEEPEST)
        image = np.full((*depth.shape, 3), 0.5, np.float32)
        if self.mesh.colors is not None:
            corner = self.mesh.faces[hit["primitive_ids"].numpy()[seen]]
            across = hit["primitive_uvs"].numpy()[seen]
            weights = np.concatenate([1 - across.sum(1, keepdims=True), across], 1)
            image[seen] = (self.mesh.colors[corner] * weights[..., None]).sum(1)
        depth = np.where(seen, depth, 0)
        if rng is not None:
            depth = depth + _NOISE * np.square(depth) * rng.standard_normal(depth.shape)
        tensors = (torch.from_numpy(values.astype(np.float32)) for values in (image, depth))
        return View(name, camera, torch.from_numpy(pose), *tensors, camera)

    def eye(self, rng: np.random.Generator, near: np.ndarray | None = None) -> np.ndarray | None:
        """(3,) a place at which a person could hold a sensor, within 1.5 m of another; None where chance finds none."""
        low, high = np.percentile(self.mesh.vertices, [2, 98], axis=0)
        height = low[2] + rng.uniform(*_HEIGHT)
        plane = rng.uniform(low[:2], high[:2]) if near is None else near[:2] + rng.uniform(-1.5, 1.5, 2)
        place = np.array([*plane, height])
        inside = (place > low).all() and (place < high).all()
        clear = self._scene.compute_distance(self._tensor(place.astype(np.float32)[None])).item()
        return place if inside and clear > _CLEAR else None


def scan_pairs(
    mesh: Mesh,
    count: int,
    rng: np.random.Generator,
    upright: bool = True,
    overlap: tuple[float, float] = (0.3, 0.7),
) -> Iterator[ScanPair]:
    """Pairs of partial views of a room that see some of the same, each turned and moved at random.

    Args:
        mesh: of a room, metres, z up, with colours.
        count: how many pairs at most; chance may find fewer in a small room.
        rng: what is drawn from.
        upright: scans are turned about z alone, as those of a sensor that knows gravity; else any way.
        overlap: least and greatest share of the keypoints of one that the other sees too.

    Raises:
        MissingExtra: Open3D is not installed.
    """
    room, found = Surroundings(mesh), 0
    for _ in range(_TRIES * count):
        if found == count:
            return
        first = room.eye(rng)
        second = None if first is None else room.eye(rng, first)
        if second is None:
            continue
        yaw = rng.uniform(0, 2 * np.pi)
        turn = rng.choice([-1, 1]) * rng.uniform(*np.radians([10, 60]))
        poses = [_looking(eye, angle, rng) for eye, angle in ((first, yaw), (second, yaw + turn))]
        views = [room.view(name, _SENSOR, pose, rng) for name, pose in zip(("source", "target"), poses)]
        if min(float((view.depth > 0).float().mean()) for view in views) < _FILLED:
            continue
        shared = _overlap(views)
        if overlap[0] <= shared <= overlap[1]:
            found += 1
            motions = [_own_frame(view, rng, upright) for view in views]
            scans = [scan_of(view, motion) for view, motion in zip(views, motions)]
            yield ScanPair(*scans, motions[1] @ np.linalg.inv(motions[0]), shared)


def scan_of(view: View, scan_from_world: np.ndarray | None = None) -> Scan:
    """The points of a view with depth, with colours and with normals towards the sensor.

    Args:
        view: with image, depth, camera and pose.
        scan_from_world: (4, 4) the scan's own frame.
    """
    from geo3d.inference import estimate_normals

    motion = np.eye(4) if scan_from_world is None else scan_from_world
    xyz, pixel = view.world_points()
    sensor = _moved(view.world_from_camera.numpy()[None, :3, 3], motion)[0]
    places = torch.from_numpy(_moved(xyz.numpy(), motion)).float()
    normals = estimate_normals(places, viewpoint=torch.from_numpy(sensor).float(), neighbours=_NEIGHBOURS)
    return Scan(PointCloud(places, view.image.reshape(-1, 3)[pixel], normals), sensor)


def _overlap(views: Sequence[View]) -> float:
    """Share of the keypoints of one view that the other sees too, the smaller of both directions."""
    places = []
    for view in views:
        cloud = PointCloud(view.world_points()[0].float())
        places.append(cloud.xyz[points_in_voxels(cloud, EDGE).index].numpy())
    if min(map(len, places)) < _FEWEST:
        return 0.0
    return min(float((_distance_to(one, other) < 1.5 * EDGE).mean()) for one, other in (places, places[::-1]))


def _own_frame(view: View, rng: np.random.Generator, upright: bool) -> np.ndarray:
    """(4, 4) from the world to the frame of a scan: the sensor is its origin, its axes are turned at random."""
    motion = np.eye(4)
    motion[:3, :3] = _about_z(rng.uniform(0, 2 * np.pi)) if upright else random_rotation(rng)
    motion[:3, 3] = -motion[:3, :3] @ view.world_from_camera.numpy()[:3, 3]
    return motion


def _looking(eye: np.ndarray, yaw: float, rng: np.random.Generator) -> np.ndarray:
    """``world_from_camera`` of a level camera that looks a little down."""
    pitch = rng.uniform(*np.radians([-30, -5]))
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], 1), eye
    return pose


def _keypoint_cloud(scan: Scan, rows: Tensor) -> PointCloud:
    colors, normals = (None if t is None else t[rows] for t in (scan.cloud.colors, scan.cloud.normals))
    return PointCloud(scan.cloud.xyz[rows], colors, normals)


def _unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def _about_z(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _moved(places: np.ndarray, motion: np.ndarray) -> np.ndarray:
    return places @ motion[:3, :3].T + motion[:3, 3]


def _distance_to(places: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distance (Q,) of each query from the nearest of some places (P, 3)."""
    clouds = [open3d.to_point_cloud(PointCloud(torch.from_numpy(np.asarray(p, np.float32)))) for p in (queries, places)]
    return np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))


__all__ = [
    "EDGE",
    "REGISTERED",
    "WITHIN",
    "PairScore",
    "Scan",
    "ScanPair",
    "Surroundings",
    "balanced",
    "describe",
    "drawn_keypoints",
    "fpfh",
    "joined",
    "matches",
    "register",
    "rooted",
    "scan_of",
    "scan_pairs",
    "score_pair",
    "turned_features",
]
