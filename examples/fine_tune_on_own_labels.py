"""Segment scans into classes of your own: a linear head on an encoder's features, then the whole network.

    python examples/fine_tune_on_own_labels.py                       # synthetic rooms, made for it
    python examples/fine_tune_on_own_labels.py scans/ --encoder runs/spark3d-001 --out tuned/

``scans/`` holds clouds with what the encoder reads (colours, normals) and labels, as PLY with a property ``label`` or
as NPZ of ``PointCloud.to_numpy``; a label below 0 is none. Every fourth scan is held out. The same is done with fresh
weights, since only the difference to them tells what the encoder has brought along.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import geo3d
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.viz.points import draw_labels, write_labelled_points
from geo3d.viz.sheet import write_picture


def read_scans(folder: Path, encoder) -> tuple[list, list[torch.Tensor], list[geo3d.PointCloud]]:
    """What the network reads of each scan, the labels of its voxels, and the scans."""
    clouds = [geo3d.read_points(path) for path in sorted([*folder.glob("*.ply"), *folder.glob("*.npz")])]
    if len(clouds) < 2 or any(cloud.semantic is None for cloud in clouds):
        raise geo3d.InputError(f"{folder}: two or more labelled clouds are expected, as .ply or .npz")
    inputs = [encoder.model.prepare(cloud) for cloud in clouds]
    device = encoder.model.device
    labels = [cloud.semantic.clamp_min(-1).to(device)[one.index] for cloud, one in zip(clouds, inputs)]
    return inputs, labels, clouds


class Segmenter(nn.Module):
    """An encoder's features of all stages, made of one scale, and a linear map to classes."""

    def __init__(self, model: geo3d.Encoder, classes: int) -> None:
        super().__init__()
        width = sum(stage.channels for stage in model.feature_info)
        self.model, self.scale, self.head = model, nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes)

    def forward(self, inputs) -> torch.Tensor:
        return self.classify(self.model.voxel_features(inputs))  # (V, classes)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale(features))


def train_head(network: Segmenter, inputs: list, labels: list[torch.Tensor], steps: int) -> None:
    """The encoder stays as it is, so that its features are computed once."""
    network.model.eval()
    with torch.no_grad():
        features, wanted = torch.cat([network.model.voxel_features(one) for one in inputs]), torch.cat(labels)
    network.scale.train()(features)  # learns the scale
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=1e-2)
    for step in range(steps):
        rows = torch.randint(len(features), (8192,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(network.classify(features[rows]), wanted[rows], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_all(network: Segmenter, inputs: list, labels: list[torch.Tensor], steps: int, rate: float) -> None:
    """Encoder and head, one scan a step; the encoder at a lower rate, so that it does not forget."""
    groups = [{"params": network.model.parameters(), "lr": rate}, {"params": network.head.parameters(), "lr": 5 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps + 1)
    order = np.random.default_rng(0)
    network.model.train()  # the statistics of batch norm adapt to the scans
    for _ in range(steps):
        scan = int(order.integers(len(inputs)))
        loss = F.cross_entropy(network(inputs[scan]), labels[scan], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def mean_iou(network: Segmenter, inputs: list, labels: list[torch.Tensor]) -> float:
    """Intersection over union, mean over the classes that are there."""
    network.eval()
    classes = network.head.out_features
    found, wanted = torch.cat([network(one).argmax(1) for one in inputs]), torch.cat(labels)
    found, wanted = found[wanted >= 0], wanted[wanted >= 0]
    table = torch.bincount(wanted * classes + found, minlength=classes**2).view(classes, classes)
    union = table.sum(0) + table.sum(1) - table.diag()
    return float((table.diag() / union.clamp_min(1))[table.sum(1) > 0].mean())


def make_scans(folder: Path, rooms: int) -> None:
    """Labelled scans of synthetic rooms, a file each."""
    write_synthetic(SyntheticConfig(output=folder, scenes=rooms, objects=0, views=2, mesh_edge=0.06, workers=1))
    for scene in geo3d.open_dataset(folder / "scannet"):
        np.savez(folder / f"{scene.name}.npz", **scene.cloud().to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="?", type=Path, help="folder; synthetic rooms when not given")
    parser.add_argument(
        "--encoder", default="sparse_resnet_tiny", help="run folder, file, or model with weights in geo3d"
    )
    parser.add_argument("--head-steps", type=int, default=200, help="steps of the head alone")
    parser.add_argument("--steps", type=int, default=120, help="steps of the whole network")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the encoder")
    parser.add_argument("--rooms", type=int, default=8, help="synthetic rooms to make")
    parser.add_argument("--out", type=Path, default=Path("tuned"), help="folder to write")
    args = parser.parse_args()
    encoders = {"trained": geo3d.load_encoder(args.encoder), "fresh": geo3d.load_encoder(args.encoder, fresh=0)}
    with tempfile.TemporaryDirectory() as folder:
        if args.scans is None:
            make_scans(Path(folder), args.rooms)
        inputs, labels, clouds = read_scans(args.scans or Path(folder), encoders["trained"])
    held_out = set(range(0, len(inputs), 4))
    learnt = [([x for n, x in enumerate(part) if n not in held_out]) for part in (inputs, labels)]
    tested = [([x for n, x in enumerate(part) if n in held_out]) for part in (inputs, labels)]
    classes = 1 + int(max(each.max() for each in labels))
    print(f"{len(learnt[0])} scans to learn from, {len(tested[0])} held out, {classes} classes")
    for name, encoder in encoders.items():
        torch.manual_seed(0)
        network = Segmenter(encoder.model, classes).to(encoder.device)
        train_head(network, *learnt, args.head_steps)
        frozen = mean_iou(network, *tested)
        train_all(network, *learnt, args.steps, args.rate)
        whole = mean_iou(network, *tested)
        print(f"{name} weights: mean IoU {frozen:.1%} with the head alone, {whole:.1%} with all of it trained")
        if name == "trained":
            tuned = network
    args.out.mkdir(parents=True, exist_ok=True)
    geo3d.save_model(tuned.model, args.out / "encoder.safetensors")  # load_encoder reads it
    torch.save({"head": tuned.head.state_dict(), "scale": tuned.scale.state_dict()}, args.out / "head.pt")
    with torch.no_grad():
        found = tuned(inputs[0]).argmax(1)[inputs[0].inverse].cpu().numpy()
    cloud = clouds[0]
    write_labelled_points(args.out / "held_out.ply", cloud.xyz.numpy(), found, classes, cloud.origin)
    panels = {"labels": cloud.semantic.numpy(), "found": found}
    normals = None if cloud.normals is None else cloud.normals.numpy()
    names = [f"class {n}" for n in range(classes)]
    write_picture(args.out / "held_out.png", draw_labels(cloud.xyz.numpy(), normals, panels, names))
    print(f"network, PLY and picture: {args.out}")


if __name__ == "__main__":
    main()
