"""Align two partial scans of a room in Open3D, by an encoder's features, by FPFH, and by both; with a picture.

    python examples/register_with_open3d.py --checkpoint runs/spark3d-001
    python examples/register_with_open3d.py --checkpoint runs/spark3d-001 --data scannet/ --pairs 5

Your own scans go the same way: a `Scan(cloud, sensor)` of each, `describe`, `register`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import geo3d
from geo3d.interop.registration import (
    REGISTERED,
    PairScore,
    ScanPair,
    describe,
    drawn_keypoints,
    scan_pairs,
    score_pair,
)
from geo3d.viz.points import draw_clouds
from geo3d.viz.sheet import write_picture

SOURCE, TARGET = (0.93, 0.55, 0.14), (0.16, 0.42, 0.70)  # orange and blue


def room(data: Path | None, number: int):
    """The mesh of a scene, or of a synthetic room where no data is given."""
    if data is not None:
        dataset = geo3d.open_dataset(data)
        return dataset[number % len(dataset)].mesh()
    from geo3d.datasets.synthetic.furnished import furnished_mesh

    return furnished_mesh(200 + number)


def tinted(pair: ScanPair, motion: np.ndarray) -> geo3d.PointCloud:
    """Both scans in the target's frame, the source moved and orange, the target blue; ceilings are left out."""
    motion = torch.from_numpy(motion).float()
    clouds = []
    for scan, tint, pose in ((pair.source, SOURCE, motion), (pair.target, TARGET, torch.eye(4))):
        rows = scan.keypoints(0.03)
        xyz, normals = scan.cloud.xyz[rows] @ pose[:3, :3].T + pose[:3, 3], scan.cloud.normals[rows] @ pose[:3, :3].T
        light = 0.75 + 0.25 * normals[:, 2:].abs()
        clouds.append(geo3d.PointCloud(xyz, torch.tensor(tint) * light, normals))
    return geo3d.PointCloud.pack(clouds)


def picture(pair: ScanPair, scores: dict[str, PairScore]) -> np.ndarray:
    """(H, W, 3) uint8: the scans as they came, and as each of two descriptors registered them."""
    panels = [draw_clouds({"as the two scans came": tinted(pair, np.eye(4))})]
    for name in ("FPFH", "geo3d and FPFH"):
        right, error = 100 * scores[name].inlier_ratio[1], scores[name].error
        title = f"{name}: {right:.0f} % of the matches right, off by {error:.2f} m"
        panels.append(draw_clouds({title: tinted(pair, scores[name].motion)}))
    return np.concatenate(panels, 1)


def main(
    checkpoint: str, data: Path | None = None, pairs: int = 3, keypoints: int = 2000, out: Path | None = None
) -> dict[str, list[PairScore]]:
    """Register pairs of partial views, print a table, draw that of least overlap; returns each descriptor's scores."""
    encoder = geo3d.load_encoder(checkpoint)
    scores: dict[str, list[PairScore]] = {}
    hardest: ScanPair | None = None
    number = found = 0
    while found < pairs and number < 2 * pairs:
        for pair in scan_pairs(room(data, number), 1, np.random.default_rng(number)):
            rows = (drawn_keypoints(pair.source, keypoints), drawn_keypoints(pair.target, keypoints))
            for name, features in describe(pair, rows, {"geo3d": encoder}).items():
                scores.setdefault(name, []).append(score_pair(pair, rows, features))
            hardest = pair if hardest is None or pair.overlap < hardest.overlap else hardest
            if pair is hardest and out is not None:
                write_picture(out, picture(pair, {name: of[-1] for name, of in scores.items()}))
            found += 1
        number += 1
    print(f"{'':16}  {'right within 0.1 m':>18}  " + "  ".join(f"registered to {r:g} m" for r in REGISTERED))
    for name, of in scores.items():
        ratio = np.mean([score.inlier_ratio[1] for score in of])
        recalls = (np.mean([score.error < r for score in of]) for r in REGISTERED)
        print(f"{name:16}  {100 * ratio:16.1f} %  " + "  ".join(f"{100 * r:15.0f} %" for r in recalls))
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="run, file of weights, or name whose weights geo3d has")
    parser.add_argument("--data", type=Path, help="scenes with a mesh, such as ScanNet's; without: synthetic rooms")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of views")
    parser.add_argument("--keypoints", type=int, default=2000, help="points of each view that are matched, at most")
    parser.add_argument("--out", type=Path, default=Path("registration.png"), help="picture of that of least overlap")
    main(**vars(parser.parse_args()))
