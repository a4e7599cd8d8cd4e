"""Co-visibility: how much of the same surface two views of a scene see, and under which angle.

Three kinds of evidence, the best that a scene holds is used:

- ``depth``: samples of each view's depth map are projected into every other view and compared with its depth,
  so that what is hidden behind something else does not count;
- ``tracks``: the sparse points that both views observe;
- ``frustum``: poses alone. Each view is taken to look at a plane at an assumed depth. Nothing can hide anything, so
  this is a guess that flatters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geo3d.datasets.quarantine import BrokenScene
from geo3d.datasets.scene import Scene
from geo3d.geometry import Camera

#: Where the scores of a pair come from; ``listed`` pairs are the dataset's own and have no scores.
EVIDENCE = ("listed", "depth", "tracks", "frustum")

# Samples of a view, a Fibonacci lattice: evenly spread along any direction, so that shares are known to about 0.01.
_SAMPLES, _LATTICE_STEP = 144, 89
_MAP_SIZE = 160  # longer side of the depth map that samples are compared with: 4 pixels of a 640 x 480 map become one
_MIN_KNOWN = 16  # views with fewer known samples than this say nothing about an overlap
_MIN_TRACKS = 20  # nor do fewer shared points
_METRIC_DEPTH = 2.0  # metres: what a hand-held camera in an ordinary room looks at, by and large
_MIN_CONVERGENCE = math.radians(5)  # spread of the optical axes under which their crossing is noise
_ANGLE_MARGIN = 1e-3  # radians, for rounding in float32
_MIN_AIMED = 0.75  # share of the views that must have the crossing of the axes in the image


@dataclass(frozen=True)
class DepthTolerance:
    """How far two depths of one surface point may differ: the larger of a length and a share of the depth."""

    absolute: float
    relative: float

    def for_scene(self, scene: Scene) -> DepthTolerance:
        """The same without the length where lengths of the scene are not metres."""
        return self if scene.metric else replace(self, absolute=0.0)


@dataclass(frozen=True)
class Covisibility:
    """What V views of a scene see in common.

    Args:
        views: (V,) int64 view indices in the scene.
        overlap: (V, V) float32, symmetric, in [0, 1]; 0 on the diagonal.
        angle: (V, V) float32, symmetric, radians; NaN where it was not measured.
        evidence: one of :data:`EVIDENCE`.
    """

    views: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    evidence: str


@dataclass(frozen=True)
class Surface:
    """Samples of what V views see, and what is needed to look up where another view sees them.

    Args:
        xyz: (3, V, S) float32 world points relative to the mean camera centre; NaN where nothing is known.
        centers: (V, 3) float32 camera centres, relative to the same origin.
        rotations: (V, 3, 3) float32, world from camera.
        cameras: camera of each view, at the size of its map.
        half_fov: (V,) float32 largest angle between a ray of the image and the optical axis, radians.
        maps: depth map (h * w) float32 of each view, 0 where unknown; None where depth is assumed.
        limits: by how much a depth may differ from each pixel of ``maps`` (h * w); negative where unknown.
        assumed_depth: (V,) float32 depth of the plane that each view is assumed to look at; None where depth is known.
    """

    xyz: Tensor
    centers: Tensor
    rotations: Tensor
    cameras: Sequence[Camera]
    half_fov: Tensor
    maps: Sequence[Tensor] | None = None
    limits: Sequence[Tensor] | None = None
    assumed_depth: Tensor | None = None


def read_surface(scene: Scene, views: Sequence[int], tolerance: DepthTolerance) -> Surface:
    """Read the depth of some views, sample it and keep a small map of each: nothing is decoded twice.

    Args:
        scene: needs poses and depth.
        views: view indices.
        tolerance: how far two depths of one surface point may differ.

    Raises:
        BrokenScene: a depth map that cannot be read or does not fit its camera.
    """
    tolerance = tolerance.for_scene(scene)
    maps, limits, cameras, rays, depths = [], [], [], [], []
    geometry: dict[Camera, tuple[Camera, Tensor, Tensor]] = {}
    for view in views:
        camera, depth = scene.depth_camera(view), scene.depth(view)
        if depth.shape != (camera.height, camera.width):
            reason = f"depth is {depth.shape[1]} x {depth.shape[0]}, its camera {camera.width} x {camera.height}"
            raise BrokenScene(scene.name, f"{scene.root}: depth of view {scene.view_names[view]}", reason)
        stride = math.ceil(max(depth.shape) / _MAP_SIZE)
        if camera not in geometry:
            small = _strided(camera, stride)
            geometry[camera] = (small, *_sample_rays(small))
        small, pixel, ray = geometry[camera]
        start = stride // 2
        small_map = np.nan_to_num(depth[start::stride, start::stride], posinf=0.0)
        maps.append(torch.from_numpy(small_map).view(-1))
        limits.append(torch.from_numpy(_depth_limits(small_map, tolerance)).view(-1))
        cameras.append(small)
        rays.append(ray)
        depths.append(maps[-1][pixel[:, 1] * small.width + pixel[:, 0]])
    return _surface(scene, views, cameras, torch.stack(rays), torch.stack(depths), maps=maps, limits=limits)


def assume_surface(scene: Scene, views: Sequence[int], assumed_depth: float) -> Surface:
    """Take each view to look at a plane that faces it.

    Args:
        scene: needs poses.
        views: view indices.
        assumed_depth: distance of the planes, in the scene's units; 0 for an estimate: 2 m where lengths are metres
            (rooms), else where the optical axes cross (captures around an object).

    Raises:
        BrokenScene: the depth cannot be estimated.
    """
    cameras = [scene.camera(view) for view in views]
    rays = {camera: _sample_rays(camera)[1] for camera in set(cameras)}
    if assumed_depth:
        depth = torch.full((len(views),), float(assumed_depth))
    else:
        depth = _estimated_depth(scene, views, cameras)
    samples = depth.unsqueeze(1).expand(-1, _SAMPLES)
    return _surface(scene, views, cameras, torch.stack([rays[c] for c in cameras]), samples, assumed_depth=depth)


def surface_covisibility(surface: Surface, floor: float, min_known: float) -> tuple[np.ndarray, np.ndarray]:
    """Overlap and angle of all pairs of views, from samples of what they see.

    The overlap of a pair is the share of the samples of one view that the other sees, the smaller of both directions;
    samples that fall on a pixel of unknown depth are taken to agree as often as the others inside the image do. The
    angle is the median over the samples of one view that the other sees of the angle between the two viewing rays.

    Args:
        surface: the samples.
        floor: overlap under which a pair is of no interest: its second direction is then not looked at, so that its
            overlap is an upper bound, and its angle is not measured.
        min_known: views with less than this share of known samples overlap nothing, nor do views of which less than
            this share of what falls into the image falls on known depth.

    Returns:
        overlap (V, V) and angle (V, V) float32, radians.
    """
    count, samples = surface.xyz.shape[1:]
    share = torch.zeros(count, count)  # [i, j]: how much of what i sees is seen by j
    angle = torch.full((count, count), torch.nan)
    known = (~surface.xyz[0].isnan()).sum(1)
    usable = known >= max(_MIN_KNOWN, min_known * samples)
    may_see = _may_see(surface) & usable.unsqueeze(0) & usable.unsqueeze(1)
    for target in range(count):
        wanted = may_see[:, target] & may_see[target]
        wanted[:target] &= share[target, :target] >= floor
        rows = wanted.nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        seen, inside, unknown, in_camera = _look(surface, rows, target)
        framed = inside.sum(1)
        decided = framed - unknown.sum(1)
        agreeing = torch.where(decided >= min_known * framed, seen.sum(1) / decided.clamp_min(1), 0.0)
        share[rows, target] = agreeing * framed / known[rows]
        both = (rows < target) & (share[rows, target] >= floor)
        if both.any():
            angle[rows[both], target] = _median_angle(surface, rows[both], target, in_camera[:, both], seen[both])
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    # A direction that was not looked at is zero; the other direction then bounds the overlap from above.
    backward = share.T
    overlap = torch.where(backward >= floor, torch.minimum(share, backward), backward).where(later, torch.tensor(0.0))
    return (overlap + overlap.T).numpy(), torch.where(later, angle, angle.T).numpy()


def track_covisibility(scene: Scene, views: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Overlap and angle of all pairs of views, from the sparse points that they observe.

    The overlap of a pair is the number of shared points over the larger of the numbers that each view observes, which
    is the smaller of both directions' shares. The angle is the median over the shared points of that between the rays.

    Args:
        scene: needs poses and tracks.
        views: view indices.

    Returns:
        overlap (V, V) and angle (V, V) float32, radians; 0 and NaN where fewer than 20 points are shared.
    """
    tracks = scene.tracks()
    count, points = len(views), len(tracks.xyz)
    local = np.full(len(scene.view_names), -1)
    local[np.asarray(views)] = np.arange(count)
    kept = local[tracks.view] >= 0
    observations = np.unique(tracks.point[kept] * count + local[tracks.view[kept]])  # sorted by point, then view
    point, view = np.divmod(observations, count)
    start = np.searchsorted(point, np.arange(points + 1))
    centers = np.stack([scene.pose(v)[:3, 3] for v in views])
    ray = centers[view] - tracks.xyz[point]
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12)

    overlap = np.zeros((count, count), dtype=np.float32)
    angle = np.full((count, count), np.nan, dtype=np.float32)
    observed = np.bincount(view, minlength=count)
    for first in range(count):
        mine = np.flatnonzero(view == first)
        # The observations of one point are sorted by view: those after mine belong to later views.
        others, owner = _ranges(mine + 1, start[point[mine] + 1])
        if len(others) == 0:
            continue
        cosine = np.einsum("ij,ij->i", ray[others], ray[mine[owner]])
        shared = np.bincount(view[others], minlength=count)
        second = np.flatnonzero(shared >= _MIN_TRACKS)
        medians = _grouped_median(np.arccos(np.clip(cosine, -1, 1)), view[others], shared)[second]
        overlap[first, second] = overlap[second, first] = shared[second] / np.maximum(observed[first], observed[second])
        angle[first, second] = angle[second, first] = medians
    return overlap, angle


