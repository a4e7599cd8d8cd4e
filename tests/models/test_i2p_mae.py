"""I2P-MAE's networks beyond the goldens: clouds of any size, masks, encoders taken out of files and put into others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from geo3d import InputError, create_model, save_model
from geo3d.geometry import PointCloud
from geo3d.models import create_encoder
from geo3d.models.i2p_mae import I2PMAE, I2PMAEConfig, PointClassifier, PointClassifierConfig
from geo3d.models.point_encoder import PointInput, pool

SMALL = {"groups": (24, 12, 6), "neighbors": (6, 4, 3), "dims": (8, 16, 24), "depths": (1, 2, 1), "heads": 2}
SMALL |= {"embed_dim": 8, "mlp_ratio": 2.0, "points": 200}
DECODER = {"decoder_dims": (24, 16), "teacher_dim": 5}
PLAIN = {"published_groups": False, "published_mask": False}
# Of float32, whose sums may be made in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def network(seed: int = 0, **options) -> I2PMAE:
    config = I2PMAEConfig(**(SMALL | DECODER | options))
    return I2PMAE(config, torch.Generator().manual_seed(seed)).eval()


def classifier(seed: int = 0, **options) -> PointClassifier:
    config = PointClassifierConfig(**(SMALL | {"radii": (0.4, 0.8, 1.6), "num_classes": 4} | options))
    return PointClassifier(config, torch.Generator().manual_seed(seed)).eval()


def cloud(points: int, seed: int = 0) -> Tensor:
    return torch.randn(points, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 0.6, 0.3])


def top_mask(clouds: int, groups: int = 6, seed: int = 0) -> Tensor:
    """A third of each cloud's last groups visible."""
    order = torch.rand(clouds, groups, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order < groups // 3


@pytest.mark.parametrize(
    "make", [network, lambda: network(**PLAIN), lambda: network(radii=(0.3, 0.6, 1.2)), classifier]
)
@torch.no_grad()
def test_features_of_a_cloud_do_not_depend_on_the_others(make) -> None:
    """But for the group that the published mask shows of the first cloud alone, and that only where some is hidden."""
    model = make()
    clouds = [cloud(150, 1), cloud(3, 2), cloud(60, 3)]
    together = model.features(model.prepare(clouds))
    for row, one in enumerate(clouds):
        for stage, (found, alone) in enumerate(zip(together, model.features(model.prepare(one)), strict=True)):
            own = slice(*found.offsets[row : row + 2].tolist())
            extra = len(alone.feats) - len(found.feats[own])
            shown = getattr(model.config, "published_mask", False) and row > 0
            assert extra in ((0, 1) if shown and stage < 2 else (0,))
            if not extra:
                torch.testing.assert_close(found.xyz[own], alone.xyz, **CLOSE)
            if not shown:
                torch.testing.assert_close(found.feats[own], alone.feats, **CLOSE)


@torch.no_grad()
def test_the_order_of_points_matters_only_by_the_first() -> None:
    """Centres are sought from the first point on; those found, everything else is of sets."""
    model, xyz = network(**PLAIN), cloud(120)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(119, generator=torch.Generator())])
    for pooling in ("max", "mean", "max+mean"):
        one, other = (model.pooled(model.prepare(points), pooling) for points in (xyz, xyz[order]))
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("size", [1, 2, 5, 30, 1000, 100_000])
@pytest.mark.parametrize("make", [network, classifier])
@torch.no_grad()
def test_clouds_of_any_size(make, size: int) -> None:
    model = make()
    inputs = model.prepare(cloud(size))
    assert len(inputs.xyz) == min(size, 200)
    whole = model.prepare(cloud(size), points=0)
    assert len(whole.xyz) == size
    for read in (inputs, whole):
        found = model.features(read)
        assert all(part.feats.isfinite().all() for part in found)
        assert [part.feats.shape[1] for part in found] == [8, 16, 24]
    if isinstance(model, PointClassifier):
        assert model(inputs).shape == (1, 4)


def test_training_on_single_points_is_finite() -> None:
    """All groups of such a cloud are its one point."""
    for model in (network().train(), classifier().train()):
        inputs = model.prepare(PointCloud(torch.ones(2, 3), offsets=torch.tensor([0, 1, 2])))
        if isinstance(model, PointClassifier):
            model(inputs).square().sum().backward()
        else:
            batch = model.batch(inputs)
            output = model(batch, model.visible(batch, top_mask(2)))
            output.decoded.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("published", [False, True])
