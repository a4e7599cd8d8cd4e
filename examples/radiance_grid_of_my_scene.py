"""A radiance grid of a scene of one's own: from photos of known poses to a grid, and to pictures of it.

    python examples/radiance_grid_of_my_scene.py CAPTURE FOLDER [SECONDS]

``CAPTURE`` is anything that geo3d reads with views and poses: a ``transforms.json``, a COLMAP model, RGB-D frames. The
first photo is held out; ``FOLDER`` gets ``grid.npz``, which encoders of grids read, ``photo_and_field.png``, the
held-out photo beside what the field shows from there and its depth, and ``slices.png``, the grid cut along each axis.
"""

import sys
from pathlib import Path

import numpy as np

import geo3d
from geo3d.reconstruction.grid_file import write_grid
from geo3d.reconstruction.radiance_field import RadianceFieldConfig, fit_radiance_field
from geo3d.viz.grids import slice_of
from geo3d.viz.sheet import write_picture


def shades(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) as greys (H, W, 3), near is bright; black where nothing stops the light."""
    known = depth > 0
    near, far = np.quantile(depth[known], [0.02, 0.98]) if known.any() else (0, 1)
    grey = known * (1 - 0.8 * np.clip((depth - near) / max(far - near, 1e-9), 0, 1))
    return np.repeat((255 * grey).astype(np.uint8)[..., None], 3, -1)


def bytes_of(image) -> np.ndarray:
    return (255 * image.clamp(0, 1)).round().byte().numpy()


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures in a row, filled up with white."""
    height = max(len(picture) for picture in pictures)
    return np.concatenate([np.pad(p, ((0, height - len(p)), (0, 4), (0, 0)), constant_values=255) for p in pictures], 1)


def make_grid(capture: str, folder: Path, config: RadianceFieldConfig) -> geo3d.VolumeGrid:
    dataset = geo3d.open_dataset(capture)
    scene = next(dataset.readable("views", "poses"), None)
    if scene is None:
        sys.exit(f"{dataset}: none of its scenes has photos with poses")
    field = fit_radiance_field(scene, config, print)  # every 8th photo is held out, from the first
    grid = field.grid(config.longest_side)
    write_grid(folder / "grid.npz", grid, metric=scene.metric, made_by="radiance_field")

    view = scene.view(0)
    scale = min(1, 480 / max(view.camera.width, view.camera.height))
    camera = view.camera.resized(round(view.camera.width * scale), round(view.camera.height * scale))
    size = (camera.width, camera.height)
    seen = field.render(camera, view.world_from_camera)
    photo = np.asarray(scene.image(0).convert("RGB").resize(size))
    write_picture(folder / "photo_and_field.png", beside([photo, bytes_of(seen.image), shades(seen.depth.numpy())]))
    write_picture(folder / "slices.png", beside([slice_of(grid.values, axis) for axis in range(3)]))
    return grid


if __name__ == "__main__":
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60.0
    grid = make_grid(sys.argv[1], Path(sys.argv[2]), RadianceFieldConfig(seconds=seconds))
    print(f"grid of {grid.sides} voxels, box {grid.low.tolist()} to {grid.high.tolist()}: {sys.argv[2]}")
