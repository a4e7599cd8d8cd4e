"""I2P-MAE's files: pre-training runs, with the frozen image network inside or without, and fine-tuned classifiers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geo3d.checkpoints.loading import Stored, as_state_dict, count_names
from geo3d.errors import InputError

#: Where the names of the frozen image network begin, which the published code saves along.
TEACHER_PREFIX = "clip_model."
_ENCODER = "h_encoder."
_HEAD = "cls_head_finetune."
_VIEWS = 3
#: What weights do not tell of a network, for which the user's options stand in.
_UNTOLD = ("groups", "neighbors", "radii", "heads")
#: What the weights of fine-tuned networks do not tell -> by the number of classes: points, neighbours and radii.
_FINE_TUNED = {
    40: {"points": 1024, "neighbors": (48, 24, 24), "radii": (0.24, 0.48, 0.96)},
    15: {"points": 2048, "neighbors": (32, 16, 16), "radii": (0.32, 0.64, 1.28)},
}
_SCAN_CLASSES = 15


def read_i2p_mae(content: Any, path: Path, options: Mapping[str, Any]) -> Stored:
    """What a file of the authors' training code holds: a pre-training network, or a classifier.

    ``{"base_model": ...}`` beside optimizer and scores, or a bare state dict, with ``module.`` in front of the names or
    not; tensors of the image network (``clip_model.``) are left out. Sizes are read off names and shapes; how many
    groups, neighbours and heads there are is not told, and taken from ``options``, or to be as published.

    Raises:
        InputError: neither.

    Warns:
        UserWarning: a classifier of ScanObjectNN, of which there are two kinds, and ``options`` do not tell which.
    """
    state = {k: v for k, v in as_state_dict(content, path).items() if not k.startswith(TEACHER_PREFIX)}
    config = _encoder_config(state, path)
    chosen = {name: options[name] for name in _UNTOLD if name in options}
    if any(name.startswith(_HEAD) for name in state):
        return Stored(
            state, "i2p_mae_classifier", _classifier_config(state, config, path, options) | chosen, stated=False
        )
    if any(name.startswith(("rec_head_", "h_decoder.")) for name in state):
        config |= _decoder_config(state, path)
    else:
        config |= {"decoder_dims": ()}
    return Stored(state, "i2p_mae", config | chosen, stated=False)


def classifier_around(whole: Stored) -> Stored:
    """The encoder of a pre-training network as part of a classifier, whose head is left to be drawn."""
    state = {k: v for k, v in whole.state.items() if k.startswith(_ENCODER) and "encoder_norms" not in k}
    kept = ("dims", "depths", "heads", "mlp_ratio", "embed_dim", "groups", "published_groups", "points")
    config = {name: value for name, value in (whole.config or {}).items() if name in kept}
    if whole.stated:  # geo3d's own: of its sizes, not of the published ones
        config |= {name: whole.config[name] for name in ("neighbors", "radii") if name in whole.config}
    return Stored(state, "i2p_mae_classifier", config, whole.stated)


def _encoder_config(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise InputError(f"{path}: not a whole I2P-MAE encoder: it has no {name}")
        return tuple(state[name].shape)

    levels = count_names(state, _ENCODER + "encoder_pos_embeds.{}.0.weight")
    if not levels:
        raise InputError(f"{path}: not an I2P-MAE network: it has no {_ENCODER}encoder_pos_embeds.0.0.weight")
    dims = tuple(shape(f"{_ENCODER}encoder_pos_embeds.{level}.0.weight")[0] for level in range(levels))
    block = _ENCODER + "encoder_blocks.{}.blocks.{}.mlp.fc1.weight"
    depths = tuple(count_names(state, block.replace("{}", str(level), 1)) for level in range(levels))
    return {
        "dims": dims,
        "depths": depths,
        "mlp_ratio": shape(block.format(0, 0))[0] / dims[0],
        "embed_dim": shape(f"{_ENCODER}token_embed.0.first_conv.0.weight")[0],
    }


def _decoder_config(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    names = ("decoder_pos_embeds.0.0.weight", "decoder_pos_embeds.1.0.weight", "rec_head_3d.weight")
    if missing := [name for name in names if name not in state]:
        raise InputError(f"{path}: not a whole I2P-MAE network: it has no {missing[0]}")
    members = state["rec_head_3d.weight"].shape[0] // 3
    features = state["rec_head_2d.weight"].shape[0] if "rec_head_2d.weight" in state else 0
    return {
        "decoder_dims": tuple(state[name].shape[0] for name in names[:2]),
        "decoder_depths": tuple(
            count_names(state, f"h_decoder.{level}.blocks.{{}}.mlp.fc1.weight") for level in range(2)
        ),
        "decoder_residuals": count_names(state, "token_prop.0.extraction.operation.{}.net1.0.weight"),
        "teacher_dim": features // max(1, members * _VIEWS),
        "shape_dim": state["rec_head_shape.weight"].shape[0] if "rec_head_shape.weight" in state else 0,
    }


def _classifier_config(
    state: dict[str, Tensor], config: dict[str, Any], path: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    first, last = (f"{_HEAD}{layer}.weight" for layer in (0, 8))
    if missing := [name for name in (first, last) if name not in state]:
        raise InputError(f"{path}: not a whole I2P-MAE classifier: it has no {missing[0]}")
    classes = state[last].shape[0]
    both = state[first].shape[1] == 2 * config["dims"][-1]
    config |= {"num_classes": classes, "pooling": "both" if both else "sum"}
    config |= _FINE_TUNED.get(classes, _FINE_TUNED[_SCAN_CLASSES if both else 40])
    if classes == _SCAN_CLASSES and "radii" not in options:
        warnings.warn(
            f"{path}: its weights do not tell all of the network: its {classes} classes are taken for those of "
            "ScanObjectNN's OBJ-BG and OBJ-ONLY, so radii=(0.32, 0.64, 1.28); give radii=(0.48, 0.96, 1.92) if it was "
            "trained on the hardest split (PB_T50_RS)",
            stacklevel=6,
        )
    return config


__all__ = ["TEACHER_PREFIX", "classifier_around", "read_i2p_mae"]
