"""I2P-MAE's pre-training network against a plain-PyTorch port of it: losses, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch
from benchmarks.i2p_mae import StoredTeacher
from benchmarks.i2p_mae_twin import I2PMAETwin

from geo3d.methods.i2p_mae import GuidedMasking, GuidedMaskingConfig
from geo3d.models import create_model
from geo3d.models.teachers import TeacherOutput

_SMALL = {"points": 300, "groups": (48, 24, 8), "neighbors": (8, 4, 4), "dims": (12, 24, 36), "depths": (2, 1, 2)}
_SMALL |= {"heads": 3, "embed_dim": 8, "drop_path_rate": 0.2, "decoder_dims": (36, 24), "teacher_dim": 6}


@pytest.mark.parametrize("published", [False, True])
def test_losses_and_gradients_agree(published: bool) -> None:
    method = GuidedMasking(GuidedMaskingConfig("i2p_mae_tiny", mask_ratio=0.7))
    options = _SMALL | {"published_groups": published, "published_mask": published, "embed_masked": True}
    method.network = create_model("i2p_mae_tiny", generator=torch.Generator().manual_seed(0), **options)
    method.teacher = StoredTeacher(6)
    method.double().train()
    twin = I2PMAETwin(method.network.config).double().train()
    twin.load_state_dict(method.network.state_dict())
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 300, 3, dtype=torch.float64, generator=generator) / 3  # some near the origin
    draws = torch.empty(3, 8).exponential_(generator=generator)

    features, saliency = (part.double() for part in method.teacher.look(torch.empty(9, 0)))
    method.teacher.said[9] = TeacherOutput(features, saliency)

    torch.manual_seed(0)  # of dropped paths
    losses = method({"points": points, "stored": points, "draws": draws}).losses
    torch.manual_seed(0)
    expected = twin(points, features, saliency, draws, method.visible_count)
    torch.testing.assert_close(list(losses.values()), expected, rtol=1e-12, atol=0)

    sum(losses.values()).backward()
    sum(expected).backward()
    pairs = dict(twin.named_parameters())
    for name, parameter in method.network.named_parameters():
        reference = pairs[name].grad
        if reference is None:  # the norm of the first level, whose tokens the decoder does not read
            assert parameter.grad is None, name
            continue
        scale = reference.abs().max().clamp_min(1e-12)  # biases before a batch norm have no gradient but rounding
        assert (parameter.grad - reference).abs().max() <= 1e-9 * scale + 1e-15, name
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(method.network.get_buffer(name), buffer, rtol=1e-10, atol=1e-12)
