"""Layers over points against their definition: convolutions written out, clouds alone, sums in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geo3d.nn.point_layers import (
    FeaturePropagation,
    GroupEmbedding,
    PointBlock,
    PointBlocks,
    PointwiseConv,
    nearest_weights,
    position_embedding,
)

# In float64 the order of sums is all that differs.
CLOSE = {"rtol": 0, "atol": 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


@torch.no_grad()
def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in float64 whose parameters and running statistics are all other than at the beginning."""
    source = generator(seed)
    for tensor in module.double().state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, dtype=torch.float64, generator=source))
    for parameter in module.parameters():
        parameter.sub_(0.9)
    return module.eval()


def test_a_pointwise_convolution_is_torchs() -> None:
    layer, x = drawn(PointwiseConv(5, 7)), randn(11, 5)
    own = nn.Conv1d(5, 7, 1).double()
    own.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), own(x.t().unsqueeze(0))[0].t(), **CLOSE)
    torch.testing.assert_close(layer(x.view(1, 11, 5))[0], layer(x), **CLOSE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("k", [1, 4])
def test_group_embedding_is_two_small_networks_written_out(training: bool, k: int) -> None:
    layer = drawn(GroupEmbedding(3, (4, 6), (8, 5))).train(training)

    def network(module: nn.Sequential) -> nn.Sequential:
        """The same of torch's own layers, over (groups, channels, members)."""
        first, norm, _, last = module
        convs = [nn.Conv1d(c.in_channels, c.out_channels, 1) for c in (first, last)]
        own = nn.Sequential(convs[0], nn.BatchNorm1d(norm.num_features), nn.ReLU(), convs[1]).double()
        own.load_state_dict(module.state_dict())
        return own.train(training)

    first, second = network(layer.first_conv), network(layer.second_conv)
    members = randn(9, k, 3)
    local = first(members.transpose(1, 2))
    both = torch.cat([local.amax(2, keepdim=True).expand(-1, -1, k), local], 1)
    expected = second(both).amax(2)
    found = layer(members.requires_grad_())
    torch.testing.assert_close(found, expected, **CLOSE)
    for module, own in ((layer.first_conv, first), (layer.second_conv, second)):
        torch.testing.assert_close(dict(module[1].named_buffers()), dict(own[1].named_buffers()), **CLOSE)
    gradients = torch.autograd.grad(found.square().sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), [*first.parameters(), *second.parameters()])
    for gradient, own in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-9, atol=1e-9)


def test_group_embedding_does_not_depend_on_the_order_of_members() -> None:
    layer, members = drawn(GroupEmbedding(3, (4, 6), (8, 5))), randn(9, 6, 3)
    order = torch.randperm(6, generator=generator())
    torch.testing.assert_close(layer(members[:, order]), layer(members), **CLOSE)


def attention(x: Tensor, block: PointBlock, mask: Tensor | None = None) -> Tensor:
    """Self-attention of (N, C), written out."""
    heads = block.attn.heads
    q, k, v = (x @ block.attn.qkv.weight.t()).chunk(3, dim=1)
    parts = []
    for head in range(heads):
        width = x.shape[1] // heads
        one, two, three = (t[:, head * width : (head + 1) * width] for t in (q, k, v))
        scores = one @ two.t() * width**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        parts.append(scores.softmax(1) @ three)
    return block.attn.proj(torch.cat(parts, 1))


def written_out(x: Tensor, block: PointBlock, mask: Tensor | None = None) -> Tensor:
    x = x + attention(block.norm1(x), block, mask)
    return x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize("masked", [False, True])
def test_packed_clouds_padded_ones_and_each_alone_are_alike(masked: bool) -> None:
    block, lengths = drawn(PointBlock(8, 2, 2.0)), (5, 1, 7)
    x = randn(1, sum(lengths), 8)
    parts = x[0].split(lengths)
    masks = None
    if masked:  # each token sees itself and some others
        draws = [torch.rand(n, n, generator=generator(n)) < 0.5 for n in lengths]
        masks = [draw | torch.eye(n, dtype=torch.bool) for draw, n in zip(draws, lengths)]
    expected = [written_out(p, block, m) for p, m in zip(parts, masks or [None] * 3)]
    together = block(x, lengths, masks)[0].split(lengths)
    alone = [block(p.unsqueeze(0), None, None if m is None else [m])[0] for p, m in zip(parts, masks or [None] * 3)]
    longest = max(lengths)
    padded = torch.stack([nn.functional.pad(p, (0, 0, 0, longest - len(p))) for p in parts])
    seen = []
    for n, m in zip(lengths, masks or [None] * 3):  # padding sees itself alone and is seen by nobody
        mask = torch.eye(longest, dtype=torch.bool)
        mask[:n, :n] = True if m is None else m
        seen.append(mask)
    stacked = block(padded, None, seen)
    for row, wanted in enumerate(expected):
        for found in (together[row], alone[row], stacked[row, : lengths[row]]):
            torch.testing.assert_close(found, wanted, **CLOSE)


