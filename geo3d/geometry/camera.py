"""Camera: intrinsics of one image, OpenCV conventions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

# How many distortion coefficients each model carries, in COLMAP's and OpenCV's order.
_DISTORTION_SIZES = {"PINHOLE": 0, "OPENCV": 4, "FULL_OPENCV": 8, "OPENCV_FISHEYE": 4}
_UNDISTORT_ITERATIONS = 20


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one image: x right, y down, z forward; lengths in pixels.

    The centre of the upper-left pixel is (0, 0), as in OpenCV; readers of formats that put it at
    (0.5, 0.5) (COLMAP, instant-ngp) subtract the half pixel.

    Args:
        width, height: image size in pixels.
        fx, fy: focal lengths in pixels.
        cx, cy: principal point in pixels.
        model: ``PINHOLE``, ``OPENCV`` (k1, k2, p1, p2), ``FULL_OPENCV`` (k1, k2, p1, p2, k3, k4, k5, k6) or
            ``OPENCV_FISHEYE`` (k1, k2, k3, k4).
        distortion: coefficients of ``model``.

    Raises:
        ValueError: a size or focal length that is not positive, or coefficients that do not fit the model or are none.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "PINHOLE"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"Camera: image size must be positive, got {self.width} x {self.height}")
        if not (self.fx > 0 and self.fy > 0 and np.isfinite([self.fx, self.fy, self.cx, self.cy]).all()):
            raise ValueError(
                "Camera: focal lengths must be positive and all intrinsics finite, got "
                f"fx={self.fx} fy={self.fy} cx={self.cx} cy={self.cy}"
            )
        size = _DISTORTION_SIZES.get(self.model)
        if size is None:
            raise ValueError(f"Camera: unknown model {self.model!r}, known: {', '.join(_DISTORTION_SIZES)}")
        if len(self.distortion) != size:
            raise ValueError(f"Camera: model {self.model} takes {size} coefficients, got {len(self.distortion)}")
        if not np.isfinite(self.distortion).all():
            raise ValueError(f"Camera: coefficients of distortion must be finite, got {self.distortion}")

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_fov: float) -> Camera:
        """Pinhole camera with square pixels and a horizontal field of view in radians."""
        focal = 0.5 * width / np.tan(0.5 * horizontal_fov)
        return cls(width, height, float(focal), float(focal), 0.5 * (width - 1), 0.5 * (height - 1))

    @property
    def matrix(self) -> Tensor:
        """Intrinsic matrix K (3, 3), float64."""
        return torch.tensor([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=torch.float64)

    def _distort(self, xy: Tensor) -> Tensor:
        """Normalised undistorted coordinates (..., 2) -> normalised distorted coordinates (..., 2)."""
        x, y = xy.unbind(-1)
        if self.model in ("OPENCV", "FULL_OPENCV"):
            k1, k2, p1, p2 = self.distortion[:4]
            r2 = x * x + y * y
            if self.model == "OPENCV":
                radial = 1 + r2 * (k1 + r2 * k2)
            else:
                k3, k4, k5, k6 = self.distortion[4:]
                radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
            return torch.stack(
                [
                    x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                    y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
                ],
                -1,
            )
        if self.model == "OPENCV_FISHEYE":
            k1, k2, k3, k4 = self.distortion
            r = torch.sqrt(x * x + y * y).clamp_min(1e-12)
            theta = torch.atan(r)
            t2 = theta * theta
            scale = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))) / r
            return xy * scale.unsqueeze(-1)
        return xy

    def project(self, xyz: Tensor) -> Tensor:
        """Project points of the camera frame.

        Args:
            xyz: (..., 3) metres in the camera frame. Points with z <= 0 give meaningless pixels; test z first.

        Returns:
            (..., 2) pixels (u, v).
        """
        xy = self._distort(xyz[..., :2] / xyz[..., 2:])
        return xy * xyz.new_tensor([self.fx, self.fy]) + xyz.new_tensor([self.cx, self.cy])

    def unproject(self, uv: Tensor, depth: Tensor) -> Tensor:
        """Lift pixels to the camera frame.

        Args:
            uv: (..., 2) pixels.
            depth: (...) metres along z.

        Returns:
            (..., 3) metres. Pixels of a fisheye lens at 90 degrees and more from its axis give meaningless points.
        """
        xy = self._undistort((uv - uv.new_tensor([self.cx, self.cy])) / uv.new_tensor([self.fx, self.fy]))
        return torch.cat([xy * depth.unsqueeze(-1), depth.unsqueeze(-1)], -1)

    def _undistort(self, distorted: Tensor) -> Tensor:
        """Inverse of :meth:`_distort`, by iteration; converges where the distortion is invertible."""
        if self.model in ("OPENCV", "FULL_OPENCV"):
            xy = distorted
            for _ in range(_UNDISTORT_ITERATIONS):
                xy = xy + (distorted - self._distort(xy))
            return xy
        if self.model == "OPENCV_FISHEYE":
            k1, k2, k3, k4 = self.distortion
            radius = distorted.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            theta = radius
            for _ in range(_UNDISTORT_ITERATIONS):  # Newton's, as the tangent below lets a fixed point diverge
                t2 = theta * theta
                value = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
                slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
                theta = theta - (value - radius) / slope
            return distorted * torch.tan(theta) / radius
        return distorted

    def pixel_grid(self) -> Tensor:
        """Pixel centres (height, width, 2) as (u, v), float64."""
        v, u = torch.meshgrid(
            torch.arange(self.height, dtype=torch.float64), torch.arange(self.width, dtype=torch.float64), indexing="ij"
        )
        return torch.stack([u, v], -1)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resampled to ``width`` x ``height``."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of the window that starts at pixel (left, top)."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def to_numpy(self) -> dict[str, Any]:
        """Plain fields as numpy scalars and arrays, ready for ``np.savez``."""
        return {
            "size": np.array([self.width, self.height], dtype=np.int64),
            "intrinsics": np.array([self.fx, self.fy, self.cx, self.cy], dtype=np.float64),
            "model": np.array(self.model),
            "distortion": np.array(self.distortion, dtype=np.float64),
        }

    @classmethod
    def from_numpy(cls, fields: dict[str, Any]) -> Camera:
        """Inverse of :meth:`to_numpy`."""
        width, height = (int(v) for v in fields["size"])
        fx, fy, cx, cy = (float(v) for v in fields["intrinsics"])
        return cls(width, height, fx, fy, cx, cy, str(fields["model"]), tuple(float(v) for v in fields["distortion"]))
