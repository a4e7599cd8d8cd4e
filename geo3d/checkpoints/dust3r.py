"""Files of DUSt3R and MASt3R: releases, training runs of the published code, and folders of the Hugging Face Hub."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.call_text import parse_call
from geo3d.checkpoints.croco import read_croco, trunk_config
from geo3d.checkpoints.dpt import without_doubles
from geo3d.checkpoints.loading import HUB_CONFIG, Stored, as_state_dict
from geo3d.errors import InputError

#: Classes of the published code -> families.
_NETWORKS = {"AsymmetricCroCo3DStereo": "dust3r", "AsymmetricMASt3R": "mast3r"}
#: Arguments that say how batches are fed, and what of the values they may have.
_PATCH_EMBEDDINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")
_SECOND_DECODER = "dec_blocks2."
_DESCRIPTORS = "downstream_head1.head_local_features."
_HEADS = ("downstream_head1.dpt.", "downstream_head2.dpt.")
_FROZEN = ("none", "mask", "encoder")


def read_dust3r(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors, or of their training code, holds.

    ``{"model", "args"}`` (releases and training runs: the network stands in ``args.model`` as the text of a constructor
    call, which is parsed and never evaluated), a folder of the Hub (``config.json`` beside ``model.safetensors``), or a
    state dict alone, whose sizes the name that is asked for must tell. A CroCo file is told as such.

    Raises:
        InputError: none of these layouts, arguments that are not known, or a network that is not read.
    """
    if isinstance(content, Mapping) and "dune_backbone_name" in content:
        raise InputError(
            f"{path}: holds DUNE-MASt3R, which is not read: its encoder is {content['dune_backbone_name']!r}"
        )
    state = as_state_dict(content, path)
    if not any(name.startswith("enc_blocks.") for name in state):
        names = ", ".join(list(state)[:4])
        raise InputError(
            f"{path}: holds no network of DUSt3R's family, its names are {names}; a retrieval head of MASt3R is "
            "not read, since it works on the features of a network"
        )
    named = _published(content, path)
    if named is None and not any(name.startswith(_SECOND_DECODER) for name in state):
        return read_croco(content, path, options)
    state = own_names(state, path)
    if named is None:
        family = "mast3r" if any(name.startswith(_DESCRIPTORS) for name in state) else "dust3r"
        return Stored(state, family, None)
    name, arguments = named
    if name not in _NETWORKS:
        if name == "CroCoNet":
            return read_croco(content, path, options)
        raise InputError(f"{path}: holds a network {name}, known are {', '.join(_NETWORKS)}")
    return Stored(state, _NETWORKS[name], config_from_published(arguments, path))


def _published(content: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Name and arguments of the published constructor, where the file tells them."""
    args = content.get("args")
    if isinstance(args, Namespace) and hasattr(args, "model"):
        return parse_call(args.model, path)
    arguments = content.get(HUB_CONFIG)
    if arguments is None:
        return None
    described = any(name in arguments for name in ("two_confs", "desc_mode", "desc_conf_mode"))
    described = described or "desc" in str(arguments.get("output_mode"))
    return "AsymmetricMASt3R" if described else "AsymmetricCroCo3DStereo", arguments


def own_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A published state dict with each tensor of the DPT heads once."""
    try:
        for head in _HEADS:
            state = without_doubles(state, head)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return dict(state)


def config_from_published(arguments: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Published constructor arguments -> fields of ``DUSt3RConfig``; absent ones take the published defaults.

    Raises:
        InputError: an argument that is not known, or a value of it.
    """
    config, others = trunk_config({"pos_embed": "cosine", **arguments}, path)
    output_mode, desc_mode = others.pop("output_mode", "pts3d"), others.pop("desc_mode", "norm")
    config["head"] = others.pop("head_type", "linear")
    config["descriptors"] = _descriptors(output_mode, desc_mode, path)
    config["depth_mode"] = _depth_mode(others.pop("depth_mode", ("exp", -math.inf, math.inf)), path)
    config["confidence"] = _confidence_mode(others.pop("conf_mode", ("exp", 1, math.inf)), "conf_mode", path)
    own = others.pop("desc_conf_mode", None)
    config["two_confidences"] = others.pop("two_confs", False)
    config["descriptor_confidence"] = None if own is None else _confidence_mode(own, "desc_conf_mode", path)
    config["freeze"] = others.pop("freeze", "none")
    others.pop("landscape_only", None)  # how training batches were fed; images enter upright here
    embedding = others.pop("patch_embed_cls", _PATCH_EMBEDDINGS[0])
    if embedding not in _PATCH_EMBEDDINGS:
        raise InputError(f"{path}: patch_embed_cls {embedding!r} is not known, only {', '.join(_PATCH_EMBEDDINGS)}")
    if config["freeze"] not in _FROZEN:
        raise InputError(f"{path}: freeze {config['freeze']!r} is not known, only {', '.join(_FROZEN)}")
    for name, value in others.items():
        raise InputError(f"{path}: constructor argument {name}={value!r} is not known for DUSt3R or MASt3R")
    return config


def _descriptors(output_mode: Any, desc_mode: Any, path: str | Path) -> int | None:
    """Channels of the descriptors that ``output_mode`` names: ``pts3d`` or ``pts3d+desc24``."""
    if output_mode == "pts3d":
        return None
    count = str(output_mode).removeprefix("pts3d+desc")
    if count == output_mode or not (count.isascii() and count.isdecimal()):
        raise InputError(f"{path}: output_mode {output_mode!r} is not known, only pts3d and pts3d+desc24 or the like")
    if (desc_mode[0] if isinstance(desc_mode, tuple | list) and desc_mode else desc_mode) != "norm":
        raise InputError(f"{path}: desc_mode {desc_mode!r} is not known, only norm")
    return int(count)


def _mode(value: Any, name: str, kinds: tuple[str, ...], path: str | Path) -> tuple[str, float, float]:
    """A mode as the published code writes it: a kind and two bounds."""
    kind, low, high = value if isinstance(value, tuple | list) and len(value) == 3 else (None, None, None)
    if kind not in kinds or not all(isinstance(bound, int | float) for bound in (low, high)):
        raise InputError(f"{path}: {name} {value!r} is not known; it should be {' or '.join(kinds)} and two bounds")
    return kind, float(low), float(high)


def _depth_mode(value: Any, path: str | Path) -> str:
    kind, low, high = _mode(value, "depth_mode", ("exp", "linear", "square"), path)
    if (low, high) != (-math.inf, math.inf):
        raise InputError(f"{path}: depth_mode {value!r}: bounds other than -inf and inf are not read")
    return kind


def _confidence_mode(value: Any, name: str, path: str | Path) -> dict[str, Any]:
    kind, low, high = _mode(value, name, ("exp", "sigmoid"), path)
    return {"kind": kind, "low": low, "high": None if high == math.inf else high}


__all__ = ["config_from_published", "own_names", "read_dust3r"]
