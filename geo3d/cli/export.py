"""`geo3d export`: an encoder written as a program that runs without geo3d's models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from geo3d.cli import command_line
from geo3d.inference import load_encoder
from geo3d.inference.export import export_encoder
from geo3d.inference.programs import Normalise
from geo3d.models.encoder import layers_said


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an encoder as a program: for torch.export, AOTInductor or ONNX."""

    checkpoint: str
    """Run folder, one of its checkpoints, what save_model wrote, or the authors' file; or a model whose weights come
    with geo3d."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write: .pt2, or .onnx."""
    to: Literal["program", "aoti", "onnx"] = "program"
    """program: torch.export, which any process with torch and geo3d.ops runs. aoti: compiled for this processor. onnx:
    for ONNX runtimes, encoders of images alone."""
    model: str | None = None
    """Name of the model, where the file does not say what it holds."""
    layers: tuple[str, ...] = ()
    """Stages to return, by name or number, negative ones from the end; none named: all."""
    normalise: Normalise = "no"
    """What the program does itself. float, uint8: it is handed colours in [0, 1] or bytes, images and grids of any
    sides, clouds of any unit."""
    points: bool = False
    """Return the features of every point too; encoders of voxels alone."""
    voxel_size: float | None = None
    """Edge of a voxel, metres; None: as in training."""
    device: str = "cpu"
    """Where the program is to run, such as cuda."""


def main(args: list[str], program: str) -> None:
    """Read the command line, write the program, print what goes in and what comes out."""
    print(export(command_line.parse(Export, args, program)))


def export(config: Export) -> str:
    """Write the program.

    Returns:
        Lines that say what goes in and what comes out.

    Raises:
        InputError: as :func:`geo3d.inference.export.export_encoder`.
    """
    of_model = (config.checkpoint,) if config.model is None else (config.model, config.checkpoint)
    model = load_encoder(*of_model, device=config.device).model
    layers = layers_said(config.layers) or None
    card = export_encoder(
        model,
        config.out,
        config.to,
        layers=layers,
        normalise=config.normalise,
        points=config.points,
        voxel_size=config.voxel_size,
    )
    lines = [f"{config.out}: {card['model']} ({config.to}), {config.out.stat().st_size / 2**20:.1f} MB"]
    lines += [f"  takes {name}: {told}" for name, told in card["inputs"].items()]
    lines += [f"  gives {name}: {told}" for name, told in card["outputs"].items()]
    if card["licence"]:
        lines.append(f"  licence of the weights: {card['licence']}, for non-commercial use alone")
    return "\n".join(lines)