def test_paths_are_dropped_by_cloud() -> None:
    """In training each cloud's residuals are dropped whole, or kept and scaled, in both forms of a batch."""
    block = drawn(PointBlock(8, 2, 2.0, drop_path=0.5)).train()
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)  # so that attention is the one residual
    lengths = (3,) * 40
    x = randn(1, 120, 8)
    torch.manual_seed(0)
    forms = {"packed": block(x, lengths)[0].view(40, 3, 8), "even": block(x.view(40, 3, 8))}
    full = torch.stack([attention(block.norm1(part), block) for part in x.view(40, 3, 8)])
    for found in forms.values():
        residual = found - x.view(40, 3, 8)
        kept = residual.flatten(1).abs().amax(1) > 0
        assert 5 < kept.sum() < 35
        torch.testing.assert_close(residual[kept], 2 * full[kept], **CLOSE)
    block.eval()
    torch.testing.assert_close(block(x, lengths)[0].view(40, 3, 8) - x.view(40, 3, 8), full, **CLOSE)


def test_positions_are_added_before_every_block() -> None:
    blocks, x, positions = drawn(PointBlocks(8, 2, 2.0, [0.0, 0.0])), randn(2, 6, 8), randn(2, 6, 8, seed=1)
    expected = torch.stack(
        [written_out(written_out(a + b, blocks.blocks[0]) + b, blocks.blocks[1]) for a, b in zip(x, positions)]
    )
    torch.testing.assert_close(blocks(x, positions), expected, **CLOSE)


def test_position_embedding_takes_any_leading_shape() -> None:
    layer, xyz = drawn(position_embedding(8)), randn(2, 5, 3)
    torch.testing.assert_close(layer(xyz)[1, 2], layer(xyz[1, 2]), **CLOSE)
    assert layer(xyz).shape == (2, 5, 8)


def test_weights_of_nearest_points_are_of_their_inverse_squares() -> None:
    points = torch.tensor([[0, 0, 0], [1, 0, 0], [3, 0, 0], [9, 0, 0]], dtype=torch.float64)
    queries = torch.tensor([[2, 0, 0], [0, 0, 0]], dtype=torch.float64)
    index, weights = nearest_weights(queries, points, torch.tensor([0, 2]), torch.tensor([0, 4]))
    assert [sorted(row) for row in index.tolist()] == [[0, 1, 2], [0, 1, 2]]
    by_point = torch.zeros(2, 4, dtype=torch.float64).scatter_(1, index, weights)
    torch.testing.assert_close(
        by_point[0, :3], torch.tensor([1 / 4, 1, 1], dtype=torch.float64) / 2.25, rtol=1e-7, atol=0
    )
    assert by_point[1, 0] > 1 - 1e-7  # a point at the query is almost all of it
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("coarse_count", [1, 2, 5])
def test_feature_propagation_is_the_dense_sum(coarse_count: int) -> None:
    """Over all pairs of points, those that are not among the three nearest weighing nothing."""
    layer = drawn(FeaturePropagation(4, 6, 5, residuals=2))
    fine_offsets, offsets = torch.tensor([0, 7, 10]), torch.tensor([0, coarse_count, coarse_count + 4])
    fine_xyz, xyz = randn(10, 3), randn(int(offsets[-1]), 3, seed=1)
    fine, coarse = randn(10, 4, seed=2), randn(len(xyz), 6, seed=3)
    dense = torch.zeros(10, len(xyz), dtype=torch.float64)
    for cloud in range(2):
        rows, columns = (slice(int(o[cloud]), int(o[cloud + 1])) for o in (fine_offsets, offsets))
        squared = (fine_xyz[rows, None] - xyz[None, columns]).square().sum(-1)
        nearest = squared <= squared.sort(1).values[:, min(3, squared.shape[1]) - 1 :][:, :1]
        inverse = nearest / (squared + 1e-8)
        dense[rows, columns] = inverse / inverse.sum(1, keepdim=True)
    x = torch.cat([fine, dense @ coarse], 1)
    convs = [*layer.fuse.net, *(m for r in layer.extraction.operation for part in (r.net1, r.net2) for m in part)]
    assert sum(isinstance(m, PointwiseConv) for m in convs) == 5

    def normed(x: Tensor, conv: PointwiseConv, norm: nn.Module) -> Tensor:
        x = x @ conv.weight[..., 0].t() + conv.bias
        return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias

    gelu = nn.functional.gelu
    x = gelu(normed(x, *layer.fuse.net[:2]))
    for residual in layer.extraction.operation:
        x = gelu(normed(gelu(normed(x, *residual.net1[:2])), *residual.net2[:2]) + x)
    index, weights = nearest_weights(fine_xyz, xyz, fine_offsets, offsets)
    torch.testing.assert_close(layer(fine, coarse, index, weights), x, **CLOSE)
