"""Drawing CroCo's samples: two JPEGs decoded, cropped to 224 px, jittered and masked, on one core.

The floor is decoding: a JPEG of 640 x 480 takes some 2 ms at full size, and a quarter of it where the decoder may
shrink by two on the way. The peer does the same steps in plain Pillow and numpy: open, decode, resize the shorter side
to 256, crop, jitter in floating point.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.race import Variant, race
from PIL import Image

from geo3d.datasets import open_dataset
from geo3d.methods.croco import CompletionSamples, CrossViewCompletionConfig
from geo3d.samples.pairs import ViewPairs

CROP, RESIZED, PATCHES, STRENGTH = 224, 256, 196, 0.4
SIZES = ((320, 240), (640, 480), (1920, 1440))


@dataclass
class LoaderBenchmark:
    """Pairs drawn a second on one core, beside plain Pillow and numpy."""

    pairs: int = 32
    """Pairs drawn in one turn."""
    turns: int = 5
    """Timed turns of each variant; the median counts."""


def _write_photos(folder: Path, width: int, height: int, count: int = 8) -> None:
    """JPEGs with the spectrum of photographs: smooth random fields with some grain."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        field = sum(
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (3 * 2**k, 4 * 2**k, 3), dtype=np.uint8)).resize((width, height)),
                dtype=np.float32,
            )
            / 2**k
            for k in range(6)
        )
        field = field / field.max() * 230 + rng.normal(0, 4, field.shape)
        Image.fromarray(field.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.jpg", quality=92)


def geo3d_draws(root: str, pairs: int):
    """Draws ``pairs`` samples a call, as a loader worker does."""
    source = ViewPairs.from_listed([open_dataset(root)])
    config = CrossViewCompletionConfig("croco_v2_base_small", (CROP, CROP), RESIZED)
    samples = CompletionSamples(source, config, PATCHES)

    def step() -> None:
        for item in range(pairs):
            samples.draw(item % len(samples), np.random.default_rng([0, item]))

    return step


def _plain_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for kind in rng.permutation(3):
        factor = rng.uniform(1 - STRENGTH, 1 + STRENGTH)
        gray = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        other = (0.0, gray.mean(), gray[..., None])[kind]
        image = (factor * image + (1 - factor) * other).clip(0, 1)
    return image


def plain_draws(root: str, pairs: int):
    """The same steps in plain Pillow and numpy."""
    files = sorted(Path(root).rglob("*.jpg"))
    listed = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]

    def view(path: Path, rng: np.random.Generator) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        scale = RESIZED / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = rng.integers(image.width - CROP + 1), rng.integers(image.height - CROP + 1)
        image = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float32) / 255
        return _plain_jitter(image, rng)

    def step() -> None:
        masks = []
        for item in range(pairs):
            rng = np.random.default_rng([0, item])
            for path in listed[item % len(listed)]:
                view(path, rng)
            masks.append(np.argsort(rng.random(PATCHES)) < int(0.9 * PATCHES))

    return step


def run(config: LoaderBenchmark) -> list[dict[str, Any]]:
    """Rows for three image sizes; ``seconds`` is the time of one pair."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            root = Path(folder, f"{width}")
            _write_photos(root / "place", width, height)
            arguments = {"root": str(root), "pairs": config.pairs}
            variants = [
                Variant("plain Pillow + numpy", "benchmarks.loader:plain_draws", arguments, "uint8"),
                Variant("geo3d", "benchmarks.loader:geo3d_draws", arguments, "uint8"),
            ]
            for row in race(f"a pair of {width} x {height} JPEGs, one core", variants, config.turns):
                rows.append(row | {"seconds": row["seconds"] / config.pairs})
    return rows
