"""NeRF-MAE's files of downstream networks: detection (backbone and head), the pyramid alone, semantic voxels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import Stored, as_state_dict, count_names
from geo3d.checkpoints.nerf_mae import ComputedTables, encoder_sizes, read_nerf_mae, take_tables
from geo3d.errors import InputError

_BACKBONE, _HEAD = "backbone_state_dict", "fcos_state_dict"
_BASE = "base."
#: What the authors' classes may keep of pre-training, though they do not use it.
_UNUSED = re.compile(r"base\.(?:mask_token$|out\.)")
_DECODERS = re.compile(r"base\.decoder\d\.")
#: Parts of the head, behind whatever name its module has.
_OF_HEAD = re.compile(r"(?:^|\.)((?:cls_tower|bbox_tower|cls_logits|bbox_pred|centerness|scales)\.(.*))$")
_SCALE = re.compile(r"scales\.(\d+)(?:\.scale)?")
#: Convolutions that lie in a module of their own.
_WRAPPED = re.compile(r"((?:conv\d?|convs\.\d+|transp_conv))\.conv\.(weight|bias)$")
#: Names of the semantic network's own parts, within the base or beside it, whatever their convolutions lie in.
_SEMANTIC = re.compile(r"base\.((?:encoder1|sem_out)\.)")
_FIRST = re.compile(r"^encoder1\.(?:\w+\.)*?(conv\d)\.(weight|bias)$")
_LAST = re.compile(r"^sem_out\.(?:\w+\.)*(weight|bias)$")


def read_nerf_mae_files(content: Any, path: Path, tables: ComputedTables) -> Stored:
    """What a file of the authors holds: a pre-training network or any of those that are made of it.

    - ``{"backbone_state_dict": ..., "fcos_state_dict": ...}`` beside the epoch: a detector; without the second it is
      as names tell;
    - names under ``base.`` and ``fpn_neck.``: encoder and pyramid;
    - names under ``base.`` and ``sem_out.``: the network of semantic voxels;
    - else as :func:`~geo3d.checkpoints.nerf_mae.read_nerf_mae` reads it.

    Raises:
        InputError: none of these; says what is missing.
    """
    if isinstance(content, Mapping) and isinstance(content.get(_BACKBONE), Mapping):
        state = as_state_dict(content[_BACKBONE], path)
        if isinstance(content.get(_HEAD), Mapping):
            head = _head_names(as_state_dict(content[_HEAD], path), path)
            state = {f"backbone.{name}": v for name, v in state.items()} | head
    else:
        state = as_state_dict(content, path)
    state = {_WRAPPED.sub(r"\1.\2", name): value for name, value in state.items()}
    if any(name.startswith("backbone.") for name in state):
        return _detector(state, path, tables)
    if any(name.startswith("fpn_neck.") for name in state):
        return _pyramid(state, path, tables)
    if any(name.removeprefix(_BASE).startswith("sem_out.") for name in state):
        return _semantic(state, path, tables)
    return read_nerf_mae(content, path, tables)


def _head_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The head's tensors under the names of our network."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        found = _OF_HEAD.search(name)
        if found is None:
            raise InputError(f"{path}: {name} in its {_HEAD} is no part of the head that is known")
        named["head." + _SCALE.sub(r"scales.\1.scale", found.group(1))] = value
    return named


def _detector(state: dict[str, Tensor], path: Path, tables: ComputedTables) -> Stored:
    own = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    backbone = _pyramid(own, path, tables)
    head = {name: v for name, v in state.items() if not name.startswith("backbone.")}
    levels = count_names(own, "fpn_neck.lateral_convs.{}.weight")
    # the published head has a factor more than there are levels, which nothing reads; none of no dimension is stored
    for name, value in list(head.items()):
        if scale := re.fullmatch(r"head\.scales\.(\d+)\.scale", name):
            if int(scale.group(1)) >= levels:
                del head[name]
            elif value.numel() == 1:
                head[name] = value.reshape(())
    tower = sum(
        re.fullmatch(r"head\.cls_tower\.\d+\.weight", name) is not None and v.ndim == 5 for name, v in head.items()
    )
    if not tower:
        raise InputError(f"{path}: not a whole NeRF-MAE detector: its head has no cls_tower")
    config = (backbone.config or {}) | {"tower_depth": tower}
    state = {f"backbone.{name}": value for name, value in backbone.state.items()} | head
    return Stored(state, "nerf_mae_detector", config, stated=False)


def _pyramid(state: Mapping[str, Tensor], path: Path, tables: ComputedTables) -> Stored:
    own = {n: v for n, v in state.items() if not _UNUSED.match(n) and not _DECODERS.match(n)}
    config = _encoder_config(own, path, tables)
    lateral = own.get("fpn_neck.lateral_convs.0.weight")
    if lateral is None:
        raise InputError(f"{path}: not a whole NeRF-MAE pyramid: it has no fpn_neck.lateral_convs.0.weight")
    return Stored(own, "nerf_mae_fpn", config | {"pyramid_channels": lateral.shape[0]}, stated=False)


def _semantic(state: Mapping[str, Tensor], path: Path, tables: ComputedTables) -> Stored:
    own = {semantic_name(name): value for name, value in state.items() if not _UNUSED.match(name)}
    first = {name: value for name, value in own.items() if name.startswith("base.decoder1.")}
    own = {name: value for name, value in own.items() if name not in first}
    if not any(name.startswith("decoder1.") for name in own):
        own |= {name.removeprefix(_BASE): value for name, value in first.items()}
    config = _encoder_config(own, path, tables)
    classes = own.get("sem_out.conv.weight")
    if classes is None:
        raise InputError(f"{path}: not a whole NeRF-MAE semantic network: it has no sem_out.conv.weight")
    return Stored(own, "nerf_mae_semantic", config | {"num_classes": classes.shape[0]}, stated=False)


def semantic_name(name: str) -> str:
    """A parameter's name in our network of semantic voxels, of one that the authors' may have."""
    own = _SEMANTIC.sub(r"\1", _WRAPPED.sub(r"\1.\2", name))
    return _LAST.sub(r"sem_out.conv.\1", _FIRST.sub(r"encoder1.layer.\1.\2", own))


def _encoder_config(state: dict[str, Tensor], path: Path, tables: ComputedTables) -> dict[str, Any]:
    """Sizes of the encoder under ``base.``; takes the computed tables out of the state."""
    return encoder_sizes(state, path, _BASE) | {"resolution": take_tables(state, path, tables, _BASE)}


def pyramid_of(detector: Stored) -> Stored:
    """Encoder and pyramid of a detector."""
    inside = "backbone."
    state = {name.removeprefix(inside): v for name, v in detector.state.items() if name.startswith(inside)}
    config = {name: value for name, value in (detector.config or {}).items() if name not in ("tower_depth", "corners")}
    return Stored(state, "nerf_mae_fpn", config, detector.stated)


def encoder_of(whole: Stored) -> Stored:
    """The bare encoder in a network that is made of it."""
    inside = "backbone.base." if whole.family == "nerf_mae_detector" else _BASE
    state = {name.removeprefix(inside): v for name, v in whole.state.items() if name.startswith(inside)}
    state = {name: v for name, v in state.items() if not name.startswith("decoder")}
    return Stored(state, "nerf_mae", _encoder_fields(whole) | {"decoder": False}, whole.stated)


def around_encoder(encoder: Stored, family: str) -> Stored:
    """The encoder of a pre-training network as part of a network of a family, the rest of which is left to be drawn."""
    inside = "backbone.base." if family == "nerf_mae_detector" else _BASE
    of_decoder = ("mask_token", "decoder", "out.")
    state = {inside + name: v for name, v in encoder.state.items() if not name.startswith(of_decoder)}
    return Stored(state, family, _encoder_fields(encoder), stated=False)


def _encoder_fields(stored: Stored) -> dict[str, Any]:
    kept = ("embed_dim", "depths", "heads", "mlp_ratio", "drop_path_rate", "resolution")
    return {name: value for name, value in (stored.config or {}).items() if name in kept}


__all__ = ["around_encoder", "encoder_of", "pyramid_of", "read_nerf_mae_files", "semantic_name"]
