"""SparK's network beyond the goldens: tiles against dense maps, shapes, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geo3d import InputError, create_model
from geo3d.models.spark import ENCODERS, SparK, SparKConfig
from geo3d.nn.filled_conv import Fill
from geo3d.nn.unet_decoder import UNetBlock

#: Names in the authors' whole files, dead buffers left out.
PUBLISHED_NAMES = {"resnet50": 422, "resnet101": 728, "resnet152": 1034, "resnet200": 1322}
PUBLISHED_NAMES |= {"convnext_small": 430, "convnext_base": 432, "convnext_large": 432}
# Sums in another order: float32 is 2e-6 off, and gradients through few batch statistics lose more. Where a value before
# a ReLU is zero but for rounding, gradients jump: dense maps in float32 are up to 1.2e-2 off those in float64, by image
# and processor. Float64 says sharply that nothing else differs.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12}
RELATIVE_OF_GRADIENTS = {torch.float32: 3e-2, torch.float64: 3e-11}


def made(encoder: str, dtype: torch.dtype) -> SparK:
    model = create_model("spark", encoder=encoder, decoder_width=64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms and scales as after some training: fresh ones are 1, 0 or nearly 0
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator) + ("gamma" in name or "bn3.weight" in name))
    return model.to(dtype)


def inputs(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(3, 3, 128, 160, generator=generator, dtype=torch.float64).to(dtype)
    active = torch.rand(3, 20, generator=generator).argsort(1) < 8
    return images, active.view(3, 1, 4, 5)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("encoder", ["resnet_tiny", "convnext_atto"])
def test_tiles_train_as_dense_maps_do(encoder: str, dtype: torch.dtype) -> None:
    images, active = inputs(dtype)
    found = {}
    for path in ("dense", "tiles"):
        model = made(encoder, dtype).train()
        output = model(images, active, path)
        output.reconstruction.square().mean().backward()
        tensors = {"reconstruction": output.reconstruction} | {f"level {n}": d for n, d in enumerate(output.densified)}
        tensors |= dict(model.named_buffers()) | {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
        found[path] = {name: value.detach() for name, value in tensors.items()}
    for name, expected in found["dense"].items():
        error = float((found["tiles"][name] - expected).double().norm() / expected.double().norm().clamp_min(1e-12))
        limit = (RELATIVE_OF_GRADIENTS if name.startswith("gradient") else RELATIVE)[dtype]
        assert error < limit, f"{name}: {error:.1e}"


@pytest.mark.parametrize("encoder", ["resnet_tiny", "convnext_atto"])
def test_bfloat16_stays_near(encoder: str) -> None:
    images, active = inputs(torch.float32)
    model = made(encoder, torch.float32).eval()
    with torch.no_grad():
        expected = model(images, active).reconstruction
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images, active).reconstruction
    assert float((found - expected).norm() / expected.norm()) < 0.03  # 8 bits of mantissa; 0.01 was measured


@pytest.mark.parametrize("half", [False, True])
def test_wide_blocks_of_the_decoder_compute_what_plain_ones_do(half: bool) -> None:
    torch.manual_seed(0)
    block = UNetBlock(512).train()
    x, weights = torch.randn(2, 512, 3, 4), torch.randn(2, 256, 6, 8)
    results = []
    for plain in (True, False):
        seen = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = block(seen, plain)
        (y.float() * weights).sum().backward()
        results.append((y.detach().float(), seen.grad, block.up_sample.weight.grad.clone()))
        block.zero_grad()
    for expected, found in zip(*results):
        assert float((found - expected).norm() / expected.norm()) < (0.05 if half else 1e-5)


@pytest.mark.parametrize(("encoder", "count"), PUBLISHED_NAMES.items())
def test_names_are_as_many_as_published(encoder: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model("spark", encoder=encoder)
    assert len(model.state_dict()) == count


def test_paths_are_dropped_more_often_the_deeper_the_block() -> None:
    with torch.device("meta"):
        for name, config in ENCODERS.items():
            rates = [m.rate for m in create_model(name).modules() if hasattr(m, "rate")]
            assert len(rates) == sum(config.depths)
            assert rates == sorted(rates)
            assert (rates[0], rates[-1]) == (0, pytest.approx(config.drop_path_rate))
    assert create_model("resnet_tiny", drop_path_rate=0.5).config.drop_path_rate == 0.5


def test_tokens_stand_where_cells_are_hidden_at_every_scale() -> None:
    images, active = inputs(torch.float32)
    model = made("resnet_tiny", torch.float32).eval()
    model.densify_projs = nn.ModuleList(Fill() for _ in range(4))
    for path in ("dense", "tiles"):
        for level, filled in enumerate(model.densify(images, active, path)):
            hidden = ~active.repeat_interleave(2**level, 2).repeat_interleave(2**level, 3)
            token = model.mask_tokens[level].expand_as(filled)
            assert torch.equal(filled[hidden.expand_as(filled)], token[hidden.expand_as(filled)])
            assert not torch.equal(filled, token)


def test_bad_input_is_named() -> None:
    model = create_model("spark", encoder="resnet_tiny", decoder_width=64)
    images, active = inputs(torch.float32)
    with pytest.raises(InputError, match="multiples of 32"):
        model(images[..., :150], active)
    with pytest.raises(InputError, match=r"images of \(4, 5\) cells, a mask of \(4, 4\)"):
        model(images, active[..., :4])
    with pytest.raises(InputError, match="no cell is active"):
        model(images, torch.zeros_like(active))
    with pytest.raises(InputError, match="unknown encoder 'resnet5'; known: resnet50"):
        create_model("spark", encoder="resnet5")
    with pytest.raises(InputError, match="decoder_width must be a multiple of 32"):
        create_model("spark", encoder="resnet_tiny", decoder_width=50)
    with pytest.raises(InputError, match="densify_norm"):
        SparKConfig(densify_norm="gn")
    with pytest.raises(InputError, match="four whole numbers"):
        create_model("resnet50", depths=(1, 2))
    with pytest.raises(InputError, match="drop_path_rate"):
        create_model("convnext_small", drop_path_rate=1.0)


@pytest.mark.parametrize("name", ["resnet_tiny", "convnext_atto"])
def test_encoders_leave_as_ordinary_networks(name: str) -> None:
    model = create_model(name)
    kinds = {type(m).__module__ for m in model.modules()}
    assert not any("masked" in kind for kind in kinds)
    maps = model.features(torch.zeros(2, 3, 70, 90))  # any size
    assert [m.shape[1] for m in maps] == list(model.config.channels)
    torch.testing.assert_close(model(torch.zeros(2, 3, 70, 90)), maps[-1])


def test_compile_leaves_the_numbers_as_they_are() -> None:
    images, active = inputs(torch.float32)
    model = made("resnet_tiny", torch.float32).eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        expected = model(images, active).reconstruction
        torch.testing.assert_close(compiled(images, active).reconstruction, expected, rtol=1e-5, atol=1e-5)
