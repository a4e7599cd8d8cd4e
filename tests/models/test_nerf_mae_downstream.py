"""What is made of NeRF-MAE's encoder: against plain torch under published names, the authors' files, and detection."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d import InputError, create_model, save_model
from geo3d.models.grid_encoder import GridInput
from geo3d.models.nerf_mae_downstream import labelled_cross_entropy, published_cross_entropy

sys.path.append(str(Path(__file__).parents[1] / "golden"))
from golden_cases import GoldenCase
from nerf_mae_downstream_golden import check_nerf_mae_fpn, check_nerf_mae_semantic
from nerf_mae_golden import published_positions

SMALL: dict[str, Any] = {"embed_dim": 12, "depths": (1, 1, 2, 1), "heads": (2, 2, 3, 4), "drop_path_rate": 0.0}
_SIDE = 32


def _model(name: str, **options: Any) -> Any:
    return create_model(name, generator=torch.Generator().manual_seed(0), **SMALL, **options)


def _published(model: torch.nn.Module, base: str = "base.") -> dict[str, Tensor]:
    """A network's state as the authors' file holds it: with the tables that are computed."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[f"{base}pos_embed"] = published_positions(_SIDE // 4, SMALL["embed_dim"])
    from geo3d.nn.swin_volume import relative_position_index

    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = relative_position_index().flatten()
    return state


def _grids(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(4, *sides, generator=generator) for sides in ((32, 20, 14), (18, 30, 32))]


