"""Match two photos by the features of an encoder: mutual nearest neighbours that agree with those around them.

    python examples/match_two_photos.py                                  # two views of a synthetic room, made for it
    python examples/match_two_photos.py a.jpg b.jpg --out matches.png
    python examples/match_two_photos.py --capture captures/fox --views 3 8

Where the cameras are known, matches are measured by their distance from the line on which the other photo's pixel must
lie (epipolar error), and where depth is known, from the very pixel.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import geo3d
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.nn.mutual_nearest import mutual_nearest
from geo3d.viz.sheet import MARGIN, Sheet, write_picture


def grid_features(out, step: int, layers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (M, 2) of a grid over an image, and their features (M, C): stages side by side, of length 1 each."""
    height, width = out.size
    rows, columns = torch.arange(step / 2, height, step), torch.arange(step / 2, width, step)
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1) - 0.5
    return pixels, torch.cat(
        [F.normalize(out.at(pixels, n) - out.maps[n].mean((1, 2)), dim=1) for n in layers], 1
    ).cpu()


def agreeing(first: torch.Tensor, second: torch.Tensor, tolerance: float, neighbours: int = 8) -> torch.Tensor:
    """(M,) which matches move as at least half of the matches nearest to them do, to a share of how far those are.

    Without a model of the cameras: surfaces are mostly smooth, and wrong matches point anywhere.
    """
    if len(first) <= neighbours:
        return torch.zeros(len(first), dtype=torch.bool)
    apart, near = torch.cdist(first, first).topk(neighbours + 1, largest=False)
    moved = second - first
    differ = (moved[near[:, 1:]] - moved[:, None]).norm(dim=2)
    return (differ < tolerance * (apart[:, 1:] + 4)).float().mean(1) >= 0.5


def epipolar_errors(a: geo3d.View, b: geo3d.View, pixels_a: torch.Tensor, pixels_b: torch.Tensor) -> torch.Tensor:
    """(M,) pixels between what is matched in b and the line that the camera of a casts there; lenses straightened."""
    rays = [v.camera.unproject(p.double(), torch.ones(len(p)).double()) for v, p in ((a, pixels_a), (b, pixels_b))]
    b_from_a = torch.linalg.inv(b.world_from_camera) @ a.world_from_camera
    lines = torch.linalg.cross(b_from_a[:3, 3].expand(len(rays[0]), 3), rays[0] @ b_from_a[:3, :3].T)
    return b.camera.fx * (lines * rays[1]).sum(1).abs() / lines[:, :2].norm(dim=1)


def true_errors(a: geo3d.View, b: geo3d.View, pixels_a: torch.Tensor, pixels_b: torch.Tensor) -> torch.Tensor:
    """(M,) pixels between what is matched and where depth says that it is; NaN where there is none."""
    camera = a.depth_camera or a.camera
    column, row = (pixels_a * camera.width / a.camera.width).round().long().unbind(1)
    depth = a.depth[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)].double()
    b_from_a = torch.linalg.inv(b.world_from_camera) @ a.world_from_camera
    local = a.camera.unproject(pixels_a.double(), depth) @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    errors = (b.camera.project(local) - pixels_b).norm(dim=1)
    return torch.where((depth > 0) & (local[:, 2] > 0), errors, torch.nan)


def draw(a: np.ndarray, b: np.ndarray, pixels_a: np.ndarray, pixels_b: np.ndarray, caption: str) -> np.ndarray:
    """Both photos, and matches as lines; colours tell where in the first photo one begins."""
    sheet = Sheet(a.shape[1] + b.shape[1] + MARGIN, max(len(a), len(b)) + 24)
    sheet.put(a, 0, 24)
    sheet.put(b, a.shape[1] + MARGIN, 24)
    sheet.write(caption, 4, 4, sheet.image.width - 8)
    for (x, y), (u, v) in zip(pixels_a, pixels_b):
        color = (int(255 * x / a.shape[1]), int(255 * y / len(a)), 160)
        ends = (x, y + 24), (u + a.shape[1] + MARGIN, v + 24)
        sheet.draw.line(ends, color)
        for x, y in ends:
            sheet.draw.ellipse((x - 2, y - 2, x + 2, y + 2), color)
    return sheet.pixels()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="two photos")
    parser.add_argument("--capture", type=Path, help="posed capture, instead of photos")
    parser.add_argument("--views", type=int, nargs=2, default=[0, 1], help="numbers of two views of the capture")
    parser.add_argument(
        "--encoder", default="resnet_tiny", help="run folder, file, or model whose weights come with geo3d"
    )
    parser.add_argument("--fresh", type=int, metavar="SEED", help="fresh weights instead, to compare with")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of the stages; two fine ones when not given")
    parser.add_argument("--step", type=int, default=8, help="distance of pixels that are matched (pixels)")
    parser.add_argument("--tolerance", type=float, default=0.6, help="by which neighbours may disagree (share)")
    parser.add_argument("--out", type=Path, default=Path("matches.png"), help="picture to write")
    args = parser.parse_args()
    if len(args.photos) not in (0, 2) or (args.photos and args.capture):
        parser.error("hand in two photos, or --capture, or nothing")
    if args.photos:
        a, b = (
            geo3d.View(path.name, image=torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255)
            for path in args.photos
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            if args.capture is None:
                write_synthetic(SyntheticConfig(out=Path(folder), scenes=1, objects=0, views=30, workers=1))
                args.capture = Path(folder) / "scannet"
            scene = next(geo3d.open_dataset(args.capture).readable("views"))
            a, b = (scene.view(number) for number in args.views)

    out = geo3d.load_encoder(args.encoder, fresh=args.fresh)([a, b])
    strides = out.first.strides
    layers = args.layers or [n for n, stride in enumerate(strides) if stride <= max(8, *strides[:1])][-2:]
    pixels_a, features_a = grid_features(out.first, args.step, layers)
    pixels_b, features_b = grid_features(out.second, args.step, layers)
    rows, cosines = mutual_nearest(features_a, features_b)
    pixels_a, pixels_b = pixels_a[rows[:, 0]], pixels_b[rows[:, 1]]
    kept = agreeing(pixels_a, pixels_b, args.tolerance)
    told = f"{len(rows)} mutual matches of {len(features_a)} pixels, {int(kept.sum())} agree with those around them"
    print(f"{told}; cosine {cosines.mean():.2f}, {cosines[kept].mean():.2f} of those that agree")
    measures = {"epipolar": epipolar_errors} if a.world_from_camera is not None else {}
    measures |= {"true": true_errors} if measures and a.depth is not None else {}
    for name, measure in measures.items():
        errors = measure(a, b, pixels_a, pixels_b)
        for what, some in (("all", errors), ("agreeing", errors[kept])):
            some = some[some.isfinite()]
            within = 100 * (some < args.step).double().mean()
            print(f"{name} error, {what}: median {some.median():.1f} pixels, {within:.0f} % below {args.step}")
    photos = [(255 * view.image).byte().numpy() for view in (a, b)]
    write_picture(args.out, draw(*photos, pixels_a[kept].numpy(), pixels_b[kept].numpy(), told))
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
