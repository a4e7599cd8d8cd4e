"""Guided masking: masks, targets and losses against their definition, the samples, the teacher, the picture."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d import InputError
from geo3d.geometry import PointCloud
from geo3d.methods.i2p_mae import (
    Guidance,
    GuidedMasking,
    GuidedMaskingConfig,
    even_input,
    hidden_and_seen,
    points_loss,
    visible_groups,
)
from geo3d.methods.objects import ObjectAugmentation
from geo3d.models.teachers import HogTeacher
from geo3d.nn.depth_views import depth_views

CONFIG = GuidedMaskingConfig(points=300, view_size=48, teacher_options=("cell=12",))


class Shells:
    """Points on ellipsoids, each other than the others, in no unit and at no place in particular."""

    def __len__(self) -> int:
        return 6

    def describe(self, index: int) -> str:
        return f"shell {index}"

    def cloud(self, index: int, rng: np.random.Generator | None = None, count: int | None = None) -> PointCloud:
        rng = np.random.default_rng(index) if rng is None else rng
        xyz = rng.standard_normal((count or 900, 3))
        xyz *= (1 + np.arange(3) * index) / np.linalg.norm(xyz, axis=1, keepdims=True)
        return PointCloud(torch.from_numpy(7 * xyz + 100).float())


def made(config: GuidedMaskingConfig = CONFIG, **changes) -> GuidedMasking:
    return GuidedMasking(replace(config, **changes), torch.Generator().manual_seed(0))


def batch_of(method: GuidedMasking, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    samples = method.samples(Shells())
    return method.collate([samples.draw(index, np.random.default_rng([seed, index])) for index in range(count)])


@pytest.fixture(scope="module")
def method() -> GuidedMasking:
    return made()


# Masks


def test_the_count_of_visible_groups_is_exact_and_equal_draws_give_equal_masks() -> None:
    source = torch.Generator().manual_seed(0)
    saliency = torch.rand(50, 32, generator=source)
    draws = torch.empty(50, 32).exponential_(generator=source)
    for count in (1, 7, 31, 32):
        found = visible_groups(saliency, draws, count)
        assert (found.sum(1) == count).all()
        assert torch.equal(found, visible_groups(saliency, draws, count))
    unguided = visible_groups(None, draws, 7)
    assert torch.equal(
        unguided, torch.zeros(50, 32, dtype=torch.bool).scatter_(1, draws.topk(7, 1, False).indices, True)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_groups_are_drawn_by_the_softmax_of_their_saliency(temperature: float) -> None:
    """The first draw by the probabilities; of two drawn without replacement, by what is left."""
    saliency = torch.tensor([0.0, 0.3, 0.9, 0.5])
    probability = (saliency / temperature).softmax(0)
    count = 40_000
    draws = torch.empty(count, 4).exponential_(generator=torch.Generator().manual_seed(0))
    one = visible_groups(saliency.expand(count, -1), draws, 1, temperature).float().mean(0)
    # Four deviations of a share of 40,000 draws are 0.01 at most.
    torch.testing.assert_close(one, probability, rtol=0, atol=0.01)
    pairs = probability[:, None] * probability[None] / (1 - probability[:, None])
    pairs.fill_diagonal_(0)
    two = visible_groups(saliency.expand(count, -1), draws, 2, temperature).float().mean(0)
    torch.testing.assert_close(two, pairs.sum(0) + pairs.sum(1), rtol=0, atol=0.01)


def test_masks_follow_the_draws_of_the_samples(method: GuidedMasking) -> None:
    batch = batch_of(method)
    assert method.visible_count == 32 - int(0.8 * 32) == 7
    visible = method(batch).extras["visible"]
    assert (visible.sum(1) == 7).all()
    assert torch.equal(visible, method(batch).extras["visible"])
    others = batch | {"draws": batch["draws"].flip(1)}
    assert not torch.equal(visible, method(others).extras["visible"])
    given = torch.arange(32).expand(4, -1) < 5
    assert torch.equal(method(batch | {"visible": given}).extras["visible"], given)


def test_relative_saliency_at_a_low_temperature_keeps_the_most_salient() -> None:
    method = made(relative_saliency=True, temperature=0.01)
    batch = batch_of(method)
    clouds = method.network.batch(even_input(batch["points"]))
    saliency = method.guidance(batch).saliency_of(clouds.groups[-1])
    visible = method(batch).extras["visible"]
    for row in range(4):
        kept, hidden = saliency[row][visible[row]], saliency[row][~visible[row]]
        assert kept.min() >= hidden.max() - 0.05 * saliency[row].std()


# Losses


def test_the_loss_of_points_is_the_chamfer_distance_of_each_group(method: GuidedMasking) -> None:
    clouds = method.network.batch(even_input(batch_of(method)["points"].double()))
    fine, below = clouds.groups[1], clouds.groups[0].rows
    masked = torch.tensor([0, 5, 70, 130])
    predicted = torch.randn(4, fine.index.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ways: list[list[float]] = [[], []]
    for group, guess in zip(masked.tolist(), predicted):
        truth = below[fine.index[group]] - fine.rows[group]
        ways[0] += [min(float(((p - q) ** 2).sum()) for q in truth) for p in guess]
        ways[1] += [min(float(((p - q) ** 2).sum()) for p in guess) for q in truth]
    expected = sum(sum(way) / len(way) for way in ways)
    assert points_loss(predicted, clouds, masked).item() == pytest.approx(expected, rel=1e-12)
    perfect = below[fine.index[masked]] - fine.rows[masked].unsqueeze(1)
    assert points_loss(perfect.flip(1), clouds, masked) == 0


def test_losses_are_weighed_and_their_sum_is_the_loss() -> None:
    plain, weighed = made(), made(points_weight=3.0, features_weight=0.5)
    weighed.load_state_dict(plain.state_dict())
    batch = batch_of(plain)
    one, other = plain(batch), weighed(batch)
    assert one.losses.keys() == {"points", "features"}
    assert one.loss.item() == pytest.approx(sum(value.item() for value in one.losses.values()))
    # Sums of library calls.
    assert other.losses["points"].item() == pytest.approx(3 * one.losses["points"].item(), rel=1e-5)
    assert other.losses["features"].item() == pytest.approx(0.5 * one.losses["features"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "losses", "teacher"),
    [
        ({"guided_targets": False}, {"points"}, True),
        ({"guided_masking": False}, {"points", "features"}, True),
        ({"guided_masking": False, "guided_targets": False, "teacher": "clip_vit_b16"}, {"points"}, False),
        ({"shape_weight": 1.0}, {"points", "features", "shape"}, True),
    ],
)
def test_parts_of_the_task_can_be_left_out(changes: dict, losses: set[str], teacher: bool) -> None:
    options = {} if teacher else {"teacher_options": ()}
    method = made(**changes, **options)
    assert (method.teacher is not None) == teacher
    assert method.frozen_modules() == (("teacher",) if teacher else ())
    output = method(batch_of(method))
    assert output.losses.keys() == losses
    assert output.loss.isfinite()
    assert method.picture(batch_of(method), output).dtype == np.uint8


def test_learning_one_batch_lowers_the_losses() -> None:
    method = made(shape_weight=1.0).train()
    batch, history = batch_of(method), []
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=2e-3)
    for _ in range(25):
        output = method(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in output.losses.items()})
    # 0.3, 0.7 and 0.5 of the first when written.
    assert all(history[-1][name] < 0.9 * history[0][name] for name in history[0]), (history[0], history[-1])


# The teacher


def test_features_of_members_are_looked_up_one_by_one(method: GuidedMasking) -> None:
    batch = batch_of(method)
    inputs = even_input(batch["points"])
    clouds = method.network.batch(inputs)
    maps = torch.randn(12, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    guidance = Guidance(depth_views(inputs.xyz, inputs.offsets, 48), maps, maps[:, 0].abs())
    below, fine = clouds.groups[:2]
    seen = torch.tensor([0, 3, 64, 200, 255])
    found = guidance.features_of(fine, below, seen)
    assert found.shape == (5, fine.index.shape[1], 15)
    resized = F.interpolate(maps, (48, 48), mode="bicubic", align_corners=False).view(3, 4, 5, 48, 48)
    for group, values in zip(seen.tolist(), found):
        cloud = group // fine.xyz.shape[1]
        for member, value in zip(fine.index[group].tolist(), values):
            offsets = torch.tensor([0] * (cloud + 1) + [1] * (4 - cloud))
            pixels = guidance.grid.pixels(below.rows[member : member + 1], offsets)[:, 0]
            expected = [resized[view, cloud, :, row, column] for view, (row, column) in enumerate(pixels.tolist())]
            torch.testing.assert_close(value, torch.cat(expected), rtol=0, atol=1e-5)
    saliency = guidance.saliency_of(clouds.groups[-1])
    top = clouds.groups[-1].xyz[2]
    alone = guidance.grid.look_up(top, torch.tensor([0, 0, 0, 32, 32]), maps[:, :1].abs()).mean(0)[:, 0]
    torch.testing.assert_close(saliency[2], alone, rtol=0, atol=1e-6)


def test_the_teacher_is_shown_the_augmented_points(method: GuidedMasking) -> None:
    batch = batch_of(method)
    guidance = method.guidance(batch)
    inputs = even_input(batch["points"])
    grid = depth_views(inputs.xyz, inputs.offsets, 48)
    features, saliency = HogTeacher(HogTeacher.Options(cell=12))(grid.colors())
    assert torch.equal(guidance.features, features)
    assert torch.equal(guidance.saliency, saliency)
    normal = made(normalise_targets=True).guidance(batch).features
    torch.testing.assert_close(normal.mean(1), torch.zeros(12, 4, 4), rtol=0, atol=1e-5)
    textured = features.std(1) > 1e-2
    deviation = normal.std(1, correction=0)[textured]
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=0, atol=0.1)  # up to layer_norm's epsilon


def test_the_teacher_gets_no_gradient_and_stays_in_evaluation_mode_and_out_of_the_network() -> None:
    options = ("weights=random", "stride=16")
    method = made(view_size=64, teacher="efficientnet_lite0", teacher_options=options).train()
    assert not method.teacher.training
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method(batch_of(method, 2)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    # What the finest level's last normalisation hands out, the pretext task does not read, as published; all others
    # must learn, since processes wait for each other's gradients of what is trained.
    unread = {"h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"}
    assert unread == {name for name, p in method.network.named_parameters() if p.grad is None}
    assert unread == {name for name, p in method.network.named_parameters() if not p.requires_grad}
    kept = [name for name in method.state_dict() if not method.is_frozen(name)]
    assert kept == [f"network.{name}" for name in method.network.state_dict()]
    assert not any("teacher" in name for name in method.network.state_dict())


def test_targets_of_stored_objects_do_not_depend_on_augmentation(tmp_path: Path) -> None:
    config = replace(CONFIG, stored_views=True, target_folder=tmp_path / "targets", view_points=500)
    turned = replace(config, augmentation=ObjectAugmentation(rotation="any"), recentre=True)
    plain = replace(config, augmentation=ObjectAugmentation(scale=(1, 1), shift=0))
    batches = []
    for each in (turned, plain, plain):
        method = made(each)
        batches.append(batch_of(method))
    for name in ("stored", "minimum", "cell", "shift", "features", "saliency"):
        assert torch.equal(batches[0][name], batches[1][name]), name
        assert torch.equal(batches[1][name], batches[2][name]), name
    assert not torch.equal(batches[0]["points"], batches[1]["points"])
    assert len(list((tmp_path / "targets").rglob("*.safetensors"))) == 4
    # Where points lie as stored is where the teacher is shown them.
    guidance, batch = method.guidance(batches[1]), batches[1]
    seen = torch.cat([_seen_points(index, 500) for index in range(4)])
    shown = depth_views(seen, torch.arange(5) * 500, 48)
    features, saliency = method.teacher(shown.colors())
    torch.testing.assert_close(guidance.features, features, rtol=1e-3, atol=1e-3)  # kept in half precision
    torch.testing.assert_close(guidance.saliency, saliency, rtol=1e-5, atol=1e-7)
    assert torch.equal(guidance.grid.minimum, shown.minimum)
    assert method(batch).loss.isfinite()


def _seen_points(index: int, count: int) -> Tensor:
    whole = Shells().cloud(index).xyz.double()
    rows = torch.randperm(len(whole), generator=torch.Generator().manual_seed(len(whole)))[:count]
    whole = whole[rows] - whole[rows].mean(0)
    return (whole / whole.norm(dim=1).max()).float()


# Samples


def test_samples_are_of_their_generator_alone_and_travel_to_workers(tmp_path: Path) -> None:
    for changes in ({}, {"stored_views": True, "target_folder": tmp_path}):
        method = made(**changes)
        samples = method.samples(Shells())
        there = pickle.loads(pickle.dumps(samples))
        for index in (0, 5):
            torch.manual_seed(index)
            one = samples.draw(index, np.random.default_rng(3))
            np.random.seed(index)
            other = there.draw(index, np.random.default_rng(3))
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert not torch.equal(one["points"], samples.draw(5, np.random.default_rng(4))["points"])
        assert one["points"].dtype == one["draws"].dtype == torch.float32
        assert one["points"].shape == (300, 3)
        assert one["draws"].shape == (32,)
        assert not hasattr(samples, "network")


def test_samples_lie_in_the_unit_sphere_until_they_are_augmented() -> None:
    still = ObjectAugmentation(scale=(1, 1), shift=0)
    for changes in ({"augmentation": still}, {"recentre": True}):
        points = batch_of(made(**changes))["points"]
        torch.testing.assert_close(points.norm(dim=2).amax(1), torch.ones(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(points.mean(1), torch.zeros(4, 3), rtol=0, atol=1e-5)
    assert (batch_of(made())["points"].mean(1).abs().amax(1) > 0.01).any()


# The rest


def test_the_picture_has_its_size(method: GuidedMasking) -> None:
    batch = batch_of(method, 5)
    with torch.no_grad():
        output = method.eval()(batch)
    guided = method.picture(batch, output)
    alone = made(guided_masking=False, guided_targets=False)
    with torch.no_grad():
        plain = alone.picture(batch, alone(batch))
    for picture, columns in ((guided, 10), (plain, 4)):
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.shape[1] >= columns * 150
        assert 4 * 150 <= picture.shape[0] < 5 * 150  # four objects at most
    assert len(np.unique(guided.reshape(-1, 3), axis=0)) > 100


def test_tokens_are_kept_out_of_weight_decay(method: GuidedMasking) -> None:
    assert method.no_weight_decay() == {"network.mask_token"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, got 1.0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"points": 1}, "points must be at least 2"),
        ({"view_size": 8}, "view_size must be at least 16"),
        ({"view_size": 49}, "view_size must be an even number of pixels, got 49"),
        ({"shape_radii": ()}, "shape_radii"),
        ({"model": "i2p_mae_none"}, "unknown model"),
        ({"model": "i2p_mae_modelnet40"}, "fills in nothing"),
        ({"model": "croco_tiny"}, "fills in nothing"),
        ({"teacher": "hogg"}, "did you mean 'hog'"),
        ({"teacher_options": ("cell",)}, "'cell' should be a name and a value, such as stride=16"),
        ({"teacher_options": ("cells=3",)}, "cells"),
        ({"teacher_options": ("cell=many",)}, "cell: expected a whole number, found 'many'"),
        ({"teacher": "efficientnet_lite0", "teacher_options": ("weights=random",), "view_size": 50}, "multiple of"),
        ({"teacher": "clip_vit_b16", "teacher_options": ()}, "give it by --method.teacher-checkpoint FILE"),
        ({"teacher_checkpoint": Path("absent.pth")}, "absent.pth"),
    ],
)
def test_bad_settings_are_named(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made(**fields)
    assert "\n" not in str(caught.value)


def test_a_mask_that_hides_no_points_says_so(method: GuidedMasking) -> None:
    batch = batch_of(method) | {"visible": torch.ones(4, 32, dtype=torch.bool)}
    batch["points"] = batch["points"][:, :1].expand(-1, 300, -1)  # all groups of one place have the same members
    seen = hidden_and_seen([torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, False]])])
    assert [part.tolist() for part in seen] == [[], [0, 1, 2]]
    config = replace(CONFIG, mask_ratio=0.01)
    with pytest.raises(InputError, match=r"mask_ratio 0\.01 hides no group .*raise it"):
        _never_hiding(made(config))(batch)


def _never_hiding(method: GuidedMasking) -> GuidedMasking:
    method.network.visible = lambda clouds, top: [
        torch.ones_like(g.xyz[..., 0], dtype=torch.bool) for g in clouds.groups
    ]
    return method
