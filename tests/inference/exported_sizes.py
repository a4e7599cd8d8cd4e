"""Small encoders of every family, and inputs of their programs at other sizes than those that were traced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geo3d.inference.programs import EncoderProgram

_POINTS = {"groups": (24, 12, 6), "neighbors": (4, 4, 3), "dims": (8, 8, 16), "depths": (1, 1, 1), "heads": 2}
_POINTS |= {"points": 64, "embed_dim": 8, "mlp_ratio": 2}
_GRIDS = {"embed_dim": 12, "depths": (2, 1, 1, 1), "heads": (2, 2, 3, 4), "mlp_ratio": 2}

#: One of each family, quick to trace.
QUICK = ("croco_v2", "resnet", "convnext", "spark", "sparse_resnet", "swin3d", "i2p_mae")
#: Name of a test -> model, its options.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "croco_v2": ("croco_tiny", {"encoder_dim": 32, "encoder_heads": 2, "encoder_depth": 2}),
    "croco_v1": ("croco_v1_base", {"encoder_dim": 32, "encoder_heads": 2, "encoder_depth": 1, "image_size": 64}),
    "croco_stereo": ("croco_stereo_tiny", {"encoder_dim": 32, "encoder_heads": 2, "encoder_depth": 2}),
    "dust3r": ("dust3r_tiny", {"encoder_dim": 32, "encoder_heads": 2, "encoder_depth": 2, "decoder_depth": 1}),
    "resnet": ("resnet_tiny", {"width": 8}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    "spark": ("spark", {"encoder": "resnet_tiny", "decoder_width": 32}),
    "sparse_resnet": ("sparse_resnet_tiny", {"stem": 8, "channels": (8, 16), "depths": (1, 1)}),
    "sparse_resnet_bottleneck": (
        "sparse_resnet50",
        {"stem": 8, "channels": (8,), "depths": (1,), "signals": "XYZ", "voxel_size": 0.1},
    ),
    "swin3d": (
        "swin3d_tiny",
        {"depths": (1, 2), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3), "signals": "XYZ_RGB_NORM"},
    ),
    "swin3d_cell": (
        "swin3d_tiny",
        {"depths": (0, 1), "channels": (16, 24), "heads": (2, 2), "windows": (3, 3), "pooling": "cell"},
    ),
    "i2p_mae": ("i2p_mae_tiny", _POINTS | {"radii": (0.5, 0.0, 2.0), "decoder_dims": ()}),
    "i2p_mae_all": ("i2p_mae_tiny", _POINTS | {"radii": (0.0, 0.0, 0.0), "decoder_dims": (), "published_mask": False}),
    "i2p_mae_classifier": ("i2p_mae_modelnet40", _POINTS | {"radii": (0.5, 0.0, 2.0)}),
    "nerf_mae": ("nerf_mae_tiny", _GRIDS | {"decoder": False}),
    "nerf_mae_fpn": ("nerf_mae_fpn_tiny", _GRIDS | {"pyramid_channels": 8}),
    "nerf_mae_semantic": ("nerf_mae_semantic_tiny", _GRIDS | {"num_classes": 3}),
}

_SIZES: dict[str, list[tuple[int, ...]]] = {
    "image": [(1, 1, 1), (1, 4, 3), (3, 2, 5)],  # images, rows and columns of patches
    "grid": [(1, 1, 1, 1), (1, 8, 8, 8), (2, 1, 2, 13)],  # grids, patches along x, y, z
    "voxels": [(1, 1), (37, 1), (3000, 3)],  # points, scenes
    "points": [(1, 1), (10, 2), (400, 3)],  # points, clouds
}


def inputs_of(program: EncoderProgram) -> list[dict[str, Tensor]]:
    """Inputs of several sizes, none of which was traced."""
    return [
        _inputs(program, size, torch.Generator().manual_seed(n)) for n, size in enumerate(_SIZES[program.model.kind])
    ]


def _inputs(program: EncoderProgram, size: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    model = program.model
    if model.kind == "image":
        batch, *sides = size
        height, width = (side * model.side_multiple for side in sides)
        if program.normalise == "no":
            return {"images": torch.randn(batch, 3, height, width, generator=generator)}
        colors = torch.rand(batch, height - 3, width - 5, 3, generator=generator)
        return {"images": (255 * colors).byte() if program.normalise == "uint8" else colors}
    if model.kind == "grid":
        batch, *sides = size
        less = 0 if program.normalise == "no" else 1
        values = torch.rand(batch, 4, *(side * model.patch - less for side in sides), generator=generator)
        return {"values": (255 * values).byte() if program.normalise == "uint8" else values}
    count, scenes = size
    cuts = torch.randperm(count - 1, generator=generator)[: scenes - 1].sort().values + 1
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([count])])
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    if model.kind == "points":
        return {"xyz": xyz, "offsets": offsets}
    colors = torch.rand(count, 3, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    parts = {"colors": (255 * colors).byte() if program.normalise == "uint8" else colors, "normals": normals}
    return {"xyz": xyz, "offsets": offsets} | {name: parts[name] for name in model.reads}