def _plain_residual(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """As UNETR has it: two convolutions with instance norms, a shortcut, leaky rectifiers of slope 0.01."""

    def normed(convolution: str, x: Tensor, padding: int) -> Tensor:
        weight, bias = state[f"{name}.{convolution}.weight"], state[f"{name}.{convolution}.bias"]
        x = F.conv3d(x, weight, bias, padding=padding)
        mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    y = F.leaky_relu(normed("conv1", x, 1), 0.01)
    y = normed("conv2", y, 1)
    return F.leaky_relu(y + (normed("conv3", x, 0) if f"{name}.conv3.weight" in state else x), 0.01)


def _plain_semantic(state: dict[str, Tensor], stages: list[Tensor], values: Tensor) -> dict[str, Tensor]:
    maps = {"encoder1": _plain_residual(state, "encoder1.layer", values)}
    x = stages[3]
    skips = (("base.decoder4", stages[2]), ("base.decoder3", stages[1]), ("base.decoder2", stages[0]))
    for name, skip in (*skips, ("decoder1", maps["encoder1"])):
        weight, bias = state[f"{name}.transp_conv.weight"], state[f"{name}.transp_conv.bias"]
        up = F.conv_transpose3d(x, weight, bias, stride=weight.shape[-1])
        x = maps[name.removeprefix("base.")] = _plain_residual(state, f"{name}.conv_block", torch.cat([up, skip], 1))
    maps["sem_out"] = F.conv3d(x, state["sem_out.conv.weight"], state["sem_out.conv.bias"])
    return maps


def _plain_pyramid(state: dict[str, Tensor], stages: list[Tensor]) -> list[Tensor]:
    def convolved(kind: str, level: int, x: Tensor, padding: int) -> Tensor:
        name = f"fpn_neck.{kind}.{level}"
        return F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    maps: list[Tensor] = []
    for level in (3, 2, 1, 0):
        x = convolved("lateral_convs", level, stages[level], 0)
        if maps:  # nearest: every coarse cell eight times, cut to the finer map
            doubled = maps[0]
            for axis in (2, 3, 4):
                doubled = doubled.repeat_interleave(2, axis)
            x = x + doubled[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
        maps.insert(0, x)
    return [convolved("fpn_convs", level, x, 1) for level, x in enumerate(maps)]


class MadeCase(GoldenCase):
    """A case as the golden folder would hold it, whose weights are given."""

    weights: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)


def _case(kind: str, state: dict[str, Tensor], container: str, tensors: dict[str, Tensor], **meta: Any) -> MadeCase:
    tolerance = {
        name: {"max_abs_value": float(v.abs().max()), "max_abs_diff_fp32_vs_fp64": 0.0} for name, v in tensors.items()
    }
    meta |= {"kind": kind, "arguments": {"resolution": _SIDE}, "container": {"layout": {container: "the layout"}}}
    meta |= {"tolerance": tolerance, "tensors": {}}
    grids = {f"in.grid{number}_u8": (255 * grid).round().byte() for number, grid in enumerate(_grids())}
    stored = {f"out.{name}": v if v.ndim == 0 else v.float() for name, v in tensors.items()} | grids
    index = next(v for name, v in state.items() if name.endswith("relative_position_index"))
    case = MadeCase(Path(kind), meta, stored | {"keep.relative_position_index": index})
    case.weights = state
    return case


def _inputs(model: Any) -> GridInput:
    grids = [(255 * grid).round() / 255 for grid in _grids()]
    made = model.prepare(grids, resolution=_SIDE)
    return GridInput(made.values.double(), made.sizes)


def test_the_pyramid_as_plain_torch_has_it(tmp_path: Path) -> None:
    model = _model("nerf_mae_fpn", pyramid_channels=8).double()
    inputs = _inputs(model)
    with torch.no_grad():
        stages = model.base.features(inputs)
        plain = _plain_pyramid(model.state_dict(), stages)
        for found, expected in zip(model.features(inputs), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        odd = GridInput(inputs.values[:, :, :20, :28, :12], inputs.sizes)  # maps of 5, 3, 2 and 1 cells
        expected = _plain_pyramid(model.state_dict(), model.base.features(odd))
        assert [tuple(m.shape[2:]) for m in expected] == [(5, 7, 3), (3, 4, 2), (2, 2, 1), (1, 1, 1)]
        torch.testing.assert_close(model.features(odd)[-1], expected[-1], rtol=1e-9, atol=1e-9)
    tensors = {f"stage{n}": stage.permute(0, 2, 3, 4, 1) for n, stage in enumerate(stages)}
    tensors |= {f"p{n}": level for n, level in enumerate(plain)}
    case = _case("nerf_mae_fpn", _published(model.float()), "backbone_state_dict", tensors)
    check_nerf_mae_fpn(case, tmp_path)


def test_semantic_voxels_as_plain_torch_has_them(tmp_path: Path) -> None:
    model = _model("nerf_mae_semantic", num_classes=5).double()
    inputs = _inputs(model)
    stages = model.features(inputs)
    maps = _plain_semantic(dict(model.named_parameters()), stages, inputs.values)
    torch.testing.assert_close(model(inputs), maps["sem_out"], rtol=1e-9, atol=1e-9)
    labels = torch.randint(0, 5, inputs.valid.shape, generator=torch.Generator().manual_seed(0))
    weight = torch.arange(1.0, 6)
    # as published, what grids are filled up with counts as uniform logits of class 0
    logits = torch.where(inputs.valid[:, None], maps["sem_out"], 0)
    target = torch.where(inputs.valid, labels, 0)
    own = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    loss = -(own * weight[target]).sum() / weight[target].sum()
    loss.backward()
    norms = {name: p.grad.norm() for name, p in model.named_parameters()}
    tensors = {name: value.detach() for name, value in (maps | {"loss": loss.detach()}).items()}
    tensors["logits"] = tensors.pop("sem_out")
    case = _case(
        "nerf_mae_semantic", _published(model.float()), "state_dict", tensors,
        grad_norm_names=list(norms), grad_norm_null=[n for n in norms if n.endswith("bias")],
    )  # fmt: skip
    case.tensors |= {
        "in.target": labels,
        "in.class_weights": weight,
        "out.grad_norm": torch.stack(list(norms.values())),
    }
    case.meta["tolerance"]["grad_norm"] = {"max_rel_diff_fp32_vs_fp64": 1e-2}
    check_nerf_mae_semantic(case, tmp_path)


def test_losses_of_semantic_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 2, generator=generator)
    labels = torch.randint(-1, 3, (2, 4, 4, 2), generator=generator)
    known = labels >= 0
    rows = logits.permute(0, 2, 3, 4, 1)[known]
    expected = -rows.log_softmax(1)[torch.arange(len(rows)), labels[known]].mean()
    assert labelled_cross_entropy(logits, labels).item() == pytest.approx(expected.item())
    assert labelled_cross_entropy(logits, torch.full_like(labels, -1)) == 0
    nothing = torch.zeros_like(known)  # all uniform, of class 0
    assert published_cross_entropy(logits, labels.clamp_min(0), nothing).item() == pytest.approx(torch.tensor(3).log())
    every = published_cross_entropy(logits, labels.clamp_min(0), ~nothing)
    assert every.item() == pytest.approx(labelled_cross_entropy(logits, labels.clamp_min(0)).item())


def _fine_tuned(model: Any, head: str = "head.") -> dict[str, Any]:
    """A detector as the authors' file would hold it: a factor more than there are levels, of one element each."""
    backbone = _published(model.backbone)
    own = {f"{head}{name}": value for name, value in model.head.state_dict().items()}
    own = {name: value.reshape(1) if name.endswith(".scale") else value for name, value in own.items()}
    own[f"{head}scales.4.scale"] = torch.ones(1)
    return {"epoch": 999, "backbone_state_dict": backbone, "fcos_state_dict": own, "train_args": {"rotated_bbox": True}}


def test_fine_tuned_files_of_the_authors(tmp_path: Path) -> None:
    model = _model("nerf_mae_detector", pyramid_channels=8, tower_depth=2)
    with torch.no_grad():
        model.head.scales[1].scale.fill_(1.5)
    for number, prefix in enumerate(("head.", "module.head.", "")):
        torch.save(_fine_tuned(model, prefix), tmp_path / f"{number}.pt")
        loaded = create_model("nerf_mae_detector", checkpoint=tmp_path / f"{number}.pt")
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert (loaded.config.tower_depth, loaded.config.pyramid_channels) == (2, 8)
        assert loaded.config.resolution == _SIDE
    pyramid = create_model("nerf_mae_fpn", checkpoint=tmp_path / "0.pt").state_dict()
    assert all(torch.equal(value, pyramid[name]) for name, value in model.backbone.state_dict().items())
    encoder = create_model("nerf_mae", checkpoint=tmp_path / "0.pt")
    assert not encoder.config.decoder
    assert all(torch.equal(value, pyramid[f"base.{name}"]) for name, value in encoder.state_dict().items())
    content = _fine_tuned(model)
    del content["fcos_state_dict"]
    torch.save(content, tmp_path / "half.pt")
    with pytest.raises(InputError, match=r"holds a .*pyramid.*, not a nerf_mae_detector"):
        create_model("nerf_mae_detector", checkpoint=tmp_path / "half.pt")
    content = _fine_tuned(model)
    content["fcos_state_dict"]["anchors"] = torch.ones(1)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match="anchors in its fcos_state_dict"):
        create_model("nerf_mae_detector", checkpoint=tmp_path / "other.pt")


