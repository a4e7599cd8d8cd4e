"""Multi-view completion: samples, loss, figures of single views, pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d import InputError
from geo3d.methods.multiview import MultiViewCompletion, MultiViewCompletionConfig, first_views, groups_means
from geo3d.nn.colors import normalise
from geo3d.nn.patches import patchify

CONFIG = MultiViewCompletionConfig(image_size=(32, 48), resized=36)
TOKENS = 24


class MadeGroups:
    """Groups of noise, two a scene."""

    def __len__(self) -> int:
        return 6

    def group_of_views(self, index: int, count: int, rng: np.random.Generator) -> list[int]:
        return list(range(count))

    def images_of(self, index: int, views: list[int]) -> list[Image.Image]:
        rng = np.random.default_rng(index)
        return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in views]

    def group(self, index: int) -> int:
        return index // 2

    def describe(self, index: int) -> str:
        return f"group {index}"


@pytest.fixture(scope="module")
def method() -> MultiViewCompletion:
    return MultiViewCompletion(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch(method):
    samples = method.samples(MadeGroups())
    return method.collate(
        [samples.draw_group(i, count, np.random.default_rng([0, i])) for i, count in enumerate((4, 2, 3))]
    )


def test_groups_have_two_to_so_many_views_each_equally_often(method) -> None:
    samples = method.samples(MadeGroups())
    drawn = [samples.draw(n % 6, np.random.default_rng(n)) for n in range(300)]
    counts = np.bincount([len(sample["views"]) for sample in drawn], minlength=5)
    assert (counts[:2] == 0).all()
    assert np.abs(counts[2:] - 100).max() < 40  # binomial of 300 at 1/3: sigma 8
    for sample in drawn[:20]:
        assert sample["views"].shape[1:] == (32, 48, 3)
        assert sample["views"].dtype == torch.uint8
        assert (sample["mask"].sum(1) == int(0.75 * TOKENS)).all()
    assert drawn[3]["scene"].tolist() == [1]


@pytest.mark.parametrize(("masked", "hidden"), [(0, [18, 18, 18]), (1, [18, 0, 0]), (5, [18, 18, 0])])
def test_some_views_may_be_whole_but_then_one_is_always(masked: int, hidden: list[int]) -> None:
    config = MultiViewCompletionConfig(image_size=(32, 48), resized=36, masked_views=masked)
    method = MultiViewCompletion(config, torch.Generator().manual_seed(0))
    sample = method.samples(MadeGroups()).draw_group(0, 3, np.random.default_rng(0))
    assert sample["mask"].sum(1).tolist() == hidden
    output = method(method.collate([sample]))
    assert output.extras["view_loss"].isnan().tolist() == [count == 0 for count in hidden]
    assert output.loss.item() == pytest.approx(output.extras["view_loss"].nanmean().item(), rel=1e-5)  # float32 sums


def test_a_batch_has_its_smallest_groups_first(batch) -> None:
    assert batch["offsets"].tolist() == [0, 2, 5, 9]
    assert batch["scene"].tolist() == [0, 1, 0]
    assert batch["views"].shape == (9, 32, 48, 3)


def test_loss_against_numpy_over_the_hidden_patches(method, batch) -> None:
    output = method(batch)
    prediction, mask = (output.extras[name].detach().double().numpy() for name in ("prediction", "mask"))
    patches = patchify(normalise(batch["views"]), 8).double().numpy()
    target = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = ((prediction - target) ** 2).mean(-1)
    hidden = mask > 0
    assert output.loss.item() == pytest.approx(errors[hidden].mean(), rel=1e-5)  # sums of float32
    for n in range(9):
        assert output.extras["view_loss"][n].item() == pytest.approx(errors[n][hidden[n]].mean(), rel=1e-5)
    expected = [output.extras["view_loss"][a:b].mean() for a, b in ((0, 2), (2, 5), (5, 9))]
    torch.testing.assert_close(groups_means(output.extras["view_loss"], batch["offsets"]), torch.stack(expected))
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_first_views_are_groups_of_their_own(method, batch) -> None:
    alone = first_views(batch)
    assert alone["offsets"].tolist() == [0, 1, 2, 3]
    assert torch.equal(alone["views"], batch["views"][[0, 2, 5]])
    single = {name: alone[name][1:2] for name in ("views", "mask")} | {"offsets": torch.tensor([0, 1])}
    # In a batch and alone: other library calls.
    torch.testing.assert_close(method(alone).extras["view_loss"][1:2], method(single).extras["view_loss"])


def test_learning_lowers_the_loss(batch) -> None:
    method = MultiViewCompletion(CONFIG, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = method(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]  # of noise it learns the mean: 1.85 -> 0.97 when written


def test_picture_has_a_group_beside_the_other(method, batch) -> None:
    with torch.no_grad():
        picture = method.picture(batch, method(batch))
    zoom = 224 // 32
    assert picture.shape[1] == 3 * 3 * 48 * zoom
    body = picture[-4 * 32 * zoom :: zoom, ::zoom].reshape(4, 32, 9, 48, 3)
    for group, (start, end) in enumerate(((0, 2), (2, 5), (5, 9))):
        count = end - start
        masked, completed, true = (body[:, :, 3 * group + n] for n in range(3))
        assert np.array_equal(true[:count], batch["views"][start:end].numpy())
        assert (body[count:, :, 3 * group : 3 * group + 3] == 255).all()
        assert not np.array_equal(masked[:count], completed[:count])
        as_patches = [
            patchify(torch.from_numpy(np.ascontiguousarray(v[:count])).permute(0, 3, 1, 2), 8)
            for v in (masked, completed, true)
        ]
        visible = ~batch["mask"][start:end]
        assert all(torch.equal(part[visible], as_patches[2][visible]) for part in as_patches)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"masked_views": -1}, "masked_views must be at least 0"),
        ({"mask_ratio": 0.0}, "between 0 and 1"),
        ({"model": "croco_tiny"}, "one of the family multiview, not 'croco_tiny'"),
        ({"image_size": (30, 48)}, "multiple of the patch"),
    ],
)
def test_bad_settings_are_named(fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiViewCompletion(MultiViewCompletionConfig(**({"image_size": (32, 48)} | fields)))
