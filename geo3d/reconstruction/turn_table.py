"""A short flight through a scene, to look at before reading figures: poses, frames, a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from geo3d.errors import InputError
from geo3d.geometry import Camera, View
from geo3d.geometry.byte_colors import byte_color_tensor
from geo3d.reconstruction.field_box import meeting_point
from geo3d.viz.animation import write_frames, write_gif
from geo3d.writing import prepare_place

#: A gap between the cameras' directions from the centre, above which they do not go all the way round it.
_GAP = np.radians(75)


class Renders(Protocol):
    """What can be looked at from anywhere."""

    def render(self, camera: Camera, world_from_camera: torch.Tensor) -> View:
        """A view with image and depth."""
        ...


def look_from(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4, 4) ``world_from_camera`` of a camera that stands at ``eye`` and looks at ``target``, level, z up.

    Raises:
        ValueError: it would look straight up or down.
    """
    forward = np.asarray(target, float) - np.asarray(eye, float)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if not np.linalg.norm(right) > 1e-6 * np.linalg.norm(forward):
        raise ValueError("look_from: the camera would look straight up or down")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def turn_table_poses(poses: np.ndarray, frames: int) -> np.ndarray:
    """A loop of poses that keeps to where the photos were taken from.

    Where the cameras look at one place, the loop goes round it at their median distance and height, or to and fro over
    the arc that they cover. Where they look about, it stands in their middle and turns round.

    Args:
        poses: (V, 4, 4) ``world_from_camera`` of the photos, z up.
        frames: how many.

    Returns:
        (frames, 4, 4) float64.
    """
    places, axes = poses[:, :3, 3], poses[:, :3, 2]
    phase = np.arange(frames) / frames
    centre = meeting_point(places, axes)
    if centre is None:
        eye, drop = np.median(places, axis=0), float(np.median(axes[:, 2]).clip(-0.9, 0.9))
        level, turn = np.sqrt(1 - drop**2), 2 * np.pi * phase
        towards = np.stack([level * np.cos(turn), level * np.sin(turn), np.full(frames, drop)], 1)
        return np.stack([look_from(eye, eye + forward) for forward in towards])
    offset = places - centre
    radius, height = np.median(np.hypot(offset[:, 0], offset[:, 1])), np.median(offset[:, 2])
    radius = max(float(radius), 0.2 * float(np.median(np.linalg.norm(offset, axis=1))))
    angles = np.sort(np.arctan2(offset[:, 1], offset[:, 0]))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    widest = int(gaps.argmax())
    if gaps[widest] < _GAP:
        turn = 2 * np.pi * phase
    else:
        start = angles[(widest + 1) % len(angles)]
        turn = start + (2 * np.pi - gaps[widest]) * (0.5 - 0.5 * np.cos(2 * np.pi * phase))
    eyes = centre + np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(frames, height)], 1)
    return np.stack([look_from(eye, centre) for eye in eyes])


def write_turn_table(
    field: Renders,
    cameras: Sequence[Camera],
    poses: np.ndarray,
    folder: Path,
    frames: int = 48,
    longest_side: int = 320,
    seconds: float = 0.1,
) -> Path:
    """Render a loop through a scene, and write its frames as PNG files and ``turn_table.gif``.

    Args:
        field: what is looked at.
        cameras, poses: of the photos; the loop is seen through the first camera, without the distortion of its lens.
        folder: to write to; frames go to its folder ``frames``.
        frames: how many.
        longest_side: of a frame, pixels.
        seconds: that a frame stands in the GIF.

    Returns:
        The GIF.

    Raises:
        InputError: fewer than 2 frames, or files that cannot be written.
    """
    if frames < 2 or longest_side < 8:
        raise InputError(f"turn-table: takes 2 frames or more of 8 pixels or more, got {frames} of {longest_side}")
    target = prepare_place(Path(folder) / "turn_table.gif")
    first = replace(cameras[0], model="PINHOLE", distortion=())
    scale = longest_side / max(first.width, first.height)
    camera = first.resized(max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    pictures = []
    for pose in turn_table_poses(poses, frames):
        image = field.render(camera, torch.from_numpy(pose)).image
        pictures.append(byte_color_tensor(image).numpy())
    write_frames(Path(folder) / "frames", pictures)
    write_gif(target, pictures, seconds)
    return target


__all__ = ["look_from", "turn_table_poses", "write_turn_table"]
