"""Segment scans into classes of your own: an encoder with a small head, beside the same from random weights.

    python examples/fine_tune_on_own_labels.py                       # synthetic rooms, made for it
    python examples/fine_tune_on_own_labels.py scans/ --encoder runs/spark3d-001 --labels 0.1

``scans/`` holds labelled scans in any layout that geo3d reads: clouds as PLY with a property ``label`` or as NPZ of
``PointCloud.to_numpy`` beside a ``classes.txt`` with a name a line, or ScanNet's folders. It is what `geo3d finetune
segment` does, with its comparison; docs/finetune.md tells more.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import geo3d
from geo3d.recipes import get_recipe, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="?", type=Path, help="folder; synthetic rooms when not given")
    parser.add_argument(
        "--encoder", type=Path, default=Path("sparse_resnet_tiny"), help="run, file, or model with weights in geo3d"
    )
    parser.add_argument("--steps", type=int, default=300, help="of two crops each")
    parser.add_argument("--labels", type=float, default=1.0, help="share of the scans to learn from, or how many")
    parser.add_argument("--frozen", action="store_true", help="train the head alone")
    parser.add_argument("--out", type=Path, default=Path("tuned"), help="folder to write")
    args = parser.parse_args()

    run = get_recipe("segment").preset("tiny")
    run.data, run.init = (args.scans,) if args.scans else (), args.encoder
    run.method = replace(run.method, labels=args.labels, frozen=args.frozen, layer_decay=0.75)
    run.train.steps, run.train.warmup_steps, run.train.workers = args.steps, args.steps // 10, 0
    run.method = run.settled()  # the network of the encoder's file, also for the run without its weights
    found = {}
    for name, init in (("pre-trained", args.encoder), ("fresh", None)):
        _, report = pretrain("segment", replace(run, init=init, out=args.out / name))
        found[name] = report["after"]["miou"]
    print(", ".join(f"{name} weights: mean IoU {miou:.1%}" for name, miou in found.items()))

    network = geo3d.create_model(checkpoint=args.out / "pre-trained")  # a segmenter, and an encoder as every other
    print(f"{network.family} of {len(network.classes)} classes around {network.config.encoder}: {args.out}/pre-trained")


if __name__ == "__main__":
    main()