def test_what_the_authors_classes_keep_of_pre_training_is_left_out(tmp_path: Path) -> None:
    model = _model("nerf_mae_semantic", num_classes=3)
    state = _published(model)
    whole = _model("nerf_mae")
    state |= {
        f"base.{name}": v
        for name, v in whole.state_dict().items()
        if name.startswith(("mask_token", "out.", "decoder1"))
    }
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "semantic.pt")
    loaded = create_model("nerf_mae_semantic", checkpoint=tmp_path / "semantic.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    # parts within the base, and convolutions in modules of their own
    inside = {name.replace("encoder1.layer", "base.encoder1.block"): value for name, value in state.items()}
    inside = {re.sub(r"(conv\d|sem_out\.conv)\.(weight|bias)$", r"\1.conv.\2", name): v for name, v in inside.items()}
    torch.save(inside, tmp_path / "semantic.pt")
    loaded = create_model("nerf_mae_semantic", checkpoint=tmp_path / "semantic.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["nerf_mae_fpn", "nerf_mae_detector", "nerf_mae_semantic"])
def test_a_pre_trained_encoder_becomes_part_of_each(name: str, tmp_path: Path) -> None:
    pre_trained = _model("nerf_mae")
    save_model(pre_trained, tmp_path / "pre-trained")
    made = create_model(name, checkpoint=tmp_path / "pre-trained", fresh_decoder=True)
    encoder = made.encoder.state_dict()
    own = {n: v for n, v in pre_trained.state_dict().items() if pre_trained.is_of_encoder(n)}
    assert all(torch.equal(value, encoder[n]) for n, value in own.items())
    with pytest.raises(InputError, match=r"with fresh_decoder=True"):
        create_model(name, checkpoint=tmp_path / "pre-trained")


def test_objects_lie_in_the_grids_they_were_found_in() -> None:
    model = _model("nerf_mae_detector", pyramid_channels=8, tower_depth=1)
    grids = _grids()
    found = model.detect(grids, before=50, after=20)
    assert len(found) == 2
    for one in found:
        assert one.boxes.shape == (len(one.scores), 7)
        assert 0 < len(one.boxes) <= 20
        assert (one.scores.diff() <= 0).all()
    alone = model.detect(model.prepare(grids[0]), before=50, after=20)[0]
    assert len(alone.boxes)
    with pytest.raises(InputError):
        model.detect(torch.rand(3, 8, 8, 8))


def test_classes_of_voxels_have_the_sides_of_their_grids() -> None:
    model = _model("nerf_mae_semantic", num_classes=3)
    assert [tuple(p.shape) for p in model.predict(_grids())] == [(3, 32, 20, 14), (3, 18, 30, 32)]
    with pytest.raises(InputError, match="multiples of 32"):
        model(GridInput(torch.rand(1, 4, 20, 32, 32), torch.tensor([[20, 32, 32]])))
    with pytest.raises(InputError, match="num_classes must be 1 or more"):
        _model("nerf_mae_semantic", num_classes=0)