def test_what_is_hidden_is_embedded_for_nothing_but_statistics(published: bool) -> None:
    models = [network(embed_masked=value, published_mask=published) for value in (True, False)]
    inputs = models[0].prepare([cloud(150, 1), cloud(90, 2)])
    found = []
    for model in models:
        batch = model.batch(inputs)
        output = model(batch, model.visible(batch, top_mask(2)))
        found.append([*output.levels, output.propagated, output.decoded, output.points, output.features])
        (output.points.square().mean() + output.features.square().mean()).backward()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **CLOSE)
    for model in models:  # in training they count, or do not
        model.train()(batch, model.visible(batch, top_mask(2)))
    means = [model.h_encoder.token_embed[0].first_conv[1].running_mean for model in models]
    assert not torch.allclose(*means, rtol=1e-3)


@torch.no_grad()
def test_what_is_hidden_is_not_seen() -> None:
    """Points that belong to hidden groups alone may lie anywhere near: levels of visible ones stay as they are."""
    model = network(**PLAIN)
    inputs = model.prepare([cloud(150, 1)])
    batch = model.batch(inputs)
    visible = model.visible(batch, top_mask(1))
    used = torch.zeros(len(inputs.xyz), dtype=torch.bool)
    used[batch.groups[0].index[visible[0].flatten()].flatten()] = True
    assert 0 < used.sum() < len(used)
    expected = model(batch, visible)
    batch.inputs = PointInput(torch.where(used.unsqueeze(1), inputs.xyz, inputs.xyz + 0.3), inputs.offsets)
    found = model(batch, visible)
    for one, other in zip(found.levels, expected.levels):
        torch.testing.assert_close(one, other, **CLOSE)


@torch.no_grad()
def test_shapes_of_what_is_filled_in() -> None:
    model = network()
    batch = model.batch(model.prepare([cloud(150, 1), cloud(90, 2), cloud(5, 3)]))
    visible = model.visible(batch, top_mask(3))
    output = model(batch, visible)
    assert [len(tokens) for tokens in output.levels] == [int(part.sum()) for part in visible]
    seen = int(visible[1].sum())
    assert output.decoded.shape == output.propagated.shape == (36, 16)
    assert output.points.shape == (36 - seen, 4, 3)
    assert output.features.shape == (seen, 4, 15)
    assert network(teacher_dim=0)(batch, visible).features is None


def test_an_encoder_alone_says_that_it_fills_in_nothing() -> None:
    model = create_encoder("i2p_mae_tiny")
    assert all(model.is_of_encoder(name) for name in model.state_dict())
    batch = model.batch(model.prepare(cloud(50)))
    with pytest.raises(InputError, match="an encoder alone fills in nothing; make it with fresh_decoder=True"):
        model(batch, model.visible(batch, top_mask(1, 32)))


def test_a_pretrained_file_becomes_an_encoder_a_decoder_and_a_classifier(tmp_path: Path) -> None:
    whole, path = network(), tmp_path / "pretrained.safetensors"
    save_model(whole, path)
    state, inputs = whole.state_dict(), whole.prepare([cloud(150, 1), cloud(90, 2)])
    again = create_model(checkpoint=path)
    assert again.config == whole.config
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())

    other = create_model(checkpoint=path, fresh_decoder=True, teacher_dim=7, decoder_dims=(24, 8))
    named = create_model("i2p_mae_classifier", checkpoint=_published(path, whole), fresh_decoder=True, **_untold())
    own = create_model("i2p_mae_classifier", checkpoint=path, fresh_decoder=True, num_classes=6, pooling="both")
    assert (other.config.teacher_dim, own.config.num_classes, own.config.pooling) == (7, 6, "both")
    assert own.config.neighbors == whole.config.neighbors
    for model in (other, own, named):
        encoder = {name for name in model.state_dict() if model.is_of_encoder(name)}
        assert len(encoder) >= len([name for name in state if name.startswith("h_encoder.") and "norms" not in name])
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name in encoder)
    assert own(inputs).shape == (2, 6)
    assert named(inputs).shape == (2, 40)
    # Its tokens are those of the encoder but for the last normalisation, which is the classifier's own.
    plain = network(published_mask=False)
    plain.h_encoder.load_state_dict(whole.h_encoder.state_dict())
    with torch.no_grad():
        tokens = own.h_encoder(own.batch(inputs))[-1]
        torch.testing.assert_close(tokens, plain.h_encoder(plain.batch(inputs))[-1], **CLOSE)

    with pytest.raises(InputError, match="or with fresh_decoder=True"):
        create_model("i2p_mae_classifier", checkpoint=path)


