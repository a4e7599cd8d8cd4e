"""Focal lengths of pointmaps: a map's points, seen by a camera at the origin, tell its lens.

Every pixel ``u``, counted from the principal point, lies at ``f q`` with ``q = (x, y) / z`` of its point.
:func:`weiszfeld_focal` and :func:`median_focal` are the published estimates (DUSt3R, section 3.3), of which the first
collapses where some points lie near z = 0: their ``q`` is huge, and a small f serves them best.
:func:`robust_focal` is what geo3d uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geo3d.errors import InputError
from geo3d.reconstruction.pointmaps.lens import PrincipalPoint, centre, from_centre, pixel_centres

_STEPS = 10
_SMALLEST = 1e-8
#: What a focal length may be, relative to the longer side: fields of view of 157 and 2.9 degrees.
BOUNDS = (0.1, 20.0)
#: Published bounds, relative to the focal length of a field of view of 60 degrees over the longer side.
PUBLISHED_BOUNDS = (0.5, 3.5)
_REFINED = 10
#: Cosine of the angle between a pixel's direction and that of its point, below which the point is wrong.
_TOWARDS = 0.8
#: How many times the usual residual an inlier may have.
_WIDE = 3.0


def weiszfeld_focal(
    points: Tensor, principal_point: PrincipalPoint, bounds: tuple[float, float] | None = None
) -> float:
    """The published estimate: least sum of distances, by re-weighted least squares from the plain solution.

    Args:
        points: (H, W, 3) in the frame of the camera.
        principal_point: pixel (x, y). The published code counts whole pixels from (W/2, H/2), half a pixel from the
            centre of an image by our convention.
        bounds: clip the result to these factors of ``max(H, W) / (2 tan 30 deg)``; None: not at all.

    Returns:
        Pixels.
    """
    pixels, rays = _pixels_and_rays(points, principal_point)
    rays = torch.nan_to_num(rays, nan=0.0, posinf=0.0, neginf=0.0)
    along, squared = (pixels * rays).sum(1), rays.square().sum(1)
    focal = along.mean() / squared.mean()
    for _ in range(_STEPS):
        distance = torch.linalg.vector_norm(pixels - focal * rays, dim=1)
        weight = 1 / distance.clamp_min(_SMALLEST)
        focal = (weight * along).mean() / (weight * squared).mean()
    return _clipped(float(focal), points, bounds)


def median_focal(points: Tensor, principal_point: PrincipalPoint, bounds: tuple[float, float] | None = None) -> float:
    """The other published estimate: the lower median of ``u z / x`` and ``v z / y``; arguments as above."""
    pixels, _ = _pixels_and_rays(points, principal_point)
    flat = points.double().reshape(-1, 3)
    each = torch.cat([pixels[:, axis] * flat[:, 2] / flat[:, axis] for axis in (0, 1)])
    return _clipped(float(each.nanmedian()), points, bounds)


def robust_focal(
    points: Tensor,
    principal_point: PrincipalPoint | None = None,
    confidence: Tensor | None = None,
    bounds: tuple[float, float] = BOUNDS,
) -> float:
    """Focal length of a pointmap that wrong points do not spoil, wherever they lie.

    Each pixel proposes ``|u| / |q|``, if its point lies before the camera and in the pixel's direction, and the
    proposal within the bounds. An error of the point moves the logarithm of the proposal by as much over ``|u|``, so
    the start is the median of the logarithms weighted by ``|u|``: no pixel pulls harder than its place in the image.
    From there, re-weighted least squares over the pixels whose residual is usual.

    Args:
        points: (H, W, 3) in the frame of the camera; any that are not finite are left out.
        principal_point: pixel (x, y); the image's centre when not given.
        confidence: (H, W) weights, 0 or more.
        bounds: least and largest focal length, relative to the longer side.

    Returns:
        Pixels.

    Raises:
        InputError: no point proposes a focal length within the bounds.
    """
    height, width = points.shape[:2]
    pixels, rays = _pixels_and_rays(points, centre(height, width) if principal_point is None else principal_point)
    flat = points.double().reshape(-1, 3)
    near, far = (side * max(height, width) for side in bounds)
    radius, slope = torch.linalg.vector_norm(pixels, dim=1), torch.linalg.vector_norm(rays, dim=1)
    proposed = radius / slope
    towards = (pixels * rays).sum(1) / (radius * slope)
    weight = pixels.new_ones(len(pixels)) if confidence is None else confidence.double().reshape(-1)
    usable = (flat[:, 2] > 0) & (towards > _TOWARDS) & (proposed >= near) & (proposed <= far) & (weight > 0)
    if not bool(usable.any()):
        raise InputError(
            f"no point of the pointmap ({height} x {width}) tells a focal length between {near:.0f} and {far:.0f} "
            "pixels: it is none of its camera's frame, or the network has learnt nothing"
        )
    pixels, rays, weight = pixels[usable], rays[usable], weight[usable]
    focal = float(_weighted_median(proposed[usable].log(), weight * radius[usable]).exp())
    for _ in range(_REFINED):
        residual = torch.linalg.vector_norm(pixels - focal * rays, dim=1)
        # Residuals grow towards the image's border with |u|; outliers are told by them relative to it.
        relative = residual / torch.linalg.vector_norm(pixels, dim=1).clamp_min(1.0)
        usual = float(_weighted_median(relative, weight))
        kept = weight * (relative <= _WIDE * usual + _SMALLEST) / residual.clamp_min(_SMALLEST + 1e-3 * usual)
        refined = float((kept * (pixels * rays).sum(1)).sum() / (kept * rays.square().sum(1)).sum())
        if abs(refined - focal) < 1e-9 * focal:
            break
        focal = refined
    return min(max(focal, near), far)


def _pixels_and_rays(points: Tensor, principal_point: PrincipalPoint) -> tuple[Tensor, Tensor]:
    """(H * W, 2) pixels from the principal point, and x / z, y / z, in float64."""
    height, width = points.shape[:2]
    pixels = from_centre(pixel_centres(height, width), principal_point).reshape(-1, 2).to(points.device)
    flat = points.double().reshape(-1, 3)
    return pixels, flat[:, :2] / flat[:, 2:]


def _clipped(focal: float, points: Tensor, bounds: tuple[float, float] | None) -> float:
    if bounds is None:
        return focal
    usual = max(points.shape[:2]) / (2 * torch.tan(torch.tensor(torch.pi / 6, dtype=torch.float64)).item())
    return min(max(focal, bounds[0] * usual), bounds[1] * usual)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    values, order = values.sort()
    reached = weights[order].cumsum(0)
    return values[int(torch.searchsorted(reached, reached[-1] / 2).clamp_max(len(values) - 1))]


__all__ = ["BOUNDS", "PUBLISHED_BOUNDS", "median_focal", "robust_focal", "weiszfeld_focal"]
