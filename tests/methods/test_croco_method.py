"""CroCo's pretext task: loss, masks, samples, pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from geo3d import InputError
from geo3d.methods.croco import (
    CompletionSamples,
    CrossViewCompletion,
    CrossViewCompletionConfig,
    completion_loss,
    random_visible,
)
from geo3d.nn.patches import patchify

CONFIG = CrossViewCompletionConfig(image_size=(32, 48), resized=36)
TOKENS = 24


class MadePairs:
    """Pairs of two noise images of their own, two pairs a scene."""

    def __len__(self) -> int:
        return 6

    def images(self, index: int):
        rng = np.random.default_rng(index)
        return tuple(Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(2))

    def group(self, index: int) -> int:
        return index // 2

    def describe(self, index: int) -> str:
        return f"pair {index}"


@pytest.fixture(scope="module")
def method() -> CrossViewCompletion:
    return CrossViewCompletion(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch(method):
    samples = method.samples(MadePairs())
    return method.collate([samples.draw(i, np.random.default_rng([0, i])) for i in range(4)])


def test_loss_against_numpy_in_float64() -> None:
    rng = np.random.default_rng(0)
    prediction, patches = rng.normal(size=(2, 3, 5, 12))
    mask = rng.random((3, 5)) < 0.6
    target = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    for normalised, goal in ((True, target), (False, patches)):
        expected = ((prediction - goal) ** 2).mean(-1)[mask].mean()
        tensors = (torch.from_numpy(v) for v in (prediction, patches, mask))
        assert completion_loss(*tensors, normalise_patches=normalised).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("tokens", "ratio", "hidden"), [(196, 0.9, 176), (64, 0.9, 57), (24, 0.5, 12)])
def test_exactly_the_published_number_is_hidden(tokens: int, ratio: float, hidden: int) -> None:
    counts = np.zeros(tokens)
    for seed in range(400):
        visible = random_visible(tokens, ratio, np.random.default_rng(seed)).numpy()
        assert len(visible) == tokens - hidden
        assert (np.diff(visible) > 0).all()
        counts[visible] += 1
    share = 1 - hidden / tokens
    sigma = np.sqrt(400 * share * (1 - share))
    assert np.abs(counts - 400 * share).max() < 5 * sigma  # every token is as likely


def test_samples_are_crops_with_a_mask(method) -> None:
    samples = method.samples(MadePairs())
    assert isinstance(samples, CompletionSamples)
    assert len(samples) == 6
    sample = samples.draw(3, np.random.default_rng([7, 3]))
    assert sample["first"].shape == sample["second"].shape == (32, 48, 3)
    assert sample["first"].dtype == torch.uint8
    assert len(sample["visible"]) == TOKENS - int(0.9 * TOKENS)
    assert sample["scene"] == 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_image_is_named(suffix: str, damage: str, tmp_path) -> None:
    whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    # Overwritten: a PNG whose second data chunk has no name; a JPEG that ends in the middle.
    middle = len(content) // 2
    second_chunk = content.find(b"IDAT", content.find(b"IDAT") + 4)
    if damage == "overwritten" and second_chunk > 0:
        broken.write_bytes(content[:second_chunk] + bytes(4) + content[second_chunk + 4 :])
    else:
        broken.write_bytes(content[:middle])

    class CutPairs(MadePairs):
        def images(self, index: int):
            return Image.open(whole), Image.open(broken)

    with pytest.raises(InputError, match="pair 2: an image cannot be decoded"):
        CompletionSamples(CutPairs(), CONFIG, TOKENS).draw(2, np.random.default_rng(0))


def test_views_are_swapped_half_the_time() -> None:
    pairs = MadePairs()
    config = CrossViewCompletionConfig(image_size=(60, 80), resized=60, color_jitter=0.0)
    plain = np.array(pairs.images(0)[0])
    for swap, low, high in ((True, 60, 140), (False, 200, 200)):  # binomial of 200: 100 +- 7
        samples = CompletionSamples(pairs, CrossViewCompletionConfig(**{**vars(config), "swap_views": swap}), 80)
        kept = sum(
            np.array_equal(samples.draw(0, np.random.default_rng(seed))["first"].numpy(), plain) for seed in range(200)
        )
        assert low <= kept <= high


def test_loss_is_over_the_masked_patches_alone(method, batch) -> None:
    output = method(batch)
    mask = output.extras["mask"]
    assert (mask.sum(1) == int(0.9 * TOKENS)).all()
    assert not mask.gather(1, batch["visible"]).any()
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert list(output.losses) == ["completion"]


def test_learning_lowers_the_loss(batch) -> None:
    method = CrossViewCompletion(CONFIG, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = method(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]  # memorises four pairs of noise: 1.7 -> below 1 when written


def test_picture_shows_visible_patches_as_they_are(method, batch) -> None:
    with torch.no_grad():
        output = method(batch)
    picture = method.picture(batch, output)
    assert picture.dtype == np.uint8
    zoom = 224 // 32
    assert picture.shape[1] == 4 * 48 * zoom
    body = picture[-4 * 32 * zoom :: zoom, ::zoom].reshape(4, 32, 4, 48, 3)
    masked, completed, original = body[:, :, 1], body[:, :, 2], body[:, :, 3]
    assert np.array_equal(original, batch["first"].numpy())
    as_patches = [
        patchify(torch.from_numpy(np.ascontiguousarray(v)).permute(0, 3, 1, 2), 8)
        for v in (masked, completed, original)
    ]
    visible = batch["visible"].unsqueeze(-1).expand(-1, -1, 192)
    taken = [p.gather(1, visible) for p in as_patches]
    assert torch.equal(taken[0], taken[2])
    assert torch.equal(taken[1], taken[2])
    assert not torch.equal(as_patches[1], as_patches[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"mask_ratio": 0.001}, "hides none"),
        ({"color_jitter": 1.5}, "color_jitter"),
        ({"resized": 0}, "resized"),
        ({"image_size": (30, 48)}, "multiple of the patch"),
        ({"model": "croco_giant"}, "unknown model"),
    ],
)
def test_bad_settings_are_named(fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CrossViewCompletion(CrossViewCompletionConfig(**({"image_size": (32, 48)} | fields)))