def matched_pixels(
    scene: Scene, first: int, second: int, evidence: str, tolerance: DepthTolerance
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of two images that show the same surface point.

    Returns:
        uv (M, 2) in the first and in the second image; M is 0 where the evidence knows no surface.
    """
    if evidence == "depth":
        surface = read_surface(scene, [first, second], tolerance)
        seen, *_ = _look(surface, torch.tensor([0]), 1)
        xyz = surface.xyz[:, 0, seen[0]]
        return tuple(
            scene.camera(view).project(_to_camera(xyz, surface, row).T).numpy()
            for row, view in enumerate((first, second))
        )
    if evidence == "tracks":
        tracks = scene.tracks()
        of_first, of_second = (np.flatnonzero(tracks.view == view) for view in (first, second))
        _, rows_first, rows_second = np.intersect1d(
            tracks.point[of_first], tracks.point[of_second], return_indices=True
        )
        return tracks.uv[of_first[rows_first]], tracks.uv[of_second[rows_second]]
    return np.zeros((0, 2)), np.zeros((0, 2))


def _strided(camera: Camera, stride: int) -> Camera:
    """The camera of every ``stride``-th pixel, from pixel ``stride // 2`` on."""
    start = stride // 2
    return replace(
        camera,
        width=len(range(start, camera.width, stride)),
        height=len(range(start, camera.height, stride)),
        fx=camera.fx / stride,
        fy=camera.fy / stride,
        cx=(camera.cx - start) / stride,
        cy=(camera.cy - start) / stride,
    )


def _depth_limits(depth: np.ndarray, tolerance: DepthTolerance) -> np.ndarray:
    """By how much a depth may differ from a pixel (h, w) to be of its surface; -1 where the pixel is unknown.

    On a slanted surface depth changes within the pixel too: by the half of each step to the neighbours, along each axis
    the smaller of the two steps, which at the edge of an object is the one on its own surface.
    """
    known = depth > 0
    limit = np.maximum(tolerance.relative * depth, tolerance.absolute)
    for along, there, into in ((depth, known, limit), (depth.T, known.T, limit.T)):
        step = np.abs(along[1:] - along[:-1]) * (there[1:] & there[:-1])
        into[1:-1] += 0.5 * np.minimum(step[1:], step[:-1])
        into[[0, -1]] += 0.5 * step[[0, -1]]
    limit[~known] = -1
    return limit


def _sample_rays(camera: Camera) -> tuple[Tensor, Tensor]:
    """Pixels (S, 2) int64 spread evenly over the image, and their rays (S, 3) float32 of unit depth."""
    number = torch.arange(_SAMPLES)
    across = (number + 0.5) / _SAMPLES * camera.width
    down = (number * _LATTICE_STEP % _SAMPLES + 0.5) / _SAMPLES * camera.height
    pixel = torch.stack([across, down], -1).long()
    return pixel, camera.unproject(pixel.double(), torch.ones(_SAMPLES, dtype=torch.float64)).float()


def _half_fov(camera: Camera) -> float:
    """Largest angle between the optical axis and a ray through the image's border, radians."""
    u = torch.linspace(-0.5, camera.width - 0.5, 33, dtype=torch.float64)
    v = torch.linspace(-0.5, camera.height - 0.5, 33, dtype=torch.float64)
    border = torch.cat(
        [torch.stack([u, torch.full_like(u, edge)], -1) for edge in (-0.5, camera.height - 0.5)]
        + [torch.stack([torch.full_like(v, edge), v], -1) for edge in (-0.5, camera.width - 0.5)]
    )
    rays = camera.unproject(border, torch.ones(len(border), dtype=torch.float64))
    return float(torch.atan(torch.linalg.vector_norm(rays[:, :2], dim=1)).max())


def _poses(scene: Scene, views: Sequence[int]) -> Tensor:
    """``world_from_camera`` (V, 4, 4) float64."""
    return torch.from_numpy(np.stack([scene.pose(view) for view in views]).astype(np.float64))


def _surface(
    scene: Scene, views: Sequence[int], cameras: Sequence[Camera], rays: Tensor, depth: Tensor, **known
) -> Surface:
    """Lift samples: rays (V, S, 3) of unit depth in the camera frames, depth (V, S), 0 where unknown."""
    poses = _poses(scene, views)
    rotations, centers = poses[:, :3, :3], poses[:, :3, 3]
    centers = (centers - centers.mean(0)).float()  # float32 is exact to 0.01 mm within 100 m of the origin
    depth = torch.where(depth > 0, depth, torch.nan)
    xyz = rotations.float() @ (rays * depth.unsqueeze(-1)).transpose(1, 2) + centers.unsqueeze(2)  # (V, 3, S)
    half_fov = {camera: _half_fov(camera) for camera in set(cameras)}
    fov = torch.tensor([half_fov[camera] for camera in cameras])
    return Surface(xyz.transpose(0, 1).contiguous(), centers, rotations.float().contiguous(), cameras, fov, **known)


def _estimated_depth(scene: Scene, views: Sequence[int], cameras: Sequence[Camera]) -> Tensor:
    """Depth (V,) at which the views look.

    The axes' crossing is not used where lengths are metres: those are rooms, where cameras look across and the axes
    cross in mid-air.
    """
    if scene.metric:
        return torch.full((len(views),), _METRIC_DEPTH)
    poses = _poses(scene, views)
    axes, centers = poses[:, :3, 2], poses[:, :3, 3]
    across = torch.eye(3, dtype=torch.float64) - axes.unsqueeze(2) * axes.unsqueeze(1)  # (V, 3, 3) drops the part along
    spread = torch.linalg.eigvalsh(across.mean(0))[0].clamp_min(0).sqrt().asin()
    if spread >= _MIN_CONVERGENCE:
        crossing = torch.linalg.solve(across.sum(0), (across @ centers.unsqueeze(2)).sum(0)).squeeze(1)
        in_camera = ((crossing - centers).unsqueeze(1) @ poses[:, :3, :3]).squeeze(1)
        depth = in_camera[:, 2]
        uv = torch.stack([camera.project(point) for camera, point in zip(cameras, in_camera)])
        size = torch.tensor([[camera.width, camera.height] for camera in cameras])
        aimed = (depth > 0) & ((uv >= -0.5) & (uv < size - 0.5)).all(1)
        if aimed.double().mean() >= _MIN_AIMED:
            return torch.where(aimed, depth, depth[aimed].median()).float()
    reason = "no depth, no tracks, and views that do not look at one place: give the depth they look at (assumed_depth)"
    raise BrokenScene(scene.name, scene.root, reason)


def _may_see(surface: Surface) -> Tensor:
    """(V, V) bool: False where view j cannot see any sample of view i, judged by the samples' bounding sphere."""
    middle = surface.xyz.nanmean(2)  # (3, V)
    radius = (surface.xyz - middle.unsqueeze(2)).square().sum(0).nan_to_num(0).amax(1).sqrt().unsqueeze(1)
    axes, own = surface.rotations[:, :, 2].T, surface.rotations[:, :, 2] @ surface.centers.T
    # [i, j]: from camera j to the samples of i
    distance = torch.cdist(middle.T, surface.centers, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-12)
    along = middle.T @ axes - own.diagonal()
    off_axis = torch.acos((along / distance).clamp(-1, 1))
    widened = surface.half_fov + torch.asin((radius / distance).clamp(0, 1)) + _ANGLE_MARGIN
    may_see = (distance <= radius) | (off_axis <= widened)
    if surface.assumed_depth is not None:  # the plane of view i is seen from its front only
        may_see &= own - own.diagonal().unsqueeze(1) < surface.assumed_depth.unsqueeze(1)
    return may_see.fill_diagonal_(False)


def _to_camera(xyz: Tensor, surface: Surface, view: int) -> Tensor:
    """World points (3, N) in the frame of a view. One axis a row: several times faster than (N, 3)."""
    into = surface.rotations[view].T
    return into @ xyz - (into @ surface.centers[view]).unsqueeze(1)


def _look(surface: Surface, rows: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which samples of the views ``rows`` the view ``target`` sees.

    Returns:
        (R, S) bool each: seen; inside the image; unknown, where the image has no depth. And the samples (3, R, S) in
        the target's frame.
    """
    camera = surface.cameras[target]
    in_camera = _to_camera(surface.xyz.index_select(1, rows).view(3, -1), surface, target)
    x, y, z = in_camera
    u, v = camera.project(in_camera.T).unbind(-1)
    inside = (z > 0) & (u >= -0.5) & (u < camera.width - 0.5) & (v >= -0.5) & (v < camera.height - 0.5)
    if camera.model != "PINHOLE":  # outside the field of view distortion can fold points back into the image
        inside &= x * x + y * y <= (z * math.tan(surface.half_fov[target] + _ANGLE_MARGIN)).square()
    if surface.maps is None:
        seen, unknown = inside, torch.zeros_like(inside)
    else:
        column, row = (u + 0.5).int().clamp_(0, camera.width - 1), (v + 0.5).int().clamp_(0, camera.height - 1)
        cell = row * camera.width + column
        limit = surface.limits[target].index_select(0, cell)
        seen = inside & ((z - surface.maps[target].index_select(0, cell)).abs() <= limit)
        unknown = inside & (limit < 0)
    shape = (len(rows), -1)
    return seen.view(shape), inside.view(shape), unknown.view(shape), in_camera.view(3, *shape)


def _median_angle(surface: Surface, rows: Tensor, target: int, in_camera: Tensor, seen: Tensor) -> Tensor:
    """Median angle (R,) between the rays from the views ``rows`` and from ``target`` to the samples that are seen."""
    own = surface.xyz[:, rows] - surface.centers[rows].T.unsqueeze(2)
    own_square, square = own.square().sum(0), in_camera.square().sum(0)
    baseline_square = (surface.centers[rows] - surface.centers[target]).square().sum(1, keepdim=True)
    cosine = (own_square + square - baseline_square) / (2 * (own_square * square).sqrt())
    return torch.where(seen, cosine, torch.nan).nanmedian(1).values.clamp(-1, 1).acos()


def _ranges(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of many ranges one after the other, and the range that each belongs to."""
    length = stop - start
    owner = np.repeat(np.arange(len(start)), length)
    before = np.cumsum(length) - length
    return np.arange(len(owner)) - before[owner] + start[owner], owner


def _grouped_median(values: np.ndarray, group: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Median of ``values`` in each group 0 .. G - 1 of ``sizes`` (G,); NaN for an empty group."""
    ordered = values[np.lexsort((values, group))]
    start = np.cumsum(sizes) - sizes
    filled = sizes > 0
    medians = np.full(len(sizes), np.nan)
    low, high = start + (sizes - 1) // 2, start + sizes // 2
    medians[filled] = 0.5 * (ordered[low[filled]] + ordered[high[filled]])
    return medians
