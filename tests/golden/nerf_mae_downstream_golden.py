"""Golden cases of what is made of NeRF-MAE's encoder: the feature pyramid, and the network of semantic voxels.

None is public, so what its tensors are called is taken from the cases of pre-training (``stage0``, ``decoder4``), and
otherwise a tensor is found by its shape, which tells all maps of these networks apart.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from golden_cases import GoldenCase
from golden_comparison import Comparison, need_the_weights_of_the_case
from nerf_mae_golden import prepared, published_state
from torch import Tensor

from geo3d import create_model
from geo3d.checkpoints.nerf_mae_downstream import semantic_name
from geo3d.models.grid_encoder import GridInput
from geo3d.models.nerf_mae_downstream import NeRFMAEFPN, NeRFMAESemantic, published_cross_entropy

_CHANNELS_LAST = -1
_EMBEDDED, _FINEST = ("patch", "token"), ("encoder1", "enc1")


def _load(case: GoldenCase, folder: Path, family: str, dtype: torch.dtype) -> Any:
    """The network of the case's file, in the container that the json describes."""
    need_the_weights_of_the_case()
    file, state = folder / f"{family}.pt", published_state(case)
    layout = case.meta.get("container", {}).get("layout", {})
    place = next((name for name in layout if name.endswith("state_dict") and "fcos" not in name), "state_dict")
    torch.save({"epoch": 999, place: state, "train_args": {"resolution": 160}}, file)
    rate = float(case.meta["arguments"].get("stochastic_depth_prob", 0.0))
    return create_model(family, checkpoint=file, drop_path_rate=rate).to(dtype)


def _shape(case: GoldenCase, name: str) -> tuple[int, ...]:
    """Of a whole tensor, of which the case may hold samples."""
    told = case.meta["tensors"].get(f"out.{name}", {})
    return tuple(told.get("full_shape", case.tensors[f"out.{name}"].shape))


def maps_stored(case: GoldenCase) -> set[str]:
    """Names of the outputs that a case holds, without gradients."""
    names = {name.removeprefix("out.") for name in case.tensors if name.startswith("out.")}
    return {name for name in names if not name.startswith(("grad.", "grad_norm"))}


def _compare(case: GoldenCase, dtype: torch.dtype, maps: dict[str, Tensor], left: set[str]) -> None:
    """Compare every stored tensor with the map of its name, or else of its shape, in either order of axes."""
    names = maps_stored(case) - left
    assert names, f"{case.path.name}: holds nothing to compare"
    for name in sorted(names):
        shape = _shape(case, name)
        found = maps.get(name)
        for number, value in enumerate(maps.values()):
            first = tuple(value.shape)
            told = _embedded(name) == _embedded(list(maps)[number]) and _finest(name) == _finest(list(maps)[number])
            if found is None and told and shape in (first, (first[0], *first[2:], first[1])):
                found = value
        assert found is not None, f"{name}: none of the network's maps is {shape}"
        last = tuple(found.shape) != shape
        compared = Comparison(case, dtype, _CHANNELS_LAST if last else 1)
        compared.check(name, found.movedim(1, -1) if last else found)


def _embedded(name: str) -> bool:
    return any(part in name for part in _EMBEDDED)


def _finest(name: str) -> bool:
    return any(part in name for part in _FINEST)


def check_nerf_mae_fpn(case: GoldenCase, folder: Path) -> None:
    """Load the encoder with its pyramid and compare all maps, in float64 and float32."""
    for dtype in (torch.float64, torch.float32):
        model: NeRFMAEFPN = _load(case, folder, "nerf_mae_fpn", dtype)
        inputs = prepared(case, model, dtype)
        with torch.no_grad():
            maps = {"patch_tokens": model.base.embed(inputs.values).movedim(-1, 1)}
            stages = model.base.features(inputs)
            maps |= {f"stage{number}": stage for number, stage in enumerate(stages)}
            maps |= {f"fpn{number}": level for number, level in enumerate(model.fpn_neck(stages))}
            _compare(case, dtype, maps, set())


def check_nerf_mae_semantic(case: GoldenCase, folder: Path) -> None:
    """Load the network of semantic voxels and compare its maps, loss and gradients, in float64 and float32."""
    for dtype in (torch.float64, torch.float32):
        model: NeRFMAESemantic = _load(case, folder, "nerf_mae_semantic", dtype)
        inputs = prepared(case, model, dtype)
        stages = model.features(inputs)
        maps = {f"stage{number}": stage for number, stage in enumerate(stages)}
        names = ("encoder1", "decoder4", "decoder3", "decoder2", "decoder1")
        maps |= dict(zip(names, model.decode(stages, inputs.values), strict=True))
        logits = maps["sem_out"] = model.sem_out["conv"](maps["decoder1"])
        scalars = {
            name.removeprefix("out.") for name, v in case.tensors.items() if name.startswith("out.") and not v.ndim
        }
        _compare(case, dtype, maps, scalars)
        if scalars:
            loss = _loss(case, logits, inputs)
            compared = Comparison(case, dtype)
            for name in scalars:
                compared.check(name, loss)
            if "grad_norm_names" in case.meta:
                loss.backward()
                for listed in ("grad_norm_names", "grad_norm_null"):
                    compared.meta = compared.meta | {listed: [semantic_name(n) for n in case.meta.get(listed, [])]}
                compared.check_gradients(model)


def _loss(case: GoldenCase, logits: Tensor, inputs: GridInput) -> Tensor:
    """The published loss of the case's classes, and of its mask and weights where it gives any."""
    given = {name.removeprefix("in."): v for name, v in case.tensors.items() if name.startswith("in.")}
    given = {name: value for name, value in given.items() if not name.startswith("grid")}
    voxels = math.prod(inputs.sides) * len(inputs.values)
    masks = [v.view(inputs.valid.shape).bool() for n, v in given.items() if v.numel() == voxels and "mask" in n]
    labels = [v.view(inputs.valid.shape).long() for n, v in given.items() if v.numel() == voxels and "mask" not in n]
    weights = [v for v in given.values() if v.shape == (logits.shape[1],)]
    return published_cross_entropy(
        logits, labels[0], masks[0] if masks else inputs.valid, weights[0] if weights else None
    )
