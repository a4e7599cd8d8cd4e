"""I2P-MAE's golden cases: the pre-training network with its masks, targets and losses, and classifiers."""

from __future__ import annotations

from pathlib import Path

import torch
from depth_views_golden import check_views
from golden_cases import GoldenCase
from golden_comparison import Comparison, need_the_weights_of_the_case
from torch import Tensor

from geo3d import create_model
from geo3d.methods.i2p_mae import Guidance, features_loss, hidden_and_seen, points_loss, visible_groups
from geo3d.models.i2p_mae import I2PMAE, PointBatch
from geo3d.models.point_encoder import PointInput, pool
from geo3d.nn.depth_views import depth_views

_CHANNELS_LAST = -1


def _write(case: GoldenCase, path: Path, teacher: bool = False, prefix: str = "module.") -> Path:
    """The authors' file, whose names are those of a data-parallel network; with tensors of the image network or not."""
    state = case.state()
    if teacher:
        state |= {"clip_model.visual.proj": torch.ones(768, 512, dtype=torch.float16)}
    parts = {"optimizer": {"state": {}}, "epoch": 299, "metrics": {"acc": 93.3}, "best_metrics": {"acc": 93.35}}
    torch.save({"base_model": {prefix + name: value for name, value in state.items()}} | parts, path)
    return path


def _input(case: GoldenCase, dtype: torch.dtype) -> PointInput:
    points = case.tensors["in.points"]
    offsets = torch.arange(len(points) + 1) * points.shape[1]
    return PointInput(points.flatten(0, 1).to(dtype), offsets)


def _options(case: GoldenCase) -> dict:
    """What the file does not tell, of the published constructor's arguments."""
    arguments = case.meta["arguments"]
    return {
        "groups": tuple(arguments["num_groups"]),
        "neighbors": tuple(arguments["group_sizes"]),
        "radii": tuple(map(float, arguments["local_radius"])),
        "heads": arguments["num_heads"],
        "drop_path_rate": float(arguments["drop_path_rate"]),
    }


def _guidance(case: GoldenCase, dtype: torch.dtype) -> Guidance:
    inputs = _input(case, torch.float32)
    features = (case.tensors["in.teacher_features_i8"].float() / 20).to(dtype)
    side = features.shape[-1]
    views = depth_views(inputs.xyz, inputs.offsets)
    return Guidance(views, features, case.tensors["in.teacher_attention"].to(dtype).view(-1, side, side))


def check_i2p_mae(case: GoldenCase, folder: Path) -> None:
    """Load the authors' file through the public door and compare everything stored, in float64 and float32."""
    check_views(case)
    need_the_weights_of_the_case()
    arguments = case.meta["arguments"]
    file = _write(case, folder / "ckpt-last.pth")
    for dtype in (torch.float64, torch.float32):
        model = create_model("i2p_mae", checkpoint=file, **_options(case)).to(dtype)
        config = model.config
        assert (config.dims, config.depths) == (tuple(arguments["encoder_dims"]), tuple(arguments["encoder_depths"]))
        assert config.decoder_dims == tuple(arguments["decoder_dims"])
        assert config.decoder_depths == tuple(arguments["decoder_depths"])
        assert config.teacher_dim == arguments["clip_config"]["feat_dim"]
        _check_network(case, model.eval(), dtype)
    for number, (teacher, prefix) in enumerate(((True, "module."), (True, ""), (False, ""))):
        other = create_model("i2p_mae", checkpoint=_write(case, folder / f"{number}.pth", teacher, prefix))
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in case.state().items())


