"""View and ViewPair: posed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.geometry.camera import Camera


@dataclass
class View:
    """One image with what is known about it. Everything but the name may be absent.

    Args:
        name: unique within its scene.
        camera: intrinsics of ``image``.
        world_from_camera: (4, 4) float64 pose, metres.
        image: (H, W, 3) float32 colours in [0, 1].
        depth: (H', W') float32 metres along z, 0 where unknown; may have another size than ``image``.
        depth_camera: intrinsics of ``depth``; equal to ``camera`` when the two are aligned.
        mask: (H, W) bool, True on the object.

    Raises:
        ValueError: a field whose shape contradicts the others.
    """

    name: str
    camera: Camera | None = None
    world_from_camera: Tensor | None = None
    image: Tensor | None = None
    depth: Tensor | None = None
    depth_camera: Camera | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.world_from_camera is not None and self.world_from_camera.shape != (4, 4):
            raise ValueError(
                f"View {self.name}: world_from_camera must be (4, 4), got {tuple(self.world_from_camera.shape)}"
            )
        for field, camera in (
            ("image", self.camera),
            ("mask", self.camera),
            ("depth", self.depth_camera or self.camera),
        ):
            value = getattr(self, field)
            if value is not None and camera is not None and value.shape[:2] != (camera.height, camera.width):
                raise ValueError(
                    f"View {self.name}: {field} is {tuple(value.shape[:2])}, "
                    f"but its camera says {(camera.height, camera.width)}"
                )

    def world_points(self) -> tuple[Tensor, Tensor]:
        """Lift the depth map.

        Returns:
            xyz (N, 3) float64 metres in the world, and the row-major pixel index (N,) of each.

        Raises:
            ValueError: no depth, no camera or no pose.
        """
        camera = self.depth_camera or self.camera
        if self.depth is None or camera is None or self.world_from_camera is None:
            raise ValueError(f"View {self.name}: world_points needs depth, camera and pose")
        depth = self.depth.double().reshape(-1)
        pixel = torch.nonzero(depth > 0).squeeze(1)
        uv = torch.stack([pixel % camera.width, pixel // camera.width], -1).double()
        xyz = camera.unproject(uv, depth[pixel])
        pose = self.world_from_camera.double()
        return xyz @ pose[:3, :3].T + pose[:3, 3], pixel

    def world_normals(self) -> Tensor:
        """Normals of the depth map, at the points of :meth:`world_points`.

        Returns:
            (N, 3) float64 unit vectors in the world, towards the camera; 0 where a neighbour's depth is unknown.

        Raises:
            ValueError: no depth, no camera or no pose.
        """
        camera = self.depth_camera or self.camera
        if self.depth is None or camera is None or self.world_from_camera is None:
            raise ValueError(f"View {self.name}: world_normals needs depth, camera and pose")
        depth = self.depth.double()
        normals = depth_normals(depth, camera)[depth > 0]
        return normals @ self.world_from_camera.double()[:3, :3].T

    def image_pixels(self, xyz: Tensor) -> Tensor:
        """Where points are seen in the image.

        Args:
            xyz: (N, 3) float64 metres in the world, in front of the camera, such as those of :meth:`world_points`.

        Returns:
            (N, 2) float64 pixels x, y; NaN beyond the image's middles of pixels.

        Raises:
            ValueError: no image, no camera or no pose.
        """
        if self.image is None or self.camera is None or self.world_from_camera is None:
            raise ValueError(f"View {self.name}: image_pixels needs image, camera and pose")
        pose = self.world_from_camera.double()
        uv = self.camera.project((xyz - pose[:3, 3]) @ pose[:3, :3])
        last = uv.new_tensor([self.camera.width - 1, self.camera.height - 1])
        inside = ((uv > -0.5) & (uv < last + 0.5)).all(1, keepdim=True)
        return torch.where(inside, uv.clamp(min=0).minimum(last), torch.nan)

    def to_numpy(self) -> dict[str, Any]:
        """Fields that are present as numpy arrays; nested cameras as ``camera.size`` and so on."""
        fields: dict[str, Any] = {"name": np.array(self.name)}
        for key in ("world_from_camera", "image", "depth", "mask"):
            value = getattr(self, key)
            if value is not None:
                fields[key] = value.detach().cpu().numpy()
        for key in ("camera", "depth_camera"):
            camera = getattr(self, key)
            if camera is not None:
                fields.update({f"{key}.{name}": value for name, value in camera.to_numpy().items()})
        return fields

    @classmethod
    def from_numpy(cls, fields: dict[str, Any]) -> View:
        """Inverse of :meth:`to_numpy`."""
        known: dict[str, Any] = {"name": str(fields["name"])}
        for key in ("world_from_camera", "image", "depth", "mask"):
            if key in fields:
                known[key] = torch.from_numpy(np.ascontiguousarray(fields[key]))
        for key in ("camera", "depth_camera"):
            nested = {name.split(".", 1)[1]: value for name, value in fields.items() if name.startswith(f"{key}.")}
            if nested:
                known[key] = Camera.from_numpy(nested)
        return cls(**known)


def depth_normals(depth: Tensor, camera: Camera) -> Tensor:
    """(H, W, 3) unit normals in the frame of the camera, towards it; 0 where a neighbour's depth is unknown.

    Args:
        depth: (H, W) float64 metres, 0 where unknown.
        camera: of the depth map.
    """
    xyz = camera.unproject(camera.pixel_grid().to(depth), depth)
    normals = torch.zeros_like(xyz)
    across, down = xyz[1:-1, 2:] - xyz[1:-1, :-2], xyz[2:, 1:-1] - xyz[:-2, 1:-1]
    inner = F.normalize(torch.linalg.cross(across, down), dim=2)
    inner = torch.where((inner * xyz[1:-1, 1:-1]).sum(2, keepdim=True) > 0, -inner, inner)
    around = [depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1], depth[1:-1, 1:-1]]
    known = torch.stack([part > 0 for part in around]).all(0)
    normals[1:-1, 1:-1] = torch.where(known.unsqueeze(2), inner, 0)
    return normals


@dataclass
class ViewPair:
    """Two views that see some of the same surface.

    Args:
        first, second: the views; a completion task masks ``first``.
        overlap: share of the pixels of one view seen by the other, the smaller of both directions, in [0, 1].
        angle: angle between the viewing rays towards the shared surface, radians.
    """

    first: View
    second: View
    overlap: float | None = None
    angle: float | None = None

    def to_numpy(self) -> dict[str, Any]:
        """Both views under ``first.`` and ``second.``, and the scores that are known."""
        fields: dict[str, Any] = {}
        for key in ("first", "second"):
            fields.update({f"{key}.{name}": value for name, value in getattr(self, key).to_numpy().items()})
        for key in ("overlap", "angle"):
            if getattr(self, key) is not None:
                fields[key] = np.array(getattr(self, key), dtype=np.float64)
        return fields

    @classmethod
    def from_numpy(cls, fields: dict[str, Any]) -> ViewPair:
        """Inverse of :meth:`to_numpy`."""
        views = [
            View.from_numpy({k.split(".", 1)[1]: v for k, v in fields.items() if k.startswith(f"{key}.")})
            for key in ("first", "second")
        ]
        scores = {key: float(fields[key]) for key in ("overlap", "angle") if key in fields}
        return cls(*views, **scores)
