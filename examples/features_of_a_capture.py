"""Features of the photos of a capture: as colours, as arrays, and on its points where its cameras are known.

    python examples/features_of_a_capture.py                                  # a synthetic room, made for it
    python examples/features_of_a_capture.py captures/fox --out features/     # COLMAP, transforms.json, RGB-D, ...
    python examples/features_of_a_capture.py photos/                          # a folder of photos, without cameras

The folder gets ``maps.npz`` (a map (C, h, w) a photo), ``photos.png`` (photos beside their features as colours) and,
for a capture with cameras and points, ``points.npz`` (features of the points), ``points.ply`` and ``points.png``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import geo3d
from geo3d.datasets.image_files import image_names
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.viz.feature_colors import Projection
from geo3d.viz.points import draw_labels, write_points
from geo3d.viz.sheet import captioned_sheet, write_picture


def open_capture(capture: Path, most: int):
    """Up to so many views, spread evenly, and the scene, None of a folder of photos."""
    if names := image_names(capture):  # nothing but photos
        chosen = [names[n] for n in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]
        photos = [np.array(Image.open(capture / name).convert("RGB")) for name in chosen]
        return [geo3d.View(name, image=torch.from_numpy(p).float() / 255) for name, p in zip(chosen, photos)], None
    scene = next(geo3d.open_dataset(capture).readable("views"), None)
    if scene is None:
        raise geo3d.InputError(f"{capture}: there is no scene with photos in it")
    numbers = np.unique(np.linspace(0, len(scene.view_names) - 1, most).round().astype(int))
    return [scene.view(int(n)) for n in numbers], scene


def seen_at(xyz: torch.Tensor, view: geo3d.View) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the points (N, 3) that a view sees, and their pixels: none behind another, as far as depth tells."""
    camera_from_world = torch.linalg.inv(view.world_from_camera)
    local = xyz @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    pixels = view.camera.project(local)
    size = pixels.new_tensor([view.camera.width, view.camera.height])
    rows = ((local[:, 2] > 0.05) & (pixels >= 0).all(1) & (pixels <= size - 1).all(1)).nonzero().squeeze(1)
    if view.depth is not None:
        camera = view.depth_camera or view.camera
        column, row = camera.project(local[rows]).round().long().unbind(1)
        inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
        rows, column, row = rows[inside], column[inside], row[inside]
        seen = view.depth[row, column]
        rows = rows[(seen > 0) & ((local[rows, 2] - seen).abs() < 0.03 * seen + 0.02)]
    return rows, pixels[rows]


def lifted(cloud: geo3d.PointCloud, views, encoded, layer: int) -> torch.Tensor:
    """(N, C) the mean of a point's features over the views that see it; NaN where none does."""
    xyz, total, count = cloud.xyz.double(), 0, torch.zeros(len(cloud), 1)
    for view, out in zip(views, encoded):
        rows, pixels = seen_at(xyz, view)
        total = total + torch.zeros(len(cloud), out.maps[layer].shape[0]).index_copy_(
            0, rows, out.at(pixels, layer).cpu()
        )
        count[rows] += 1
    return total / count  # 0 / 0 is NaN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", nargs="?", type=Path, help="folder; a synthetic room when not given")
    parser.add_argument(
        "--encoder", default="resnet_tiny", help="run folder, file, or model whose weights come with geo3d"
    )
    parser.add_argument("--fresh", type=int, metavar="SEED", help="fresh weights instead, to compare with")
    parser.add_argument("--layer", type=int, default=-2, help="number of the stage")
    parser.add_argument("--views", type=int, default=8, help="photos at most")
    parser.add_argument("--out", type=Path, default=Path("features"), help="folder to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.capture is None:
            write_synthetic(SyntheticConfig(out=Path(folder), scenes=1, objects=0, views=args.views, workers=1))
            args.capture = Path(folder) / "scannet"
        views, scene = open_capture(args.capture, args.views)
        posed = scene is not None and "poses" in scene.parts and {"points", "mesh"} & scene.parts
        cloud = scene.cloud() if posed else None

    encoder = geo3d.load_encoder(args.encoder, fresh=args.fresh)
    encoded = [encoder(view) for view in views]
    maps = [out.maps[args.layer].cpu() for out in encoded]
    projection = Projection.fit([m.flatten(1).T for m in maps])  # one for all photos
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "maps.npz", **{view.name: m.numpy() for view, m in zip(views, maps)})
    tiles = []  # photo, colours, photo, colours, ...
    for view, out in zip(views, encoded):
        height, width = out.size
        pixels = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).flatten(0, 1)
        colors = projection.colors(out.at(pixels, args.layer)).reshape(height, width, 3)
        photo = (255 * view.image).byte().numpy()
        tiles += [np.array(ImageOps.pad(Image.fromarray(tile), (320, 240), color="white")) for tile in (photo, colors)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    sheet = captioned_sheet(np.array(tiles).reshape(-1, 4, 240, 320, 3), ["photo", "its features"] * 2)
    write_picture(args.out / "photos.png", sheet)
    if cloud is not None:
        features = lifted(cloud, views, encoded, args.layer)
        colors = projection.colors(features)
        np.savez(args.out / "points.npz", xyz=cloud.xyz, features=features)
        panels = {"colours": (255 * cloud.colors).byte().numpy()} if cloud.colors is not None else {}
        normals = None if cloud.normals is None else cloud.normals.numpy()
        picture = draw_labels(cloud.xyz.numpy(), normals, panels | {"features, grey where no photo sees": colors}, [])
        write_picture(args.out / "points.png", picture)
        cloud.colors = torch.from_numpy(colors).float() / 255
        write_points(args.out / "points.ply", cloud)
        share = float(features.isfinite().all(1).float().mean())
        print(f"{len(cloud)} points, {100 * share:.0f} % of them seen in {len(views)} photos")
    print(f"{len(views)} photos, maps of {maps[0].shape[0]} channels: {args.out}")


if __name__ == "__main__":
    main()
