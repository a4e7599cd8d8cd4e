"""The layers of every encoder, by which rates decay, and the parts that are its own."""

from __future__ import annotations

import pytest
import torch

from geo3d.models import create_model, list_models

#: Model -> layers: the stem or embedding, and every block.
LAYERS = {"croco_tiny": 5, "swin3d_tiny": 6, "spark": 17, "resnet_tiny": 5, "convnext_atto": 13, "i2p_mae_tiny": 7}
LAYERS |= {
    "sparse_resnet_tiny": 4,
    "i2p_mae_modelnet40": 16,
    "nerf_mae_detector_tiny": 11,
    "nerf_mae_semantic_tiny": 11,
}
LAYERS |= {"swin3d_s": 24, "resnet50": 17, "sparse_resnet18": 9, "nerf_mae_tiny": 11, "croco_v1_base": 13}
LAYERS |= {"nerf_mae_semantic_tiny": 11}


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_of_an_encoder_is_of_one_layer(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    names = [name for name, _ in model.named_parameters()]
    layers = model.layer_prefixes()
    assert model.layer_count == len(layers) == LAYERS.get(name, len(layers))
    for parameter in names:
        inside = [number for number, beginnings in enumerate(layers) if parameter.startswith(beginnings)]
        assert inside == ([model.depth_of(parameter)] if model.is_of_encoder(parameter) else []), parameter
        assert model.is_of_encoder(parameter) == (model.depth_of(parameter) < len(layers))
    assert {model.depth_of(parameter) for parameter in names} >= set(range(len(layers)))


@pytest.mark.parametrize("name", list_models())
def test_the_parts_of_an_encoder_hold_it_and_nothing_else(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    parts = tuple(f"{part}." for part in model.encoder_modules())
    assert len(set(parts)) == len(parts)
    for parameter, _ in model.named_parameters():
        assert parameter.startswith(parts) == model.is_of_encoder(parameter), parameter
