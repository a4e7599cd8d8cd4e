"""Groups of the golden case of DUSt3R's functions: heads' outputs, the training loss, and the loading of images."""

from __future__ import annotations

import re
from pathlib import Path

from golden_cases import GoldenCase
from PIL import Image
from torch import Tensor

from geo3d.methods.pointmap_loss import pointmap_loss
from geo3d.models.dust3r_images import load_image
from geo3d.nn.pointmaps import ConfidenceMode, points_from_raw, unit_descriptors

# Computed in float64 on the float32 inputs: what remains is the rounding of the stored values, 6e-8 relative. The case
# suggests 1e-5 for values and gradients.
SHARP = 3e-7
_ORIENTATION = 0x112


def _group(case: GoldenCase, name: str) -> dict[str, Tensor]:
    tensors = {k.removeprefix(f"{name}."): v for k, v in case.tensors.items() if k.startswith(f"{name}.")}
    return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).detach().abs() / (1 + expected.abs())).max())


def check_post(case: GoldenCase) -> None:
    """Points, confidences and descriptors of every mode that the case holds."""
    t = _group(case, "post")
    for name, expected in t.items():
        kind, _, mode = name.partition(".")
        if kind == "points":
            found = points_from_raw(t["raw"][..., :3], mode)
        elif kind == "conf":
            exponential, low, high = mode.split("_")
            found = ConfidenceMode(exponential, float(low), None if high == "inf" else float(high))(t["raw"][..., 3])
        elif kind == "desc":
            found = unit_descriptors(t["desc_raw"])
        else:
            assert kind in ("raw", "desc_raw"), name
            continue
        assert _relative(found, expected) < SHARP, name


def _in_camera(points: Tensor, world_from_camera: Tensor) -> Tensor:
    """Points of the world (B, H, W, 3) in the frame of a camera with pose (B, 4, 4)."""
    rotation, centre = world_from_camera[:, None, None, :3, :3], world_from_camera[:, None, None, :3, 3]
    return ((points - centre).unsqueeze(-2) @ rotation).squeeze(-2)


def check_loss(case: GoldenCase) -> None:
    """The training loss, the mean errors and all gradients."""
    t = _group(case, "loss")
    points = tuple(t[f"points{n}"].requires_grad_() for n in (1, 2))
    confidences = tuple(t[f"conf{n}"].requires_grad_() for n in (1, 2))
    targets = tuple(_in_camera(t[f"target{n}"], t["world_from_camera1"]) for n in (1, 2))
    loss = pointmap_loss(points, confidences, targets, (t["valid1"], t["valid2"]))
    assert _relative(loss.value, t["value"]) < SHARP
    assert _relative(loss.errors, t["regression"]) < SHARP
    loss.value.backward()
    for name in ("points1", "conf1", "points2", "conf2"):
        expected = t[f"grad.{name}"]
        # Stored gradients are of the published float32 leaves; 3e-7 of the largest was measured.
        assert (t[name].grad - expected).abs().max() < 3 * SHARP * expected.abs().max(), name


def check_load(case: GoldenCase, folder: Path) -> None:
    """Images from files, EXIF orientation included; and sizes alone."""
    for number in range(sum(name.endswith(".source") and name.startswith("load.") for name in case.tensors)):
        image = Image.fromarray(case.tensors[f"load.{number}.source"].numpy())
        exif = image.getexif()
        if turned := re.search(r"orientation (\d)", case.meta["tensors"][f"load.{number}.source"]["what"]):
            exif[_ORIENTATION] = int(turned[1])
        path = folder / f"{number}.png"
        image.save(path, exif=exif)
        size = int(re.search(r"size (\d+)", case.meta["tensors"][f"load.{number}.loaded"]["what"])[1])
        expected = case.tensors[f"load.{number}.loaded"]
        found = load_image(path, size).pixels
        assert found.shape == expected.shape, number
        assert (found.int() - expected.int()).abs().max() <= 1, number  # Pillow's own resampling may change
    for wanted in case.meta["load_sizes"]:
        blank = Image.new("RGB", (wanted["width"], wanted["height"]))
        loaded = load_image(blank, wanted["size"], square_ok=wanted["square_ok"])
        assert list(loaded.size) == wanted["loaded_height_width"], wanted


__all__ = ["check_load", "check_loss", "check_post"]