def _untold() -> dict:
    return {name: SMALL[name] for name in ("groups", "neighbors", "heads")} | {"radii": (0.0, 0.0, 0.0)}


def _published(path: Path, model: I2PMAE) -> Path:
    path = path.with_suffix(".pth")
    torch.save({"base_model": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def test_a_decoder_goes_around_an_encoder_alone(tmp_path: Path) -> None:
    bare, path = network(decoder_dims=(), teacher_dim=0), tmp_path / "bare.safetensors"
    save_model(bare, path)
    made = create_model(checkpoint=path, fresh_decoder=True, **DECODER)
    assert made.config.decoder_dims == (24, 16)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in bare.state_dict().items())
    batch = made.batch(made.prepare(cloud(50)))
    assert made(batch, made.visible(batch, top_mask(1))).points.isfinite().all()
    with pytest.raises(InputError, match=r"bare.*decoder_dims must begin with 24, got \(384, 192\)"):
        create_model(checkpoint=path, fresh_decoder=True)
    save_model(create_encoder("i2p_mae_tiny"), path)  # whose usual decoder is known
    made = create_model(checkpoint=path, fresh_decoder=True)
    assert made.config == create_model("i2p_mae_tiny").config


@torch.no_grad()
def test_logits_are_of_the_pooled_tokens() -> None:
    for pooling in ("sum", "both"):
        model = classifier(pooling=pooling)
        inputs = model.prepare([cloud(150, 1), cloud(90, 2)])
        tokens = model.features(inputs, [-1])[0]
        parts = [pool(tokens, "mean"), pool(tokens, "max")]
        vector = parts[0] + parts[1] if pooling == "sum" else torch.cat(parts, 1)
        torch.testing.assert_close(model(inputs), model.cls_head_finetune(vector), **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": (8, 4)}, "groups, neighbors, dims, depths, radii must be of one length"),
        ({"heads": 5}, r"dims \(8, 16, 24\) over 5 heads must give whole heads"),
        ({"heads": 0}, "heads"),
        ({"neighbors": (6, 4, 65)}, "neighbors .up to 64."),
        ({"drop_path_rate": 1.0}, "drop_path_rate in"),
        ({"radii": (-1.0, 0.0, 0.0)}, "radii 0 or more"),
        ({"decoder_dims": (16, 8)}, r"decoder_dims must begin with 24, got \(16, 8\)"),
        ({"decoder_dims": (24,)}, "must be of two levels"),
        ({"teacher_dim": -1}, "teacher_dim and shape_dim must be 0 or more, got -1 and 0"),
    ],
)
def test_sizes_that_make_no_network_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        network(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pooling": "mean"}, "pooling must be one of sum, both, got 'mean'"), ({"num_classes": 0}, "at least 1, got 0")],
)
def test_classifiers_that_are_none_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier(**options)


def test_radii_hide_what_is_far() -> None:
    """Two clusters farther apart than the radius: tokens of one are as if the other were not attended to."""
    near = network(radii=(0.5, 0.5, 0.5), **PLAIN)
    far = network(radii=(9.0, 9.0, 9.0), **PLAIN)
    everything = network(**PLAIN)
    left = cloud(100, 1) * 0.1 + torch.tensor([-2.0, 0, 0])
    right = cloud(100, 2) * 0.1 + torch.tensor([2.0, 0, 0])
    inputs = near.prepare(torch.cat([left, right]), normalise=False)
    with torch.no_grad():
        for one, other in zip(far.features(inputs), everything.features(inputs)):
            torch.testing.assert_close(one.feats, other.feats, **CLOSE)
        batch = near.batch(inputs)
        tokens = near.h_encoder(batch)[0]
        moved = near.batch(inputs)
        apart = batch.groups[0].rows[:, 0] > 0
        assert 0 < apart.sum() < len(apart)
        # The other cluster's members are moved within its groups: its tokens change, those of this one do not.
        shaken = torch.where(inputs.xyz[:, :1] > 0, inputs.xyz + 0.05 * cloud(200, 3), inputs.xyz)
        moved.inputs = PointInput(shaken, inputs.offsets)
        found = near.h_encoder(moved)[0]
        torch.testing.assert_close(found[~apart], tokens[~apart], **CLOSE)
        assert not torch.allclose(found[apart], tokens[apart], rtol=1e-3)
        assert not torch.allclose(
            everything.h_encoder(moved)[0][~apart], everything.h_encoder(batch)[0][~apart], rtol=1e-3
        )