def _check_groups(case: GoldenCase, batch: PointBatch) -> None:
    stored, sizes = case.tensors, [len(batch.inputs.xyz), *(len(groups.rows) for groups in batch.groups)]
    for level, groups in enumerate(batch.groups):
        clouds = groups.xyz.shape[0]
        first = torch.arange(clouds).unsqueeze(1) * (sizes[level] // clouds)
        assert torch.equal(groups.picked.view(clouds, -1) - first, stored[f"out.fps{level}"].long())
        assert torch.equal(groups.index.view(stored[f"out.knn{level}"].shape), stored[f"out.knn{level}"].long())
        assert torch.equal(groups.xyz.float(), stored[f"out.center{level}"])


def _check_network(case: GoldenCase, model: I2PMAE, dtype: torch.dtype) -> None:
    stored, compared = case.tensors, Comparison(case, dtype, _CHANNELS_LAST)
    batch = model.batch(_input(case, dtype))
    _check_groups(case, batch)
    guidance = _guidance(case, dtype)
    saliency = guidance.saliency_of(batch.groups[-1])
    compared.check("saliency", saliency)
    compared.check("probability", saliency.softmax(1))
    _check_masking(case, saliency)
    visible = model.visible(batch, ~stored["in.top_mask"])
    for level, part in enumerate(visible):
        assert torch.equal(~part, stored[f"out.masked{level}"])
    masked, seen = hidden_and_seen(visible)

    def losses() -> tuple[Tensor, Tensor]:
        output = model(batch, visible)
        targets = guidance.features_of(batch.groups[1], batch.groups[0], seen)
        loss_3d = points_loss(output.points, batch, masked)
        return output, loss_3d, features_loss(output.features, targets)

    with torch.no_grad():
        first = batch.groups[0]
        tokens = model.h_encoder.token_embed[0](batch.inputs.xyz[first.index] - first.rows.unsqueeze(1))
        compared.check("tokens0", tokens.view(*first.xyz.shape[:2], -1))
        output, loss_3d, loss_2d = losses()
        for level, tokens in enumerate(output.levels):
            compared.check(f"level{level}_rows", tokens)
        shape = batch.groups[1].xyz.shape[:2]
        compared.check("propagated", output.propagated.view(*shape, -1))
        compared.check("decoded", output.decoded.view(*shape, -1))
        compared.check("rec_3d", output.points)
        compared.check("rec_2d", output.features)
        compared.check("loss_3d", loss_3d)
        compared.check("loss_2d", loss_2d)
        every = guidance.features_of(batch.groups[1], batch.groups[0], torch.arange(len(batch.groups[1].rows)))
        for view, target in enumerate(every.chunk(3, dim=-1)):
            compared.check(f"view{view}.target", target.reshape(shape[0], -1, target.shape[-1]))
        compared.check("svm", pool(model.features(batch.inputs, [-1])[0], "max"))
    model.train()
    _, loss_3d, loss_2d = losses()
    compared.check("train.loss_3d", loss_3d)
    compared.check("train.loss_2d", loss_2d)
    (loss_3d + loss_2d).backward()
    if compared.sharp:
        compared.check_gradients(model)
        return
    # In float32 the maximum of a group may fall to another member of nearly the same value, and what it hands back
    # goes elsewhere: gradients of single tensors then differ by 1 % (measured), that of the whole by far less.
    norms = zip(case.meta["grad_norm_names"], case.tensors["out.grad_norm"].tolist(), strict=True)
    expected = sum(norm**2 for _, norm in norms) ** 0.5
    found = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    assert abs(found - expected) <= 1e-3 * expected


def _check_masking(case: GoldenCase, saliency: Tensor) -> None:
    """The published draw, of torch's multinomial, whose exponentials are those that we draw."""
    probability = case.tensors["out.probability"].float()
    torch.manual_seed(21)
    wanted = torch.multinomial(probability, probability.shape[1], replacement=False)
    count = int((~case.tensors["in.top_mask"]).sum(1)[0])
    torch.manual_seed(21)
    draws = torch.empty_like(probability).exponential_(1)
    top = visible_groups(saliency, draws, count)
    assert torch.equal(top, torch.zeros_like(top).scatter_(1, wanted[:, :count], True))


def check_classifier(case: GoldenCase, folder: Path) -> None:
    """A classifier's tokens and logits."""
    need_the_weights_of_the_case()
    file = _write(case, folder / "ckpt-best.pth")
    for dtype in (torch.float64, torch.float32):
        model = create_model("i2p_mae_classifier", checkpoint=file, **_options(case)).to(dtype).eval()
        compared = Comparison(case, dtype, _CHANNELS_LAST)
        inputs = _input(case, dtype)
        with torch.no_grad():
            tokens = model.features(inputs, [-1])[0].feats
            compared.check("tokens", tokens.view(len(inputs.offsets) - 1, -1, tokens.shape[1]))
            compared.check("logits", model(inputs))
