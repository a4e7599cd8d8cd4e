"""CroCo's files: released pre-training checkpoints, and training runs of the published code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geo3d.checkpoints.call_text import parse_call
from geo3d.checkpoints.loading import Stored, as_state_dict
from geo3d.errors import InputError

#: Published constructor arguments -> fields of our config.
_FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "enc_embed_dim": "encoder_dim",
    "enc_depth": "encoder_depth",
    "enc_num_heads": "encoder_heads",
    "dec_embed_dim": "decoder_dim",
    "dec_depth": "decoder_depth",
    "dec_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_im2_in_dec": "norm_memory",
}
#: Published arguments that do not shape the network.
_IGNORED = {"mask_ratio"}
_ROTARY = "RoPE"


def read_croco(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors, or of their training code, holds.

    ``{"model", "croco_kwargs"}`` (version 2 releases), ``{"model"}`` with sine-cosine embeddings (version 1: the
    constructor's defaults), ``{"model", "args"}`` (training runs: the network stands in ``args.model`` as the text of a
    constructor call, which is parsed and never evaluated), or a state dict without any of them.

    Raises:
        InputError: none of these layouts, or arguments that are not known.
    """
    state = as_state_dict(content, path)
    if "croco_kwargs" in content:
        return Stored(state, "croco", config_from_published(content["croco_kwargs"], path))
    args = content.get("args")
    if isinstance(args, Namespace) and hasattr(args, "model"):
        return Stored(state, "croco", config_from_published(parse_call(args.model, path)[1], path))
    first_version = isinstance(content.get("model"), Mapping) and "enc_pos_embed" in state
    return Stored(state, "croco", config_from_published({}, path) if first_version else None)


def config_from_published(arguments: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Published constructor arguments -> fields of ``CroCoConfig``.

    Raises:
        InputError: an argument or position embedding that is not known.
    """
    config, others = trunk_config(arguments, path)
    for name, value in others.items():
        raise InputError(f"{path}: constructor argument {name}={value!r} is not known for CroCo")
    return config


def trunk_config(arguments: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Published constructor arguments -> fields of ``CroCoConfig``, and the arguments that are not CroCo's.

    Raises:
        InputError: they are no arguments, or a position embedding that is not known.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"{path}: croco_kwargs should be named arguments, found {arguments!r}")
    config: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _FIELDS:
            config[_FIELDS[name]] = value
        elif name == "pos_embed" and value == "cosine":
            config["rope_base"] = None
        elif name == "pos_embed" and str(value).startswith(_ROTARY):
            config["rope_base"] = _rope_base(value, path)
        elif name not in _IGNORED:
            others[name] = value
    return config, others


def _rope_base(name: str, path: str | Path) -> float:
    try:
        return float(name.removeprefix(_ROTARY))
    except ValueError:
        raise InputError(f"{path}: position embedding {name!r} should be RoPE and a number, such as RoPE100") from None
