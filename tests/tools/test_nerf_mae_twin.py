"""NeRF-MAE's network against a plain-PyTorch port of it: losses and gradients."""

from __future__ import annotations

import torch
from benchmarks.nerf_mae import room
from benchmarks.nerf_mae_twin import NeRFMAETwin

from geo3d.models import create_model

_SMALL = {"embed_dim": 12, "depths": (2, 2, 2, 2), "heads": (1, 2, 3, 4), "drop_path_rate": 0.0}


def test_losses_and_gradients_agree() -> None:
    """Of two grids of unequal sides, in windows that are filled up, in float64."""
    model = create_model("nerf_mae_tiny", generator=torch.Generator().manual_seed(0), **_SMALL).double().train()
    twin = NeRFMAETwin(model.config).double()
    twin.load_state_dict(model.state_dict())
    inputs = model.prepare([room(32, 1)[0], room(64, 1)[0][:, :40, :30, :20]])
    inputs.values = inputs.values.double()
    mask = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(1)) < 0.7
    losses = model(inputs, mask).losses
    expected = twin(inputs.values, inputs.valid, mask)
    torch.testing.assert_close(tuple(losses.values()), expected, rtol=1e-12, atol=0)
    sum(losses.values()).backward()
    sum(expected).backward()
    pairs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        scale = pairs[name].grad.abs().max()  # biases before a norm have no gradient but rounding
        assert (parameter.grad - pairs[name].grad).abs().max() <= 1e-9 * scale + 1e-13, name
